//! Whether what isn't acked of a file may be gone before it is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use logmesh_types::UnixNanos;

use super::Collector;
use crate::follow::Followed;
use crate::status::{FileStatus, RATE_MEMORY};

/// The most paths of which it is known how often their files are rotated or truncated.
const MAX_PATHS: usize = 10_000;

/// How often the file at a path is rotated, truncated or deleted.
#[derive(Debug, Default)]
pub(super) struct Turnovers(HashMap<PathBuf, Turnover>);

#[derive(Debug)]
struct Turnover {
    last: Instant,
    /// The time between the last two.
    every: Option<Duration>,
}

impl Turnovers {
    /// The file at a path has gone, or was written anew.
    pub(super) fn note(&mut self, path: &Path, now: Instant) {
        if let Some(known) = self.0.get_mut(path) {
            // What is seen twice at one time happened once.
            let since = now.saturating_duration_since(known.last);
            if !since.is_zero() {
                *known = Turnover { last: now, every: Some(since) };
            }
            return;
        }
        if self.0.len() >= MAX_PATHS {
            let oldest = self.0.iter().min_by_key(|(_, known)| known.last).map(|(path, _)| path.clone());
            oldest.and_then(|path| self.0.remove(&path));
        }
        self.0.insert(path.to_owned(), Turnover { last: now, every: None });
    }

    fn every(&self, path: &Path) -> Option<Duration> {
        self.0.get(path)?.every
    }
}

impl Collector {
    /// Tells how fast a file is read, and whether that is too slow.
    pub(super) fn assess(&self, file: &Followed, mut status: FileStatus) -> FileStatus {
        status.bytes_per_second = file.rate.of_late(self.now, RATE_MEMORY);
        let every = self.turnovers.every(&status.path);
        let takes = Duration::from_secs(status.lag().checked_div(status.bytes_per_second).unwrap_or(0));
        let waited = status.waiting_since.map_or(0, |since| UnixNanos::now().0.saturating_sub(since.0));
        let waited = Duration::from_nanos(u64::try_from(waited).unwrap_or(0));
        let late = every.is_some_and(|every| takes > every || waited > every);
        status.at_risk = status.lag() > 0 && (file.deleted || late);
        status
    }
}
