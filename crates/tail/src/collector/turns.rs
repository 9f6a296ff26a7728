//! Reading: fair turns over rules and their files, the budget of open files, and what time brings about.

use std::time::{Duration, Instant};

use logmesh_types::{ByteRange, UnixNanos};

use super::{Collector, Draining};
use crate::chunk::Chunk;
use crate::follow::{Former, Limits, Tally, Turn};
use crate::pathguard::meta_of;
use crate::state::{Guard, StreamRange};
use crate::status::LossCause;

/// How often a deleted file is looked at that someone may still write to, and how long after its last growth it is
/// given up: as long as it's open, its space on the disk isn't freed.
const DELETED_LOOK: Duration = Duration::from_millis(500);
const DELETED_GRACE: Duration = Duration::from_secs(5);

/// How long a file rests that couldn't be read.
const RETRY_READ: Duration = Duration::from_secs(1);

/// What a file's turn came to.
enum Outcome {
    Chunk(Chunk, Tally),
    Nothing,
    NeedsCredit,
}

impl Collector {
    /// Puts a file into its rule's queue.
    pub(super) fn enqueue(&mut self, number: u64) {
        if let Some(file) = self.files.get_mut(&number)
            && !file.queued
            && let Some(rule) = self.rules.get_mut(file.rule)
        {
            file.queued = true;
            rule.ready.push_back(number);
            if file.record.fresh {
                self.copies.fresh.insert(number);
            }
        }
    }

    /// Gives rules their turns, and within a rule its files, until a chunk is there.
    pub(super) fn read_some(&mut self, now: Instant, credit: u64) -> Option<Chunk> {
        for _ in 0..self.rules.len() {
            let index = self.next_rule % self.rules.len();
            self.next_rule = index + 1;
            while let Some((number, limits)) = self.next_ready(index, now, credit) {
                match self.turn(number, limits, now) {
                    Outcome::Chunk(chunk, tally) => {
                        self.account(index, &chunk, tally, now);
                        if let Some(file) = self.files.get_mut(&number) {
                            file.rate.add(chunk.range.len(), now);
                        }
                        self.enqueue_rest(number);
                        return Some(chunk);
                    }
                    Outcome::Nothing => {}
                    Outcome::NeedsCredit => {
                        // It keeps its place, or small events of other files would starve it.
                        self.rules[index].ready.push_front(number);
                        self.next_rule = index;
                        if let Some(file) = self.files.get_mut(&number) {
                            file.queued = true;
                        }
                        return None;
                    }
                }
            }
        }
        None
    }

    /// The next file of a rule, unless the rule's pace makes it wait.
    fn next_ready(&mut self, index: usize, now: Instant, credit: u64) -> Option<(u64, Limits)> {
        let rule = &mut self.rules[index];
        if rule.ready.is_empty() {
            return None;
        }
        let (bytes, lines) = (rule.bytes.available(now), rule.lines.available(now));
        if bytes == 0 || lines == 0 {
            return None;
        }
        let number = rule.ready.pop_front()?;
        if let Some(file) = self.files.get_mut(&number) {
            file.queued = false;
        }
        Some((number, Limits { credit, bytes, lines }))
    }

    fn account(&mut self, rule: usize, chunk: &Chunk, tally: Tally, now: Instant) {
        // What was left out of it was taken when it was looked at.
        self.rules[rule].bytes.take(chunk.data.len() as u64);
        self.rules[rule].lines.take(tally.lines as u64);
        self.rules[rule].tempo.note(chunk.range.len(), tally, now);
        self.totals.in_flight_bytes += chunk.data.len() as u64;
        self.totals.in_flight_chunks += 1;
        self.totals.read_bytes += chunk.range.len();
        self.totals.read_events += u64::from(chunk.events);
        self.totals.split_events += tally.split as u64;
        self.totals.decode_errors += tally.garbled as u64;
        self.totals.cut_events += u64::from(chunk.omitted() > 0);
    }

    /// The end of a line that is to be cut isn't found yet: others have their turns first, acks and commands too.
    fn skimmed(&mut self, number: u64, bytes: u64, now: Instant) {
        let rule = self.files.get(&number).and_then(|file| self.rules.get_mut(file.rule));
        if let Some(rule) = rule {
            rule.bytes.take(bytes);
        }
        self.set_timer(number, now + Duration::from_millis(1));
    }

    fn enqueue_rest(&mut self, number: u64) {
        if self.files.get(&number).is_some_and(|file| file.unread() > 0) {
            self.enqueue(number);
        }
    }

    /// One file's turn: looks at its size, and reads a chunk if there is one.
    fn turn(&mut self, number: u64, limits: Limits, now: Instant) -> Outcome {
        if !self.open_file(number, now) || !self.look_at_size(number, now) {
            return Outcome::Nothing;
        }
        let Some(file) = self.files.get_mut(&number) else { return Outcome::Nothing };
        if file.file.is_none() {
            // Closed for a copy of what it was: it's looked at again.
            self.enqueue(number);
            return Outcome::Nothing;
        }
        if file.binary {
            return Outcome::Nothing;
        }
        if file.flight.rejected_at.is_some() || !file.try_switch() {
            self.look_at_bytes(number, now);
            return Outcome::Nothing;
        }
        if let Some(guard) = file.back_to {
            match file.seek(file.read, guard) {
                Ok(true) => file.back_to = None,
                Ok(false) => {
                    self.begin_generation(number, "was written anew", now);
                    return Outcome::Nothing;
                }
                Err(error) => return self.failed(number, &error, now),
            }
        }
        match file.note_head() {
            Ok(true) => {}
            Ok(false) => {
                self.begin_generation(number, "was written anew", now);
                return Outcome::Nothing;
            }
            Err(error) => return self.failed(number, &error, now),
        }
        self.list_head(number);
        if self.is_held(number, now) {
            self.look_at_bytes(number, now);
            return Outcome::Nothing;
        }
        let Some(file) = self.files.get_mut(&number) else { return Outcome::Nothing };
        file.note_sending();
        if !file.durable {
            self.dirty.insert(number);
            if !self.make_durable(now) {
                self.look_at_bytes(number, now);
                let again = self.commit_at;
                self.set_timer(number, again);
                return Outcome::Nothing;
            }
        }
        self.read_turn(number, limits, now)
    }

    /// Looks at a file that can't be read now: so that a generation that comes and goes meanwhile is known,
    /// and goes on in a copy.
    pub(super) fn glance(&mut self, number: u64, now: Instant) {
        if self.open_file(number, now) && self.look_at_size(number, now) {
            self.look_at_bytes(number, now);
        }
    }

    /// Finds out whether a file that isn't read now was written anew. An error comes again when it's read.
    fn look_at_bytes(&mut self, number: u64, now: Instant) {
        let Some(file) = self.files.get_mut(&number) else { return };
        if !file.binary && file.is_itself().is_ok_and(|itself| !itself) {
            self.begin_generation(number, "was written anew", now);
        }
        self.list_head(number);
    }

    fn read_turn(&mut self, number: u64, limits: Limits, now: Instant) -> Outcome {
        let Some(file) = self.files.get_mut(&number) else { return Outcome::Nothing };
        match file.read_chunk(limits) {
            Ok(Turn::Chunk(chunk, tally)) => {
                file.error = None;
                return Outcome::Chunk(chunk, tally);
            }
            Ok(Turn::Skimmed(bytes)) => {
                file.error = None;
                self.skimmed(number, bytes, now);
            }
            Ok(Turn::NeedsCredit) => return Outcome::NeedsCredit,
            Ok(Turn::Nothing) => {
                file.error = None;
                self.arm(number, now);
            }
            // It's in the queue again: its size has to be looked at first.
            Ok(Turn::Rewritten) => self.begin_generation(number, "was written anew", now),
            Ok(Turn::Binary(packer)) => self.mark_binary(number, packer),
            Err(error) => return self.failed(number, &error, now),
        }
        Outcome::Nothing
    }

    fn failed(&mut self, number: u64, error: &std::io::Error, now: Instant) -> Outcome {
        if let Some(file) = self.files.get_mut(&number) {
            file.error = Some(format!("cannot be read: {error}"));
        }
        self.changes += 1;
        self.set_timer(number, now + RETRY_READ);
        Outcome::Nothing
    }

    /// Notes the file's present size; one below the read position begins a new generation.
    pub(super) fn look_at_size(&mut self, number: u64, now: Instant) -> bool {
        let Some(file) = self.files.get_mut(&number) else { return false };
        let Some(Ok(meta)) = file.file.as_ref().map(meta_of) else { return false };
        file.deleted |= meta.links == 0;
        if meta.size < file.read || meta.size < file.record.size && !file.is_cut_short(meta.size) {
            self.begin_generation(number, "was truncated", now);
        }
        let Some(file) = self.files.get_mut(&number) else { return false };
        if meta.size != file.record.size {
            if meta.size < file.record.size {
                let range = ByteRange::new(meta.size, file.record.size);
                self.note_cut_short(number, range);
            }
            let Some(file) = self.files.get_mut(&number) else { return false };
            file.grown = now;
            file.record.size = meta.size;
            self.changes += 1;
            // So that what isn't read can be counted, if it's gone after a crash.
            self.dirty.insert(number);
        }
        let Some(file) = self.files.get_mut(&number) else { return false };
        let (time, reach) = (UnixNanos::now(), file.read.max(file.stalled_at.unwrap_or(0)));
        file.written.look(reach, meta.size, meta.modified, time);
        if file.unread() > 0 && file.unread_since.is_none() {
            file.unread_since = Some(time);
        }
        true
    }

    /// A file has become shorter, not below the read position, and still is what it was: these bytes weren't read.
    pub(super) fn note_cut_short(&mut self, number: u64, lost: ByteRange) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let path = file.record.path.display();
        tracing::error!(%path, lost = lost.len(), "file was cut short before it was read: bytes are lost");
        file.record.lose(&self.settings.agent, lost, LossCause::CutShort);
        self.totals.lost_bytes += lost.len();
        (file.stalled_at, file.skimmed, file.checked) = (None, 0, lost.start);
        if u64::from(file.record.head.length) > lost.start {
            // What of it was read is guarded by the bytes before the read position.
            file.record.head = Guard::of(&[]);
        }
        file.record.cuts.retain(|cut| *cut <= lost.start);
        self.dirty.insert(number);
    }

    /// The file's bytes are others than before: from here on it is another stream.
    ///
    /// What was left of the old one is read from a copy, if somebody made one; else its unread bytes are lost.
    pub(super) fn begin_generation(&mut self, number: u64, why: &str, now: Instant) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let former = file.next_generation(&self.settings.agent);
        file.grown = now;
        self.by_stream.remove(&former.stream);
        self.by_stream.insert(file.stream, number);
        self.totals.truncations += 1;
        self.turnovers.note(&former.record.path, now);
        self.dirty.insert(number);
        self.list_head(number);
        self.enqueue(number);
        tracing::info!(path = %former.record.path.display(), stream = %former.stream, "file {why}: a new stream begins");
        if let Some(former) = self.continue_in_copy(number, former, now) {
            self.end_generation(number, former);
        }
    }

    /// Nobody has what wasn't read of a generation; what is on its way of it is waited for.
    fn end_generation(&mut self, number: u64, former: Former) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let (stream, start, lost) = (former.stream, former.record.start, former.unread);
        if lost > 0 {
            let path = file.record.path.display();
            tracing::error!(%path, lost, "file was written anew before its last bytes were read: they are lost");
            let range = ByteRange::new(former.trace.read, former.trace.read + lost);
            let topic = former.record.assignment.topic;
            file.record.lose_of(StreamRange { stream, topic, range }, LossCause::Truncated);
            self.totals.lost_bytes += lost;
        }
        file.record.note_former(stream, &former.flight);
        if !former.flight.sent.is_empty() {
            self.draining.insert(stream, Draining { record: number, former: true, start, flight: former.flight });
        }
    }

    fn mark_binary(&mut self, number: u64, packer: Option<&'static str>) {
        if let Some(file) = self.files.get_mut(&number) {
            (file.binary, file.packed, file.checked) = (true, packer, file.read);
            file.error = Some(match packer {
                Some(packer) => {
                    format!("it was compressed by {packer}: what it holds is read before that, or not at all")
                }
                None => "it holds NUL bytes: no text; UTF-16 without a mark wants its rule's `encoding`".to_owned(),
            });
        }
        self.changes += 1;
        // What it lost before it became so is told on; of it nothing is missed.
        self.dirty.insert(number);
        self.close_file(number);
    }

    /// Makes sure that a file is open; others are closed if too many are.
    pub(super) fn open_file(&mut self, number: u64, now: Instant) -> bool {
        self.turns += 1;
        let turn = self.turns;
        let Some(file) = self.files.get_mut(&number) else { return false };
        let before = std::mem::replace(&mut file.last_turn, turn);
        if file.file.is_some() {
            self.open.remove(&before);
            self.open.insert(turn, number);
            return true;
        }
        if file.binary {
            return self.reopen_binary(number);
        }
        let path = file.record.path.clone();
        match self.guard.open(&path) {
            Ok(opened) if opened.meta.key == file.record.key => {
                file.real = opened.real;
                file.error = None;
                self.hold_open(number, opened.file);
                true
            }
            Ok(_) => {
                self.find_again(number, now);
                false
            }
            Err(refusal) => {
                file.error = Some(refusal.to_string());
                self.find_again(number, now);
                false
            }
        }
    }

    /// A binary file is opened again only after it shrank: then it may have become another.
    fn reopen_binary(&mut self, number: u64) -> bool {
        let Some(file) = self.files.get_mut(&number) else { return false };
        if crate::pathguard::meta_at(&file.record.path).is_ok_and(|meta| meta.size < file.record.size) {
            file.binary = false;
            file.error = None;
            self.enqueue(number);
        }
        false
    }

    /// Keeps a file open, within the budget.
    pub(super) fn hold_open(&mut self, number: u64, handle: std::fs::File) {
        while self.open.len() >= self.settings.max_open_files {
            let Some(victim) = self.least_needed() else { break };
            self.close_file(victim);
        }
        if let Some(file) = self.files.get_mut(&number) {
            file.file = Some(handle);
            self.open.insert(file.last_turn, number);
        }
    }

    /// The open file that can best be closed: one with nothing to read, or else the one that was read last. Files
    /// that couldn't be found again are kept.
    fn least_needed(&self) -> Option<u64> {
        let movable = |number: &&u64| {
            !self.pinned.contains(number) && self.files.get(number).is_some_and(|file| !file.deleted && !file.away)
        };
        let idle = self.open.values().find(|n| movable(n) && self.files.get(n).is_some_and(|file| !file.queued));
        idle.or_else(|| self.open.values().rev().find(movable)).copied()
    }

    pub(super) fn close_file(&mut self, number: u64) {
        if let Some(file) = self.files.get_mut(&number) {
            file.file = None;
            self.open.remove(&file.last_turn);
        }
    }

    /// Sees to it that a file that has come to its end for now is looked at when time may change something.
    pub(super) fn arm(&mut self, number: u64, now: Instant) {
        let Some(file) = self.files.get(&number) else { return };
        let at = if file.deleted {
            now + DELETED_LOOK
        } else if file.unread() > 0 {
            file.grown + self.flush_after(file.rule)
        } else if file.away {
            file.grown + self.settings.away_after
        } else {
            return;
        };
        self.set_timer(number, at.max(now + Duration::from_millis(1)));
    }

    /// How long an unfinished event of a rule waits.
    fn flush_after(&self, rule: usize) -> Duration {
        let of_rule = self.rules.get(rule).and_then(|running| running.compiled.rule.flush_after);
        of_rule.unwrap_or(self.settings.flush_after)
    }

    pub(super) fn set_timer(&mut self, number: u64, at: Instant) {
        let Some(file) = self.files.get_mut(&number) else { return };
        if let Some(before) = file.timer.replace(at) {
            self.timers.remove(&(before, number));
        }
        self.timers.insert((at, number));
    }

    pub(super) fn on_timer(&mut self, number: u64, now: Instant) {
        let flush_after = self.flush_after(self.files.get(&number).map_or(usize::MAX, |file| file.rule));
        let Some(file) = self.files.get_mut(&number) else { return };
        file.timer = None;
        let idle = now.saturating_duration_since(file.grown);
        if file.stalled_at == Some(file.record.size) && file.unread() > 0 && idle >= flush_after {
            file.cut();
            self.dirty.insert(number);
        }
        self.enqueue(number);
        self.check_end(number, now);
    }

    /// Lets go of a file that is gone, when all of it is acked.
    pub(super) fn check_end(&mut self, number: u64, now: Instant) {
        let Some(file) = self.files.get(&number) else { return };
        if !(file.deleted || file.away) || file.unread() > 0 || !file.flight.sent.is_empty() || file.record.former > 0 {
            return;
        }
        let meta = file.file.as_ref().and_then(|handle| meta_of(handle).ok());
        if meta.is_some_and(|meta| meta.size != file.read) {
            // It has grown since it was last looked at.
            return self.enqueue(number);
        }
        let idle = now.saturating_duration_since(file.grown);
        if file.deleted && idle >= DELETED_GRACE {
            // Its name is gone; if it has another, it may be found again by that.
            // What was lost of it is told for as long as its record is kept.
            let forget = meta.is_some_and(|meta| meta.links == 0) && file.record.lost_bytes == 0;
            if forget { self.forget(number) } else { self.release(number) }
        } else if file.away && !file.deleted && idle >= self.settings.away_after {
            self.release(number);
        } else {
            self.arm(number, now);
        }
    }
}
