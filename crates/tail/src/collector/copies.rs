//! Copies of files that are followed: `copytruncate` copies a file and truncates the original.
//!
//! A new file that begins like one that was followed before it, and holds the same bytes where that one was read, isn't
//! read at once. If its original is truncated within a short while, it goes on with the original's stream where reading
//! stood: nothing unread is lost, nothing read is doubled. If not, it was a plain copy and is a file of its own. A
//! truncated file's copy is also looked for in its folder, whatever its name.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use logmesh_types::{ByteRange, UnixNanos};

use super::Collector;
use super::discover::inodes_in;
use crate::follow::{Followed, Former, Likeness, Trace};
use crate::pathguard::{FileKey, meta_at};
use crate::state::Guard;
use crate::status::LossCause;

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
    /// Followed files by their head.
    by_head: HashMap<Guard, BTreeSet<u64>>,
    /// How many heads of a length there are.
    lengths: HashMap<u8, usize>,
    /// New files that weren't compared with others yet, and are in their rule's queue.
    pub(super) fresh: BTreeSet<u64>,
    /// Files that aren't read for now.
    held: HashMap<u64, Held>,
}

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

    /// True if a file isn't to be read for now. All new files are compared first, so that one commit does for them.
    pub(super) fn is_held(&mut self, number: u64, now: Instant) -> bool {
        // While others are opened the budget must not close it.
        self.pinned.push(number);
        let held = self.compare_all(number, now);
        self.pinned.clear();
        held
    }

    fn compare_all(&mut self, number: u64, now: Instant) -> bool {
        let mut fresh = std::mem::take(&mut self.copies.fresh);
        if self.files.get(&number).is_some_and(|file| file.record.fresh) && !self.copies.held.contains_key(&number) {
            fresh.insert(number);
        }
        for fresh in fresh {
            self.get_ready(fresh, now);
            self.compare_new(fresh, now);
        }
        if !self.copies.held.contains_key(&number) {
            return false;
        }
        self.look_at_held(number, now);
        self.copies.held.contains_key(&number)
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
        // An empty file may yet become a copy; a single byte says nothing of what it will be.
        if file.record.size == 0 || !file.record.fresh || self.copies.held.contains_key(&number) {
            return;
        }
        let needs_look = file.record.size > 1;
        if needs_look && file.file.is_none() && !self.open_file(number, now) {
            return;
        }
        let original = self.files.get(&number).filter(|_| needs_look).and_then(|file| self.original_of(file));
        let Some(file) = self.files.get(&number) else { return };
        match original {
            Some(original) => {
                tracing::debug!(path = %file.record.path.display(), "file looks like a copy of one that is followed");
                let held = Held { original, since: now, whole_since: None, verified: 0 };
                self.copies.held.insert(number, held);
                self.look_at_held(number, now);
            }
            None => self.set_free(number),
        }
    }

    /// The followed file of which a new one may be a copy.
    fn original_of(&self, file: &Followed) -> Option<u64> {
        let handle = file.file.as_ref()?;
        let start = file.first_bytes().ok()?;
        let lengths = self.copies.lengths.keys().map(|length| usize::from(*length));
        let heads = lengths.filter(|length| *length <= start.len()).map(|length| Guard::of(&start[..length]));
        let numbers = heads.filter_map(|head| self.copies.by_head.get(&head)).flatten();
        let before = |other: &&Followed| other.born < file.born && !other.record.fresh && !other.binary;
        let mut others =
            numbers.filter_map(|other| self.files.get(other).map(Box::as_ref)).filter(before).take(MAX_COMPARED);
        let is_copy =
            |other: &&Followed| matches!(likeness(file, handle, other), Likeness::Continues | Likeness::Contained);
        others.find(is_copy).map(|other| other.record.number)
    }

    /// A file that is held: goes on with waiting, or finds that it was in vain.
    fn look_at_held(&mut self, number: u64, now: Instant) {
        let Some(original) = self.copies.held.get(&number).map(|held| held.original) else { return };
        self.pinned.extend([number, original]);
        if self.open_file(number, now) && self.open_file(original, now) {
            // If it was truncated, its stream goes on in the copy.
            self.look_at_size(original, now);
        }
        let (Some(file), Some(other)) = (self.files.get(&number), self.files.get(&original)) else {
            return self.set_free(number);
        };
        let Some(held) = self.copies.held.get_mut(&number) else { return };
        let like = file.file.as_ref().map_or(Likeness::None, |handle| likeness(file, handle, other));
        if like == Likeness::None || file.deleted {
            return self.set_free(number);
        }
        held.verified = file.record.size;
        let until = if like == Likeness::Continues {
            *held.whole_since.get_or_insert(now) + self.settings.copy_hold
        } else {
            (file.grown + self.settings.copy_hold).min(held.since + LONGEST_COPY)
        };
        if now >= until { self.set_free(number) } else { self.set_timer(number, until) }
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
        if former.trace.head.length == 0 {
            return Some(former);
        }
        let mut copies: Vec<u64> =
            self.copies.held.iter().filter(|(_, h)| h.original == number).map(|(c, _)| *c).collect();
        copies.extend(self.copies_in_folder(number, &former, now));
        let mut former = Some(former);
        for copy in copies {
            let Some(open) = &former else { break };
            if !self.open_file(copy, now) {
                continue;
            }
            match self.judge(copy, &open.trace) {
                Likeness::Continues => {
                    former = former.take().and_then(|former| self.take_over(copy, number, former, now))
                }
                Likeness::Contained => self.pass_over(copy),
                Likeness::None => {}
            }
        }
        for copy in self.copies.held.iter().filter(|(_, h)| h.original == number).map(|(c, _)| *c).collect::<Vec<_>>() {
            self.set_free(copy);
        }
        former
    }

    /// What a copy is to a file that is truncated now.
    fn judge(&self, copy: u64, trace: &Trace) -> Likeness {
        let Some(file) = self.files.get(&copy) else { return Likeness::None };
        let Some(handle) = &file.file else { return Likeness::None };
        let size = crate::pathguard::meta_of(handle).map_or(file.record.size, |meta| meta.size);
        let verified = self.copies.held.get(&copy).is_some_and(|held| held.verified == size);
        match trace.compare(handle, size) {
            Ok(Likeness::None) if verified && size < trace.read => Likeness::Contained,
            Ok(likeness) => likeness,
            Err(_) => Likeness::None,
        }
    }

    /// New files in a truncated file's folder that may be copies of it; they're followed from now on.
    fn copies_in_folder(&mut self, number: u64, former: &Former, now: Instant) -> Vec<u64> {
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
    fn follow_copy(&mut self, number: u64, key: FileKey, path: PathBuf, former: &Former, now: Instant) -> Option<u64> {
        if let Some(number) = self.by_key.get(&key) {
            return Some(*number);
        }
        let rule = self.rules.iter().position(|r| r.compiled.matches(&path).is_some());
        let opened = self.guard.open(&path).ok().filter(|opened| opened.meta.key == key)?;
        let likeness = former.trace.compare(&opened.file, opened.meta.size).ok()?;
        match (rule, likeness) {
            (_, Likeness::None) | (None, Likeness::Contained) => None,
            (Some(rule), _) => self.adopt(opened, &path, rule, false, now).ok(),
            // No rule asked for this name, but for what the file holds.
            (None, Likeness::Continues) if opened.meta.size > former.record.acked => {
                let rule = self.files.get(&number)?.rule;
                let copy = self.adopt(opened, &path, rule, false, now).ok()?;
                let file = self.files.get_mut(&copy)?;
                file.record.matched = former.record.matched.clone();
                file.away = true;
                Some(copy)
            }
            (None, Likeness::Continues) => None,
        }
    }

    /// Goes on with a former generation in a file that nothing was sent of; hands it back if that can't be.
    fn take_over(&mut self, copy: u64, number: u64, former: Former, now: Instant) -> Option<Former> {
        // Where it has grown again already, the size that was seen last is that of the new bytes.
        let shrank = meta_at(&former.record.path).is_ok_and(|meta| meta.size < former.record.size);
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
        (record.fresh, record.size) = (false, meta.size);
        let lost = if shrank { old.size.saturating_sub(meta.size) } else { 0 };
        record.lose(&self.settings.agent, ByteRange::new(meta.size, meta.size + lost), LossCause::Truncated);
        self.totals.lost_bytes += lost;
        file.stream = former.stream;
        file.source = Followed::source_of(&file.record);
        (file.framing, file.flight) = (former.framing, former.flight);
        file.framed_to = former.framed_to.min(meta.size).max(file.read);
        (file.next, file.stalled_at, file.durable, file.grown) = (None, None, false, now);
        file.charset = None;
        file.unread_since = (file.unread() > 0).then(UnixNanos::now);
        let rule = file.rule;
        self.by_stream.insert(former.stream, copy);
        self.copies.held.remove(&copy);
        self.copies.fresh.remove(&copy);
        self.dirty.extend([copy, number]);
        self.assign(copy, rule);
        self.enqueue(copy);
        None
    }

    /// All that a copy holds was read from its original: there's nothing to read in it.
    fn pass_over(&mut self, copy: u64) {
        let Some(file) = self.files.get_mut(&copy) else { return };
        let Some(end) = file.file.as_ref().and_then(|handle| crate::pathguard::meta_of(handle).ok()) else { return };
        tracing::info!(path = %file.record.path.display(), "file is a copy of one that was truncated, and was read there");
        if let Ok(guard) = file.begin_at(end.size) {
            file.record.guard = guard;
            self.set_free(copy);
        }
    }
}

impl Copies {
    fn list(&mut self, head: Guard, number: u64) {
        if head.length > 0 && self.by_head.entry(head).or_default().insert(number) {
            *self.lengths.entry(head.length).or_default() += 1;
        }
    }

    fn unlist(&mut self, head: Guard, number: u64) {
        let Some(numbers) = self.by_head.get_mut(&head) else { return };
        if numbers.remove(&number)
            && let Some(count) = self.lengths.get_mut(&head.length)
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&head.length);
            }
        }
        if self.by_head.get(&head).is_some_and(BTreeSet::is_empty) {
            self.by_head.remove(&head);
        }
    }
}

/// What a new file is to one that is followed and still whole.
fn likeness(file: &Followed, handle: &std::fs::File, other: &Followed) -> Likeness {
    let size = file.record.size;
    match other.trace().compare(handle, size) {
        // Shorter than what was read: its last bytes are those of the other at the same place?
        Ok(Likeness::None) if size < other.read && file.ends_like(other).unwrap_or(false) => Likeness::Contained,
        Ok(likeness) => likeness,
        Err(_) => Likeness::None,
    }
}
