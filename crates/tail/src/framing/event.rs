//! Events line by line: joined by a pattern or by a container's runtime, in two-byte units, or longer than they may be.

use std::borrow::Cow;

use logmesh_text::Charset;
use logmesh_text::container::{self, Iostream};

use super::{End, Framed, Framing, Joining, Room, Window};

/// How many lines back the unfinished line is sought that a container's line may continue.
const LINES_BACK: usize = 16;

/// The first event of some bytes.
enum Event {
    Whole(Whole),
    /// It has no end yet.
    Unfinished,
    /// A line longer than an event may be, of which only so many bytes are to be sent.
    Long(usize),
}

struct Whole {
    bytes: usize,
    lines: usize,
    /// Of a container's lines, how many its format doesn't read.
    garbled: usize,
    /// It was ended by its size.
    split: bool,
    /// It ended as its kind of events does: only another iostream's unfinished line can go on in the next one.
    complete: bool,
    /// Whether it goes on with the last line of its iostream, if that is known.
    before: Option<bool>,
}

/// The last lines of a container, so that not every event needs a look back at them.
#[derive(Default)]
struct Recent {
    lines: usize,
    /// By iostream: the number of its last line, and whether that was partial.
    last: [Option<(usize, bool)>; 2],
}

impl Recent {
    fn note(&mut self, line: &Line<'_>) {
        if let Some(iostream) = line.iostream {
            self.last[iostream as usize] = Some((self.lines, line.partial));
        }
        self.lines += 1;
    }

    /// True if the next line of an iostream goes on with the last one of it; `None`: that isn't known.
    fn is_open(&self, iostream: Option<Iostream>) -> Option<bool> {
        let Some(iostream) = iostream else { return Some(false) };
        match self.last[iostream as usize] {
            Some((number, partial)) => Some(partial && self.lines - number <= LINES_BACK),
            None => (self.lines >= LINES_BACK).then_some(false),
        }
    }
}

/// What a line says about where events end.
struct Line<'a> {
    /// `None`: not a container's.
    iostream: Option<Iostream>,
    /// The line goes on in the next one of its `iostream`.
    partial: bool,
    /// It should be a container's, and isn't, or its text is no text.
    garbled: bool,
    /// What a pattern sees: UTF-8, unwrapped, without terminator. Empty if there is no pattern.
    text: Cow<'a, [u8]>,
}

impl Framing {
    fn line<'a>(&self, charset: Charset, line: &'a [u8], offset: u64) -> Line<'a> {
        let wrapped = if self.container { container::unwrap(line) } else { None };
        if let Some(wrapped) = wrapped {
            let mut text = wrapped.text;
            let garbled = !is_text(&text, wrapped.partial);
            if let (Some(b'\r'), Joining::End(_)) = (text.last(), &self.joining) {
                text.to_mut().pop();
            }
            return Line { iostream: Some(wrapped.iostream), partial: wrapped.partial, garbled, text };
        }
        let text = match self.joining {
            Joining::None => Cow::default(),
            _ if charset.is_utf8() => Cow::Borrowed(charset.content(line, offset)),
            _ => decoded(charset, line, offset),
        };
        Line { iostream: None, partial: false, garbled: self.container, text }
    }

    /// True if `line` belongs to the event that has `before` as its last line so far.
    fn joins(&self, before: &Line<'_>, line: &Line<'_>) -> bool {
        before.iostream == line.iostream
            && (before.partial
                || match &self.joining {
                    Joining::None => false,
                    Joining::Start(pattern) => !pattern.is_match(&line.text),
                    Joining::Continue(pattern) => pattern.is_match(&line.text),
                    Joining::End(_) => true,
                })
    }

    /// True if an event ends with `line`, whatever comes after it.
    fn ends(&self, line: &Line<'_>) -> bool {
        !line.partial
            && match &self.joining {
                Joining::None => true,
                Joining::End(pattern) => pattern.is_match(&line.text),
                Joining::Start(_) | Joining::Continue(_) => false,
            }
    }
}

/// True for UTF-8. What runtimes break a line into may begin and end within a character.
fn is_text(text: &[u8], partial: bool) -> bool {
    let is_rest = |byte: &u8| (0x80..0xC0).contains(byte);
    let rest = text.iter().take(3).take_while(|byte| is_rest(byte)).count();
    match std::str::from_utf8(&text[rest..]) {
        Ok(_) => true,
        Err(error) => partial && error.error_len().is_none(),
    }
}

fn decoded(charset: Charset, line: &[u8], offset: u64) -> Cow<'_, [u8]> {
    match charset.decode(charset.content(line, offset), offset).0 {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// As [`super::frame`].
pub(super) fn frame(framing: &Framing, window: Window<'_>, room: Room) -> Framed {
    let mut framed = Framed::default();
    let mut lengths = Vec::new();
    // What lies before the first event isn't known without a look.
    let mut complete = false;
    let mut recent = Recent::default();
    let total = window.bytes.len() - window.at;
    while framed.bytes < total.min(room.bytes) && lengths.len() < room.events {
        let rest = Window { at: window.at + framed.bytes, offset: window.offset + framed.bytes as u64, ..window };
        let whole = match event(framing, rest, &mut recent) {
            Event::Whole(whole) => whole,
            Event::Unfinished => break,
            Event::Long(kept) if lengths.is_empty() => {
                framed.long = Some(kept);
                break;
            }
            Event::Long(_) => break,
        };
        let known = if complete { whole.before } else { None };
        if known.unwrap_or_else(|| continues(framing, rest, whole.bytes)) {
            framed.continuations.push(lengths.len() as u32);
        }
        complete = whole.complete;
        lengths.push(whole.bytes as u32);
        framed.bytes += whole.bytes;
        framed.lines += whole.lines;
        framed.split += usize::from(whole.split);
        framed.garbled += whole.garbled;
    }
    if framed.long.is_some_and(|kept| continues(framing, window, kept)) {
        framed.continuations.push(0);
    }
    framed.events = lengths.len();
    framed.lengths = (!lengths.is_empty()).then_some(lengths);
    framed
}

/// The first event after the boundary: a function of as many bytes as an event may have, and of a cut before their end.
fn event(framing: &Framing, window: Window<'_>, recent: &mut Recent) -> Event {
    let data = &window.bytes[window.at..];
    let full = data.len() >= framing.most;
    let data = &data[..data.len().min(framing.most)];
    let (mut bytes, mut lines, mut garbled) = (0, 0, 0);
    let mut last: Option<Line<'_>> = None;
    let mut before = None;
    let whole =
        |bytes, lines, garbled, before, complete| Whole { bytes, lines, garbled, split: false, complete, before };
    while bytes < data.len() {
        let rest = &data[bytes..];
        let offset = window.offset + bytes as u64;
        let end = window.charset.line_end(rest, offset);
        if end.is_none() && full {
            if bytes > 0 {
                // This line doesn't fit.
                return Event::Whole(Whole { split: true, ..whole(bytes, lines, garbled, before, false) });
            }
            // A piece is no line that could be counted.
            *recent = Recent::default();
            let kept = window.charset.whole_characters(rest, offset);
            return match framing.cut {
                true => Event::Long(kept),
                false => Event::Whole(Whole { split: true, ..whole(kept, 1, 0, None, false) }),
            };
        }
        if end.is_none() && window.end == End::Open {
            return Event::Unfinished;
        }
        let line = &rest[..end.unwrap_or(rest.len())];
        let this = framing.line(window.charset, line, offset);
        match &last {
            None => before = recent.is_open(this.iostream),
            Some(last) if !framing.joins(last, &this) => {
                let complete = !last.partial && last.iostream == this.iostream;
                return Event::Whole(whole(bytes, lines, garbled, before, complete));
            }
            Some(_) => {}
        }
        recent.note(&this);
        bytes += line.len();
        lines += 1;
        garbled += usize::from(this.garbled);
        if end.is_some() && framing.ends(&this) {
            return Event::Whole(whole(bytes, lines, garbled, before, true));
        }
        last = Some(this);
    }
    // Behind a cut or a full event there is more of it, perhaps.
    match bytes > 0 && (full || window.end == End::Cut) {
        true => Event::Whole(Whole { split: full, ..whole(bytes, lines, garbled, before, false) }),
        false => Event::Unfinished,
    }
}

/// True if the event after the boundary, of this length, continues the one before: told by the bytes, so that it is told
/// alike when they are read again.
fn continues(framing: &Framing, window: Window<'_>, length: usize) -> bool {
    let Window { bytes, at, offset, charset, .. } = window;
    let before = &bytes[..at];
    if before.is_empty() {
        return false;
    }
    if !charset.ends_line(before, offset - at as u64) {
        return true;
    }
    let event = &bytes[at..at + length];
    let first = &event[..charset.line_end(event, offset).unwrap_or(event.len())];
    let first = framing.line(charset, first, offset);
    let joined = match &framing.joining {
        Joining::None => false,
        Joining::Start(pattern) => !pattern.is_match(&first.text),
        Joining::Continue(pattern) => pattern.is_match(&first.text),
        Joining::End(_) => lines_before(framing, window)
            .next()
            .is_some_and(|last| last.iostream == first.iostream && !framing.ends(&last)),
    };
    // A piece of a line goes on where its iostream does, with lines of the other one between them, perhaps.
    let of_its_own = |line: &Line<'_>| line.iostream == first.iostream;
    joined || (framing.container && lines_before(framing, window).find(of_its_own).is_some_and(|last| last.partial))
}

/// The lines before the boundary, the last one first; the bytes before it end a line.
fn lines_before<'a>(framing: &'a Framing, window: Window<'a>) -> impl Iterator<Item = Line<'a>> {
    let start = window.offset - window.at as u64;
    let feed = if window.charset.is_utf16() { 2 } else { 1 };
    let mut rest = &window.bytes[..window.at];
    let lines = std::iter::from_fn(move || {
        let body = &rest[..rest.len().checked_sub(feed)?];
        let from = window.charset.last_line_end(body, start).unwrap_or(0);
        let line = framing.line(window.charset, &rest[from..], start + from as u64);
        rest = &rest[..from];
        Some(line)
    });
    lines.take(LINES_BACK)
}
