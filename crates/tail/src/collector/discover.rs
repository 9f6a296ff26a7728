//! Finding files: by scans and hints, by name and by identity.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logmesh_types::{ByteRange, UnixNanos};

use super::{Collector, Draining, Running};
use crate::follow::{Flight, Followed, Tail};
use crate::framing::Framing;
use crate::pace::Rate;
use crate::pathguard::{FileKey, Meta, Opened, Refusal, meta_at, meta_of, real_path};
use crate::rule::StartAt;
use crate::state::{Assignment, Guard, Record};
use crate::status::{FileProblem, MAX_PROBLEMS};
use crate::walk::Walk;

/// The time between scans while some folder can't be watched.
const SCAN_UNWATCHED: Duration = Duration::from_secs(1);

/// While hints tell of everything, scans only make sure: they take no more than one in so many parts of the time, as long
/// as they come at least so often.
const SCAN_SHARE: u32 = 1_000;
const SCAN_LONGEST: Duration = Duration::from_secs(60);

/// The most names under which one file is known.
const MAX_NAMES: usize = 8;

/// What a scan found: paths with their owner's place, and whether they're read from their end.
type Found = Vec<(PathBuf, usize, bool)>;

/// Lists a problem, if there's room in the list.
pub(super) fn note(problems: &mut Vec<FileProblem>, path: PathBuf, reason: &'static str, detail: String) {
    if problems.len() < MAX_PROBLEMS {
        problems.push(FileProblem { path, reason, detail });
    }
}

impl Collector {
    /// Walks all globs and brings what is followed in line with what is there.
    pub(super) fn scan(&mut self, now: Instant) {
        let began = Instant::now();
        let mut walk = Walk::default();
        let before: Vec<_> = self.rules.iter().map(|running| (running.shadowed, running.refused)).collect();
        let found = self.walk(&mut walk);
        self.ignored.clear();
        let mut seen = std::collections::HashSet::new();
        for (path, rule, from_end) in found {
            match self.consider(&path, rule, from_end, now) {
                Ok(number) => drop(seen.insert(number)),
                Err(refusal) => self.refuse(rule, path, &refusal),
            }
        }
        for number in self.files.keys().copied().filter(|n| !seen.contains(n)).collect::<Vec<_>>() {
            self.find_again(number, now);
        }
        if std::mem::take(&mut self.search) {
            self.search_by_identity(now);
        }
        for key in self.rules.iter().flat_map(Running::scan_keys) {
            if self.scanned.insert(key.clone()) {
                self.batch.scanned.push(key);
            }
        }
        self.state_lost = false;
        self.expire();
        for file in self.files.values() {
            walk.folders.extend(file.names.iter().filter_map(|name| name.parent()).map(Path::to_owned));
        }
        self.watcher.retain(|folder| walk.folders.contains(folder));
        self.last_scan = Some(now);
        let after: Vec<_> = self.rules.iter().map(|running| (running.shadowed, running.refused)).collect();
        self.changes += u64::from(before != after);
        let pause = if self.watcher.incomplete { SCAN_UNWATCHED } else { self.settings.scan_every };
        let pause = pause.min(self.settings.scan_every);
        let for_cost = (began.elapsed() * SCAN_SHARE).min(SCAN_LONGEST);
        self.scan_at = now + if self.watcher.incomplete { pause } else { pause.max(for_cost) };
    }

    /// Walks the globs of all rules, the owners first.
    fn walk(&mut self, walk: &mut Walk) -> Found {
        let mut owners: HashMap<PathBuf, usize> = HashMap::new();
        let mut found = Found::new();
        let names: Vec<String> = self.rules.iter().map(|r| r.compiled.rule.name.to_string()).collect();
        for index in 0..self.rules.len() {
            let running = &mut self.rules[index];
            (running.problems, running.shadowed, running.refused) = (Vec::new(), 0, 0);
            let compiled = &running.compiled;
            for glob in &compiled.globs {
                let first = !self.scanned.contains(&(compiled.rule.name.to_string(), glob.as_str().to_owned()));
                let from_end = compiled.rule.start_at == StartAt::End && first && !self.state_lost;
                for root in self.guard.roots_for(glob) {
                    walk.run(glob, &root, &mut |folder| self.watcher.watch(folder), &mut |path| {
                        if compiled.excludes(&path) {
                            return;
                        }
                        match owners.get(&path) {
                            None => {
                                owners.insert(path.clone(), index);
                                found.push((path, index, from_end));
                            }
                            Some(owner) if *owner != index => {
                                running.shadowed += 1;
                                note(&mut running.problems, path, "SHADOWED", names[*owner].clone());
                            }
                            Some(_) => {}
                        }
                    });
                }
            }
            running.problems.append(&mut walk.problems);
        }
        found
    }

    fn refuse(&mut self, rule: usize, path: PathBuf, refusal: &Refused) {
        let running = &mut self.rules[rule];
        running.refused += 1;
        note(&mut running.problems, path, refusal.reason(), refusal.to_string());
    }

    /// A name came or went: looks what it means now.
    pub(super) fn look_at(&mut self, path: PathBuf, now: Instant) {
        if let Some(number) = self.by_path.get(&path).copied() {
            self.find_again(number, now);
        }
        let rule = self.rules.iter().position(|r| r.compiled.matches(&path).is_some());
        if rule.is_some_and(|rule| self.rules[rule].scan_keys().any(|key| !self.scanned.contains(&key))) {
            // Where to begin in what is there first is the first scan's to say, which is due.
            return self.scan_soon(now);
        }
        if let Some(rule) = rule
            && self.consider(&path, rule, false, now).is_err()
        {
            // What stands against it is counted and reported by scans.
            self.scan_soon(now);
        }
    }

    /// Makes sure that the file at a path that a rule matches is followed; answers its number.
    pub(super) fn consider(&mut self, path: &Path, rule: usize, from_end: bool, now: Instant) -> Result<u64, Refused> {
        let meta = meta_at(path)?;
        if let Some(number) = self.by_key.get(&meta.key).copied() {
            self.met_again(number, path, meta);
            return Ok(number);
        }
        if let Some(other) = self.by_path.get(path).copied() {
            // The name belongs to another file now.
            self.find_again(other, now);
        }
        if self.files.len() >= self.settings.max_files {
            return Err(Refused::TooMany(self.settings.max_files));
        }
        let opened = self.guard.open(path)?;
        match self.by_key.get(&opened.meta.key).copied() {
            Some(number) => Ok(number),
            None if self.is_too_old(&opened.meta, rule) => self.ignore(opened, path, rule, from_end),
            None => self.adopt(opened, path, rule, from_end, now),
        }
    }

    /// True for a file of which nothing is known and to which nothing was written for longer than its rule says.
    fn is_too_old(&self, meta: &Meta, rule: usize) -> bool {
        let Some(age) = self.rules[rule].compiled.rule.ignore_older else { return false };
        let oldest = i64::try_from(age.as_nanos()).map_or(i64::MIN, |age| UnixNanos::now().0.saturating_sub(age));
        meta.modified.0 < oldest && self.dormant_of(meta.key).is_none_or(|record| record.ignored)
    }

    /// Leaves a file alone until it is written to. One that would be begun at its end is, later, at its present end.
    fn ignore(&mut self, opened: Opened, path: &Path, rule: usize, from_end: bool) -> Result<u64, Refused> {
        let number = match self.dormant_of(opened.meta.key).map(|record| record.number) {
            Some(number) => Some(number),
            None if from_end => {
                let mut record = self.new_record(&opened, path, rule, true)?;
                let number = record.number;
                record.guard = Followed::guard_at(&opened.file, record.acked).map_err(Refused::Io)?;
                record.ignored = true;
                self.dirty.insert(number);
                self.put_to_sleep(record);
                Some(number)
            }
            None => None,
        };
        if let Some(record) = number.and_then(|number| self.dormant.get_mut(&number)) {
            record.seen = UnixNanos::now();
        }
        if self.ignored.len() < self.settings.max_files {
            self.ignored.insert(path.to_owned());
        }
        Err(Refused::TooOld(opened.meta.modified))
    }

    /// A file that is followed was found at a path.
    fn met_again(&mut self, number: u64, path: &Path, meta: Meta) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let here = file.record.path == path;
        // Renamed, or a second name of it?
        let moved = !here && !meta_at(&file.record.path).is_ok_and(|there| there.key == meta.key);
        if moved {
            self.rename(number, path);
        } else if !here {
            self.add_name(number, path.to_owned());
        }
        let Some(file) = self.files.get_mut(&number) else { return };
        file.deleted = false;
        file.away = false;
        if meta.size != file.record.size || meta.size > file.read || file.file.is_none() && file.error.is_some() {
            self.enqueue(number);
        }
    }

    fn rename(&mut self, number: u64, path: &Path) {
        if let Some(file) = self.files.get_mut(&number) {
            self.turnovers.note(&file.record.path, self.now);
            file.record.path = path.to_owned();
            self.dirty.insert(number);
            self.drop_names(number);
            self.add_name(number, path.to_owned());
        }
    }

    /// Hints under this name shall find the file.
    fn add_name(&mut self, number: u64, name: PathBuf) {
        let Some(file) = self.files.get_mut(&number) else { return };
        if file.names.contains(&name) || file.names.len() >= MAX_NAMES {
            return;
        }
        if let Some(folder) = name.parent() {
            self.watcher.watch(folder);
        }
        file.names.push(name.clone());
        self.by_path.insert(name, number);
    }

    fn drop_names(&mut self, number: u64) {
        let Some(file) = self.files.get_mut(&number) else { return };
        for name in std::mem::take(&mut file.names) {
            if self.by_path.get(&name) == Some(&number) {
                self.by_path.remove(&name);
            }
        }
    }

    /// Begins to follow an open file: from where its record stands, or anew.
    pub(super) fn adopt(
        &mut self,
        opened: Opened,
        path: &Path,
        rule: usize,
        from_end: bool,
        now: Instant,
    ) -> Result<u64, Refused> {
        let resumed = self.wake_up(opened.meta.key);
        let is_new = resumed.is_none();
        let mut record = match resumed {
            Some(record) => Record {
                key: opened.meta.key,
                path: path.to_owned(),
                missing: 0,
                missing_since: None,
                ignored: false,
                ..record
            },
            None => self.new_record(&opened, path, rule, from_end)?,
        };
        // A rule that owned the file under its former name keeps it.
        let owner = self.rules.iter().position(|r| r.compiled.matches(&record.matched).is_some());
        let owner = owner.unwrap_or_else(|| {
            record.matched = path.to_owned();
            rule
        });
        let framing = Framing::new(&record.assignment.framing).unwrap_or_default();
        let number = record.number;
        // What was sent before a crash lay in the file, so before its present end, unless it was truncated since.
        let end = if opened.meta.size < record.size { u64::MAX } else { opened.meta.size };
        let bound = record.sent_to.map_or(opened.meta.size, |bound| bound.min(end));
        let framed_to = record.framed_to.take().unwrap_or(if is_new { record.acked } else { bound });
        let size_before = std::mem::replace(&mut record.size, opened.meta.size);
        let file = Followed {
            stream: Followed::stream_of(&self.settings.agent, &record),
            source: Followed::source_of(&record),
            framing,
            charset: None,
            skimmed: 0,
            next: None,
            rule: owner,
            file: None,
            real: opened.real.clone(),
            read: record.acked,
            checked: size_before,
            framed_to,
            tail: Tail::EMPTY,
            back_to: None,
            flight: Flight::default(),
            grown: now,
            unread_since: None,
            stalled_at: None,
            queued: false,
            durable: !is_new,
            deleted: false,
            away: false,
            binary: false,
            packed: None,
            error: None,
            last_turn: self.next_turn(),
            timer: None,
            names: Vec::new(),
            rate: Rate::new(now),
            born: (is_new || record.fresh).then_some(now),
            marks: VecDeque::new(),
            listed_head: Guard::of(&[]),
            record,
        };
        self.changes += 1;
        self.by_key.insert(opened.meta.key, number);
        self.by_stream.insert(file.stream, number);
        self.files.insert(number, Box::new(file));
        self.hold_open(number, opened.file);
        self.add_name(number, path.to_owned());
        self.add_name(number, opened.real);
        self.position(number, size_before, now);
        self.assign(number, owner);
        // Now, so that the heads of many new files are made durable by one commit. An error comes again at its turn.
        if let Some(file) = self.files.get_mut(&number) {
            file.note_head().ok();
            file.note_sending();
        }
        self.list_head(number);
        self.dirty.insert(number);
        self.enqueue(number);
        Ok(number)
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// Sets the read position: after what is on its way, or at the acked offset, if the file still is what it was.
    fn position(&mut self, number: u64, size_before: u64, now: Instant) {
        let Some(file) = self.files.get_mut(&number) else { return };
        let flight = self.draining.remove(&file.stream).map(|draining| draining.flight).unwrap_or_default();
        let (offset, guard) = match flight.sent.back() {
            Some(sent) => (sent.chunk.range.end, sent.guard),
            None => (file.record.acked, file.record.guard),
        };
        file.flight = flight;
        file.read = offset;
        let size = file.record.size;
        if size >= offset && file.seek(offset, guard).unwrap_or(false) {
            let cut_short = size < size_before;
            if cut_short && file.is_cut_short(size) {
                return self.note_cut_short(number, ByteRange::new(size, size_before));
            }
            if !cut_short && file.has_head().unwrap_or(false) {
                return;
            }
        }
        // What it held when it was last seen and wasn't read is lost, unless a copy has it.
        (file.checked, file.back_to) = (size_before, Some(guard));
        self.begin_generation(number, "was written anew while it wasn't watched", now);
    }

    fn new_record(&mut self, opened: &Opened, path: &Path, rule: usize, from_end: bool) -> Result<Record, Refused> {
        let key = opened.meta.key;
        let framing = &self.rules[rule].compiled.framing;
        let start = match from_end {
            true => Followed::last_line(&opened.file, opened.meta.size, framing).map_err(Refused::Io)?,
            false => 0,
        };
        let mut record = Record {
            number: self.next_record,
            key,
            stream_birth: key.birth.unwrap_or_else(|| UnixNanos::now().0),
            epoch: 0,
            stream_inode: None,
            fresh: !from_end,
            ignored: false,
            path: path.to_owned(),
            matched: path.to_owned(),
            size: opened.meta.size,
            start,
            acked: start,
            guard: Guard::of(&[]),
            head: Guard::of(&[]),
            cuts: Vec::new(),
            assignment: self.rules[rule].assignment(),
            lost_bytes: 0,
            losses: Vec::new(),
            missing: 0,
            missing_since: None,
            former: 0,
            former_ranges: Vec::new(),
            sent_to: None,
            framed_to: None,
            seen: UnixNanos::now(),
        };
        // The same inode and birth on two file systems: the later one gets a birth of its own.
        while self.by_stream.contains_key(&Followed::stream_of(&self.settings.agent, &record)) {
            record.stream_birth = record.stream_birth.wrapping_add((key.dev as i64) | 1);
        }
        self.next_record += 1;
        Ok(record)
    }

    /// Takes the record of a file out of those that aren't followed.
    fn wake_up(&mut self, key: FileKey) -> Option<Record> {
        let number = self.dormant_of(key)?.number;
        self.take_dormant(number)
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

    /// Gives a file to a rule: at once, or where all is acked if the rule cuts or places events differently.
    pub(super) fn assign(&mut self, number: u64, rule: usize) {
        let wanted = self.rules[rule].assignment();
        let framing = self.rules[rule].compiled.framing.clone();
        let Some(file) = self.files.get_mut(&number) else { return };
        file.rule = rule;
        file.next = None;
        if file.record.assignment == wanted {
            return;
        }
        self.dirty.insert(number);
        if wanted.cuts_like(&file.record.assignment) {
            file.record.assignment = wanted;
            file.source = Followed::source_of(&file.record);
        } else {
            file.next = Some(Box::new((wanted, framing)));
        }
        // What was refused of it may be taken now.
        let stream = file.stream;
        self.retry(stream);
    }

    /// A file isn't where it was: finds out where it is.
    pub(super) fn find_again(&mut self, number: u64, now: Instant) {
        let Some(file) = self.files.get_mut(&number) else { return };
        if meta_at(&file.record.path).is_ok_and(|meta| meta.key == file.record.key) {
            file.deleted = false;
            return;
        }
        let known = file.file.as_ref().map(|handle| (meta_of(handle), real_path(handle)));
        let moved = match known {
            Some((Ok(meta), Ok(path))) if meta.links > 0 => {
                meta_at(&path).is_ok_and(|there| there.key == meta.key).then_some(path)
            }
            Some(_) => None,
            None => in_folder_of(&file.record.path, file.record.key),
        };
        match moved {
            Some(path) => {
                let matched = self.rules.iter().any(|r| r.compiled.matches(&path).is_some());
                self.rename(number, &path);
                if let Some(file) = self.files.get_mut(&number) {
                    file.away = !matched;
                    file.deleted = false;
                }
                self.enqueue(number);
                self.check_end(number, now);
            }
            None if file.file.is_some() => {
                if !file.deleted {
                    self.turnovers.note(&file.record.path, now);
                }
                file.deleted = true;
                self.drop_names(number);
                self.enqueue(number);
                self.check_end(number, now);
            }
            None => self.lose(number),
        }
    }

    /// A file that wasn't open is gone; what wasn't read of it is lost.
    fn lose(&mut self, number: u64) {
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
    fn search_by_identity(&mut self, now: Instant) {
        let mut folders: HashMap<PathBuf, Option<HashMap<u64, PathBuf>>> = HashMap::new();
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
    fn expire(&mut self) {
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

    fn unfollow(&mut self, number: u64) -> Option<(Record, logmesh_types::StreamId, Flight, bool)> {
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

impl Running {
    fn assignment(&self) -> Assignment {
        let rule = &self.compiled.rule;
        Assignment {
            rule: rule.name.clone(),
            revision: rule.revision,
            topic: rule.topic.clone(),
            framing: rule.framing.clone(),
            service: rule.service.clone(),
        }
    }
}

/// Why a file that a rule matches isn't followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Guard(#[from] Refusal),
    #[error("{0} files are followed already; narrow the rules")]
    TooMany(usize),
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    #[error("was last written to at {0}, before ignore_older; it is begun when it is written to again")]
    TooOld(UnixNanos),
}

impl Refused {
    fn reason(&self) -> &'static str {
        match self {
            Self::Guard(refusal) => refusal.reason(),
            Self::TooMany(_) => "TOO_MANY_FILES",
            Self::Io(_) => "UNREADABLE",
            Self::TooOld(_) => "IGNORED_OLDER",
        }
    }
}

/// The path of a file in the folder where it was, by its identity.
fn in_folder_of(path: &Path, key: FileKey) -> Option<PathBuf> {
    let found = inodes_in(path.parent()?)?.remove(&key.inode)?;
    meta_at(&found).is_ok_and(|meta| meta.key == key).then_some(found)
}

/// What lies in a folder, by inode; `None` if that can't be told.
pub(super) fn inodes_in(folder: &Path) -> Option<HashMap<u64, PathBuf>> {
    use std::os::unix::fs::DirEntryExt;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Some(HashMap::new());
        }
        Err(_) => return None,
    };
    Some(entries.flatten().take(crate::walk::MAX_ENTRIES).map(|entry| (entry.ino(), entry.path())).collect())
}
