//! What the tests on Kafka servers of their own share.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::{Append, Bus, Cleanup, NewRecord, NextOffset, Position, Record, TopicPartition, TopicSpec};
use logmesh_bus_kafka::{KafkaBus, Settings};
use logmesh_types::TopicName;

/// How long any one condition may take to come true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn bus(address: &str, change: impl FnOnce(&mut Settings)) -> KafkaBus {
    let mut settings = Settings { brokers: vec![address.to_owned()], ..Settings::default() };
    change(&mut settings);
    KafkaBus::new(settings).unwrap()
}

pub(crate) async fn topic(bus: &KafkaBus, name: &str, partitions: u32) -> TopicName {
    let name: TopicName = name.parse().unwrap();
    let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
    bus.ensure_topic(&TopicSpec { name: name.clone(), partitions, cleanup }).await.unwrap();
    name
}

pub(crate) fn record(key: &str, value: impl Into<Bytes>) -> NewRecord {
    NewRecord { key: Bytes::from(key.to_owned()), value: value.into(), ..NewRecord::default() }
}

pub(crate) fn at(topic: &TopicName, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic.clone(), partition }
}

/// Everything that a partition holds.
pub(crate) async fn read_all(bus: &KafkaBus, at: &TopicPartition) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    loop {
        let next = records.last().map_or(NextOffset(0), |record| record.offset.next());
        let more = bus.read(at, next, 1 << 20).await.unwrap();
        if more.is_empty() {
            return records;
        }
        records.extend(more);
    }
}

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

/// Bytes that don't compress.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len).collect()
}

/// Appends `key:0000000`, `key:0000001`, … of one key, some at a time, until told to stop; what failed, and all after it, again.
/// Gives where each was stored, and how many appends failed.
pub(crate) async fn write(bus: &KafkaBus, topic: &TopicName, key: &str, stop: &AtomicBool) -> (Vec<Position>, usize) {
    const WINDOW: usize = 50;
    let (mut stored, mut failed) = (Vec::new(), 0);
    let mut pending: VecDeque<Append> = VecDeque::new();
    let value = |number: usize| format!("{key}:{number:07}");
    while !stop.load(Ordering::Relaxed) || !pending.is_empty() {
        if !stop.load(Ordering::Relaxed) && pending.len() < WINDOW {
            match bus.append(topic, record(key, value(stored.len() + pending.len()))).await {
                Ok(append) => pending.push_back(append),
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::task::yield_now().await;
            continue;
        }
        let Some(append) = pending.pop_front() else { continue };
        match append.await {
            Ok(position) => stored.push(position),
            Err(error) => {
                assert!(error.retryable(), "{error}");
                failed += 1;
                // As the gateway does it: whatever the others came to, they are tried again too, the first one alone.
                for later in pending.drain(..) {
                    drop(later.await);
                }
                stored.push(until_stored(bus, topic, key, &value(stored.len())).await);
            }
        }
    }
    (stored, failed)
}

async fn until_stored(bus: &KafkaBus, topic: &TopicName, key: &str, value: &str) -> Position {
    loop {
        let stored = match bus.append(topic, record(key, value.to_owned())).await {
            Ok(append) => append.await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(position) => return position,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every acknowledged record lies where its position says, and nothing that failed lies behind what replaced it.
pub(crate) async fn check_stored(bus: &KafkaBus, topic: &TopicName, key: &str, stored: &[Position]) -> usize {
    let all = read_all(bus, &at(topic, stored[0].partition)).await;
    let values: HashMap<u64, String> = all
        .iter()
        .filter(|record| record.key == key.as_bytes())
        .map(|record| (record.offset.0, String::from_utf8(record.value.to_vec()).unwrap()))
        .collect();
    for (number, position) in stored.iter().enumerate() {
        assert_eq!(values[&position.offset.0], format!("{key}:{number:07}"), "at {position:?}");
    }
    assert!(stored.is_sorted_by(|one, next| one.offset < next.offset), "acknowledged out of order");
    for (offset, value) in &values {
        let number: usize = value.rsplit(':').next().unwrap().parse().unwrap();
        if let Some(acked) = stored.get(number) {
            assert!(*offset <= acked.offset.0, "{value} at {offset}, behind the one acknowledged at {acked:?}");
        }
    }
    values.len()
}
