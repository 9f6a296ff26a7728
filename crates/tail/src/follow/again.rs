//! Reading again: a range that was collected before becomes the same events once more, and nothing else.
//!
//! The file is read as it was the first time, by the same code, under the assignment and with the cuts that held there. What
//! can't be cut the same way is refused with its cause: other bytes, or a framing that isn't known any more.

use std::fs::File;
use std::io;
use std::path::Path;

use logmesh_types::limits::MAX_CHUNK_EVENTS;
use logmesh_types::{ByteRange, StreamId, TopicName};

use super::{Followed, Limits, MARK_BYTES, Tail, Turn, bytes_before, read_at};
use crate::chunk::Chunk;
use crate::framing::Framing;
use crate::pathguard::{Opened, PathGuard, Refusal, meta_of};
use crate::state::{Assignment, Past, Record};
use crate::walk::inodes_in;

/// How much shorter than an event may be a piece of a too long line is at most: a character isn't split.
const PIECE_SLACK: usize = 4;

/// What the collector knows of a stream that is to be read again.
#[derive(Debug)]
pub struct Recall {
    pub(crate) stream: StreamId,
    pub(crate) record: Record,
}

/// Why a range isn't read again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct NotAgain {
    /// What it is, for programs.
    pub cause: NotAgainCause,
    /// In words.
    pub detail: String,
}

/// What keeps a range from being read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAgainCause {
    /// The file is gone.
    Gone,
    /// The file holds other bytes, or its events don't end where they did.
    Changed,
    /// The host's settings forbid to read it.
    NotAllowed,
    /// It can't be opened or read.
    Unreadable,
    /// How it was cut isn't known any more.
    Forgotten,
    /// It was never collected into this topic, or isn't acked yet.
    NotCollected,
}

impl NotAgain {
    fn new(cause: NotAgainCause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into() }
    }
}

impl From<io::Error> for NotAgain {
    fn from(error: io::Error) -> Self {
        Self::new(NotAgainCause::Unreadable, format!("the file cannot be read: {error}"))
    }
}

impl From<Refusal> for NotAgain {
    fn from(refusal: Refusal) -> Self {
        let cause = match &refusal {
            Refusal::NotFound(_) => NotAgainCause::Gone,
            Refusal::Unreadable { .. } => NotAgainCause::Unreadable,
            _ => NotAgainCause::NotAllowed,
        };
        Self::new(cause, refusal.to_string())
    }
}

impl Recall {
    /// Opens the file, where it lay when it was last seen or elsewhere in that folder, if the guard allows it and it still is
    /// what was collected.
    pub fn open(self, guard: &PathGuard) -> Result<Again, NotAgain> {
        let Self { stream, mut record } = self;
        let opened = find(&record, guard)?;
        let past = record.past().clone();
        record.cuts.splice(0..0, past.cuts().iter().copied());
        record.size = opened.meta.size;
        let present = record.assignment.clone();
        let mut file = Followed::new(stream, record, Framing::default());
        file.file = Some(opened.file);
        let again = Again { file, past, present, entered: false };
        again.check()?;
        Ok(again)
    }
}

/// The file of a record, by whatever name in its folder.
fn find(record: &Record, guard: &PathGuard) -> Result<Opened, NotAgain> {
    let is_it = |opened: &Opened| opened.meta.key == record.key;
    let there = guard.open(&record.path);
    let folder = record.path.parent().unwrap_or(Path::new("/"));
    let refusal = match there {
        Ok(opened) if is_it(&opened) => return Ok(opened),
        Ok(_) => Refusal::NotFound(record.path.clone()),
        Err(refusal) => refusal,
    };
    let renamed = inodes_in(folder).and_then(|names| names.get(&record.key.inode).cloned());
    match renamed.filter(|path| *path != record.path).map(|path| guard.open(&path)) {
        Some(Ok(opened)) if is_it(&opened) => Ok(opened),
        Some(Err(refusal)) => Err(refusal.into()),
        Some(Ok(_)) | None => Err(refusal.into()),
    }
}

/// An open file whose acked bytes are read again.
#[derive(Debug)]
pub struct Again {
    /// With all cuts that are known, under the assignment that is read under now.
    file: Followed,
    past: Past,
    present: Assignment,
    /// It stands where something was read.
    entered: bool,
}

impl Again {
    /// The events with which a range begins: a part of the range, or all of it. The range must begin where an event does
    /// and end where one does, as gaps of an audit do.
    pub fn read(&mut self, range: ByteRange, topic: &TopicName) -> Result<Chunk, NotAgain> {
        let end = self.enter(range, topic)?;
        let limits = Limits { credit: u64::MAX, bytes: end - range.start, lines: MAX_CHUNK_EVENTS as u64 };
        loop {
            self.file.stalled_at = None;
            match self.file.read_chunk(limits)? {
                Turn::Chunk(chunk, _) if chunk.range.end <= end => {
                    self.file.flight.sent.clear();
                    self.check()?;
                    return Ok(Chunk { again: true, ..chunk });
                }
                Turn::Skimmed(_) if self.file.skimmed <= end => {}
                Turn::Rewritten | Turn::Binary(_) => return Err(changed("it was written anew")),
                _ => return Err(changed(&format!("no event ends at {end}"))),
            }
        }
    }

    /// Goes to the start of a range, under the assignment that held there; answers the end of the range or of that.
    fn enter(&mut self, range: ByteRange, topic: &TopicName) -> Result<u64, NotAgain> {
        let ByteRange { start, end } = range;
        let (assignment, until) = self.past.assignment_at(start).unwrap_or((&self.present, u64::MAX));
        if range.is_empty() || end > self.file.record.acked || assignment.topic != *topic {
            let detail = format!("{range} was never acked as part of topic {topic}");
            return Err(NotAgain::new(NotAgainCause::NotCollected, detail));
        }
        if start < self.past.from {
            let detail = format!("how its events were cut is known from {} on", self.past.from);
            return Err(NotAgain::new(NotAgainCause::Forgotten, detail));
        }
        if !self.entered || self.file.read != start || self.file.record.assignment != *assignment {
            let assignment = assignment.clone();
            self.place(start, assignment)?;
        }
        Ok(end.min(until))
    }

    fn place(&mut self, at: u64, assignment: Assignment) -> Result<(), NotAgain> {
        let file = &mut self.file;
        let unknown = |(_, error)| NotAgain::new(NotAgainCause::Forgotten, error);
        file.framing = Framing::new(&assignment.framing).map_err(unknown)?;
        file.record.assignment = assignment;
        file.source = Followed::source_of(&file.record);
        (file.charset, file.skimmed, file.read) = (None, 0, at);
        file.tail = Tail::of(&bytes_before(handle(file)?, at)?);
        file.flight.sent.clear();
        if !self.past.is_boundary(at) && !self.begins_at(at)? {
            return Err(NotAgain::new(NotAgainCause::Changed, format!("no event begins at {at}")));
        }
        self.entered = true;
        Ok(())
    }

    /// True if a line ends before this place, or if it's the end of a piece of one that is longer than an event may be.
    fn begins_at(&self, at: u64) -> io::Result<bool> {
        let most = self.file.framing.most();
        let file = handle(&self.file)?;
        let charset = self.file.framing.charset_of(&read_at(file, 0, MARK_BYTES)?);
        let length = at.min(most as u64);
        let before = read_at(file, at - length, length as usize)?;
        let line = before.len() - charset.last_line_end(&before, at - length).unwrap_or(0);
        Ok(at == self.file.record.start || line == 0 || line + PIECE_SLACK > most)
    }

    /// That the file is the generation which was collected: it begins as that did, and has the same bytes before the checkpoint.
    fn check(&self) -> Result<(), NotAgain> {
        let (file, record) = (handle(&self.file)?, &self.file.record);
        if meta_of(file).map_err(io::Error::from)?.size < record.acked {
            return Err(changed("it is shorter than what was collected of it"));
        }
        let same_end = record.guard.ends(&bytes_before(file, record.acked)?);
        if same_end && self.file.has_head()? { Ok(()) } else { Err(changed("it was written anew")) }
    }
}

fn handle(file: &Followed) -> io::Result<&File> {
    file.file.as_ref().ok_or_else(|| io::Error::other("it isn't open"))
}

fn changed(how: &str) -> NotAgain {
    NotAgain::new(NotAgainCause::Changed, format!("the file isn't what was collected: {how}"))
}
