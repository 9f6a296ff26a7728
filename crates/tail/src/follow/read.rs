//! Reading: the next bytes of a file become a chunk.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use logmesh_text::Charset;
use logmesh_types::limits::{MAX_CHUNK_EVENTS, MAX_EVENT_BYTES};
use logmesh_types::{ByteRange, UnixNanos};

use super::{Followed, Limits, MARK_BYTES, MAX_MARKS, Sent, Tail, Tally, Turn, bytes_before, read_at};
use crate::chunk::Chunk;
use crate::framing::{End, Framed, Room, Window, frame};

/// How much of a new file is looked at to tell text from something else.
pub(crate) const HEAD_BYTES: usize = 1024;

/// The least that is read at a time under a slow pace.
const PACED_BYTES: u64 = 64 * 1024;

/// A chunk has at most so many bytes, unless its only event is longer. With its lengths and labels it then stays below
/// 1 MiB, where the embedded bus, which rounds values up to powers of two, would take 2 MiB to keep it.
const FULL_CHUNK_BYTES: u64 = 960 << 10;

/// How much of a line that is to be cut is looked at in one turn: no more than an event may have, see
/// [`Followed::note_sending`].
const SKIM_BYTES: u64 = MAX_EVENT_BYTES as u64;

/// How compressed files begin, and by what they were compressed. None of it is text.
const PACKERS: [(&[u8], &str); 5] = [
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x1f\x9d", "compress"),
];

/// By what a file that begins so is compressed; `None`: it isn't.
pub(crate) fn packer_of(head: &[u8]) -> Option<&'static str> {
    // What bzip2 writes begins like words; the digits of pi behind it don't.
    let is_bzip2 = head.starts_with(b"BZh") && head.get(4..10) == Some(b"1AY&SY");
    let packer = PACKERS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, packer)| *packer);
    packer.or(is_bzip2.then_some("bzip2"))
}

/// What was read, and where the read position lies in it.
struct Ahead {
    bytes: Bytes,
    at: usize,
    charset: Charset,
}

impl Followed {
    /// Reads and frames the next chunk. The file must be open and its size known.
    pub(crate) fn read_chunk(&mut self, limits: Limits) -> io::Result<Turn> {
        if self.file.is_none() {
            return Ok(Turn::Nothing);
        }
        let cut = self.record.cuts.iter().copied().find(|cut| *cut > self.read && *cut <= self.record.size);
        let available = cut.unwrap_or(self.record.size).saturating_sub(self.read);
        if available == 0 || (cut.is_none() && self.stalled_at == Some(self.record.size)) {
            // Written anew to the very size it had?
            let same = self.read_ahead(0)?.is_some();
            return Ok(if same { Turn::Nothing } else { Turn::Rewritten });
        }
        if self.skimmed > self.read {
            return self.skim(cut, limits);
        }
        let full = available.min(MAX_EVENT_BYTES as u64);
        let allowed = full.min(limits.credit);
        // A slow pace needn't read a whole chunk to take its first lines; a long event still gets its due.
        let paced = allowed.min(limits.bytes.max(PACED_BYTES)).min(FULL_CHUNK_BYTES);
        let mut turn = self.frame_ahead(paced, cut, limits)?;
        if matches!(turn, Turn::Nothing) && paced < allowed {
            turn = self.frame_ahead(allowed, cut, limits)?;
        }
        if matches!(turn, Turn::Nothing) && allowed < full {
            return Ok(Turn::NeedsCredit);
        }
        match &turn {
            Turn::Chunk(chunk, _) => {
                let mut tail = self.tail;
                tail.push(&chunk.data);
                self.advance(chunk, tail);
            }
            Turn::Nothing => self.stalled_at = Some(self.record.size),
            _ => {}
        }
        Ok(turn)
    }

    /// Up to `wanted` bytes after the read position and some before it. `None`: those before it have changed.
    fn read_ahead(&mut self, wanted: u64) -> io::Result<Option<Ahead>> {
        let charset = self.find_charset()?;
        let Some(file) = &self.file else { return Ok(None) };
        // To see whether anything has changed, nothing needs to be framed.
        let back = if wanted == 0 { 0 } else { self.framing.look_back() as u64 };
        let at = back.min(self.read).max(self.tail.length as u64);
        let bytes = read_at(file, self.read - at, (at + wanted) as usize)?;
        let at = at as usize;
        let same = bytes.len() >= at && bytes[at - self.tail.length..at] == *self.tail.as_slice();
        if same {
            self.checked = self.record.size;
        }
        Ok(same.then_some(Ahead { bytes, at, charset }))
    }

    /// The file's encoding: of the rule, or as its first bytes say.
    fn find_charset(&mut self) -> io::Result<Charset> {
        match (self.charset, &self.file) {
            (Some(charset), _) => Ok(charset),
            (None, None) => Ok(Charset::UTF_8),
            (None, Some(file)) => {
                let head = read_at(file, 0, MARK_BYTES)?;
                let charset = self.framing.charset_of(&head);
                // Of a shorter file more may become a mark.
                self.charset = (head.len() == MARK_BYTES).then_some(charset);
                Ok(charset)
            }
        }
    }

    fn frame_ahead(&mut self, wanted: u64, cut: Option<u64>, limits: Limits) -> io::Result<Turn> {
        let Some(ahead) = self.read_ahead(wanted)? else { return Ok(Turn::Rewritten) };
        let data = ahead.bytes.slice(ahead.at..);
        if self.read == self.record.start
            && let Some(packer) = packer_of(&self.first_bytes()?)
        {
            return Ok(Turn::Binary(Some(packer)));
        }
        let head = self.read == 0 && self.record.epoch == 0 && !ahead.charset.is_utf16();
        if head && memchr::memchr(0, &data[..data.len().min(HEAD_BYTES)]).is_some() {
            return Ok(Turn::Binary(None));
        }
        let end = if cut == Some(self.read + data.len() as u64) { End::Cut } else { End::Open };
        let framed = self.frame(&ahead, end, limits);
        if let Some(kept) = framed.long {
            self.skimmed = self.read + kept as u64;
            return Ok(Turn::Skimmed(0));
        }
        if framed.bytes == 0 {
            return Ok(Turn::Nothing);
        }
        // A chunk that keeps a much larger buffer alive would make nonsense of the bound on unacked bytes.
        let data = match framed.bytes >= ahead.bytes.len() / 2 {
            true => data.slice(..framed.bytes),
            false => Bytes::copy_from_slice(&data[..framed.bytes]),
        };
        let tally = Tally { lines: framed.lines, split: framed.split, garbled: framed.garbled };
        Ok(Turn::Chunk(self.chunk(data, self.read + framed.bytes as u64, framed, ahead.charset), tally))
    }

    fn frame(&self, ahead: &Ahead, end: End, limits: Limits) -> Framed {
        let window = Window { bytes: &ahead.bytes, at: ahead.at, offset: self.read, charset: ahead.charset, end };
        let room = Room {
            bytes: limits.bytes.min(FULL_CHUNK_BYTES) as usize,
            events: limits.lines.min(MAX_CHUNK_EVENTS as u64) as usize,
        };
        frame(&self.framing, window, room)
    }

    fn chunk(&self, data: Bytes, end: u64, framed: Framed, charset: Charset) -> Chunk {
        Chunk {
            stream: self.stream,
            range: ByteRange::new(self.read, end),
            continuations: framed.continuations.into(),
            crc32c: crc32c::crc32c(&data),
            data,
            lengths: framed.lengths.map(Arc::from),
            events: framed.events as u32,
            charset,
            container: self.framing.container,
            read_time: UnixNanos::now(),
            written_time: self.written.time(),
            source: self.source.clone(),
            again: false,
        }
    }

    /// Looks for the end of a line that is to be cut, some way on. When it's found, the line's start is a chunk of its own.
    fn skim(&mut self, cut: Option<u64>, limits: Limits) -> io::Result<Turn> {
        let Some(ahead) = self.read_ahead(self.framing.most() as u64)? else { return Ok(Turn::Rewritten) };
        let Some(file) = &self.file else { return Ok(Turn::Nothing) };
        let limit = cut.unwrap_or(self.record.size);
        // A code unit of two bytes is looked at whole.
        let from = if ahead.charset.is_utf16() { self.skimmed & !1 } else { self.skimmed };
        let bytes = read_at(file, from, SKIM_BYTES.min(limit.saturating_sub(from)) as usize)?;
        let to = from + bytes.len() as u64;
        let end = match ahead.charset.line_end(&bytes, from) {
            Some(length) => from + length as u64,
            None if cut == Some(to) => to,
            None if to >= limit => {
                self.skimmed = to.max(self.skimmed);
                self.stalled_at = Some(self.record.size);
                return Ok(Turn::Nothing);
            }
            None => {
                let seen = to - self.skimmed;
                self.skimmed = to;
                return Ok(Turn::Skimmed(seen));
            }
        };
        self.cut_line(&ahead, end, limits)
    }

    /// The chunk of a line that ends at `end`, of which only the start is sent.
    fn cut_line(&mut self, ahead: &Ahead, end: u64, limits: Limits) -> io::Result<Turn> {
        let framed = self.frame(ahead, End::Open, limits);
        let Some(kept) = framed.long.filter(|kept| self.read + (*kept as u64) <= end) else {
            // It isn't the line any more that was seen: look again.
            self.skimmed = 0;
            return Ok(Turn::Skimmed(0));
        };
        if kept as u64 > limits.credit {
            return Ok(Turn::NeedsCredit);
        }
        let Some(file) = &self.file else { return Ok(Turn::Nothing) };
        let tail = Tail::of(&bytes_before(file, end)?);
        let data = Bytes::copy_from_slice(&ahead.bytes[ahead.at..ahead.at + kept]);
        let framed = Framed { events: 1, lengths: Some(vec![kept as u32]), lines: 1, ..framed };
        let chunk = self.chunk(data, end, framed, ahead.charset);
        self.advance(&chunk, tail);
        Ok(Turn::Chunk(chunk, Tally { lines: 1, split: 0, garbled: 0 }))
    }

    /// Moves on after a chunk; `tail` is what lies before its end.
    fn advance(&mut self, chunk: &Chunk, tail: Tail) {
        (self.read, self.skimmed) = (chunk.range.end, 0);
        self.framed_to = self.framed_to.max(self.read);
        self.tail = tail;
        self.stalled_at = None;
        self.unread_since = (self.unread() > 0).then_some(chunk.read_time);
        let guard = self.tail.guard();
        if self.marks.len() >= MAX_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back((self.read, guard));
        self.flight.sent.push_back(Sent { chunk: chunk.clone(), guard });
    }
}
