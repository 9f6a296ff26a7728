//! Lines that prove themselves: `{run}|{writer}|{seq}|{len}|{crc32c}|{payload}`, where the payload is a function of the
//! first three. So a judge who reads the index knows of each line whether it was written, and whether it is whole.

use std::collections::HashMap;

use serde_json::Value;

use crate::compare::message_of;

/// Lengths of ordinary payloads, in turn.
const LENGTHS: [usize; 8] = [80, 120, 0, 1, 300, 80, 200, 40];

/// Every so many lines comes one of each strange kind.
const ROUND: u64 = 61;

/// A line, its terminator included.
pub fn line(run: u32, writer: u32, seq: u64) -> Vec<u8> {
    let payload = payload(run, writer, seq);
    let mut line = format!("{run}|{writer}|{seq}|{}|{:08x}|", payload.len(), crc32c::crc32c(&payload)).into_bytes();
    line.extend(payload);
    line.push(b'\n');
    line
}

/// Bytes as logs hold them, and as they shouldn't: never a line feed, never a carriage return at the end, and no NUL, since
/// a file that begins with one isn't taken for a log.
fn payload(run: u32, writer: u32, seq: u64) -> Vec<u8> {
    let mut state = (u64::from(run) << 40) ^ (u64::from(writer) << 32) ^ seq;
    let mut printable = |length| (0..length).map(|_| b' ' + (splitmix64(&mut state) % 95) as u8).collect();
    let mut bytes: Vec<u8> = match seq % ROUND {
        0 => (1..=255).collect(),
        1 => b"<script>alert(1)</script>\x1b[31m red \x1b[0m\x01 {\"a\": [1, \"".to_vec(),
        2 => "e\u{301}\u{301}\u{301} \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{feff}".repeat(8).into_bytes(),
        // Around the size of a page, as buffers are.
        near @ 3..=5 => printable(4_092 + near as usize),
        _ => printable(LENGTHS[seq as usize % LENGTHS.len()]),
    };
    bytes.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
    if let Some(last @ b'\r') = bytes.last_mut() {
        *last = b' ';
    }
    bytes
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What the judge found. All but `judged` should be 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Lines that had to be there.
    pub judged: u64,
    /// Of those, without a document.
    pub lost: u64,
    /// Documents beyond the first of a line.
    pub doubled: u64,
    /// Documents whose text isn't the line that they say they are.
    pub corrupt: u64,
    /// Documents of lines that nobody wrote.
    pub spurious: u64,
    /// Neighbours in a stream whose offsets and numbers run against each other.
    pub disordered: u64,
}

impl Verdict {
    /// Panics unless nothing is wrong.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(*self, Self { judged: self.judged, ..Self::default() });
    }
}

/// Judges the documents of a run. `written[w]` is how many lines writer `w` has finished, from 0.
pub fn judge(run: u32, written: &[u64], documents: &[Value]) -> Verdict {
    let mut verdict = Verdict { judged: written.iter().sum(), ..Verdict::default() };
    let mut seen: HashMap<(u32, u64), u64> = HashMap::new();
    let mut streams: HashMap<(&str, u32), Vec<(u64, u64)>> = HashMap::new();
    for document in documents {
        let message = message_of(document);
        let Some((found_run, writer, seq)) = identify(&message) else {
            verdict.corrupt += 1;
            continue;
        };
        let whole = line(found_run, writer, seq);
        if whole[..whole.len() - 1] != message[..] {
            verdict.corrupt += 1;
        } else if found_run != run || written.get(writer as usize).is_none_or(|count| seq >= *count) {
            verdict.spurious += 1;
        } else {
            *seen.entry((writer, seq)).or_default() += 1;
            let stream = document["logmesh.stream"].as_str().unwrap_or_default();
            let offset = document["logmesh.offset"].as_u64().unwrap_or_default();
            streams.entry((stream, writer)).or_default().push((offset, seq));
        }
    }
    verdict.lost = verdict.judged - seen.len() as u64;
    verdict.doubled = seen.values().map(|count| count - 1).sum();
    verdict.disordered = streams.values_mut().map(|events| disorder(events)).sum();
    verdict
}

/// The run, writer and number that a line says it is; `None` if it is none of ours.
pub fn identify(message: &[u8]) -> Option<(u32, u32, u64)> {
    let mut parts = message.split(|byte| *byte == b'|').map(|part| std::str::from_utf8(part).ok());
    Some((parts.next()??.parse().ok()?, parts.next()??.parse().ok()?, parts.next()??.parse().ok()?))
}

fn disorder(events: &mut [(u64, u64)]) -> u64 {
    events.sort_unstable();
    events.windows(2).filter(|pair| pair[0].1 > pair[1].1).count() as u64
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use serde_json::json;

    use super::*;

    fn document(line: &[u8], offset: u64) -> Value {
        json!({"event.original_base64": BASE64.encode(line), "logmesh.stream": "s", "logmesh.offset": offset})
    }

    #[test]
    fn every_line_is_one_line() {
        for seq in 0..2_000 {
            let line = line(7, 1, seq);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(!line.ends_with(b"\r\n"));
            assert_eq!(identify(&line), Some((7, 1, seq)));
        }
    }

    #[test]
    fn the_judge_sees_each_kind_of_fault() {
        let good: Vec<Value> = (0..3).map(|seq| document(&line(7, 0, seq), seq)).collect();
        judge(7, &[3], &good).assert_clean();
        assert_eq!(judge(7, &[4], &good).lost, 1);
        assert_eq!(judge(7, &[2], &good).spurious, 1);
        let twice = [good.clone(), vec![good[1].clone()]].concat();
        assert_eq!(judge(7, &[3], &twice).doubled, 1);
        let cut = [vec![document(&line(7, 0, 0)[..30], 0)], good[1..].to_vec()].concat();
        let verdict = judge(7, &[3], &cut);
        assert_eq!((verdict.corrupt, verdict.lost), (1, 1));
        let swapped = [document(&line(7, 0, 1), 0), document(&line(7, 0, 0), 1)];
        assert_eq!(judge(7, &[2], &swapped).disordered, 1);
    }
}
