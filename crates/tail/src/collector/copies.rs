//! Copies of files that are followed: `copytruncate` copies a file and truncates the original.
//!
//! A new file that begins like one that was followed before it, with at least [`Guard::BYTES`] equal bytes, and holds
//! the same bytes where that one was read, isn't read at once. If its original is truncated within a short while, it goes on with the original's stream where reading
//! stood: nothing unread is lost, nothing read is doubled. If not, it was a plain copy and is a file of its own. A
//! truncated file's copy is also looked for in its folder, whatever its name.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use logmesh_types::{ByteRange, StreamId, UnixNanos};

use super::Collector;
use crate::follow::{Followed, Former, Likeness, Trace, Written};
use crate::pathguard::{FileKey, meta_at};
use crate::state::Guard;
use crate::status::LossCause;
use crate::walk::inodes_in;

/// The most new files that are compared in one file's turn; the others have turns of their own.
const MAX_AT_ONCE: usize = 256;

/// What can't be compared now is tried again after this.
const RETRY_COMPARE: Duration = Duration::from_millis(100);

/// The most followed files that a new one is compared with.
const MAX_COMPARED: usize = 256;

/// The most files of a folder that are opened to find a truncated file's copy.
const MAX_OPENED: usize = 64;

/// A folder of more files is searched only if something would be lost otherwise.
const MANY_FILES: usize = 5_000;

/// A copy that is still being written is waited for no longer than this.
const LONGEST_COPY: Duration = Duration::from_secs(600);

/// New files, and those that may be copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Followed files by their head, if that is whole.
    by_head: HashMap<Guard, BTreeSet<u64>>,
    /// New files that weren't compared with others yet, and are in their rule's queue.
    pub(super) fresh: BTreeSet<u64>,
    /// Files that aren't read for now.
    held: HashMap<u64, Held>,
}

/// A file in a truncated file's folder that may be its copy.
#[derive(Debug)]
struct Candidate {
    number: u64,
    /// No rule asked for it.
    is_stranger: bool,
}

/// It can't be told now whether a file is a copy: it, or its original, can't be opened or read.
#[derive(Debug)]
struct NotNow;

#[derive(Debug)]
struct Held {
    original: u64,
    since: Instant,
    /// Since when it holds all that was read of the original.
    whole_since: Option<Instant>,
    /// It was found to be a copy at this size.
    verified: u64,
}

impl Collector {
    /// Lists a followed file under its present head.
    pub(super) fn list_head(&mut self, number: u64) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let head = file.record.head;
        let before = std::mem::replace(&mut file.listed_head, head);
        if before != head {
            self.copies.unlist(before, number);
            self.copies.list(head, number);
        }
    }

    /// A file is followed no more.
    pub(super) fn unlist(&mut self, number: u64) {
        let Some(file) = self.files.get(&number) else { return };
        self.copies.unlist(file.listed_head, number);
        self.copies.fresh.remove(&number);
        self.copies.held.remove(&number);
    }

    /// True if a file isn't to be read for now. New files are compared together, so that one commit does for many.
    pub(super) fn is_held(&mut self, number: u64, now: Instant) -> bool {
        // While others are opened the budget must not close it.
        self.pinned.push(number);
        if self.copies.held.contains_key(&number) {
            self.look_at_held(number, now);
        } else {
            self.compare_some(number, now);
        }
        self.pinned.clear();
        // What couldn't be compared yet isn't read either.
        let waits = |file: &Followed| file.record.fresh && file.record.size > 0;
        self.copies.held.contains_key(&number) || self.files.get(&number).is_some_and(|file| waits(file))
    }

    /// Compares a file, if it's new, and some of the other new ones.
    fn compare_some(&mut self, number: u64, now: Instant) {
        self.copies.fresh.remove(&number);
        let others: Vec<u64> = std::iter::from_fn(|| self.copies.fresh.pop_first()).take(MAX_AT_ONCE).collect();
        for fresh in std::iter::once(number).chain(others) {
            self.get_ready(fresh, now);
            self.compare_new(fresh, now);
        }
    }

    /// A file that was empty and may have grown: all that must be on disk before it's read is known after this.
    fn get_ready(&mut self, number: u64, now: Instant) {
        let grown = self.files.get(&number).is_some_and(|file| file.record.size == 0 && file.queued);
        if grown
            && self.open_file(number, now)
            && self.look_at_size(number, now)
            && let Some(file) = self.files.get_mut(&number)
            // An error comes again at its turn.
            && file.note_head().is_ok()
        {
            file.note_sending();
            self.list_head(number);
        }
    }

    /// Compares a new file that has bytes with those that were followed before it.
    fn compare_new(&mut self, number: u64, now: Instant) {
        let Some(file) = self.files.get(&number) else { return };
        // An empty file may yet become a copy.
        if file.record.size == 0 || !file.record.fresh || self.copies.held.contains_key(&number) {
            return;
        }
        match self.original_of(number, now) {
            Ok(Some(original)) => {
                if let Some(file) = self.files.get(&number) {
                    tracing::debug!(path = %file.record.path.display(), "file looks like a copy of one that is followed");
                }
                let held = Held { original, since: now, whole_since: None, verified: 0 };
                self.copies.held.insert(number, held);
                self.look_at_held(number, now);
            }
            Ok(None) => self.set_free(number),
            Err(NotNow) => self.set_timer(number, now + RETRY_COMPARE),
        }
    }

    /// The followed file of which a new one may be a copy. One that can't be compared is tried again for as long as a
    /// copy waits for its original.
    fn original_of(&mut self, number: u64, now: Instant) -> Result<Option<u64>, NotNow> {
        if self.files.get(&number).is_some_and(|file| file.record.size < Guard::BYTES as u64) {
            return Ok(None);
        }
        if !self.open_file(number, now) {
            return Err(NotNow);
        }
        let Some(file) = self.files.get(&number) else { return Ok(None) };
        let head = Guard::of(&file.first_bytes().map_err(|_| NotNow)?);
        let numbers = self.copies.by_head.get(&head).into_iter().flatten().copied();
        let before = |other: &Followed| other.born < file.born && !other.record.fresh && !other.binary;
        let others = numbers.filter(|other| self.files.get(other).is_some_and(|other| before(other)));
        let others: Vec<u64> = others.take(MAX_COMPARED).collect();
        let give_up = file.born.is_none_or(|born| now >= born + self.settings.copy_hold);
        let mut unknown = false;
        for other in others {
            match self.likeness(number, other, now) {
                Ok(Likeness::Continues | Likeness::Contained) => return Ok(Some(other)),
                Ok(Likeness::None) => {}
                Err(NotNow) => unknown = true,
            }
        }
        if unknown && !give_up { Err(NotNow) } else { Ok(None) }
    }

    /// What a new file is to one that is followed and still whole.
    fn likeness(&mut self, number: u64, other: u64, now: Instant) -> Result<Likeness, NotNow> {
        let (Some(file), Some(original)) = (self.files.get(&number), self.files.get(&other)) else {
            return Ok(Likeness::None);
        };
        let handle = file.file.as_ref().ok_or(NotNow)?;
        match original.trace().compare(handle, file.record.size).map_err(|_| NotNow)? {
            Likeness::None if file.record.size < original.read => self.ends_alike(number, other, now),
            likeness => Ok(likeness),
        }
    }

    /// A file that is shorter than what was read of another: are its last bytes those of the other at the same place?
    fn ends_alike(&mut self, number: u64, other: u64, now: Instant) -> Result<Likeness, NotNow> {
        let pinned = self.pinned.len();
        self.pinned.extend([number, other]);
        let open = self.open_file(other, now) && self.open_file(number, now);
        self.pinned.truncate(pinned);
        let (Some(file), Some(original)) = (self.files.get(&number), self.files.get(&other)) else {
            return Ok(Likeness::None);
        };
        match file.ends_like(original) {
            _ if !open => Err(NotNow),
            Ok(true) => Ok(Likeness::Contained),
            Ok(false) => Ok(Likeness::None),
            Err(_) => Err(NotNow),
        }
    }

    /// A file that is held: goes on with waiting, or finds that it was in vain.
    fn look_at_held(&mut self, number: u64, now: Instant) {
        let Some(original) = self.copies.held.get(&number).map(|held| held.original) else { return };
        let pinned = self.pinned.len();
        self.pinned.extend([number, original]);
        let open = self.open_file(number, now);
        if open && self.open_file(original, now) {
            // If it was truncated, its stream goes on in the copy.
            self.look_at_size(original, now);
        }
        let like = if open { self.likeness(number, original, now) } else { Err(NotNow) };
        self.pinned.truncate(pinned);
        let Some(held) = self.copies.held.get_mut(&number) else { return };
        let (Some(file), true) = (self.files.get(&number), self.files.contains_key(&original)) else {
            return self.set_free(number);
        };
        let until = match like {
            _ if file.deleted => now,
            Ok(Likeness::None) => now,
            Ok(Likeness::Continues) => *held.whole_since.get_or_insert(now) + self.settings.copy_hold,
            Ok(Likeness::Contained) => (file.grown + self.settings.copy_hold).min(held.since + LONGEST_COPY),
            // It couldn't be read either.
            Err(NotNow) if !open => return self.set_timer(number, now + RETRY_COMPARE),
            Err(NotNow) => held.since + self.settings.copy_hold,
        };
        if matches!(like, Ok(Likeness::Continues | Likeness::Contained)) {
            held.verified = file.record.size;
        }
        match like {
            _ if now >= until => self.set_free(number),
            Err(NotNow) => self.set_timer(number, now + RETRY_COMPARE),
            Ok(_) => self.set_timer(number, until),
        }
    }

    /// It is a file of its own. That is on disk before anything of it is sent.
    fn set_free(&mut self, number: u64) {
        self.copies.held.remove(&number);
        self.copies.fresh.remove(&number);
        let Some(file) = self.files.get_mut(&number) else { return };
        (file.record.fresh, file.durable) = (false, false);
        self.dirty.insert(number);
        self.enqueue(number);
    }

    /// Goes on with a former generation of a file in a copy of it; hands it back if there is none.
    pub(super) fn continue_in_copy(&mut self, number: u64, former: Former, now: Instant) -> Option<Former> {
        if !former.trace.is_enough() {
            return Some(former);
        }
        let held: Vec<u64> = self.copies.held.iter().filter(|(_, h)| h.original == number).map(|(c, _)| *c).collect();
        let found = self.copies_in_folder(number, &former, now);
        let mut former = Some(former);
        for copy in held.iter().chain(found.iter().map(|candidate| &candidate.number)).copied() {
            let Some(open) = &former else { break };
            if !self.open_file(copy, now) {
                continue;
            }
            match self.judge(copy, &open.trace) {
                (Likeness::Continues, _) => {
                    former = former.take().and_then(|former| self.take_over(copy, number, former, now))
                }
                (Likeness::Contained, size) => self.pass_over(copy, size),
                (Likeness::None, _) => {}
            }
        }
        for copy in held.into_iter().filter(|copy| self.copies.held.contains_key(copy)).collect::<Vec<_>>() {
            self.set_free(copy);
        }
        for stranger in found.into_iter().filter(|candidate| candidate.is_stranger) {
            if self.files.get(&stranger.number).is_some_and(|file| file.record.fresh) {
                self.forget(stranger.number);
            }
        }
        former
    }

    /// What a copy is to a file that is truncated now, and the size at which it is that.
    fn judge(&self, copy: u64, trace: &Trace) -> (Likeness, u64) {
        let Some(file) = self.files.get(&copy) else { return (Likeness::None, 0) };
        let Some(handle) = &file.file else { return (Likeness::None, 0) };
        let size = crate::pathguard::meta_of(handle).map_or(file.record.size, |meta| meta.size);
        let verified = self.copies.held.get(&copy).is_some_and(|held| held.verified == size);
        let likeness = match trace.compare(handle, size) {
            Ok(Likeness::None) if verified && size < trace.read => Likeness::Contained,
            Ok(likeness) => likeness,
            Err(_) => Likeness::None,
        };
        (likeness, size)
    }

    /// New files in a truncated file's folder that may be copies of it; they're followed from now on.
    fn copies_in_folder(&mut self, number: u64, former: &Former, now: Instant) -> Vec<Candidate> {
        let needed = former.unread > 0 || !former.flight.sent.is_empty();
        let Some(folder) = former.record.path.parent() else { return Vec::new() };
        let Some(names) = inodes_in(folder) else { return Vec::new() };
        if names.len() > MANY_FILES && !needed {
            return Vec::new();
        }
        let mut candidates: Vec<(FileKey, PathBuf)> = names
            .into_values()
            .filter_map(|path| meta_at(&path).ok().map(|meta| (meta, path)))
            .filter(|(meta, _)| meta.is_file && meta.size > 0 && meta.key != former.record.key)
            .filter(|(meta, _)| meta.key.birth.is_none() || meta.key.birth >= former.record.key.birth)
            .map(|(meta, path)| (meta.key, path))
            .filter(|(key, _)| self.may_be_copy(*key))
            .collect();
        // The newest first.
        candidates.sort_by_key(|(key, _)| std::cmp::Reverse(key.birth));
        candidates.truncate(MAX_OPENED);
        candidates.into_iter().filter_map(|(key, path)| self.follow_copy(number, key, path, former, now)).collect()
    }

    /// True if a file is unknown, or nothing of it was sent.
    fn may_be_copy(&self, key: FileKey) -> bool {
        match self.by_key.get(&key) {
            Some(number) => self.files.get(number).is_some_and(|file| file.record.fresh),
            None => !self.is_known(key),
        }
    }

    /// Follows a file that looks like a copy, so that it can be judged.
    fn follow_copy(
        &mut self,
        number: u64,
        key: FileKey,
        path: PathBuf,
        former: &Former,
        now: Instant,
    ) -> Option<Candidate> {
        let known = |number: u64| Candidate { number, is_stranger: false };
        if let Some(number) = self.by_key.get(&key) {
            return Some(known(*number));
        }
        // Its record says by which rule it was found, and under which name.
        let was_known = self.dormant_of(key).is_some();
        let rule = self.rules.iter().position(|r| r.compiled.matches(&path).is_some());
        let opened = self.guard.open(&path).ok().filter(|opened| opened.meta.key == key)?;
        let likeness = former.trace.compare(&opened.file, opened.meta.size).ok()?;
        match (rule, likeness) {
            (_, Likeness::None) | (None, Likeness::Contained) => None,
            (Some(rule), _) => self.adopt(opened, &path, rule, false, now).ok().map(known),
            // No rule asked for this name, but for what the file holds.
            (None, Likeness::Continues) if opened.meta.size > former.record.acked => {
                let rule = self.files.get(&number)?.rule;
                let copy = self.adopt(opened, &path, rule, false, now).ok()?;
                let file = self.files.get_mut(&copy)?;
                file.record.matched = former.record.matched.clone();
                file.away = true;
                Some(Candidate { number: copy, is_stranger: !was_known })
            }
            (None, Likeness::Continues) => None,
        }
    }

    /// Goes on with a former generation in a file that nothing was sent of; hands it back if that can't be.
    fn take_over(&mut self, copy: u64, number: u64, former: Former, now: Instant) -> Option<Former> {
        let Some(file) = self.files.get_mut(&copy) else { return Some(former) };
        if !file.seek(former.trace.read, former.trace.at).unwrap_or(false) {
            return Some(former);
        }
        let Some(meta) = file.file.as_ref().and_then(|handle| crate::pathguard::meta_of(handle).ok()) else {
            return Some(former);
        };
        tracing::info!(path = %file.record.path.display(), stream = %former.stream, from = former.trace.read,
            "file is a copy of {} that was truncated: its stream goes on here", former.record.path.display());
        self.by_stream.remove(&file.stream);
        let old = former.record;
        let record = &mut file.record;
        record.stream_inode = Some(old.stream_inode.unwrap_or(old.key.inode));
        (record.stream_birth, record.epoch) = (old.stream_birth, old.epoch);
        (record.start, record.acked, record.guard) = (old.start, old.acked, old.guard);
        (record.cuts, record.assignment, record.sent_to) = (old.cuts, old.assignment, old.sent_to);
        record.past = old.past;
        (record.fresh, record.size) = (false, meta.size);
        let lost = old.size.saturating_sub(meta.size);
        record.lose(&self.settings.agent, ByteRange::new(meta.size, meta.size + lost), LossCause::Truncated);
        self.totals.lost_bytes += lost;
        file.checked = meta.size;
        file.stream = former.stream;
        file.source = Followed::source_of(&file.record);
        (file.framing, file.flight) = (former.framing, former.flight);
        file.framed_to = former.framed_to.min(meta.size).max(file.read);
        (file.next, file.stalled_at, file.durable, file.grown) = (None, None, false, now);
        file.charset = None;
        file.unread_since = (file.unread() > 0).then(UnixNanos::now);
        file.written = Written::default();
        let rule = file.rule;
        self.by_stream.insert(former.stream, copy);
        self.copies.held.remove(&copy);
        self.copies.fresh.remove(&copy);
        self.inherit_losses(copy, number, former.stream);
        self.dirty.extend([copy, number]);
        self.assign(copy, rule);
        self.enqueue(copy);
        None
    }

    /// What was lost of a stream is told where the stream lives.
    fn inherit_losses(&mut self, copy: u64, original: u64, stream: StreamId) {
        let Some(losses) = self.files.get_mut(&original).map(|file| file.record.take_losses(stream)) else { return };
        if let Some(file) = self.files.get_mut(&copy) {
            file.record.add_losses(losses);
        }
    }

    /// All that a copy holds up to this size was read from its original: there's nothing to read in it.
    pub(super) fn pass_over(&mut self, copy: u64, size: u64) {
        let Some(file) = self.files.get_mut(&copy) else { return };
        tracing::info!(path = %file.record.path.display(), "file is a copy of one that was truncated, and was read there");
        if let Ok(guard) = file.begin_at(size) {
            file.record.guard = guard;
            self.set_free(copy);
        }
    }
}

impl Copies {
    fn list(&mut self, head: Guard, number: u64) {
        if usize::from(head.length) == Guard::BYTES {
            self.by_head.entry(head).or_default().insert(number);
        }
    }

    fn unlist(&mut self, head: Guard, number: u64) {
        let Some(numbers) = self.by_head.get_mut(&head) else { return };
        numbers.remove(&number);
        if numbers.is_empty() {
            self.by_head.remove(&head);
        }
    }
}
