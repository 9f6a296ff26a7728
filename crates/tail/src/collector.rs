//! The state machine that turns growing files into chunks. One thread drives it:
//!
//! ```text
//! loop {
//!     while let Some(chunk) = collector.poll(Instant::now(), credit) { send(chunk) }
//!     collector.wait(Instant::now(), some_time);       // woken by a Waker when an ack comes in
//! }
//! ```
//!
//! It keeps each chunk until it's acked, so that a chunk is sent again with the same bytes, the same cuts and the same
//! read time. After a crash it reads again from the last acked offset, which is on disk, as are all decisions that
//! bytes alone don't make.

mod adopt;
mod answers;
mod copies;
mod discover;
mod packed;
mod reconfigure;
mod records;
mod report;
mod risk;
mod turns;

#[cfg(test)]
mod again_tests;
#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod discover_tests;
#[cfg(test)]
mod framing_tests;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod mend_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod status_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use logmesh_types::limits::{MAX_FILES, MAX_IN_FLIGHT_BYTES, MAX_OPEN_FILES};
use logmesh_types::{AgentId, RuleName, StreamId, UnixNanos};

use self::copies::Copies;
use self::risk::Turnovers;
use crate::chunk::Chunk;
use crate::follow::{Flight, Followed, Tally};
use crate::pace::{Bucket, Rate};
use crate::pathguard::{FileKey, PathGuard};
use crate::rule::{Compiled, RuleError, TailRule};
use crate::state::{Batch, Record, State, StateError};
use crate::status::{FileProblem, Totals};
use crate::watch::{Hint, Waker, Watcher};
use logmesh_glob::GlobError;

/// The most chunks that are unacked at a time: a chunk of one short line costs more than its bytes.
const MAX_IN_FLIGHT_CHUNKS: usize = 8192;

/// The time between commits that fail.
const RETRY_COMMIT: Duration = Duration::from_secs(1);

/// The least time between scans that hints ask for.
const SCAN_PAUSE: Duration = Duration::from_millis(250);

/// How a collector works. The defaults are safe; only the first four have none.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Part of every stream's id.
    pub agent: AgentId,
    /// Where the state lies; made if it isn't there.
    pub state_dir: PathBuf,
    /// Globs under which files may be read, whatever rules say.
    pub allow: Vec<String>,
    /// Folders of logmesh's own, never collected; the state's folder always is one.
    pub own_dirs: Vec<PathBuf>,
    /// Unacked bytes that are kept in memory.
    pub max_in_flight_bytes: u64,
    /// An unfinished event, or a last line without newline, is sent when it hasn't grown for so long, unless its rule
    /// says how long.
    pub flush_after: Duration,
    /// The time between scans while hints work; each second while they don't.
    pub scan_every: Duration,
    /// Acks are written to the state no more often than this.
    pub commit_every: Duration,
    /// Changes of files are gathered for so long before they're read.
    pub linger: Duration,
    /// A renamed file that no glob matches is followed until nothing was written to it for so long.
    pub away_after: Duration,
    /// A new file that looks like a copy of one that is followed waits so long for its original to be truncated.
    pub copy_hold: Duration,
    /// What is known of a vanished file is forgotten after so long.
    pub forget_after: Duration,
    /// The most files that are followed.
    pub max_files: usize,
    /// The most files that are held open.
    pub max_open_files: usize,
}

impl Settings {
    /// The defaults.
    pub fn new(agent: AgentId, state_dir: PathBuf, allow: Vec<String>) -> Self {
        Self {
            agent,
            state_dir,
            allow,
            own_dirs: Vec::new(),
            max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
            flush_after: Duration::from_secs(5),
            scan_every: Duration::from_secs(10),
            commit_every: Duration::from_millis(200),
            linger: Duration::from_millis(25),
            away_after: Duration::from_secs(3600),
            copy_hold: Duration::from_secs(3),
            forget_after: Duration::from_secs(7 * 86_400),
            max_files: MAX_FILES,
            max_open_files: MAX_OPEN_FILES,
        }
    }
}

/// Why a collector can't start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A bad glob in `allow`.
    #[error("allow: {0}")]
    Allow(#[from] GlobError),
    /// The state can't be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The system lacks something.
    #[error("cannot set up the tailer: {0}")]
    System(#[from] std::io::Error),
}

/// A rule that runs, and what waits to be read for it.
#[derive(Debug)]
struct Running {
    compiled: Compiled,
    bytes: Bucket,
    lines: Bucket,
    tempo: Tempo,
    ready: VecDeque<u64>,
    found: Findings,
}

/// What the last scan found against files that a rule matches.
#[derive(Debug, Default)]
struct Findings {
    problems: Vec<FileProblem>,
    shadowed: usize,
    /// Who owns those, by name.
    owners: Vec<RuleName>,
    /// How many can't or mustn't be read, by reason.
    refused: BTreeMap<&'static str, usize>,
}

/// How fast a rule's files are read, and with what success.
#[derive(Debug)]
struct Tempo {
    bytes: Rate,
    lines: Rate,
    decode_errors: u64,
}

impl Tempo {
    fn note(&mut self, bytes: u64, tally: Tally, now: Instant) {
        self.bytes.add(bytes, now);
        self.lines.add(tally.lines as u64, now);
        self.decode_errors += tally.garbled as u64;
    }
}

/// Chunks of a stream that nobody reads any more.
#[derive(Debug)]
struct Draining {
    /// The file's record.
    record: u64,
    /// The record has gone on to another generation: acks only make the number of its bytes on their way less.
    former: bool,
    /// The stream's first byte to collect.
    start: u64,
    flight: Flight,
}

/// Follows files. See the module's text.
#[derive(Debug)]
pub struct Collector {
    settings: Settings,
    guard: PathGuard,
    state: State,
    watcher: Watcher,
    /// By precedence: the first that matches a file owns it.
    rules: Vec<Running>,
    next_rule: usize,
    /// By the number of their record.
    files: HashMap<u64, Box<Followed>>,
    by_key: HashMap<FileKey, u64>,
    by_path: HashMap<PathBuf, u64>,
    by_stream: HashMap<StreamId, u64>,
    draining: HashMap<StreamId, Draining>,
    /// Records of files that aren't followed.
    dormant: HashMap<u64, Record>,
    dormant_by_inode: HashMap<u64, Vec<u64>>,
    copies: Copies,
    turnovers: Turnovers,
    /// The time of the last poll.
    now: Instant,
    /// Paths of files that were too old to be begun, as of the last scan.
    ignored: HashSet<PathBuf>,
    /// Open files, by their last turn.
    open: BTreeMap<u64, u64>,
    /// Open files that aren't to be closed for now: the few that are being compared.
    pinned: Vec<u64>,
    turns: u64,
    next_record: u64,
    resend: VecDeque<Chunk>,
    /// There was no room for more at the last poll: files are only looked at.
    starved: bool,
    rejected: HashMap<StreamId, Instant>,
    timers: BTreeSet<(Instant, u64)>,
    /// (Rule, glob) pairs whose first scan is on disk.
    scanned: HashSet<(String, String)>,
    dirty: HashSet<u64>,
    batch: Batch,
    commit_at: Instant,
    scan_at: Instant,
    last_scan: Option<Instant>,
    hints_at: Instant,
    /// Records of files that aren't found by a glob are looked for in the next scan.
    search: bool,
    /// The state was lost: what the first scan finds was followed already, perhaps, and is read from its start.
    state_lost: bool,
    state_error: Option<String>,
    /// The last commit failed: the next isn't tried before `commit_at`.
    commit_failed: bool,
    totals: Totals,
    /// Counts what may have changed the status without a byte having been read.
    changes: u64,
}

impl Collector {
    /// Opens the state and gets ready; nothing is read before [`Collector::apply`].
    pub fn open(mut settings: Settings) -> Result<Self, OpenError> {
        std::fs::create_dir_all(&settings.state_dir)?;
        settings.own_dirs.push(settings.state_dir.clone());
        let guard = PathGuard::new(&settings.allow, &settings.own_dirs)?;
        let (state, loaded, message) = State::open(&settings.state_dir)?;
        if let Some(message) = &message {
            tracing::error!("{message}; files are read again from their start, repeated lines are found by their ids");
        }
        let now = Instant::now();
        let mut collector = Self {
            settings,
            guard,
            state,
            watcher: Watcher::new()?,
            rules: Vec::new(),
            next_rule: 0,
            files: HashMap::new(),
            by_key: HashMap::new(),
            by_path: HashMap::new(),
            by_stream: HashMap::new(),
            draining: HashMap::new(),
            dormant: HashMap::new(),
            dormant_by_inode: HashMap::new(),
            copies: Copies::default(),
            turnovers: Turnovers::default(),
            now,
            ignored: HashSet::new(),
            open: BTreeMap::new(),
            pinned: Vec::new(),
            turns: 0,
            next_record: loaded.records.iter().map(|r| r.number).max().map_or(1, |last| last + 1),
            resend: VecDeque::new(),
            starved: false,
            rejected: HashMap::new(),
            timers: BTreeSet::new(),
            scanned: loaded.scanned,
            dirty: HashSet::new(),
            batch: Batch::default(),
            commit_at: now,
            scan_at: now,
            last_scan: None,
            hints_at: now,
            search: true,
            state_lost: message.is_some(),
            state_error: message,
            commit_failed: false,
            totals: Totals::default(),
            changes: 0,
        };
        // However long the agent was down, its files get a day to be found again.
        let grace = collector.settings.forget_after.saturating_sub(Duration::from_secs(86_400));
        let seen_at_least = UnixNanos::now().0.saturating_sub(grace.as_nanos() as i64);
        for record in loaded.records {
            let seen = UnixNanos(record.seen.0.max(seen_at_least));
            let mut record = Record { seen, ..record };
            record.past();
            collector.count_former(&mut record);
            collector.put_to_sleep(record);
        }
        Ok(collector)
    }

    /// Wakes the thread that is in [`Collector::wait`].
    pub fn waker(&self) -> Waker {
        self.watcher.waker()
    }

    /// Runs these rules and no others. A rule that can't run is answered with why; what ran under its name goes on.
    pub fn apply(&mut self, rules: Vec<TailRule>, now: Instant) -> Vec<(RuleName, Result<(), RuleError>)> {
        let mut old: HashMap<RuleName, Running> =
            self.rules.drain(..).map(|running| (running.compiled.rule.name.clone(), running)).collect();
        let mut outcomes = Vec::new();
        for rule in rules {
            let name = rule.name.clone();
            let before = old.remove(&name);
            let (running, outcome) = match Compiled::new(rule, &self.guard) {
                Ok(compiled) => (Some(Running::new(compiled, before, now)), Ok(())),
                Err(error) => (before, Err(error)),
            };
            self.rules.extend(running);
            outcomes.push((name, outcome));
        }
        self.rules.sort_by_cached_key(|running| running.compiled.precedence());
        self.forget_scans();
        self.reassign();
        self.search = true;
        self.scan_at = now;
        self.changes += 1;
        outcomes
    }

    /// Forgets that rules or globs were scanned which are no more.
    fn forget_scans(&mut self) {
        let known: HashSet<(String, String)> = self.rules.iter().flat_map(Running::scan_keys).collect();
        self.batch.unscanned.extend(self.scanned.difference(&known).cloned());
        self.scanned.retain(|key| known.contains(key));
    }

    /// Gives each file to its owner under the present rules.
    fn reassign(&mut self) {
        for running in &mut self.rules {
            running.ready.clear();
        }
        for number in self.files.keys().copied().collect::<Vec<_>>() {
            let Some(file) = self.files.get_mut(&number) else { continue };
            file.queued = false;
            match self.rules.iter().position(|r| r.compiled.matches(&file.record.matched).is_some()) {
                Some(rule) => {
                    self.assign(number, rule);
                    self.enqueue(number);
                }
                None => self.release(number),
            }
        }
    }

    /// The next chunk to send, if one is there that fits into `credit` bytes.
    pub fn poll(&mut self, now: Instant, credit: u64) -> Option<Chunk> {
        self.housekeep(now);
        while let Some(chunk) = self.resend.front() {
            if chunk.data.len() as u64 > credit {
                return None;
            }
            let chunk = self.resend.pop_front()?;
            if self.is_in_flight(&chunk) {
                return Some(chunk);
            }
        }
        let room = self.settings.max_in_flight_bytes.saturating_sub(self.totals.in_flight_bytes);
        self.starved = room == 0 || credit == 0 || self.totals.in_flight_chunks >= MAX_IN_FLIGHT_CHUNKS;
        if self.starved {
            return None;
        }
        self.read_some(now, credit.min(room))
    }

    /// Sleeps until there may be something for [`Collector::poll`], at most `longest`.
    pub fn wait(&mut self, now: Instant, longest: Duration) {
        let mut until = now + longest;
        if !self.rules.is_empty() {
            until = until.min(self.scan_at);
        }
        if self.has_changes() {
            until = until.min(self.commit_at);
        }
        if let Some((at, _)) = self.timers.first() {
            until = until.min(*at);
        }
        if let Some(at) = self.rejected.values().min() {
            until = until.min(*at);
        }
        for running in self.rules.iter().filter(|running| !running.ready.is_empty()) {
            let wait = running.bytes.wait(now).max(running.lines.wait(now));
            if !wait.is_zero() {
                until = until.min(now + wait);
            }
        }
        let sleep = |until: Instant| until.saturating_duration_since(now).max(Duration::from_millis(1));
        if now < self.hints_at {
            // Hints of the last moments are gathered: one read for many writes.
            return self.watcher.sleep(sleep(until.min(self.hints_at)), false);
        }
        self.watcher.sleep(sleep(until), true);
    }

    /// Writes what is known to the state at once; called before the process ends.
    pub fn flush(&mut self, now: Instant) -> Result<(), StateError> {
        self.commit(now)
    }

    fn housekeep(&mut self, now: Instant) {
        self.now = now;
        if now >= self.hints_at {
            let hints = self.watcher.hints();
            if !hints.is_empty() {
                self.hints_at = now + self.settings.linger;
            }
            for hint in hints {
                self.take_hint(hint, now);
            }
        }
        if now >= self.scan_at && !self.rules.is_empty() {
            self.scan(now);
        }
        while let Some((at, number)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            self.on_timer(number, now);
        }
        self.retry_rejected(now);
        if self.has_changes() && now >= self.commit_at {
            // The error is kept for the status, and the commit is tried again.
            self.commit(now).ok();
        }
    }

    fn take_hint(&mut self, hint: Hint, now: Instant) {
        match hint {
            Hint::Changed(path) => {
                if let Some(number) = self.by_path.get(&path).copied() {
                    self.enqueue(number);
                    if self.must_wait(number, now) {
                        self.glance(number, now);
                    }
                } else if self.ignored.remove(&path) {
                    self.look_at(path, now);
                }
            }
            Hint::Named(path) => self.look_at(path, now),
            Hint::Scan => self.scan_soon(now),
        }
    }

    /// True if a file can't be read now, for want of credit or because of its rule's pace.
    fn must_wait(&self, number: u64, now: Instant) -> bool {
        let rule = self.files.get(&number).and_then(|file| self.rules.get(file.rule));
        let paced = |rule: &Running| !rule.bytes.wait(now).max(rule.lines.wait(now)).is_zero();
        self.starved || !self.resend.is_empty() || rule.is_some_and(paced)
    }

    fn scan_soon(&mut self, now: Instant) {
        let soonest = self.last_scan.map_or(now, |last| last + SCAN_PAUSE);
        self.scan_at = self.scan_at.min(soonest.max(now));
    }

    fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
            || !self.batch.removed.is_empty()
            || !self.batch.scanned.is_empty()
            || !self.batch.unscanned.is_empty()
    }

    /// Makes all decisions durable, unless that has just failed: for thousands of files it's tried once, not for each.
    fn make_durable(&mut self, now: Instant) -> bool {
        !(self.commit_failed && now < self.commit_at) && self.commit(now).is_ok()
    }

    /// Writes all changed records in one transaction.
    fn commit(&mut self, now: Instant) -> Result<(), StateError> {
        let seen = UnixNanos::now();
        let live = self.dirty.iter().filter_map(|number| self.files.get(number));
        let live = live.map(|file| Record { seen, ..file.to_keep() });
        let dormant = self.dirty.iter().filter_map(|number| self.dormant.get(number)).cloned();
        self.batch.records = live.chain(dormant).collect();
        self.commit_at = now + self.settings.commit_every;
        if let Err(error) = self.state.commit(&self.batch) {
            self.commit_at = now + RETRY_COMMIT;
            self.commit_failed = true;
            tracing::error!(%error, "positions are not saved: nothing new is begun until they are");
            self.state_error = Some(error.to_string());
            return Err(error);
        }
        (self.state_error, self.commit_failed) = (None, false);
        self.totals.commits += 1;
        self.batch = Batch::default();
        for number in self.dirty.drain() {
            if let Some(file) = self.files.get_mut(&number) {
                file.durable = true;
            }
        }
        Ok(())
    }
}

impl Running {
    /// Begins a rule, or goes on with a new revision of it: what its pace has let through counts on.
    fn new(compiled: Compiled, before: Option<Self>, now: Instant) -> Self {
        let pace = compiled.rule.pace;
        let (bytes, lines, tempo, found) = match before {
            Some(mut before) => {
                before.bytes.set_rate(pace.bytes_per_second, now);
                before.lines.set_rate(pace.lines_per_second, now);
                if before.compiled.rule.framing != compiled.rule.framing {
                    before.tempo.decode_errors = 0;
                }
                // Until the next scan, which is due, what was found is the best that can be said.
                (before.bytes, before.lines, before.tempo, before.found)
            }
            None => (
                Bucket::new(pace.bytes_per_second, now),
                Bucket::new(pace.lines_per_second, now),
                Tempo { bytes: Rate::new(now), lines: Rate::new(now), decode_errors: 0 },
                Findings::default(),
            ),
        };
        Self { compiled, bytes, lines, tempo, ready: VecDeque::new(), found }
    }

    fn scan_keys(&self) -> impl Iterator<Item = (String, String)> {
        let rule = &self.compiled.rule;
        rule.globs.iter().map(|glob| (rule.name.to_string(), glob.clone()))
    }
}
