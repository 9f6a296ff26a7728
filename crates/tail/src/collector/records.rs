//! Records of files that aren't followed: kept for when they're found again, until they're forgotten.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use logmesh_types::{StreamId, UnixNanos};

use super::packed::Packed;
use super::{Collector, Draining};
use crate::follow::{Flight, Followed, Recall};
use crate::pathguard::{FileKey, meta_at};
use crate::state::Record;
use crate::walk::inodes_in;

impl Collector {
    /// Takes the record of a file out of those that aren't followed.
    pub(super) fn wake_up(&mut self, key: FileKey) -> Option<Record> {
        let number = self.dormant_of(key)?.number;
        self.take_dormant(number)
    }

    /// What is needed to read a stream's acked bytes again; `None`: no file of it is known.
    pub fn recall(&self, stream: StreamId) -> Option<Recall> {
        let followed = self.by_stream.get(&stream).and_then(|number| self.files.get(number));
        let is_its = |record: &&Record| Followed::stream_of(&self.settings.agent, record) == stream;
        let asleep = || self.dormant.values().find(is_its).cloned();
        let record = followed.map(|file| file.to_keep()).or_else(asleep)?;
        Some(Recall { stream, record })
    }

    /// The record of a file that isn't followed.
    pub(super) fn dormant_of(&self, key: FileKey) -> Option<&Record> {
        let numbers = self.dormant_by_inode.get(&key.inode)?;
        let records = || numbers.iter().filter_map(|number| self.dormant.get(number));
        // Device numbers may change at a restart of the host; inode and birth time together don't.
        records()
            .find(|record| record.key == key)
            .or_else(|| records().find(|record| key.birth.is_some() && record.key.birth == key.birth))
    }

    /// True if a file has a record, and of what it holds something may have been sent.
    pub(super) fn is_known(&self, key: FileKey) -> bool {
        let numbers = self.dormant_by_inode.get(&key.inode).into_iter().flatten();
        numbers.filter_map(|number| self.dormant.get(number)).any(|record| record.key == key && !record.fresh)
    }

    fn take_dormant(&mut self, number: u64) -> Option<Record> {
        let record = self.dormant.remove(&number)?;
        if let Some(numbers) = self.dormant_by_inode.get_mut(&record.key.inode) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.dormant_by_inode.remove(&record.key.inode);
            }
        }
        Some(record)
    }

    /// Keeps the record of a file that isn't followed.
    pub(super) fn put_to_sleep(&mut self, record: Record) {
        self.dormant_by_inode.entry(record.key.inode).or_default().push(record.number);
        self.dormant.insert(record.number, record);
    }

    /// A file that wasn't open is gone; what wasn't read of it is lost.
    pub(super) fn lose(&mut self, number: u64) {
        self.release(number);
        self.miss(number);
    }

    /// Counts what wasn't read of a file that can't be found. It's taken back if the file is found after all, but
    /// not from the totals, which only ever grow.
    fn miss(&mut self, number: u64) {
        let Some(record) = self.dormant.get_mut(&number) else { return };
        let stream = Followed::stream_of(&self.settings.agent, record);
        let on_its_way = self.draining.get(&stream).and_then(|draining| draining.flight.sent.back());
        let read = on_its_way.map_or(record.acked, |sent| sent.chunk.range.end);
        let lost = record.size.saturating_sub(read);
        if lost > record.missing {
            let path = record.path.display();
            tracing::error!(%path, lost, from = read, "file is gone before its last bytes were read: they are lost");
            self.totals.lost_bytes += lost - record.missing;
            record.missing = lost;
            record.missing_since = Some(UnixNanos::now());
            self.changes += 1;
            self.dirty.insert(number);
        }
    }

    /// Looks for files that have a record and that no glob found: renamed while nobody watched.
    pub(super) fn search_by_identity(&mut self, now: Instant) {
        let mut folders: HashMap<PathBuf, Option<HashMap<u64, PathBuf>>> = HashMap::new();
        let mut packed = Packed::default();
        for number in self.dormant.keys().copied().collect::<Vec<_>>() {
            let Some(record) = self.dormant.get(&number).filter(|record| !record.ignored) else { continue };
            let Some(rule) = self.rules.iter().position(|r| r.compiled.matches(&record.matched).is_some()) else {
                continue;
            };
            let Some(folder) = record.path.parent() else { continue };
            let names = folders.entry(folder.to_owned()).or_insert_with(|| inodes_in(folder));
            // What can't be looked into may hold it.
            let Some(names) = names else { continue };
            let key = record.key;
            let path = names.get(&key.inode).filter(|path| !meta_at(path).is_ok_and(|meta| meta.key != key)).cloned();
            let Some(path) = path else {
                // Not there, or another file has its inode now.
                if let Some(length) = packed.length(record, names, &self.guard)
                    && let Some(record) = self.dormant.get_mut(&number)
                {
                    record.size = length;
                }
                self.miss(number);
                continue;
            };
            if let Ok(opened) = self.guard.open(&path)
                && opened.meta.key == key
                && let Ok(number) = self.adopt(opened, &path, rule, false, now)
                && let Some(file) = self.files.get_mut(&number)
            {
                file.away = !self.rules.iter().any(|r| r.compiled.matches(&path).is_some());
                self.arm(number, now);
            }
        }
    }

    /// Forgets what is known of files that vanished long ago.
    pub(super) fn expire(&mut self) {
        let span = i64::try_from(self.settings.forget_after.as_nanos()).unwrap_or(i64::MAX);
        let oldest = UnixNanos::now().0.saturating_sub(span);
        let old: Vec<u64> = self.dormant.values().filter(|r| r.seen.0 < oldest).map(|r| r.number).collect();
        for number in old {
            self.take_dormant(number);
            self.batch.removed.push(number);
        }
    }

    /// Stops following a file and keeps its record. Acks of what is on its way still count.
    pub(super) fn release(&mut self, number: u64) {
        let Some((mut record, stream, flight, binary)) = self.unfollow(number) else { return };
        if !flight.sent.is_empty() {
            self.draining.insert(stream, Draining { record: number, former: false, start: record.start, flight });
        }
        if !binary || record.lost_bytes + record.former > 0 {
            record.seen = UnixNanos::now();
            self.dirty.insert(number);
            self.put_to_sleep(record);
        }
    }

    /// Stops following a file that is no more; all of it is acked.
    pub(super) fn forget(&mut self, number: u64) {
        if self.unfollow(number).is_some() {
            self.dirty.remove(&number);
            self.batch.removed.push(number);
        }
    }

    fn unfollow(&mut self, number: u64) -> Option<(Record, StreamId, Flight, bool)> {
        self.changes += 1;
        self.close_file(number);
        self.drop_names(number);
        self.unlist(number);
        let file = self.files.remove(&number)?;
        self.by_key.remove(&file.record.key);
        self.by_stream.remove(&file.stream);
        if let Some(at) = file.timer {
            self.timers.remove(&(at, number));
        }
        let record = Record { framed_to: Some(file.framed_to), ..file.to_keep() };
        Some((record, file.stream, file.flight, file.binary))
    }
}
