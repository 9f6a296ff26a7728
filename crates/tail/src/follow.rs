//! One file that is followed: where it is read, what of it is on its way, and by whom it is owned.
//!
//! Invariants: `start <= acked <= read`; `flight` holds exactly the chunks of `[acked, read)`, in order, unless the
//! process was started anew; `tail` is what lay before `read` when it was read.

mod again;
mod read;
mod written;

pub use again::{Again, NotAgain, NotAgainCause, Recall};
pub(crate) use read::{HEAD_BYTES, packer_of};
pub(crate) use written::Written;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use logmesh_text::Charset;
use logmesh_types::limits::MAX_EVENT_BYTES;
use logmesh_types::{AgentId, StreamId, UnixNanos};

use crate::chunk::{Chunk, Source};
use crate::framing::Framing;
use crate::pace::Rate;
use crate::pool::BUFFERS;
use crate::state::{Assignment, Guard, Past, Record};

/// How far back the start of the last line is sought when a file is read from its end.
const LAST_LINE_BYTES: u64 = 64 * 1024;

/// How many bytes of a file tell its byte-order mark.
const MARK_BYTES: usize = 3;

/// The steps in which the bound on what may have been sent is raised: a commit for so many bytes costs little.
const SENT_STEP: u64 = 16 << 20;

/// The most ends of chunks that are remembered.
const MAX_MARKS: usize = 16;

/// A chunk that isn't acked, and the guard for its end.
#[derive(Debug)]
pub(crate) struct Sent {
    pub chunk: Chunk,
    pub guard: Guard,
}

/// What chunks take in memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held {
    pub bytes: u64,
    pub chunks: usize,
}

impl Held {
    fn add(&mut self, chunk: &Chunk) {
        self.bytes += chunk.data.len() as u64;
        self.chunks += 1;
    }
}

/// The unacked chunks of a stream, in order.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    pub sent: VecDeque<Sent>,
    /// A chunk that begins here was refused: nothing from here on can be acked until it's sent again.
    pub rejected_at: Option<u64>,
    /// Why it was refused; kept until something is acked after it was sent again.
    pub error: Option<String>,
}

impl Flight {
    /// Takes out what is acked up to `end`: the bytes of the stream, what was held of them, and the new offset with its
    /// guard.
    pub(crate) fn ack(&mut self, end: u64) -> (u64, Held, Option<(u64, Guard)>) {
        let end = self.rejected_at.map_or(end, |from| end.min(from));
        let (mut bytes, mut held, mut reached) = (0, Held::default(), None);
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.chunk.range.end <= end) {
            bytes += sent.chunk.range.len();
            held.add(&sent.chunk);
            reached = Some((sent.chunk.range.end, sent.guard));
        }
        if reached.is_some() && self.rejected_at.is_none() {
            self.error = None;
        }
        if self.sent.is_empty() {
            // Of many thousand files most have nothing on its way for long.
            self.sent = VecDeque::new();
        }
        (bytes, held, reached)
    }
}

/// The last bytes before the place where a file is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail {
    bytes: [u8; Guard::BYTES],
    length: usize,
}

impl Tail {
    pub(crate) const EMPTY: Self = Self { bytes: [0; Guard::BYTES], length: 0 };

    fn of(data: &[u8]) -> Self {
        let mut tail = Self::EMPTY;
        tail.push(data);
        tail
    }

    fn push(&mut self, data: &[u8]) {
        let new = &data[data.len().saturating_sub(Guard::BYTES)..];
        let keep = self.length.min(Guard::BYTES - new.len());
        self.bytes.copy_within(self.length - keep..self.length, 0);
        self.bytes[keep..keep + new.len()].copy_from_slice(new);
        self.length = keep + new.len();
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn guard(&self) -> Guard {
        Guard::of(self.as_slice())
    }
}

/// How much a turn may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// No more than so many bytes: credit, or room for unacked bytes.
    pub credit: u64,
    /// The pace: an event that begins after so many bytes isn't taken.
    pub bytes: u64,
    /// The pace, in lines.
    pub lines: u64,
}

/// What a chunk counts for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tally {
    pub lines: usize,
    /// Events that were ended by their size.
    pub split: usize,
    /// Lines that the container format or the encoding can't read.
    pub garbled: usize,
}

/// What came of a turn.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A chunk, and how many lines it holds.
    Chunk(Chunk, Tally),
    /// The end of a line that is to be cut was sought in so many bytes, and not found yet.
    Skimmed(u64),
    /// All there is was read, or what is left isn't an event yet.
    Nothing,
    /// An event is there that is larger than the credit.
    NeedsCredit,
    /// The bytes before the read position aren't those that were read: the file was written anew.
    Rewritten,
    /// It doesn't look like text; by what it's compressed, if it is.
    Binary(Option<&'static str>),
}

#[derive(Debug)]
pub(crate) struct Followed {
    pub record: Record,
    pub stream: StreamId,
    pub source: Arc<Source>,
    pub framing: Framing,
    /// In which encoding, once that is known for good.
    pub charset: Option<Charset>,
    /// A line that is to be cut begins at `read` and doesn't end before this; 0: none is known.
    pub skimmed: u64,
    /// How it shall be read as soon as all that may have been sent under the present assignment is acked.
    pub next: Option<Box<(Assignment, Framing)>>,
    /// The owning rule's place among the rules.
    pub rule: usize,
    pub file: Option<File>,
    /// Where it lies behind all links.
    pub real: PathBuf,
    pub read: u64,
    /// Its size when the bytes before `read` were last found unchanged: up to here it is the generation that is read.
    pub checked: u64,
    /// All that may have been sent under the present assignment lies before this.
    pub framed_to: u64,
    pub tail: Tail,
    /// It was set back to `read`: `tail` is empty, and the bytes before must be found to have this guard first.
    pub back_to: Option<Guard>,
    pub flight: Flight,
    /// When its size last changed, as far as known.
    pub grown: Instant,
    /// Since when bytes wait to be read.
    pub unread_since: Option<UnixNanos>,
    /// When what is read next was written.
    pub written: Written,
    /// At this size nothing more could be framed.
    pub stalled_at: Option<u64>,
    /// It is in its rule's queue.
    pub queued: bool,
    /// The record is on disk in all that decides framing and identity.
    pub durable: bool,
    /// No name is left, or none is known.
    pub deleted: bool,
    /// It has been renamed to where no rule looks for it.
    pub away: bool,
    pub binary: bool,
    /// By what it's compressed, if it is.
    pub packed: Option<&'static str>,
    pub error: Option<String>,
    /// The number of its last turn: the order in which files are closed when too many are open.
    pub last_turn: u64,
    pub timer: Option<Instant>,
    /// All names under which hints may come.
    pub names: Vec<PathBuf>,
    /// How fast it is read.
    pub rate: Rate,
    /// When it was first seen; `None`: it was known from the state.
    pub born: Option<Instant>,
    /// Where the last chunks ended, with the guards there; by them a copy is known that is shorter than what was read.
    pub marks: VecDeque<(u64, Guard)>,
    /// The head under which it is listed, for copies to be known by.
    pub listed_head: Guard,
}

/// What a generation of a file was that is no more.
#[derive(Debug)]
pub(crate) struct Former {
    pub stream: StreamId,
    /// As it stood at the end.
    pub record: Record,
    pub framing: Framing,
    pub framed_to: u64,
    pub trace: Trace,
    /// Bytes that were seen and not read.
    pub unread: u64,
    /// What was on its way.
    pub flight: Flight,
}

/// By what a copy of a file is known.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub head: Guard,
    /// How far the file was read,
    pub read: u64,
    /// and the guard there.
    pub at: Guard,
    pub marks: VecDeque<(u64, Guard)>,
}

/// What a file is to one that was followed before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// Another file.
    None,
    /// It holds all that was read of the other, at the same places.
    Continues,
    /// It holds a part of what was read of the other.
    Contained,
}

impl Trace {
    /// True if enough is known of the file to tell a copy of it from another file that begins alike. Fewer bytes than
    /// this are soon equal by chance, and what is taken for a copy isn't read from its start.
    pub(crate) fn is_enough(&self) -> bool {
        usize::from(self.head.length) == Guard::BYTES
    }

    /// Compares a file of this size.
    pub(crate) fn compare(&self, file: &File, size: u64) -> io::Result<Likeness> {
        let same = |end: u64, guard: Guard| -> io::Result<bool> {
            let length = u64::from(guard.length);
            Ok(length <= end && end <= size && Guard::of(&read_at(file, end - length, length as usize)?) == guard)
        };
        if !self.is_enough() || !same(self.head.length.into(), self.head)? {
            return Ok(Likeness::None);
        }
        if size >= self.read {
            return Ok(if same(self.read, self.at)? { Likeness::Continues } else { Likeness::None });
        }
        match self.marks.iter().rev().find(|(end, _)| *end <= size) {
            Some((end, guard)) if same(*end, *guard)? => Ok(Likeness::Contained),
            _ => Ok(Likeness::None),
        }
    }
}

impl Followed {
    /// A file that stands at its record's checkpoint, and isn't open.
    pub(crate) fn new(stream: StreamId, record: Record, framing: Framing) -> Self {
        let now = Instant::now();
        Self {
            stream,
            source: Self::source_of(&record),
            framing,
            charset: None,
            skimmed: 0,
            next: None,
            rule: 0,
            file: None,
            real: record.path.clone(),
            read: record.acked,
            checked: record.size,
            framed_to: record.acked,
            tail: Tail::EMPTY,
            back_to: None,
            flight: Flight::default(),
            grown: now,
            unread_since: None,
            written: Written::default(),
            stalled_at: None,
            queued: false,
            durable: true,
            deleted: false,
            away: false,
            binary: false,
            packed: None,
            error: None,
            last_turn: 0,
            timer: None,
            names: Vec::new(),
            rate: Rate::new(now),
            born: None,
            marks: VecDeque::new(),
            listed_head: Guard::of(&[]),
            record,
        }
    }

    /// The id of the stream that a record stands for.
    pub(crate) fn stream_of(agent: &AgentId, record: &Record) -> StreamId {
        let inode = record.stream_inode.unwrap_or(record.key.inode);
        StreamId::derive(agent, inode, i128::from(record.stream_birth), record.epoch)
    }

    pub(crate) fn source_of(record: &Record) -> Arc<Source> {
        Arc::new(Source {
            path: record.matched.to_string_lossy().into_owned(),
            rule: record.assignment.rule.clone(),
            revision: record.assignment.revision,
            topic: record.assignment.topic.clone(),
            service: record.assignment.service.clone(),
        })
    }

    /// Bytes of the file that were seen to be there and are neither read nor acked.
    pub(crate) fn unread(&self) -> u64 {
        self.record.size.saturating_sub(self.read)
    }

    /// Takes note of the file's first bytes, by which it is known again while few are read. False: they have changed.
    pub(crate) fn note_head(&mut self) -> io::Result<bool> {
        if self.file.is_none() {
            return Ok(true);
        }
        let known = u64::from(self.record.head.length);
        let enough = known == Guard::BYTES as u64 || self.record.size <= known;
        // What is read is guarded by its end; a head that grows must still begin as it did.
        if (known > self.read || !enough) && !self.has_head()? {
            return Ok(false);
        }
        if enough {
            return Ok(true);
        }
        let Some(file) = &self.file else { return Ok(true) };
        self.record.head = Guard::of(&read_at(file, 0, Guard::BYTES)?);
        // By a whole one a copy is told.
        self.durable &= known > 0 && usize::from(self.record.head.length) < Guard::BYTES;
        Ok(true)
    }

    /// True if the file begins as it did, and has the same bytes before the place where it's read.
    pub(crate) fn is_itself(&mut self) -> io::Result<bool> {
        let same_head = self.note_head()?;
        let Some(file) = &self.file else { return Ok(true) };
        let before = bytes_before(file, self.read)?;
        let itself = same_head
            && match self.back_to {
                Some(guard) => guard.ends(&before),
                None => before.ends_with(self.tail.as_slice()),
            };
        if itself {
            self.checked = self.record.size;
        }
        Ok(itself)
    }

    /// Raises the bound on what may have been sent, where the next chunk may pass it.
    pub(crate) fn note_sending(&mut self) {
        let from = self.read.max(self.skimmed);
        let next = from + MAX_EVENT_BYTES as u64;
        if self.record.sent_to.is_none_or(|bound| bound < next) {
            self.record.sent_to = Some(from + SENT_STEP);
            self.durable = false;
        }
    }

    /// True if the file still begins as it did.
    pub(crate) fn has_head(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        Ok(Guard::of(&read_at(file, 0, self.record.head.length.into())?) == self.record.head)
    }

    /// True if a file that has become shorter, not below the read position, still is what it was.
    pub(crate) fn is_cut_short(&self, size: u64) -> bool {
        let Some(file) = &self.file else { return false };
        let same_end =
            self.read > 0 && bytes_before(file, self.read).is_ok_and(|bytes| bytes.ends_with(self.tail.as_slice()));
        match u64::from(self.record.head.length) <= size {
            true => self.has_head().unwrap_or(false) && (self.read == 0 || same_end || self.back_to.is_some()),
            // What was read lies in the head, and is guarded whole.
            false => same_end,
        }
    }

    /// The file's first bytes, as many as a head has at most.
    pub(crate) fn first_bytes(&self) -> io::Result<Bytes> {
        self.file.as_ref().map_or(Ok(Bytes::new()), |file| read_at(file, 0, Guard::BYTES))
    }

    /// True if it begins like the other, and the last bytes of it are those of the other at the same place.
    pub(crate) fn ends_like(&self, other: &Self) -> io::Result<bool> {
        let (Some(mine), Some(theirs)) = (&self.file, &other.file) else { return Ok(false) };
        let size = self.record.size;
        Ok(self.first_bytes()?.starts_with(&read_at(theirs, 0, Guard::BYTES.min(size as usize))?)
            && bytes_before(mine, size)? == bytes_before(theirs, size)?)
    }

    /// The guard at an offset of a file.
    pub(crate) fn guard_at(file: &File, offset: u64) -> io::Result<Guard> {
        Ok(Guard::of(&bytes_before(file, offset)?))
    }

    /// Nothing before `offset` is to be collected; answers the guard there.
    pub(crate) fn begin_at(&mut self, offset: u64) -> io::Result<Guard> {
        let Some(file) = &self.file else { return Ok(Guard::of(&[])) };
        let before = bytes_before(file, offset)?;
        self.tail = Tail::EMPTY;
        self.tail.push(&before);
        (self.read, self.framed_to, self.stalled_at) = (offset, offset, None);
        self.checked = offset;
        (self.record.start, self.record.acked, self.record.size) = (offset, offset, offset);
        self.record.past = Some(Past::since(offset));
        Ok(self.tail.guard())
    }

    /// What is to be known of it later. Of a file that isn't text nothing is to be collected, so nothing can be missed.
    pub(crate) fn to_keep(&self) -> Record {
        let size = if self.binary { self.record.acked } else { self.record.size };
        Record { size, ..self.record.clone() }
    }

    /// By what a copy of it is known.
    pub(crate) fn trace(&self) -> Trace {
        let at = self.back_to.unwrap_or_else(|| self.tail.guard());
        Trace { head: self.record.head, read: self.read, at, marks: self.marks.clone() }
    }

    /// Moves the read position to `offset`, if the bytes before it have this guard. False: they haven't.
    pub(crate) fn seek(&mut self, offset: u64, guard: Guard) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let before = bytes_before(file, offset)?;
        let matches = guard.ends(&before);
        if matches {
            (self.read, self.skimmed) = (offset, 0);
            self.checked = self.record.size;
            self.tail = Tail::of(&before);
        }
        Ok(matches)
    }

    /// Drops what is on its way from `start` on, to be read again; answers how much it was.
    ///
    /// The centre has taken nothing of it, so it may be read under another assignment.
    pub(crate) fn go_back(&mut self, start: u64) -> Held {
        let keep = self.flight.sent.partition_point(|sent| sent.chunk.range.start < start);
        let dropped = self.flight.sent.split_off(keep);
        let Some(first) = dropped.front() else { return Held::default() };
        self.unread_since = Some(first.chunk.read_time);
        self.written = Written::default();
        self.back_to = Some(self.flight.sent.back().map_or(self.record.guard, |sent| sent.guard));
        (self.read, self.framed_to, self.tail, self.stalled_at) = (start, start, Tail::EMPTY, None);
        self.skimmed = 0;
        self.marks.retain(|(end, _)| *end <= start);
        let mut held = Held::default();
        dropped.iter().for_each(|sent| held.add(&sent.chunk));
        held
    }

    /// Where to begin in a file that is read from its end: the start of its last line.
    pub(crate) fn last_line(file: &File, size: u64, framing: &Framing) -> io::Result<u64> {
        let charset = framing.charset_of(&read_at(file, 0, MARK_BYTES)?);
        let from = size.saturating_sub(LAST_LINE_BYTES);
        let bytes = read_at(file, from, (size - from) as usize)?;
        let end = charset.last_line_end(&bytes, from);
        Ok(end.map_or(if from == 0 { 0 } else { size }, |at| from + at as u64))
    }

    /// Begins a new generation of the file: it was truncated, or written anew. Returns what there was of the old one.
    pub(crate) fn next_generation(&mut self, agent: &AgentId) -> Former {
        // The present size may already be that of what was written in its place.
        let size = self.checked.max(self.read);
        let former = Former {
            stream: self.stream,
            record: Record { size, ..self.record.clone() },
            framing: self.framing.clone(),
            framed_to: self.framed_to,
            trace: self.trace(),
            unread: size - self.read,
            flight: std::mem::take(&mut self.flight),
        };
        match self.record.stream_inode.take() {
            None => self.record.epoch = self.record.epoch.wrapping_add(1),
            // It went on with another file's stream: from here on it has its own.
            Some(_) => {
                self.record.epoch = 0;
                self.record.stream_birth = self.record.key.birth.unwrap_or_else(|| UnixNanos::now().0);
            }
        }
        (self.record.start, self.record.acked, self.record.size) = (0, 0, 0);
        self.record.sent_to = Some(0);
        (self.record.guard, self.record.head) = (Guard::of(&[]), Guard::of(&[]));
        self.record.cuts.clear();
        self.record.past = Some(Past::since(0));
        (self.read, self.framed_to, self.tail, self.stalled_at) = (0, 0, Tail::EMPTY, None);
        self.checked = 0;
        self.written.begin_again();
        (self.charset, self.skimmed) = (None, 0);
        self.back_to = None;
        self.marks.clear();
        self.durable = false;
        self.binary = false;
        self.stream = Self::stream_of(agent, &self.record);
        former
    }

    /// Takes over the wanted assignment, if all that may have been sent under the present one is acked.
    ///
    /// False: reading must wait for acks first.
    pub(crate) fn try_switch(&mut self) -> bool {
        if self.next.is_none() {
            return true;
        }
        if self.read < self.framed_to {
            return true;
        }
        if !self.flight.sent.is_empty() {
            return false;
        }
        if let Some((assignment, framing)) = self.next.take().map(|next| *next) {
            self.record.reassign(self.read, assignment);
            self.framing = framing;
            (self.charset, self.skimmed) = (None, 0);
            self.source = Self::source_of(&self.record);
            self.framed_to = self.read;
            self.stalled_at = None;
            self.durable = false;
        }
        true
    }

    /// Ends the last event where the file ends now. The cut must be durable before anything framed by it is sent.
    pub(crate) fn cut(&mut self) {
        self.record.cuts.push(self.record.size);
        self.stalled_at = None;
        self.durable = false;
    }

    /// Notes that everything up to `offset` is durable at the centre.
    pub(crate) fn acked(&mut self, offset: u64, guard: Guard) {
        self.record.advance(offset, guard);
    }
}

/// Up to [`Guard::BYTES`] bytes before an offset.
fn bytes_before(file: &File, offset: u64) -> io::Result<Bytes> {
    let length = offset.min(Guard::BYTES as u64);
    read_at(file, offset - length, length as usize)
}

/// Up to `length` bytes from an offset, fewer only at the end of the file. One allocation, not zeroed first.
pub(crate) fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = BUFFERS.take(length);
    while buffer.len() < length {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(length);
    Ok(BUFFERS.share(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_bytes_however_they_came() {
        for step in [1, 3, 64, 65, 200] {
            let data: Vec<u8> = (0..200).collect();
            let mut tail = Tail::EMPTY;
            for piece in data.chunks(step) {
                tail.push(piece);
            }
            assert_eq!(tail.as_slice(), &data[136..], "step {step}");
            assert_eq!(tail.guard(), Guard::of(&data));
        }
    }

    #[test]
    fn the_last_line_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [("", 0), ("abc", 0), ("a\nb", 2), ("a\nb\n", 4)] {
            let path = dir.path().join("x");
            std::fs::write(&path, text).unwrap();
            let file = File::open(&path).unwrap();
            let lines = Framing::default();
            assert_eq!(Followed::last_line(&file, text.len() as u64, &lines).unwrap(), expected, "{text:?}");
        }
        let path = dir.path().join("utf16");
        let text: Vec<u8> = "\u{feff}a\nb".encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, &text).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(Followed::last_line(&file, text.len() as u64, &Framing::default()).unwrap(), 6);
    }
}
