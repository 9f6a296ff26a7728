//! Opening what cannot be opened, retention, and a disk that is full.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use logmesh_bus::{Bus, BusError, Cleanup, Event, NewRecord, NextOffset, TopicPartition, TopicSpec};
use logmesh_bus_embedded::{EmbeddedBus, OpenError, Settings};
use logmesh_types::{TopicName, UnixNanos};
use tempfile::TempDir;

fn topic() -> TopicName {
    "t".parse().unwrap()
}

fn at() -> TopicPartition {
    TopicPartition { topic: topic(), partition: 0 }
}

async fn open_with_topic(folder: &Path, settings: Settings, cleanup: Cleanup) -> EmbeddedBus {
    let bus = EmbeddedBus::open(folder, settings).unwrap();
    bus.ensure_topic(&TopicSpec { name: topic(), partitions: 1, cleanup }).await.unwrap();
    bus
}

fn record(size: usize) -> NewRecord {
    NewRecord { value: Bytes::from(vec![b'v'; size]), ..NewRecord::default() }
}

async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const KEEP: Cleanup = Cleanup::Delete { max_age: None, max_bytes: None };

#[tokio::test]
async fn a_bus_is_open_once() {
    let folder = TempDir::new().unwrap();
    let bus = open_with_topic(folder.path(), Settings::default(), KEEP).await;
    let error = EmbeddedBus::open(folder.path(), Settings::default()).unwrap_err();
    assert!(matches!(error, OpenError::AlreadyOpen { .. }), "{error}");
    drop(bus);
    EmbeddedBus::open(folder.path(), Settings::default()).unwrap();
}

#[tokio::test]
async fn what_is_no_bus_is_refused() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("bus.redb"), vec![b'x'; 100_000]).unwrap();
    let error = EmbeddedBus::open(folder.path(), Settings::default()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_made_again() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("bus.redb.new"), b"redb\x1a").unwrap();
    EmbeddedBus::open(folder.path(), Settings::default()).unwrap();
    assert!(!folder.path().join("bus.redb.new").exists());
}

#[tokio::test]
async fn another_format_is_refused() {
    let folder = TempDir::new().unwrap();
    drop(EmbeddedBus::open(folder.path(), Settings::default()).unwrap());
    let database = redb::Database::open(folder.path().join("bus.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedBus::open(folder.path(), Settings::default()).unwrap_err();
    assert!(matches!(error, OpenError::OtherFormat { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn retention_removes_the_oldest_by_bytes_and_by_age() {
    let folder = TempDir::new().unwrap();
    let settings = Settings { retention_interval: Duration::from_millis(20), ..Settings::default() };
    let bus = open_with_topic(folder.path(), settings, KEEP).await;
    for _ in 0..100 {
        bus.append(&topic(), record(1_000)).await.unwrap().await.unwrap();
    }
    let by_bytes = Cleanup::Delete { max_age: None, max_bytes: Some(10_000) };
    bus.ensure_topic(&TopicSpec { name: topic(), partitions: 1, cleanup: by_bytes }).await.unwrap();
    wait_until("retention by bytes", async || bus.watermarks(&at()).await.unwrap().low == NextOffset(90)).await;
    assert_eq!(bus.read(&at(), NextOffset(0), 1).await.unwrap()[0].offset.0, 90);

    let by_age = Cleanup::Delete { max_age: Some(Duration::from_secs(3600)), max_bytes: None };
    let old = NewRecord { timestamp: Some(UnixNanos(UnixNanos::now().0 - 7_200_000_000_000)), ..record(10) };
    bus.ensure_topic(&TopicSpec { name: topic(), partitions: 1, cleanup: by_age }).await.unwrap();
    bus.append(&topic(), old).await.unwrap().await.unwrap();
    bus.append(&topic(), record(10)).await.unwrap().await.unwrap();
    let marks = bus.watermarks(&at()).await.unwrap();
    assert_eq!((marks.low, marks.high), (NextOffset(90), NextOffset(102)), "young ones shield an old one");
    assert_eq!(bus.offset_at(&at(), UnixNanos(0)).await.unwrap(), NextOffset(90));

    let none = Cleanup::Delete { max_age: Some(Duration::ZERO), max_bytes: None };
    bus.ensure_topic(&TopicSpec { name: topic(), partitions: 1, cleanup: none }).await.unwrap();
    wait_until("retention by age", async || bus.watermarks(&at()).await.unwrap().low == NextOffset(102)).await;
    assert!(bus.read(&at(), NextOffset(0), 1).await.unwrap().is_empty());
    assert_eq!(bus.append(&topic(), record(10)).await.unwrap().await.unwrap().offset.0, 102);
}

async fn commit(bus: &EmbeddedBus, group: &str, next: u64) {
    let mut consumer = bus.subscribe(group, &[topic()]).await.unwrap();
    while !matches!(consumer.next().await.unwrap(), Event::Assigned(_)) {}
    consumer.commit(&[(at(), NextOffset(next))]).await.unwrap();
}

#[tokio::test]
async fn retention_waits_for_the_slowest_group_and_for_the_first_commit_where_there_are_books() {
    let folder = TempDir::new().unwrap();
    let settings = Settings { retention_interval: Duration::from_millis(20), ..Settings::default() };
    let bus = open_with_topic(folder.path(), settings, KEEP).await;
    for name in [topic().books(), "other".parse().unwrap()] {
        bus.ensure_topic(&TopicSpec { name, partitions: 1, cleanup: KEEP }).await.unwrap();
    }
    let other = TopicPartition { topic: "other".parse().unwrap(), partition: 0 };
    let all = Cleanup::Delete { max_age: Some(Duration::ZERO), max_bytes: None };
    bus.ensure_topic(&TopicSpec { name: topic(), partitions: 1, cleanup: all }).await.unwrap();
    bus.ensure_topic(&TopicSpec { name: other.topic.clone(), partitions: 1, cleanup: all }).await.unwrap();
    for _ in 0..20 {
        bus.append(&topic(), record(10)).await.unwrap().await.unwrap();
    }
    // A pass takes the topics in the order of their names: when `other` is trimmed twice, `t` was looked at.
    let low = async |at: &TopicPartition| bus.watermarks(at).await.unwrap().low;
    let pass = async || {
        for _ in 0..2 {
            let end = bus.append(&other.topic, record(10)).await.unwrap().await.unwrap().offset.next();
            wait_until("a pass", async || low(&other).await == end).await;
        }
    };
    pass().await;
    assert_eq!(low(&at()).await, NextOffset(0), "nothing is committed yet");
    commit(&bus, "slow", 5).await;
    commit(&bus, "fast", 15).await;
    wait_until("retention up to the slow one's", async || low(&at()).await == NextOffset(5)).await;
    pass().await;
    assert_eq!(low(&at()).await, NextOffset(5));
    commit(&bus, "slow", 12).await;
    wait_until("retention up to the slow one's", async || low(&at()).await == NextOffset(12)).await;
}

#[tokio::test]
async fn old_tombstones_go_with_their_keys() {
    let folder = TempDir::new().unwrap();
    let settings = Settings {
        retention_interval: Duration::from_millis(20),
        tombstone_age: Duration::ZERO,
        ..Settings::default()
    };
    let bus = open_with_topic(folder.path(), settings, Cleanup::Compact).await;
    for (key, value) in [("a", "1"), ("a", ""), ("b", "2"), ("b", "")] {
        let record = NewRecord { key: key.into(), value: value.into(), ..NewRecord::default() };
        bus.append(&topic(), record).await.unwrap().await.unwrap();
    }
    // The newest record stays, so that readers always reach the end.
    let offsets = async || {
        let records = bus.read(&at(), NextOffset(0), 1 << 20).await.unwrap();
        records.iter().map(|record| record.offset.0).collect::<Vec<_>>()
    };
    wait_until("the removal of a's tombstone", async || offsets().await == [3]).await;
}

/// The queue's bound makes appends wait for commits, it never makes them impossible.
#[tokio::test]
async fn a_tiny_queue_takes_one_record_at_a_time() {
    let folder = TempDir::new().unwrap();
    let settings = Settings { queue_bytes: 1, ..Settings::default() };
    let bus = open_with_topic(folder.path(), settings, KEEP).await;
    let mut before = None;
    for n in 0..20 {
        let append = bus.append(&topic(), record(100_000)).await.unwrap();
        assert!(bus.watermarks(&at()).await.unwrap().high.0 >= n, "room was given before the last one was durable");
        if let Some(before) = before.replace(append) {
            assert_eq!(before.await.unwrap().offset.0, n - 1);
        }
    }
}

/// A file system of so few MiB; `None` where it can't be mounted (no root).
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: usize) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(folder.path())
            .status();
        matches!(status, Ok(status) if status.success()).then_some(Self { folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg("-l").arg(self.folder.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot unmount {}", self.folder.path().display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_fails_appends_and_heals() {
    let Some(disk) = SmallDisk::mount(24) else {
        eprintln!("SKIPPED: a_full_disk_fails_appends_and_heals: cannot mount a tmpfs here");
        return;
    };
    let folder = disk.folder.path();
    let ballast = folder.join("ballast");
    fs::write(&ballast, vec![0; 12 << 20]).unwrap();
    let bus = open_with_topic(folder, Settings::default(), KEEP).await;
    let mut acked = 0;
    let error = loop {
        match bus.append(&topic(), record(400_000)).await.unwrap().await {
            Ok(position) => {
                assert_eq!(position.offset.0, acked);
                acked += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BusError::Unavailable { .. }), "{error}");
    assert!(acked > 3, "{acked}");
    assert!(bus.append(&topic(), record(400_000)).await.unwrap().await.is_err());
    let mut readable = 0;
    while readable < acked {
        readable += bus.read(&at(), NextOffset(readable), 1 << 20).await.unwrap().len() as u64;
    }

    fs::remove_file(&ballast).unwrap();
    let position = bus.append(&topic(), record(400_000)).await.unwrap().await.unwrap();
    assert!(position.offset.0 >= acked);
    let high = bus.watermarks(&at()).await.unwrap().high;
    drop(bus);
    let bus = EmbeddedBus::open(folder, Settings::default()).unwrap();
    assert_eq!(bus.watermarks(&at()).await.unwrap().high, high);
}
