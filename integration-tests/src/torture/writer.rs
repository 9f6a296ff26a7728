//! Programs that log, each with a habit of what it does to its file.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Attention, Ledger};
use crate::oracle;

/// How long a writer waits after a few lines.
const BREATH: Duration = Duration::from_millis(30);

/// What the agent must have seen without a break before a file may leave its globs: a file that is made and renamed
/// while the agent is down is never found, as the README says.
const SEEN: Duration = Duration::from_secs(3);

/// What a writer does to its file now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// Renames it to a name that is collected too, and begins it anew.
    Rotate,
    /// Renames it, in its folder, to a name that isn't collected.
    RotateAway,
    /// Copies it to a name that is collected too and truncates it.
    CopyTruncate,
    /// Renames the folder that it lies in.
    RenameFolder,
    /// Gives it more names, hard and symbolic, and takes them away.
    Link,
    /// Takes the right to read it away for a while.
    Forbid,
    /// Rotates like mad: after every few lines.
    RotateFast,
    /// Truncates it. What wasn't read is lost.
    Truncate,
    /// Deletes it and makes one of the same name: most often with the same inode. What wasn't read is lost.
    Delete,
    /// Rotates, compresses what was rotated the time before, and deletes that. What wasn't read is lost.
    Compress,
}

impl Habit {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Rotate,
        Self::RotateAway,
        Self::CopyTruncate,
        Self::RenameFolder,
        Self::Link,
        Self::Forbid,
        Self::RotateFast,
        Self::Truncate,
        Self::Delete,
        Self::Compress,
    ];

    /// The number of the writer of this habit: its place in [`Habit::ALL`].
    pub fn writer(self) -> u32 {
        Self::ALL.iter().position(|other| *other == self).unwrap_or_default() as u32
    }

    /// True if bytes may be destroyed before anybody can have read them.
    pub fn destroys(self) -> bool {
        matches!(self, Self::Truncate | Self::Delete | Self::Compress)
    }

    /// True if a path lies in the folder of a writer of this habit.
    pub fn owns(self, path: &str) -> bool {
        let folder = self.path().parent().map(|folder| format!("/{}/", folder.display()));
        folder.is_some_and(|folder| path.contains(&folder))
    }

    /// The file's first name, beneath the folder of logs. `away/*.log` and `all/**/*.log*` are collected.
    pub fn path(self) -> PathBuf {
        let folder = if self == Self::RotateAway { "away" } else { "all" };
        Path::new(folder).join(format!("{self:?}").to_lowercase()).join("app.log")
    }
}

/// A running writer.
#[derive(Debug)]
pub struct TortureWriter {
    /// Its habit.
    pub habit: Habit,
    thread: JoinHandle<Ledger>,
    stop: Arc<AtomicBool>,
}

impl TortureWriter {
    /// Writes lines of this run; see [`Habit::writer`].
    pub fn start(habit: Habit, logs: &Path, run: u32, attention: Arc<Attention>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let path = logs.join(habit.path());
        let mut program = Program::new(habit, path, run, habit.writer(), attention);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                program.burst();
                program.indulge();
                sleep(BREATH);
            }
            program.end()
        });
        Self { habit, thread, stop }
    }

    /// Stops it; what it wrote.
    pub fn finish(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a writer ends in order")
    }
}

struct Program {
    habit: Habit,
    path: PathBuf,
    run: u32,
    writer: u32,
    attention: Arc<Attention>,
    rng: StdRng,
    file: File,
    /// Where the next line begins in the present generation.
    offset: u64,
    began: Instant,
    rotations: u64,
    forbidden: bool,
    ledger: Ledger,
}

impl Program {
    fn new(habit: Habit, path: PathBuf, run: u32, writer: u32, attention: Arc<Attention>) -> Self {
        let folder = path.parent().expect("a file lies in a folder");
        std::fs::create_dir_all(folder).expect("a folder can be made");
        let mut ledger = Ledger::default();
        ledger.next_generation(false);
        Self {
            rng: StdRng::seed_from_u64(u64::from(run) << 8 | u64::from(writer)),
            file: append(&path),
            habit,
            path,
            run,
            writer,
            attention,
            offset: 0,
            began: Instant::now(),
            rotations: 0,
            forbidden: false,
            ledger,
        }
    }

    /// Some lines: by one call, one by one, or torn.
    fn burst(&mut self) {
        let count = self.rng.random_range(1..30);
        let first = self.ledger.lines.len() as u64;
        let lines: Vec<Vec<u8>> = (first..first + count).map(|seq| oracle::line(self.run, self.writer, seq)).collect();
        match self.rng.random_range(0..3) {
            0 => self.write(&lines.concat()),
            1 => lines.iter().for_each(|line| self.write(line)),
            _ => {
                let bytes = lines.concat();
                let (head, rest) = bytes.split_at(self.rng.random_range(0..bytes.len()));
                self.write(head);
                sleep(Duration::from_millis(self.rng.random_range(0..60)));
                self.write(rest);
            }
        }
        for line in &lines {
            self.ledger.wrote(self.offset, line.len() as u64);
            self.offset += line.len() as u64;
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).expect("a log can be written");
    }

    /// Gives in to the habit, now and then.
    fn indulge(&mut self) {
        let seldom = if self.habit == Habit::RotateFast { 2 } else { 60 };
        if !self.rng.random_ratio(1, seldom) {
            return;
        }
        match self.habit {
            Habit::Rotate | Habit::RotateFast => self.rotate(),
            Habit::Compress => {
                self.rotate();
                self.compress();
            }
            Habit::RotateAway if self.was_seen() => self.rotate(),
            Habit::RotateAway => {}
            Habit::CopyTruncate if self.was_seen() => {
                let copy = self.next_name();
                std::fs::copy(&self.path, copy).expect("a log can be copied");
                self.truncate(false);
            }
            Habit::CopyTruncate => {}
            Habit::RenameFolder => self.rename_folder(),
            Habit::Link => self.link(),
            Habit::Forbid => self.forbid(!self.forbidden),
            Habit::Truncate => self.truncate(true),
            Habit::Delete => {
                std::fs::remove_file(&self.path).expect("a log can be deleted");
                self.begin_file(true);
            }
        }
    }

    fn was_seen(&self) -> bool {
        self.attention.longest_between(self.began, Instant::now()) > SEEN
    }

    fn next_name(&mut self) -> PathBuf {
        self.rotations += 1;
        self.path.with_extension(format!("log.{}", self.rotations))
    }

    fn rotate(&mut self) {
        let rotated = self.next_name();
        std::fs::rename(&self.path, rotated).expect("a log can be renamed");
        self.begin_file(false);
    }

    /// As logrotate does with `delaycompress`.
    fn compress(&mut self) {
        let Some(before) = self.rotations.checked_sub(1).filter(|number| *number > 0) else { return };
        let rotated = self.path.with_extension(format!("log.{before}"));
        let done = Command::new("gzip").arg(&rotated).status().expect("gzip can be run");
        assert!(done.success(), "gzip ended with {done}");
        // Each rotation ends a generation: the first one is number 0.
        self.ledger.destroyed[before as usize - 1] = Some(Instant::now());
    }

    fn begin_file(&mut self, destroyed: bool) {
        self.file = append(&self.path);
        self.begin_generation(destroyed);
    }

    fn truncate(&mut self, destroyed: bool) {
        self.file.set_len(0).expect("a log can be truncated");
        self.begin_generation(destroyed);
    }

    fn begin_generation(&mut self, destroyed: bool) {
        self.ledger.next_generation(destroyed);
        self.offset = 0;
        self.began = Instant::now();
    }

    fn rename_folder(&mut self) {
        let folder = self.path.parent().expect("a file lies in a folder").to_owned();
        self.rotations += 1;
        let renamed = folder.with_file_name(format!("renamed{}", self.rotations));
        std::fs::rename(&folder, &renamed).expect("a folder can be renamed");
        self.path = renamed.join("app.log");
    }

    fn link(&mut self) {
        let (hard, soft) = (self.path.with_file_name("hard.log"), self.path.with_file_name("soft.log"));
        if std::fs::remove_file(&hard).is_ok() {
            std::fs::remove_file(&soft).expect("a link can be deleted");
        } else {
            std::fs::hard_link(&self.path, &hard).expect("a link can be made");
            std::os::unix::fs::symlink(&self.path, &soft).expect("a link can be made");
        }
    }

    fn forbid(&mut self, forbidden: bool) {
        let mode = if forbidden { 0o000 } else { 0o644 };
        std::fs::set_permissions(&self.path, Permissions::from_mode(mode)).expect("a log's rights can be changed");
        self.forbidden = forbidden;
    }

    fn end(mut self) -> Ledger {
        if self.forbidden {
            self.forbid(false);
        }
        self.ledger
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("a log can be opened")
}
