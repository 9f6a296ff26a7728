//! Reading records, offsets by time, and commits. All of it blocks.

use logmesh_bus::{BusError, NextOffset, Record};
use logmesh_types::UnixNanos;

use crate::catalog::Topic;
use crate::codec;
use crate::store::{COMMITS, RECORDS, Store, TIMES, damaged};

/// What a record counts beyond its bytes, so that a read of many empty ones ends too.
const RECORD_COST: usize = 64;

/// Records from an offset on, up to so many bytes but at least one.
pub(crate) fn records(
    store: &Store,
    topic: u32,
    partition: u32,
    from: u64,
    max_bytes: usize,
) -> Result<Vec<Record>, BusError> {
    store.read(|transaction| {
        let table = transaction.open_table(RECORDS)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        for entry in table.range((topic, partition, from)..=(topic, partition, u64::MAX))? {
            let (key, value) = entry?;
            bytes += value.value().len() + RECORD_COST;
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            let offset = key.value().2;
            let record = codec::decode(offset, value.value()).ok_or_else(|| {
                damaged(format!("the record at offset {offset} of partition {partition} of topic {topic}"))
            })?;
            records.push(record);
        }
        Ok(records)
    })
}

/// The first offset whose record is of this time or later.
///
/// [`TIMES`] says at which offset the latest time so far grew to what. Every record up to the last entry before `time`
/// is earlier than it, so the search begins there; it ends at the first record that is late enough.
pub(crate) fn offset_at(store: &Store, topic: &Topic, partition: u32, time: UnixNanos) -> Result<NextOffset, BusError> {
    let state = topic.state(partition);
    if state.high == 0 || time.0 > state.latest {
        return Ok(NextOffset(state.high));
    }
    store.read(|transaction| {
        let times = transaction.open_table(TIMES)?;
        let before = times.range((topic.id, partition, i64::MIN)..(topic.id, partition, time.0))?.next_back();
        let start = before.transpose()?.map_or(0, |(_, offset)| offset.value());
        let records = transaction.open_table(RECORDS)?;
        for entry in records.range((topic.id, partition, start)..(topic.id, partition, state.high))? {
            let (key, value) = entry?;
            if codec::time_of(value.value()) >= time.0 {
                return Ok(NextOffset(key.value().2));
            }
        }
        Ok(NextOffset(state.high))
    })
}

/// What a group committed last.
pub(crate) fn committed(
    store: &Store,
    group: &str,
    topic: u32,
    partition: u32,
) -> Result<Option<NextOffset>, BusError> {
    store.read(|transaction| {
        let offset = transaction.open_table(COMMITS)?.get((group, topic, partition))?;
        Ok(offset.map(|offset| NextOffset(offset.value())))
    })
}
