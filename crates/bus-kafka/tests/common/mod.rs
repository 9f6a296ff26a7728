//! What the tests on Kafka servers of their own share.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::{Bus, Cleanup, NewRecord, NextOffset, Record, TopicPartition, TopicSpec};
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
