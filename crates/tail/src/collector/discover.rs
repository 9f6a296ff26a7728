//! Finding files: by scans and hints, by name and by identity.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logmesh_types::{RuleName, UnixNanos};

use super::{Collector, Findings, Running};
use crate::follow::Followed;
use crate::pathguard::{FileKey, Meta, Opened, Refusal, meta_at, meta_of, real_path};
use crate::rule::StartAt;
use crate::status::{FileProblem, MAX_OWNERS, MAX_PROBLEMS};
use crate::walk::{Walk, inodes_in};

/// The time between scans while some folder can't be watched.
const SCAN_UNWATCHED: Duration = Duration::from_secs(1);

/// While hints tell of everything, scans only make sure: they take no more than one in so many parts of the time, as long
/// as they come at least so often.
const SCAN_SHARE: u32 = 1_000;
const SCAN_LONGEST: Duration = Duration::from_secs(60);

/// The most names under which one file is known.
const MAX_NAMES: usize = 8;

/// A path that a scan found.
struct Found {
    path: PathBuf,
    /// The place of the first rule that matches it,
    rule: usize,
    /// and of the others.
    others: Vec<usize>,
    /// It's read from its end.
    from_end: bool,
}

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
        let before = self.found_against();
        let found = self.walk(&mut walk);
        self.ignored.clear();
        let mut seen = HashSet::new();
        for Found { path, rule, others, from_end } in found {
            let number = match self.consider(&path, rule, from_end, now) {
                Ok(number) => {
                    seen.insert(number);
                    Some(number)
                }
                Err(refusal) => {
                    self.refuse(rule, path.clone(), &refusal);
                    None
                }
            };
            // A file that has another name too, or had one, stays with the rule that found it by that.
            let owner = number.and_then(|number| self.files.get(&number)).map_or(rule, |file| file.rule);
            for other in others.into_iter().chain([rule]).filter(|other| *other != owner) {
                self.shadow(other, &path, owner);
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
        self.changes += u64::from(before != self.found_against());
        let pause = if self.watcher.incomplete { SCAN_UNWATCHED } else { self.settings.scan_every };
        let pause = pause.min(self.settings.scan_every);
        let for_cost = (began.elapsed() * SCAN_SHARE).min(SCAN_LONGEST);
        self.scan_at = now + if self.watcher.incomplete { pause } else { pause.max(for_cost) };
    }

    /// Walks the globs of all rules by their precedence.
    fn walk(&mut self, walk: &mut Walk) -> Vec<Found> {
        let mut places: HashMap<PathBuf, usize> = HashMap::new();
        let mut found: Vec<Found> = Vec::new();
        for (rule, running) in self.rules.iter_mut().enumerate() {
            running.found = Findings::default();
            let compiled = &running.compiled;
            for glob in &compiled.globs {
                let first = !self.scanned.contains(&(compiled.rule.name.to_string(), glob.as_str().to_owned()));
                let from_end = compiled.rule.start_at == StartAt::End && first && !self.state_lost;
                for root in self.guard.roots_for(glob) {
                    walk.run(glob, &root, &mut |folder| self.watcher.watch(folder), &mut |path| {
                        if compiled.excludes(&path) {
                            return;
                        }
                        match places.get(&path).map(|place| &mut found[*place]) {
                            None => {
                                places.insert(path.clone(), found.len());
                                found.push(Found { path, rule, others: Vec::new(), from_end });
                            }
                            // Two globs of one rule may find the same file.
                            Some(known) if known.rule != rule && known.others.last() != Some(&rule) => {
                                known.others.push(rule);
                            }
                            Some(_) => {}
                        }
                    });
                }
            }
            running.found.problems.append(&mut walk.problems);
        }
        found
    }

    /// What there is to say of each rule's files, to see whether it changed.
    fn found_against(&self) -> Vec<(usize, Vec<RuleName>, BTreeMap<&'static str, usize>)> {
        let one = |found: &Findings| (found.shadowed, found.owners.clone(), found.refused.clone());
        self.rules.iter().map(|running| one(&running.found)).collect()
    }

    /// Tells a rule that the file at a path that it matches belongs to another.
    fn shadow(&mut self, rule: usize, path: &Path, owner: usize) {
        let Some(owner) = self.rules.get(owner).map(|owner| owner.compiled.rule.name.clone()) else { return };
        self.rules[rule].found.shadow(path.to_owned(), &owner);
    }

    fn refuse(&mut self, rule: usize, path: PathBuf, refusal: &Refused) {
        let found = &mut self.rules[rule].found;
        *found.refused.entry(refusal.reason()).or_default() += 1;
        note(&mut found.problems, path, refusal.reason(), refusal.to_string());
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
    pub(super) fn add_name(&mut self, number: u64, name: PathBuf) {
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

    pub(super) fn drop_names(&mut self, number: u64) {
        let Some(file) = self.files.get_mut(&number) else { return };
        for name in std::mem::take(&mut file.names) {
            if self.by_path.get(&name) == Some(&number) {
                self.by_path.remove(&name);
            }
        }
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
}

impl Findings {
    /// A file belongs to another rule.
    fn shadow(&mut self, path: PathBuf, owner: &RuleName) {
        self.shadowed += 1;
        if let Err(place) = self.owners.binary_search(owner)
            && self.owners.len() < MAX_OWNERS
        {
            self.owners.insert(place, owner.clone());
        }
        note(&mut self.problems, path, "SHADOWED", owner.to_string());
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
