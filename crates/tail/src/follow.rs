//! One file that is followed: where it is read, what of it is on its way, and by whom it is owned.
//!
//! Invariants: `start <= acked <= read`; `flight` holds exactly the chunks of `[acked, read)`, in order, unless the
//! process was started anew; `tail` is what lay before `read` when it was read.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use logmesh_types::limits::{MAX_CHUNK_EVENTS, MAX_EVENT_BYTES};
use logmesh_types::{AgentId, ByteRange, StreamId, UnixNanos};

use crate::chunk::{Chunk, Source};
use crate::framing::{End, Framing, Room, continues, frame};
use crate::state::{Assignment, Guard, Record};
use crate::status::LossCause;

/// How much of a new file is looked at to tell text from something else.
const HEAD_BYTES: usize = 1024;

/// The least that is read at a time under a slow pace.
const PACED_BYTES: u64 = 64 * 1024;

/// How far back the start of the last line is sought when a file is read from its end.
const LAST_LINE_BYTES: u64 = 64 * 1024;

/// A chunk has at most so many bytes, unless its only event is longer. With its lengths and labels it then stays below
/// 1 MiB, where the embedded bus, which rounds values up to powers of two, would take 2 MiB to keep it.
const FULL_CHUNK_BYTES: u64 = 960 << 10;

/// The steps in which the bound on what may have been sent is raised: a commit for so many bytes costs little.
const SENT_STEP: u64 = 16 << 20;

/// A chunk that isn't acked, and the guard for its end.
#[derive(Debug)]
pub(crate) struct Sent {
    pub chunk: Chunk,
    pub guard: Guard,
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
    /// Takes out what is acked up to `end`: the bytes and chunks, and the new offset with its guard.
    pub(crate) fn ack(&mut self, end: u64) -> (u64, usize, Option<(u64, Guard)>) {
        let end = self.rejected_at.map_or(end, |from| end.min(from));
        let (mut bytes, mut chunks, mut reached) = (0, 0, None);
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.chunk.range.end <= end) {
            bytes += sent.chunk.range.len();
            chunks += 1;
            reached = Some((sent.chunk.range.end, sent.guard));
        }
        if reached.is_some() && self.rejected_at.is_none() {
            self.error = None;
        }
        (bytes, chunks, reached)
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

/// What came of a turn.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A chunk, and how many lines it holds.
    Chunk(Chunk, usize),
    /// All there is was read, or what is left isn't an event yet.
    Nothing,
    /// An event is there that is larger than the credit.
    NeedsCredit,
    /// The bytes before the read position aren't those that were read: the file was written anew.
    Rewritten,
    /// It doesn't look like text.
    Binary,
}

#[derive(Debug)]
pub(crate) struct Followed {
    pub record: Record,
    pub stream: StreamId,
    pub source: Arc<Source>,
    pub framing: Framing,
    /// How it shall be read as soon as all that may have been sent under the present assignment is acked.
    pub next: Option<(Assignment, Framing)>,
    /// The owning rule's place among the rules.
    pub rule: usize,
    pub file: Option<File>,
    /// Where it lies behind all links.
    pub real: PathBuf,
    pub read: u64,
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
    pub error: Option<String>,
    /// The number of its last turn: the order in which files are closed when too many are open.
    pub last_turn: u64,
    pub timer: Option<Instant>,
    /// All names under which hints may come.
    pub names: Vec<PathBuf>,
}

impl Followed {
    /// The id of the stream that a record stands for.
    pub(crate) fn stream_of(agent: &AgentId, record: &Record) -> StreamId {
        StreamId::derive(agent, record.key.inode, i128::from(record.stream_birth), record.epoch)
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
        let known = u64::from(self.record.head.length);
        if known > self.read && !self.has_head()? {
            return Ok(false);
        }
        if known == Guard::BYTES as u64 || self.record.size <= known {
            return Ok(true);
        }
        let Some(file) = &self.file else { return Ok(true) };
        self.record.head = Guard::of(&read_at(file, 0, Guard::BYTES)?);
        self.durable &= known > 0;
        Ok(true)
    }

    /// Raises the bound on what may have been sent, where the next chunk may pass it.
    pub(crate) fn note_sending(&mut self) {
        let next = self.read + MAX_EVENT_BYTES as u64;
        if self.record.sent_to.is_none_or(|bound| bound < next) {
            self.record.sent_to = Some(self.read + SENT_STEP);
            self.durable = false;
        }
    }

    /// True if the file still begins as it did.
    pub(crate) fn has_head(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        Ok(Guard::of(&read_at(file, 0, self.record.head.length.into())?) == self.record.head)
    }

    /// Moves the read position to `offset`, if the bytes before it have this guard. False: they haven't.
    pub(crate) fn seek(&mut self, offset: u64, guard: Guard) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let before = bytes_before(file, offset)?;
        let matches = usize::from(guard.length) <= before.len()
            && Guard::of(&before[before.len() - usize::from(guard.length)..]) == guard;
        if matches {
            self.read = offset;
            self.tail = Tail::EMPTY;
            self.tail.push(&before);
        }
        Ok(matches)
    }

    /// Drops what is on its way from `start` on, to be read again; answers how many bytes and chunks it was.
    ///
    /// The centre has taken nothing of it, so it may be read under another assignment.
    pub(crate) fn go_back(&mut self, start: u64) -> (u64, usize) {
        let keep = self.flight.sent.partition_point(|sent| sent.chunk.range.start < start);
        let dropped = self.flight.sent.split_off(keep);
        let Some(first) = dropped.front() else { return (0, 0) };
        self.unread_since = Some(first.chunk.read_time);
        self.back_to = Some(self.flight.sent.back().map_or(self.record.guard, |sent| sent.guard));
        (self.read, self.framed_to, self.tail, self.stalled_at) = (start, start, Tail::EMPTY, None);
        (dropped.iter().map(|sent| sent.chunk.range.len()).sum(), dropped.len())
    }

    /// Where to begin in a file that is read from its end: the start of its last line.
    pub(crate) fn last_line(file: &File, size: u64) -> io::Result<u64> {
        let from = size.saturating_sub(LAST_LINE_BYTES);
        let bytes = read_at(file, from, (size - from) as usize)?;
        Ok(memchr::memrchr(b'\n', &bytes).map_or(if from == 0 { 0 } else { size }, |at| from + at as u64 + 1))
    }

    /// Begins a new generation of the file: it was truncated, or written anew.
    ///
    /// What is on its way of the old one is returned; its unread bytes are counted as lost.
    pub(crate) fn next_generation(&mut self, agent: &AgentId) -> (StreamId, Flight, u64) {
        let lost = self.unread();
        self.record.lose(agent, ByteRange::new(self.read, self.read + lost), LossCause::Truncated);
        self.record.note_former(self.stream, &self.flight);
        self.record.epoch = self.record.epoch.wrapping_add(1);
        (self.record.start, self.record.acked, self.record.size) = (0, 0, 0);
        self.record.sent_to = Some(0);
        (self.record.guard, self.record.head) = (Guard::of(&[]), Guard::of(&[]));
        self.record.cuts.clear();
        (self.read, self.framed_to, self.tail, self.stalled_at) = (0, 0, Tail::EMPTY, None);
        self.back_to = None;
        self.durable = false;
        self.binary = false;
        let old = std::mem::replace(&mut self.stream, Self::stream_of(agent, &self.record));
        (old, std::mem::take(&mut self.flight), lost)
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
        if let Some((assignment, framing)) = self.next.take() {
            self.record.assignment = assignment;
            self.framing = framing;
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

    /// Reads and frames the next chunk. The file must be open and its size known.
    pub(crate) fn read_chunk(&mut self, limits: Limits) -> io::Result<Turn> {
        let Some(file) = &self.file else { return Ok(Turn::Nothing) };
        let cut = self.record.cuts.iter().copied().find(|cut| *cut > self.read && *cut <= self.record.size);
        let available = cut.unwrap_or(self.record.size).saturating_sub(self.read);
        if available == 0 || (cut.is_none() && self.stalled_at == Some(self.record.size)) {
            // Written anew to the very size it had?
            let same = self.read_ahead(file, 0)? == *self.tail.as_slice();
            return Ok(if same { Turn::Nothing } else { Turn::Rewritten });
        }
        let full = available.min(MAX_EVENT_BYTES as u64);
        let allowed = full.min(limits.credit);
        // A slow pace needn't read a whole chunk to take its first lines; a long event still gets its due.
        let paced = allowed.min(limits.bytes.max(PACED_BYTES)).min(FULL_CHUNK_BYTES);
        let mut turn = self.frame_from(&self.read_ahead(file, paced)?, cut, limits);
        if matches!(turn, Turn::Nothing) && paced < allowed {
            turn = self.frame_from(&self.read_ahead(file, allowed)?, cut, limits);
        }
        if matches!(turn, Turn::Nothing) && allowed < full {
            return Ok(Turn::NeedsCredit);
        }
        match &turn {
            Turn::Chunk(chunk, _) => self.advance(chunk),
            Turn::Nothing => self.stalled_at = Some(self.record.size),
            _ => {}
        }
        Ok(turn)
    }

    /// The tail again, and up to `wanted` bytes after the read position.
    fn read_ahead(&self, file: &File, wanted: u64) -> io::Result<Bytes> {
        read_at(file, self.read - self.tail.length as u64, self.tail.length + wanted as usize)
    }

    /// Frames what was read; `buffer` begins with the bytes that lay before the read position.
    fn frame_from(&self, buffer: &Bytes, cut: Option<u64>, limits: Limits) -> Turn {
        let tail = self.tail.length;
        if buffer.len() < tail || buffer[..tail] != *self.tail.as_slice() {
            return Turn::Rewritten;
        }
        let data = buffer.slice(tail..);
        let head = self.read == 0 && self.record.epoch == 0;
        if head && memchr::memchr(0, &data[..data.len().min(HEAD_BYTES)]).is_some() {
            return Turn::Binary;
        }
        let end = if cut == Some(self.read + data.len() as u64) { End::Cut } else { End::Open };
        let room = Room {
            bytes: limits.bytes.min(FULL_CHUNK_BYTES) as usize,
            events: limits.lines.min(MAX_CHUNK_EVENTS as u64) as usize,
        };
        let framed = frame(&self.framing, &data, end, room);
        if framed.bytes == 0 {
            return Turn::Nothing;
        }
        // A chunk that keeps a much larger buffer alive would make nonsense of the bound on unacked bytes.
        let data = match framed.bytes >= data.len() / 2 {
            true => data.slice(..framed.bytes),
            false => Bytes::copy_from_slice(&data[..framed.bytes]),
        };
        let chunk = Chunk {
            stream: self.stream,
            range: ByteRange::new(self.read, self.read + framed.bytes as u64),
            continuation: continues(&self.framing, self.tail.as_slice().last().copied(), &data),
            crc32c: crc32c::crc32c(&data),
            data,
            lengths: framed.lengths.map(Arc::from),
            events: framed.events as u32,
            read_time: UnixNanos::now(),
            source: self.source.clone(),
        };
        Turn::Chunk(chunk, framed.lines)
    }

    fn advance(&mut self, chunk: &Chunk) {
        self.read = chunk.range.end;
        self.framed_to = self.framed_to.max(self.read);
        self.tail.push(&chunk.data);
        self.stalled_at = None;
        self.unread_since = (self.unread() > 0).then_some(chunk.read_time);
        self.flight.sent.push_back(Sent { chunk: chunk.clone(), guard: self.tail.guard() });
    }

    /// Notes that everything up to `offset` is durable at the centre.
    pub(crate) fn acked(&mut self, offset: u64, guard: Guard) {
        self.record.acked = offset;
        self.record.guard = guard;
        self.record.cuts.retain(|cut| *cut > offset);
    }
}

/// Up to [`Guard::BYTES`] bytes before an offset.
fn bytes_before(file: &File, offset: u64) -> io::Result<Bytes> {
    let length = offset.min(Guard::BYTES as u64);
    read_at(file, offset - length, length as usize)
}

/// Up to `length` bytes from an offset, fewer only at the end of the file. One allocation, not zeroed first.
fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let at = offset + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(length);
    Ok(Bytes::from(buffer))
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
            assert_eq!(Followed::last_line(&file, text.len() as u64).unwrap(), expected, "{text:?}");
        }
    }
}
