//! A program that logs: a thread that writes oracle lines into a file, with rotation or without.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::oracle;

/// How long a writer waits after a few lines, so that kills fall between, into and after batches.
const BREATH: Duration = Duration::from_millis(20);

/// A running writer.
#[derive(Debug)]
pub struct Writer {
    thread: JoinHandle<u64>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    /// Writes lines of this run and writer to `path`, which it renames to `….log.1`, `….log.2` after every `rotate_after`
    /// lines.
    pub fn start(path: PathBuf, run: u32, writer: u32, rotate_after: Option<u64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(u64::from(run) + u64::from(writer));
            let (mut seq, mut rotations) = (0, 0);
            let mut file = append(&path);
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..rng.random_range(1..25) {
                    file.write_all(&oracle::line(run, writer, seq)).expect("a log can be written");
                    seq += 1;
                    if rotate_after.is_some_and(|lines| seq % lines == 0) {
                        rotations += 1;
                        let rotated = path.with_extension(format!("log.{rotations}"));
                        std::fs::rename(&path, rotated).expect("a log can be renamed");
                        file = append(&path);
                    }
                }
                sleep(BREATH);
            }
            seq
        });
        Self { thread, stop }
    }

    /// Stops it; the number of lines that it wrote.
    pub fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a writer ends in order")
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("a log can be opened")
}
