//! Cuts bytes into events.
//!
//! Framing is a function of the bytes that follow an event's boundary and of nothing else: not of how they came in
//! reads, nor of how much credit there was, nor of time. Where time has to decide, the decision becomes a *cut*, kept in
//! the state, and the bytes before it are framed as if the file ended there. So a range that is read again is cut the
//! same way.

use logmesh_types::limits::{MAX_CHUNK_EVENTS, MAX_EVENT_BYTES};
use regex::bytes::Regex;

/// What decides how a rule's files are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FramingSpec {
    /// A regular expression: each line that matches begins an event. `None`: each line is an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_pattern: Option<String>,
}

/// The largest compiled size of a start pattern, in bytes: it comes from the centre.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// A compiled [`FramingSpec`].
#[derive(Debug, Clone)]
pub(crate) enum Framing {
    Lines,
    Multiline(Regex),
}

impl Framing {
    /// Compiles; an error says what is wrong with the pattern.
    pub(crate) fn new(spec: &FramingSpec) -> Result<Self, String> {
        match spec.start_pattern.as_deref() {
            None | Some("") => Ok(Self::Lines),
            Some(pattern) => regex::bytes::RegexBuilder::new(pattern)
                .size_limit(MAX_PATTERN_BYTES)
                .build()
                .map(Self::Multiline)
                .map_err(|e| e.to_string()),
        }
    }
}

/// What follows the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// More of the file, now or later.
    Open,
    /// A cut: what comes after belongs to other events.
    Cut,
}

/// How much to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Stop before an event that begins at or after so many bytes.
    pub bytes: usize,
    /// The most events.
    pub events: usize,
}

impl Room {
    /// As much as a chunk holds.
    #[cfg(test)]
    pub(crate) const CHUNK: Self = Self { bytes: usize::MAX, events: MAX_CHUNK_EVENTS };
}

/// Whole events at the start of the bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Framed {
    /// So many bytes are whole events; 0: no event is complete.
    pub bytes: usize,
    /// How many events.
    pub events: usize,
    /// Their lengths, unless each is one line that ends in LF.
    pub lengths: Option<Vec<u32>>,
    /// How many lines, begun ones too: what a pace in lines counts.
    pub lines: usize,
}

/// Frames `data`, which begins at an event's boundary and is at most [`MAX_EVENT_BYTES`] long.
pub(crate) fn frame(framing: &Framing, data: &[u8], end: End, room: Room) -> Framed {
    debug_assert!(data.len() <= MAX_EVENT_BYTES);
    let room = Room { bytes: room.bytes.max(1), events: room.events.clamp(1, MAX_CHUNK_EVENTS) };
    match framing {
        Framing::Lines => frame_lines(data, end, room),
        Framing::Multiline(pattern) => frame_multiline(pattern, data, end, room),
    }
}

/// True if the first event of `data` continues the one before it. `previous` is the byte before `data`.
pub(crate) fn continues(framing: &Framing, previous: Option<u8>, data: &[u8]) -> bool {
    let Some(previous) = previous else { return false };
    match framing {
        _ if previous != b'\n' => true,
        Framing::Lines => false,
        Framing::Multiline(pattern) => !pattern.is_match(content(&data[..first_line(data)])),
    }
}

fn frame_lines(data: &[u8], end: End, room: Room) -> Framed {
    let within = &data[..room.bytes.min(data.len())];
    let last = memchr::memrchr(b'\n', within)
        .or_else(|| memchr::memchr(b'\n', &data[within.len()..]).map(|at| within.len() + at));
    let Some(last) = last else { return rest_of_line(data, end) };
    let lines = &data[..=last];
    let events = memchr::memchr_iter(b'\n', lines).count();
    if events <= room.events {
        return Framed { bytes: lines.len(), events, lengths: None, lines: events };
    }
    let bytes = memchr::memchr_iter(b'\n', lines).nth(room.events - 1).map_or(0, |at| at + 1);
    Framed { bytes, events: room.events, lengths: None, lines: room.events }
}

/// No line ends in `data`: it is an event only if it's as long as one may be, or if it is cut here.
fn rest_of_line(data: &[u8], end: End) -> Framed {
    let whole = !data.is_empty() && (end == End::Cut || data.len() >= MAX_EVENT_BYTES);
    if whole { single(data.len(), 1) } else { Framed::default() }
}

fn single(bytes: usize, lines: usize) -> Framed {
    Framed { bytes, events: 1, lengths: Some(vec![bytes as u32]), lines }
}

fn frame_multiline(pattern: &Regex, data: &[u8], end: End, room: Room) -> Framed {
    // A cut behind so many bytes was made after they had been framed as any others.
    let end = if data.len() >= MAX_EVENT_BYTES { End::Open } else { end };
    let mut framed = Framed::default();
    let mut lengths = Vec::new();
    let mut line_start = 0;
    let mut lines = 0;
    let mut taken_lines = 0;
    // An event is known to be whole when the next one's first line is there, whole itself.
    while line_start < data.len() {
        let line_end = line_start + first_line(&data[line_start..]);
        let complete = data[line_end - 1] == b'\n';
        if !complete && end == End::Open {
            break;
        }
        if line_start > framed.bytes && pattern.is_match(content(&data[line_start..line_end])) {
            lengths.push((line_start - framed.bytes) as u32);
            framed.bytes = line_start;
            taken_lines = lines;
            if lengths.len() >= room.events || framed.bytes >= room.bytes {
                return finish(framed, lengths, taken_lines);
            }
        }
        lines += 1;
        line_start = line_end;
    }
    if end == End::Cut && data.len() > framed.bytes {
        lengths.push((data.len() - framed.bytes) as u32);
        framed.bytes = data.len();
        taken_lines = lines;
    } else if lengths.is_empty() && data.len() >= MAX_EVENT_BYTES {
        // Too long to be one event: cut after the last whole line, or in the middle of the only one.
        return single(if line_start > 0 { line_start } else { data.len() }, lines.max(1));
    }
    finish(framed, lengths, taken_lines)
}

fn finish(mut framed: Framed, lengths: Vec<u32>, lines: usize) -> Framed {
    framed.events = lengths.len();
    framed.lines = lines;
    framed.lengths = (!lengths.is_empty()).then_some(lengths);
    framed
}

/// The length of the first line with its LF, or of all if no line ends.
fn first_line(data: &[u8]) -> usize {
    memchr::memchr(b'\n', data).map_or(data.len(), |at| at + 1)
}

/// A line without its LF or CRLF.
fn content(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn multiline() -> Framing {
        Framing::new(&FramingSpec { start_pattern: Some(r"^\d".into()) }).unwrap()
    }

    /// Frames all of `data` as a reader does that gets `read(n)` bytes at its n-th read.
    fn events(framing: &Framing, data: &[u8], end: End, mut read: impl FnMut() -> usize, room: Room) -> Vec<usize> {
        let (mut at, mut visible, mut ends) = (0, 0, Vec::new());
        loop {
            let whole = visible == data.len();
            let window = &data[at..visible.min(at + MAX_EVENT_BYTES)];
            let final_window = whole && at + window.len() == data.len();
            let framed = frame(framing, window, if final_window { end } else { End::Open }, room);
            if framed.bytes == 0 && whole {
                return ends;
            }
            match &framed.lengths {
                Some(lengths) => ends.extend(lengths.iter().scan(at, |sum, n| {
                    *sum += *n as usize;
                    Some(*sum)
                })),
                None => ends.extend(memchr::memchr_iter(b'\n', &window[..framed.bytes]).map(|i| at + i + 1)),
            }
            at += framed.bytes;
            visible = (visible + read().max(1)).min(data.len());
        }
    }

    #[test]
    fn lines_end_at_lf_and_empty_lines_count() {
        let framed = frame(&Framing::Lines, b"a\r\n\nbc\nrest", End::Open, Room::CHUNK);
        assert_eq!(framed, Framed { bytes: 7, events: 3, lengths: None, lines: 3 });
        assert_eq!(frame(&Framing::Lines, b"rest", End::Open, Room::CHUNK), Framed::default());
        assert_eq!(frame(&Framing::Lines, b"rest", End::Cut, Room::CHUNK).lengths, Some(vec![4]));
        assert_eq!(frame(&Framing::Lines, b"", End::Cut, Room::CHUNK), Framed::default());
    }

    #[test]
    fn room_is_kept_but_one_event_always_goes() {
        let framed = frame(&Framing::Lines, b"aaaa\nbb\ncc\n", End::Open, Room { bytes: 1, events: 9 });
        assert_eq!(framed.bytes, 5);
        let framed = frame(&Framing::Lines, b"a\nb\nc\n", End::Open, Room { bytes: 99, events: 2 });
        assert_eq!((framed.bytes, framed.events), (4, 2));
        let framed = frame(&multiline(), b"1a\n b\n2\n3\n4", End::Open, Room { bytes: 1, events: 9 });
        assert_eq!((framed.bytes, framed.events, framed.lines), (6, 1, 2));
    }

    #[test]
    fn multiline_joins_until_the_next_start() {
        let data = b" head\n1a\n b\r\n\n2c\n3d";
        let framed = frame(&multiline(), data, End::Open, Room::CHUNK);
        assert_eq!(framed.lengths, Some(vec![6, 8]));
        assert_eq!(framed.lines, 4);
        let framed = frame(&multiline(), data, End::Cut, Room::CHUNK);
        assert_eq!(framed.lengths, Some(vec![6, 8, 3, 2]));
    }

    #[test]
    fn a_long_line_is_split_at_fixed_places() {
        let mut data = vec![b'x'; 2 * MAX_EVENT_BYTES + 10];
        data.push(b'\n');
        for framing in [Framing::Lines, multiline()] {
            let ends = events(&framing, &data, End::Cut, || 300_000, Room::CHUNK);
            assert_eq!(ends, [MAX_EVENT_BYTES, 2 * MAX_EVENT_BYTES, data.len()]);
        }
    }

    #[test]
    fn an_endless_multiline_event_is_cut_after_a_line() {
        let data = b" 234567\n".repeat(MAX_EVENT_BYTES / 8 + 3);
        let ends = events(&multiline(), &data, End::Cut, || 99_999, Room::CHUNK);
        assert_eq!(ends, [MAX_EVENT_BYTES, data.len()]);
        let data = b" 23456789\n".repeat(MAX_EVENT_BYTES / 10 + 3);
        let ends = events(&multiline(), &data, End::Cut, || 99_999, Room::CHUNK);
        assert_eq!(ends, [MAX_EVENT_BYTES / 10 * 10, data.len()]);
    }

    #[test]
    fn continuations_are_told_by_the_bytes() {
        assert!(!continues(&Framing::Lines, None, b"a\n"));
        assert!(!continues(&Framing::Lines, Some(b'\n'), b"a\n"));
        assert!(continues(&Framing::Lines, Some(b'a'), b"a\n"));
        assert!(continues(&multiline(), Some(b'\n'), b" a\n"));
        assert!(!continues(&multiline(), Some(b'\n'), b"1a\n"));
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        assert!(Framing::new(&FramingSpec { start_pattern: Some("(".into()) }).is_err());
        assert!(Framing::new(&FramingSpec { start_pattern: Some(r"(\w{1000}){1000}".into()) }).is_err());
    }

    proptest! {
        /// Any split of the bytes into reads, and any room, gives the same events.
        #[test]
        fn framing_depends_on_bytes_alone(
            pieces in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "1", "ab", " x\n", "2b\n", "7"]), 0..60),
            reads in prop::collection::vec(1usize..40, 1..40),
            bytes in 1usize..50,
            number in 1usize..5,
            cut: bool,
        ) {
            let data = pieces.concat().into_bytes();
            let end = if cut { End::Cut } else { End::Open };
            for framing in [Framing::Lines, multiline()] {
                let whole = events(&framing, &data, end, || usize::MAX / 2, Room::CHUNK);
                let mut turn = reads.iter().cycle();
                let split = events(&framing, &data, end, || *turn.next().unwrap(), Room { bytes, events: number });
                prop_assert_eq!(whole, split);
            }
        }
    }
}
