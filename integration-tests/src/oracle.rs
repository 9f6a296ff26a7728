//! Lines that prove themselves: `{run}|{writer}|{seq}|{len}|{crc32c}|{payload}`, where the payload is a function of the
//! first three. So a judge who reads the index knows of each line whether it was written, and whether it is whole.

mod judge;

#[cfg(test)]
pub(crate) use judge::id_of;
pub use judge::{Found, Judge, Verdict, judge};

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

/// The run, writer and number that a line says it is; `None` if it is none of ours.
pub fn identify(message: &[u8]) -> Option<(u32, u32, u64)> {
    let mut parts = message.split(|byte| *byte == b'|').map(|part| std::str::from_utf8(part).ok());
    Some((parts.next()??.parse().ok()?, parts.next()??.parse().ok()?, parts.next()??.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_line() {
        for seq in 0..2_000 {
            let line = line(7, 1, seq);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert!(!line.ends_with(b"\r\n"));
            assert_eq!(identify(&line), Some((7, 1, seq)));
        }
    }
}
