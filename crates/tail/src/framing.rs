//! Cuts bytes into events.
//!
//! Framing is a function of the bytes that follow an event's boundary and of nothing else: not of how they came in
//! reads, nor of how much credit there was, nor of time. Where time has to decide, the decision becomes a *cut*, kept in
//! the state, and the bytes before it are framed as if the file ended there. So a range that is read again is cut the
//! same way. An event is decided by the [`FramingSpec::max_event_bytes`] after its boundary, or it is a long line.
//!
//! Plain lines are found here, without looking at each; all else in [`event`].

mod event;
#[cfg(test)]
mod tests;

use logmesh_text::{Charset, pattern};
use logmesh_types::limits::{MAX_CHUNK_EVENTS, MAX_EVENT_BYTES};
use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

/// What decides how a rule's files are cut and read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FramingSpec {
    /// Which lines belong together. `None`: each line is an event.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// How long an event may be, terminators included; at most `limits::MAX_EVENT_BYTES`.
    #[serde(default = "longest", skip_serializing_if = "is_longest")]
    pub max_event_bytes: usize,
    /// Of a longer line only the start is sent, instead of all of it in several events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// The lines are what container runtimes write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub container: bool,
    /// The label of the files' encoding. `None`: UTF-8, or what a file's byte-order mark says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

/// A regular expression that says which lines belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// A line that matches begins an event.
    #[serde(rename = "start_pattern")]
    Start(String),
    /// A line that matches belongs to the event before it.
    #[serde(rename = "continue_pattern")]
    Continue(String),
    /// A line that matches ends an event.
    #[serde(rename = "end_pattern")]
    End(String),
}

fn longest() -> usize {
    MAX_EVENT_BYTES
}

fn is_longest(bytes: &usize) -> bool {
    *bytes == MAX_EVENT_BYTES
}

impl Default for FramingSpec {
    fn default() -> Self {
        Self { pattern: None, max_event_bytes: MAX_EVENT_BYTES, cut: false, container: false, encoding: None }
    }
}

impl Pattern {
    /// The name of the field in a rule, and the text.
    fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Start(text) => ("multiline.start_pattern", text),
            Self::Continue(text) => ("multiline.continue_pattern", text),
            Self::End(text) => ("multiline.end_pattern", text),
        }
    }
}

/// Which lines belong together, compiled.
#[derive(Debug, Clone)]
enum Joining {
    None,
    Start(Regex),
    Continue(Regex),
    End(Regex),
}

/// A compiled [`FramingSpec`].
#[derive(Debug, Clone)]
pub(crate) struct Framing {
    joining: Joining,
    most: usize,
    cut: bool,
    pub container: bool,
    charset: Option<Charset>,
}

impl Default for Framing {
    fn default() -> Self {
        Self { joining: Joining::None, most: MAX_EVENT_BYTES, cut: false, container: false, charset: None }
    }
}

impl Framing {
    /// Compiles; an error gives the field at fault and what is wrong with it.
    pub(crate) fn new(spec: &FramingSpec) -> Result<Self, (&'static str, String)> {
        let joining = match &spec.pattern {
            None => Joining::None,
            Some(found) => {
                let (field, text) = found.parts();
                let regex = pattern(text).map_err(|error| (field, error))?;
                match found {
                    Pattern::Start(_) => Joining::Start(regex),
                    Pattern::Continue(_) => Joining::Continue(regex),
                    Pattern::End(_) => Joining::End(regex),
                }
            }
        };
        let charset = match spec.encoding.as_deref() {
            None => None,
            Some(label) => {
                Some(Charset::for_label(label).ok_or_else(|| ("encoding", format!("{label:?} is no encoding")))?)
            }
        };
        let most = spec.max_event_bytes.clamp(1, MAX_EVENT_BYTES);
        Ok(Self { joining, most, cut: spec.cut, container: spec.container, charset })
    }

    /// The encoding of a file that begins with these bytes.
    pub(crate) fn charset_of(&self, head: &[u8]) -> Charset {
        match self.charset {
            // Which of the two, a mark knows better.
            Some(charset) if charset.is_utf16() => {
                Charset::of_mark(head).filter(|marked| marked.is_utf16()).unwrap_or(charset)
            }
            Some(charset) => charset,
            // Runtimes write UTF-8 and no mark.
            None if self.container => Charset::UTF_8,
            None => Charset::of_mark(head).unwrap_or(Charset::UTF_8),
        }
    }

    /// How many bytes before an event tell whether it continues the one before: the last line, as a runtime writes it,
    /// or of another line that ends an event as much of its end as that.
    pub(crate) fn look_back(&self) -> usize {
        if self.container || matches!(self.joining, Joining::End(_)) { 128 << 10 } else { 2 }
    }

    /// The most bytes of one event.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// True if nothing but each line's end needs to be found.
    fn is_plain(&self, charset: Charset) -> bool {
        matches!(self.joining, Joining::None) && !self.container && !charset.is_utf16()
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

/// Bytes of a stream, to be framed from an event's boundary on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window<'a> {
    /// The bytes, with some from before the boundary if there are any: see [`Framing::look_back`].
    pub bytes: &'a [u8],
    /// Where the boundary lies in `bytes`; at most [`MAX_EVENT_BYTES`] follow.
    pub at: usize,
    /// The offset of the boundary in the stream.
    pub offset: u64,
    pub charset: Charset,
    pub end: End,
}

/// How much to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Stop before an event that begins at or after so many bytes.
    pub bytes: usize,
    /// The most events.
    pub events: usize,
}

/// Whole events at the start of the bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Framed {
    /// So many bytes are whole events; 0: no event is complete.
    pub bytes: usize,
    /// How many events.
    pub events: usize,
    /// Their lengths, unless each is one line that ends in the byte LF.
    pub lengths: Option<Vec<u32>>,
    /// Which of them continue the one before.
    pub continuations: Vec<u32>,
    /// How many lines, begun ones too: what a pace in lines counts.
    pub lines: usize,
    /// How many events were ended by their size.
    pub split: usize,
    /// How many lines the container format or the encoding can't read.
    pub garbled: usize,
    /// The first event is a line longer than an event may be, of which so many bytes are to be sent.
    pub long: Option<usize>,
}

/// Frames a window.
pub(crate) fn frame(framing: &Framing, window: Window<'_>, room: Room) -> Framed {
    let data = &window.bytes[window.at..];
    debug_assert!(data.len() <= MAX_EVENT_BYTES);
    let room = Room { bytes: room.bytes.max(1), events: room.events.clamp(1, MAX_CHUNK_EVENTS) };
    let plain = framing.is_plain(window.charset).then(|| plain_lines(data, framing.most, room)).flatten();
    let mut framed = match plain {
        None => event::frame(framing, window, room),
        Some(mut framed) => {
            if window.at > 0 && window.bytes[window.at - 1] != b'\n' {
                framed.continuations.push(0);
            }
            framed
        }
    };
    if !framing.container {
        framed.garbled = window.charset.garbled_lines(&data[..framed.bytes], window.offset);
    }
    framed
}

/// Lines that end in LF. `None`: there is none, or one is too long.
fn plain_lines(data: &[u8], most: usize, room: Room) -> Option<Framed> {
    let within = &data[..room.bytes.min(data.len())];
    let last = memchr::memrchr(b'\n', within)
        .or_else(|| memchr::memchr(b'\n', &data[within.len()..]).map(|at| within.len() + at))?;
    let lines = &data[..=last];
    if lines.len() > most && is_any_longer(lines, most) {
        return None;
    }
    let mut bytes = lines.len();
    let mut events = memchr::memchr_iter(b'\n', lines).count();
    if events > room.events {
        events = room.events;
        bytes = memchr::memchr_iter(b'\n', lines).nth(events - 1).map_or(0, |at| at + 1);
    }
    Some(Framed { bytes, events, lines: events, ..Framed::default() })
}

fn is_any_longer(lines: &[u8], most: usize) -> bool {
    let mut start = 0;
    memchr::memchr_iter(b'\n', lines).any(|at| at + 1 - std::mem::replace(&mut start, at + 1) > most)
}
