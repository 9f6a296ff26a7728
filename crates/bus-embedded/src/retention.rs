//! Removes what a topic need not keep any longer, in passes of bounded size so that appends never wait long.
//!
//! A record that a consumer group has yet to commit stays, however old and however many there are: an acked line must
//! not go before it is indexed. If that fills the disk, appends fail, and with the acks the files hold the lines.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::Cleanup;
use logmesh_types::{TopicName, UnixNanos, metric};
use metrics::gauge;
use redb::{ReadableTable, Table, WriteTransaction};

use crate::catalog::{PartitionState, Topic};
use crate::codec;
use crate::store::{COMMITS, KEYS, PARTITIONS, RECORDS, TIMES, TOMBSTONES};

/// How long to let others write between two passes while there is more to remove.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// The most that one pass removes: records and bytes.
const PASS_RECORDS: usize = 8_192;
const PASS_BYTES: usize = 64 << 20;

/// What a pass did.
pub(crate) struct Pass {
    /// New states of partitions.
    pub(crate) changes: HashMap<(u32, u32), (Arc<Topic>, PartitionState)>,
    /// True if it ended at its bound.
    pub(crate) more: bool,
}

/// What is left of a pass's bound.
struct Budget {
    records: usize,
    bytes: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize) {
        self.records -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn is_spent(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }
}

/// Removes records that are too old or too many, and old tombstones.
pub(crate) fn pass(
    transaction: &WriteTransaction,
    topics: &[Arc<Topic>],
    tombstone_age: Duration,
) -> Result<Pass, redb::Error> {
    let now = UnixNanos::now().0;
    let mut changes = HashMap::new();
    let mut budget = Budget { records: PASS_RECORDS, bytes: PASS_BYTES };
    let committed = lowest_commits(transaction)?;
    let names: HashSet<&TopicName> = topics.iter().map(|topic| &topic.name).collect();
    let mut held_back = 0;
    for topic in topics {
        let Cleanup::Delete { max_age, max_bytes } = topic.cleanup() else { continue };
        let oldest = max_age.map_or(i64::MIN, |age| now.saturating_sub(nanos(age)));
        // A topic with books is read by transfer, so a partition of it without a commit isn't one that nobody reads.
        let uncommitted = if names.contains(&topic.name.books()) { 0 } else { u64::MAX };
        for partition in 0..topic.partitions.len() as u32 {
            let mut state = topic.state(partition);
            let keep = committed.get(&(topic.id, partition)).copied().unwrap_or(uncommitted);
            let limits = Limits { oldest, max_bytes, keep };
            let low = state.low;
            held_back += u32::from(trim(transaction, (topic.id, partition), &mut state, &limits, &mut budget)?);
            if state.low > low {
                transaction.open_table(PARTITIONS)?.insert((topic.id, partition), state.to_row())?;
                changes.insert((topic.id, partition), (Arc::clone(topic), state));
            }
        }
    }
    gauge!(metric::BUS_RETENTION_HELD_BACK).set(held_back);
    remove_tombstones(transaction, topics, now.saturating_sub(nanos(tombstone_age)), &mut budget, &mut changes)?;
    Ok(Pass { changes, more: budget.is_spent() })
}

/// The lowest offset that any group has committed, of each partition that has commits.
fn lowest_commits(transaction: &WriteTransaction) -> Result<HashMap<(u32, u32), u64>, redb::Error> {
    let mut lowest = HashMap::new();
    for entry in transaction.open_table(COMMITS)?.iter()? {
        let (key, next) = entry?;
        let (_, topic, partition) = key.value();
        let least = lowest.entry((topic, partition)).or_insert(u64::MAX);
        *least = next.value().min(*least);
    }
    Ok(lowest)
}

/// What of a partition may go.
struct Limits {
    /// Records of an earlier time may.
    oldest: i64,
    /// So may the first ones while there are more bytes than this.
    max_bytes: Option<u64>,
    /// From this offset on nothing may.
    keep: u64,
}

/// Removes a partition's records from its low end while they are too old or too many (of which the newest record is
/// exempt); true if the next one would go too, were it committed.
fn trim(
    transaction: &WriteTransaction,
    (topic, partition): (u32, u32),
    state: &mut PartitionState,
    limits: &Limits,
    budget: &mut Budget,
) -> Result<bool, redb::Error> {
    let mut records = transaction.open_table(RECORDS)?;
    let mut held_back = false;
    while state.low < state.high && !budget.is_spent() {
        let too_many = limits.max_bytes.is_some_and(|most| state.bytes > most) && state.low + 1 < state.high;
        let Some((time, stored, size)) = look(&records, (topic, partition, state.low))? else {
            state.low += 1;
            continue;
        };
        if !too_many && time >= limits.oldest {
            break;
        }
        held_back = state.low >= limits.keep;
        if held_back {
            break;
        }
        records.remove((topic, partition, state.low))?;
        state.low += 1;
        state.bytes = state.bytes.saturating_sub(size);
        budget.take(stored);
    }
    let mut times = transaction.open_table(TIMES)?;
    while let Some(stale) = first_time(&times, topic, partition, state.low)? {
        times.remove((topic, partition, stale))?;
    }
    Ok(held_back)
}

/// A record's time, its length in the table, and its size as the partition counts it.
fn look(
    records: &Table<'_, (u32, u32, u64), &'static [u8]>,
    key: (u32, u32, u64),
) -> Result<Option<(i64, usize, u64)>, redb::Error> {
    Ok(records
        .get(key)?
        .map(|value| (codec::time_of(value.value()), value.value().len(), codec::size_of(value.value()))))
}

/// The first entry of the index by time, if it points below the low end.
fn first_time(
    times: &Table<'_, (u32, u32, i64), u64>,
    topic: u32,
    partition: u32,
    low: u64,
) -> Result<Option<i64>, redb::Error> {
    let first = times.range((topic, partition, i64::MIN)..=(topic, partition, i64::MAX))?.next().transpose()?;
    Ok(first.filter(|(_, offset)| offset.value() < low).map(|(key, _)| key.value().2))
}

/// Removes tombstones that were stored before `oldest`. The newest record of a partition stays, so that the last offset
/// is always there to be read.
fn remove_tombstones(
    transaction: &WriteTransaction,
    topics: &[Arc<Topic>],
    oldest: i64,
    budget: &mut Budget,
    changes: &mut HashMap<(u32, u32), (Arc<Topic>, PartitionState)>,
) -> Result<(), redb::Error> {
    let mut tombstones = transaction.open_table(TOMBSTONES)?;
    let mut due = Vec::new();
    for entry in tombstones.range(..(oldest, 0, 0, 0))?.take(budget.records) {
        due.push(entry?.0.value());
    }
    let mut records = transaction.open_table(RECORDS)?;
    let mut keys = transaction.open_table(KEYS)?;
    for (stored, id, partition, offset) in due {
        let Some(topic) = topics.iter().find(|topic| topic.id == id) else { continue };
        let mut state = changes.get(&(id, partition)).map_or_else(|| topic.state(partition), |(_, state)| *state);
        if offset + 1 == state.high {
            continue;
        }
        tombstones.remove((stored, id, partition, offset))?;
        let removed = records.remove((id, partition, offset))?;
        let Some(record) = removed.and_then(|value| codec::decode(offset, value.value())) else { continue };
        keys.remove((id, partition, record.key.as_ref()))?;
        state.bytes = state.bytes.saturating_sub(record.size() as u64);
        transaction.open_table(PARTITIONS)?.insert((id, partition), state.to_row())?;
        changes.insert((id, partition), (Arc::clone(topic), state));
        budget.take(record.size());
    }
    Ok(())
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}
