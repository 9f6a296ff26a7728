//! What the worker is doing, as seen from outside.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use logmesh_bus::TopicPartition;
use logmesh_proto::transfer::v1::Counts;
use logmesh_types::{UnixNanos, metric};

use crate::freshness::Freshness;

/// Shared by the worker, which writes, and the service, which reads.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// How long events took.
    pub(crate) freshness: Freshness,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The partitions that are held.
    pub(crate) partitions: BTreeMap<TopicPartition, Partition>,
    /// Counts since the start.
    pub(crate) counts: Counts,
    /// What keeps the worker from going on; empty if nothing.
    pub(crate) error: String,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Partition {
    /// The timestamp of the newest record that is done.
    pub(crate) fresh: Option<UnixNanos>,
    /// Streams in the books.
    pub(crate) streams: usize,
}

impl Shared {
    /// The state, for a moment: never held across an await.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds to the counts and to the metrics.
    pub(crate) fn count(&self, add: &Counts) {
        let counts = &mut self.state().counts;
        let pairs = [
            ("read", &mut counts.events, add.events),
            ("created", &mut counts.created, add.created),
            ("duplicate", &mut counts.duplicates, add.duplicates),
            ("repeat", &mut counts.repeats, add.repeats),
            ("dead_letter", &mut counts.dead_letters, add.dead_letters),
            ("overlap", &mut counts.overlaps, add.overlaps),
            ("lost_record", &mut counts.lost_records, add.lost_records),
            ("retired", &mut counts.retired, add.retired),
        ];
        for (outcome, total, more) in pairs {
            *total += more;
            metrics::counter!(metric::TRANSFER_EVENTS, "outcome" => outcome).increment(more);
        }
    }
}
