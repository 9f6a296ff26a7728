//! What a rule would match on this host, if it ran: a look of its own, beside the collector, that collects nothing.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use logmesh_types::limits::MAX_FILES;
use logmesh_types::{RuleName, UnixNanos};

use crate::follow::{HEAD_BYTES, packer_of, read_at};
use crate::pathguard::{FileKey, Opened, PathGuard, Refusal};
use crate::rule::{Compiled, RuleError, TailRule};
use crate::walk::Walk;

/// The most files that are shown.
pub const MAX_SAMPLE: usize = 20;

/// The most pairs of rules between which changes of files are counted.
pub const MAX_CHANGES: usize = 20;

/// The files of which the first bytes are looked at, to tell text from something else: on a slow disk more would take longer
/// than anybody waits.
const MAX_HEADS: u64 = 1_000;

/// What a rule would match.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// Files that it matches and that can be read, each once.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them no rule owns now.
    pub new_files: u64,
    /// Files that it matches and that can't or mustn't be read.
    pub refused_files: u64,
    /// Some files, at most [`MAX_SAMPLE`]: of each kind some, those that change their owner first.
    pub sample: Vec<FilePreview>,
    /// How many files would go from which rule to which, of at most [`MAX_CHANGES`] pairs.
    pub changes: BTreeMap<(RuleName, RuleName), u64>,
    /// There was no time to see all files, or there are more than a collector follows.
    pub incomplete: bool,
}

/// A file that a rule would match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePreview {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The rule that owns it now.
    pub present_owner: Option<RuleName>,
    /// The rule that would own it.
    pub owner: RuleName,
    /// Why it wouldn't be read: a stable name, as in [`crate::FileProblem`].
    pub problem: Option<&'static str>,
}

/// Looks what `rule` would match beside the rules that run, or in the place of the one that runs under its name. Stops when it
/// is `until`.
///
/// The error is that with which the collector would refuse the rule.
pub fn preview(
    rule: TailRule,
    running: Vec<TailRule>,
    guard: &PathGuard,
    until: Instant,
) -> Result<Preview, RuleError> {
    let wanted = Compiled::new(rule.clone(), guard)?;
    let others = running.iter().filter(|other| other.name != rule.name).cloned();
    let future = others.chain([rule.clone()]).collect();
    let look = Look {
        guard,
        until,
        present: Owners::new(running.clone(), guard),
        future: Owners::new(future, guard),
        wanted,
        seen: HashSet::new(),
        kinds: Default::default(),
        found: Preview::default(),
    };
    Ok(look.run())
}

/// Rules by precedence.
struct Owners(Vec<Compiled>);

impl Owners {
    /// A rule that can't run owns nothing.
    fn new(rules: Vec<TailRule>, guard: &PathGuard) -> Self {
        let mut compiled: Vec<Compiled> =
            rules.into_iter().filter_map(|rule| Compiled::new(rule, guard).ok()).collect();
        compiled.sort_by_cached_key(Compiled::precedence);
        Self(compiled)
    }

    fn of(&self, path: &Path) -> Option<&RuleName> {
        self.0.iter().find(|rule| rule.matches(path).is_some()).map(|rule| &rule.rule.name)
    }
}

/// What a file is worth to be shown for, in this order.
const CHANGED: usize = 0;
const PROBLEM: usize = 1;
const NEW: usize = 2;
const OTHER: usize = 3;

struct Look<'a> {
    guard: &'a PathGuard,
    until: Instant,
    present: Owners,
    future: Owners,
    wanted: Compiled,
    seen: HashSet<FileKey>,
    kinds: [Vec<FilePreview>; 4],
    found: Preview,
}

impl Look<'_> {
    fn run(mut self) -> Preview {
        let mut walk = Walk::bounded(self.until);
        // Several globs may match a path.
        let mut paths = HashSet::new();
        let mut full = false;
        for glob in &self.wanted.globs {
            for root in self.guard.roots_for(glob) {
                walk.run(glob, &root, &mut |_| {}, &mut |path| {
                    full |= paths.len() >= MAX_FILES;
                    if !full && !self.wanted.excludes(&path) {
                        paths.insert(path);
                    }
                });
            }
        }
        let mut paths: Vec<PathBuf> = paths.into_iter().collect();
        paths.sort_unstable();
        self.found.incomplete = walk.is_late || full;
        for path in paths {
            if Instant::now() >= self.until {
                self.found.incomplete = true;
                break;
            }
            self.look_at(path);
        }
        for folder in walk.problems {
            self.found.refused_files += 1;
            self.show(PROBLEM, folder.path, 0, Some(folder.reason));
        }
        self.found.sample = some_of_each(self.kinds);
        self.found
    }

    fn look_at(&mut self, path: PathBuf) {
        let opened = match self.guard.open(&path) {
            Ok(opened) => opened,
            // It has just gone.
            Err(Refusal::NotFound(_)) => return,
            Err(refusal) => {
                self.found.refused_files += 1;
                return self.show(PROBLEM, path, 0, Some(refusal.reason()));
            }
        };
        if !self.seen.insert(opened.meta.key) {
            return;
        }
        let size = opened.meta.size;
        let present = self.present.of(&path).cloned();
        if let Some(problem) = self.problem_of(&opened, present.is_none()) {
            self.found.refused_files += 1;
            return self.show(PROBLEM, path, size, Some(problem));
        }
        self.found.files += 1;
        self.found.bytes += size;
        self.found.new_files += u64::from(present.is_none());
        let kind = match (present, self.future.of(&path)) {
            (None, _) => NEW,
            (Some(present), Some(owner)) if present != *owner => {
                let room = self.found.changes.len() < MAX_CHANGES;
                let change = (present, owner.clone());
                if room || self.found.changes.contains_key(&change) {
                    *self.found.changes.entry(change).or_default() += 1;
                }
                CHANGED
            }
            _ => OTHER,
        };
        self.show(kind, path, size, None);
    }

    /// Why a file that may be opened wouldn't be read.
    fn problem_of(&self, opened: &Opened, is_new: bool) -> Option<&'static str> {
        if is_new && let Some(age) = self.wanted.rule.ignore_older {
            let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
            if opened.meta.modified.0 < UnixNanos::now().0.saturating_sub(age) {
                return Some("IGNORED_OLDER");
            }
        }
        if self.found.files >= MAX_HEADS {
            return None;
        }
        let head = read_at(&opened.file, 0, HEAD_BYTES).ok()?;
        let utf16 = self.wanted.framing.charset_of(&head).is_utf16();
        match packer_of(&head) {
            Some(_) => Some("COMPRESSED"),
            None => (!utf16 && head.contains(&0)).then_some("BINARY"),
        }
    }

    fn show(&mut self, kind: usize, path: PathBuf, bytes: u64, problem: Option<&'static str>) {
        if self.kinds[kind].len() < MAX_SAMPLE {
            let present_owner = self.present.of(&path).cloned();
            let owner = self.future.of(&path).unwrap_or(&self.wanted.rule.name).clone();
            self.kinds[kind].push(FilePreview { path, bytes, present_owner, owner, problem });
        }
    }
}

/// Of each kind as many as of the others, as long as there are any.
fn some_of_each(kinds: [Vec<FilePreview>; 4]) -> Vec<FilePreview> {
    let mut counts = [0; 4];
    let mut left = MAX_SAMPLE;
    while left > 0 && kinds.iter().zip(&counts).any(|(kind, count)| kind.len() > *count) {
        for (kind, count) in kinds.iter().zip(&mut counts) {
            if left > 0 && kind.len() > *count {
                (*count, left) = (*count + 1, left - 1);
            }
        }
    }
    kinds.into_iter().zip(counts).flat_map(|(kind, count)| kind.into_iter().take(count)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{FramingSpec, Pace, StartAt};

    struct Place {
        dir: tempfile::TempDir,
        guard: PathGuard,
    }

    /// A folder with `in/` allowed and `out/` not.
    fn place(files: &[(&str, &str)]) -> Place {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["in/own", "out"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let allow = [format!("{}/in/**", dir.path().display())];
        let guard = PathGuard::new(&allow, &[dir.path().join("in/own")]).unwrap();
        Place { dir, guard }
    }

    impl Place {
        fn rule(&self, name: &str, priority: i32, globs: &[&str]) -> TailRule {
            TailRule {
                name: name.parse().unwrap(),
                revision: 1,
                globs: globs.iter().map(|glob| format!("{}/{glob}", self.dir.path().display())).collect(),
                exclude: Vec::new(),
                topic: "t".parse().unwrap(),
                priority,
                start_at: StartAt::Beginning,
                framing: FramingSpec::default(),
                ignore_older: None,
                flush_after: None,
                pace: Pace::default(),
                service: None,
            }
        }

        fn look(&self, rule: TailRule, running: &[TailRule]) -> Preview {
            preview(rule, running.to_vec(), &self.guard, Instant::now() + Duration::from_secs(60)).unwrap()
        }

        /// Name, owner now and then, problem.
        fn sample<'a>(&self, preview: &'a Preview) -> Vec<(&'a str, &'a str, &'a str, &'a str)> {
            let one = |file: &'a FilePreview| {
                let name = file.path.file_name().unwrap().to_str().unwrap();
                let present = file.present_owner.as_ref().map_or("", RuleName::id);
                (name, present, file.owner.id(), file.problem.unwrap_or_default())
            };
            preview.sample.iter().map(one).collect()
        }
    }

    #[test]
    fn files_are_shown_with_the_rule_that_has_them_and_that_would() {
        let place = place(&[("in/a.log", "12345"), ("in/b.log", "1"), ("in/c.log", "22"), ("in/x.txt", "")]);
        let running = [place.rule("low", 0, &["in/a.log", "in/b.log"]), place.rule("high", 9, &["in/b.log"])];
        let found = place.look(place.rule("new", 5, &["in/*.log", "in/a.*"]), &running);
        assert_eq!((found.files, found.bytes, found.new_files, found.refused_files), (3, 8, 1, 0));
        let expected = [("a.log", "low", "new", ""), ("c.log", "", "new", ""), ("b.log", "high", "high", "")];
        assert_eq!(place.sample(&found), expected);
        let change = (running[0].name.clone(), "new".parse().unwrap());
        assert_eq!(found.changes, BTreeMap::from([(change, 1)]));
        assert!(!found.incomplete);

        // The same rule, lowered: what it has goes to whom it shadowed.
        let lowered = place.look(place.rule("high", -1, &["in/b.log"]), &running);
        assert_eq!(place.sample(&lowered), [("b.log", "high", "low", "")]);
        // Of equal priority the lesser name owns the file.
        let equal = place.look(place.rule("a", 0, &["in/a.log"]), &running[..1]);
        assert_eq!(place.sample(&equal), [("a.log", "low", "a", "")]);
    }

    #[test]
    fn what_would_not_be_read_is_told_and_nothing_beyond_what_is_allowed() {
        let place =
            place(&[("in/bin.log", "a\0b"), ("in/gz.log", "\u{1f}\u{8b}"), ("out/x.log", ""), ("in/own/o.log", "")]);
        std::fs::write(place.dir.path().join("in/gz.log"), b"\x1f\x8b\x08x").unwrap();
        std::os::unix::fs::symlink(place.dir.path().join("out/x.log"), place.dir.path().join("in/link.log")).unwrap();
        let old = std::fs::File::create(place.dir.path().join("in/old.log")).unwrap();
        old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let rule = TailRule { ignore_older: Some(Duration::from_secs(60)), ..place.rule("a", 0, &["in/**/*.log"]) };
        let found = place.look(rule, &[]);
        assert_eq!((found.files, found.refused_files), (0, 5));
        let mut problems: Vec<_> = place.sample(&found).into_iter().map(|file| (file.0, file.3)).collect();
        problems.sort();
        let expected = [
            ("bin.log", "BINARY"),
            ("gz.log", "COMPRESSED"),
            ("link.log", "NOT_ALLOWED"),
            ("o.log", "OWN_FILE"),
            ("old.log", "IGNORED_OLDER"),
        ];
        assert_eq!(problems, expected);
        let refused =
            preview(place.rule("a", 0, &["in/*", "out/*"]), vec![], &place.guard, Instant::now()).unwrap_err();
        assert_eq!((refused.reason, refused.field.as_str()), ("NOT_ALLOWED", "paths[1]"));
    }

    #[test]
    fn the_sample_and_the_time_are_bounded() {
        let names: Vec<String> = (0..100).map(|number| format!("in/{number}.log")).collect();
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        let place = place(&files);
        std::fs::write(place.dir.path().join("in/100.log"), "\0").unwrap();
        std::fs::hard_link(place.dir.path().join("in/1.log"), place.dir.path().join("in/again.log")).unwrap();
        let found = place.look(place.rule("a", 0, &["in/*.log"]), &[]);
        assert_eq!((found.files, found.sample.len(), found.sample[0].problem), (100, MAX_SAMPLE, Some("BINARY")));
        let late = preview(place.rule("a", 0, &["in/*.log"]), vec![], &place.guard, Instant::now()).unwrap();
        assert!(late.incomplete && late.files == 0, "{late:?}");
    }
}
