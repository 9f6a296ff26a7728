//! How much one producer, one group member and a reader without a group move through one real broker, in records and
//! bytes a second: `cargo run --release -p logmesh-bus-kafka --example throughput`.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for developers")]

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use logmesh_bus::{Append, Bus, Cleanup, Event, NewRecord, NextOffset, TopicPartition, TopicSpec};
use logmesh_bus_kafka::{KafkaBus, Settings};
use logmesh_testing::servers;
use logmesh_types::TopicName;

const PARTITIONS: u32 = 4;

/// Appends that wait for their outcome.
const WINDOW: usize = 10_000;

#[tokio::main]
async fn main() {
    let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
    let bus = KafkaBus::new(Settings { brokers: vec![server.address()], ..Settings::default() }).unwrap();
    for (name, bytes, records) in [("events", 300, 1_000_000), ("chunks", 64 << 10, 20_000)] {
        let topic: TopicName = name.parse().unwrap();
        let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
        bus.ensure_topic(&TopicSpec { name: topic.clone(), partitions: PARTITIONS, cleanup }).await.unwrap();
        let begin = Instant::now();
        append(&bus, &topic, bytes, records).await;
        report(name, "append", begin, bytes, records);
        let begin = Instant::now();
        consume(&bus, &topic, records).await;
        report(name, "group", begin, bytes, records);
        let begin = Instant::now();
        read(&bus, &topic).await;
        report(name, "read", begin, bytes, records);
    }
}

fn report(name: &str, what: &str, begin: Instant, bytes: usize, records: usize) {
    let seconds = begin.elapsed().as_secs_f64();
    let (rate, mib) = (records as f64 / seconds, (records * bytes) as f64 / seconds / f64::from(1 << 20));
    println!("{name:8} {what:8} {rate:>10.0} records/s {mib:>8.1} MiB/s");
}

async fn append(bus: &KafkaBus, topic: &TopicName, bytes: usize, records: usize) {
    let line = "2026-01-01T00:00:00Z web-1 GET /index.html 200 in 12 ms, user 4711, session 0a1b2c3d\n";
    let value = Bytes::from(line.repeat(bytes / line.len() + 1)).slice(..bytes);
    let mut pending: VecDeque<Append> = VecDeque::new();
    for number in 0..records {
        if pending.len() == WINDOW {
            pending.pop_front().unwrap().await.unwrap();
        }
        let key = Bytes::from(format!("{:032x}", number % 64));
        let record = NewRecord { key, value: value.clone(), ..NewRecord::default() };
        pending.push_back(bus.append(topic, record).await.unwrap());
    }
    for append in pending {
        append.await.unwrap();
    }
}

async fn consume(bus: &KafkaBus, topic: &TopicName, records: usize) {
    let mut group = bus.subscribe("throughput", std::slice::from_ref(topic)).await.unwrap();
    let mut left = records;
    while left > 0 {
        if let Event::Records { records, .. } = group.next().await.unwrap() {
            left -= records.len();
        }
    }
}

async fn read(bus: &KafkaBus, topic: &TopicName) {
    for partition in 0..PARTITIONS {
        let at = TopicPartition { topic: topic.clone(), partition };
        let mut next = NextOffset(0);
        while let Some(last) = bus.read(&at, next, 4 << 20).await.unwrap().last() {
            next = last.offset.next();
        }
    }
}
