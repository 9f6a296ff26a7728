//! Appends: our own idempotent producer, behind a queue that is bounded in bytes. See docs/decisions/0027-producer.md.
//!
//! Records are written once, into the open [`batch`] of their partition's [`lane`], which sends batches in their order over
//! the [`link`] to the broker that leads the partition; who that is the [`cluster`] knows. All records of a batch share its outcome.
//! What counts as stored has an offset from a broker: what is said to be stored and not where is appended again, and may be on the
//! bus twice, which ids and books are for.

mod batch;
mod cluster;
mod connection;
mod lane;
mod link;
mod load;
mod sasl;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use logmesh_bus::{Append, BusError, Offset, Position, RecordRef, TopicPartition};
use logmesh_types::metric;
use metrics::gauge;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::clients::RECORD_COST;
use crate::context::stopping;
use crate::settings::Settings;
use cluster::Cluster;
use lane::Lane;
use load::Share;

/// The most bytes of records that get room at once, but for a record that is larger.
const GROUP_BYTES: usize = 1 << 20;

/// Writes records. Dropping it fails what isn't durable.
pub(crate) struct Producer {
    settings: Arc<Settings>,
    room: Arc<Semaphore>,
    cluster: Arc<Cluster>,
    lanes: Mutex<Lanes>,
}

/// The partitions that were appended to, and the tasks of those that have something to send.
#[derive(Default)]
struct Lanes {
    all: HashMap<TopicPartition, Arc<Lane>>,
    /// Dropping it ends them.
    running: JoinSet<()>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Producer")
    }
}

impl Producer {
    pub(crate) fn new(settings: &Arc<Settings>) -> Self {
        Self {
            settings: Arc::clone(settings),
            room: Arc::new(Semaphore::new(settings.queue_bytes.0 as usize)),
            cluster: Arc::new(Cluster::new(settings)),
            lanes: Mutex::default(),
        }
    }

    /// Queues records for this partition, in their order; waits for room.
    pub(crate) async fn append(&self, at: TopicPartition, records: &[RecordRef<'_>]) -> Append {
        let (mut shares, mut left) = (Vec::new(), records);
        while !left.is_empty() {
            let (group, rest) = left.split_at(group_len(left));
            self.append_group(&at, group, &mut shares).await;
            left = rest;
        }
        let largest = records.iter().map(RecordRef::size).max().unwrap_or(0);
        Box::pin(outcome(at, largest, shares))
    }

    async fn append_group(&self, at: &TopicPartition, records: &[RecordRef<'_>], shares: &mut Vec<Share>) {
        let cost = cost(records).min(self.settings.queue_bytes.0 as usize);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(cost as u32).await else {
            // It's never closed; were it, nobody would tell what becomes of these.
            shares.push(Share { fate: watch::channel(None).1, last: 0 });
            return;
        };
        gauge!(metric::BUS_QUEUE_ROOM_BYTES).set(self.room.available_permits() as f64);
        // Nothing is awaited between the room, which is given in the order of the calls, and the lane.
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = match lanes.all.get(at) {
            Some(lane) => Arc::clone(lane),
            None => Arc::clone(lanes.all.entry(at.clone()).or_insert(Lane::new(at, &self.settings))),
        };
        drop(lanes);
        if lane.push(records, room, shares) {
            let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            while lanes.running.try_join_next().is_some() {} // forget those that ended
            lanes.running.spawn(lane.run(Arc::clone(&self.cluster)));
        }
    }
}

/// The outcome of records that are in these batches: all are waited for though one fails.
async fn outcome(at: TopicPartition, largest: usize, shares: Vec<Share>) -> Result<Position, BusError> {
    let mut result = Err(stopping());
    let mut error = None;
    for mut share in shares {
        let fate = share.fate.wait_for(Option::is_some).await.ok().and_then(|fate| fate.clone());
        match fate {
            Some(Ok(first)) => {
                let offset = Offset(first + u64::from(share.last));
                result = Ok(Position { partition: at.partition, offset });
            }
            Some(Err(failure)) => drop(error.get_or_insert_with(|| failure.to_bus(&at, largest))),
            None => drop(error.get_or_insert_with(stopping)),
        }
    }
    error.map_or(result, Err)
}

/// What records take of the queue.
fn cost(records: &[RecordRef<'_>]) -> usize {
    records.iter().map(|record| record.size() + RECORD_COST).sum()
}

/// How many of the records, which are some, make the next group: one at least, else no more than have room in it.
fn group_len(records: &[RecordRef<'_>]) -> usize {
    let mut bytes = 0;
    let full = records.iter().position(|record| {
        bytes += record.size() + RECORD_COST;
        bytes > GROUP_BYTES
    });
    full.map_or(records.len(), |at| at.max(1))
}

#[cfg(test)]
mod tests;
