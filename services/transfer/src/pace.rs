//! How much is asked of the index at a time: halved when it is busy, slow or away, and grown again by small steps while it
//! answers well, up to what the settings allow. First to go is what runs side by side, then the size of a request.

use logmesh_types::metric;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::Settings;

/// Steps from the smallest request to the largest.
const STEPS: usize = 16;

/// A request is never smaller than the largest divided by this.
const SMALLEST: usize = 64;

/// What may be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Documents of a request.
    pub(crate) documents: usize,
    /// Requests side by side.
    pub(crate) requests: usize,
}

/// Shared by the requests of a worker.
#[derive(Debug)]
pub(crate) struct Pace {
    most: Limits,
    /// Bytes of a bulk that is full of large documents.
    bytes: usize,
    slow: Duration,
    now: Mutex<Limits>,
}

/// Why less is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pressure {
    /// Items were answered "not now".
    Busy,
    /// There was no answer, or an error for all.
    Failed,
    /// The answer took too long.
    Slow,
}

impl Pace {
    pub(crate) fn new(settings: &Settings) -> Self {
        let most = Limits { documents: settings.bulk_documents.max(1), requests: settings.bulk_requests.max(1) };
        let bytes = usize::try_from(settings.bulk_bytes.0).unwrap_or(usize::MAX);
        let pace = Self { most, bytes, slow: settings.bulk_slow.0, now: Mutex::new(most) };
        tell(most);
        pace
    }

    /// What may be asked now.
    pub(crate) fn limits(&self) -> Limits {
        *self.lock()
    }

    /// A request with so many documents of so many bytes together, sent under these limits, was answered well.
    pub(crate) fn answered(&self, sent: Limits, documents: usize, bytes: usize, took: Duration) {
        if took > self.slow {
            return self.pressed(sent, Pressure::Slow);
        }
        let mut now = self.lock();
        if now.documents < self.most.documents {
            // What was far below the limit says nothing about it, unless it was large documents that filled it.
            if documents.saturating_mul(2) >= now.documents || bytes.saturating_mul(2) >= self.bytes {
                now.documents = (now.documents + self.most.documents.div_ceil(STEPS)).min(self.most.documents);
                tell(*now);
            }
        } else if now.requests < self.most.requests {
            now.requests += 1;
            tell(*now);
        }
    }

    /// A request that was sent under these limits says that it was too much. Those that were under way beside it say the same
    /// once more, which counts once.
    pub(crate) fn pressed(&self, sent: Limits, why: Pressure) {
        let mut now = self.lock();
        let reason = match why {
            Pressure::Busy => "busy",
            Pressure::Failed => "failed",
            Pressure::Slow => "slow",
        };
        metrics::counter!(metric::TRANSFER_BACKOFFS, "reason" => reason).increment(1);
        if *now != sent {
            return;
        }
        if now.requests > 1 {
            now.requests /= 2;
        } else {
            now.documents = (now.documents / 2).max(self.most.documents / SMALLEST).max(1);
        }
        tell(*now);
    }

    fn lock(&self) -> MutexGuard<'_, Limits> {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn tell(now: Limits) {
    metrics::gauge!(metric::TRANSFER_BULK_DOCUMENTS).set(now.documents as f64);
    metrics::gauge!(metric::TRANSFER_BULK_REQUESTS).set(now.requests as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(1);

    fn pace() -> Pace {
        Pace::new(&Settings { bulk_documents: 6_400, bulk_requests: 4, ..Settings::default() })
    }

    #[test]
    fn pressure_halves_and_health_grows_up_to_the_settings() {
        let pace = pace();
        for (documents, requests) in [(6_400, 2), (6_400, 1), (3_200, 1), (1_600, 1)] {
            pace.pressed(pace.limits(), Pressure::Busy);
            assert_eq!(pace.limits(), Limits { documents, requests });
        }
        for _ in 0..20 {
            pace.pressed(pace.limits(), Pressure::Failed);
        }
        assert_eq!(pace.limits(), Limits { documents: 100, requests: 1 }, "something is always asked");
        let mut steps = 0;
        while pace.limits() != pace.most {
            let now = pace.limits();
            pace.answered(now, now.documents, 1, FAST);
            steps += 1;
            assert!(steps < 100);
        }
        assert!(steps > STEPS, "not at once");
        pace.answered(pace.limits(), 6_400, 1, FAST);
        assert_eq!(pace.limits(), pace.most);
    }

    #[test]
    fn requests_side_by_side_say_it_once_and_slow_ones_too() {
        let pace = pace();
        let sent = pace.limits();
        for _ in 0..4 {
            pace.pressed(sent, Pressure::Busy);
        }
        assert_eq!(pace.limits().requests, 2);
        pace.answered(pace.limits(), 10, 1, pace.slow * 2);
        assert_eq!(pace.limits().requests, 1);
    }

    #[test]
    fn small_requests_say_nothing_about_large_ones() {
        let pace = pace();
        for _ in 0..4 {
            pace.pressed(pace.limits(), Pressure::Busy);
        }
        let before = pace.limits();
        pace.answered(before, 5, 1, FAST);
        assert_eq!(pace.limits(), before);
    }

    #[test]
    fn requests_full_of_large_documents_grow_back_to_the_settings() {
        let pace = pace();
        for _ in 0..4 {
            pace.pressed(pace.limits(), Pressure::Busy);
        }
        for _ in 0..2 * STEPS {
            pace.answered(pace.limits(), 5, pace.bytes, FAST);
        }
        assert_eq!(pace.limits(), pace.most);
    }
}
