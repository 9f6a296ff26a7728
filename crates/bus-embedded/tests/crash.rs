//! `kill -9` while appending: every acked record is there afterwards, at its offset and in its order.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use logmesh_bus::{Bus, Cleanup, NewRecord, NextOffset, TopicPartition, TopicSpec};
use logmesh_bus_embedded::{EmbeddedBus, Settings};
use logmesh_types::TopicName;

const FOLDER: &str = "LOGMESH_TEST_CRASH_FOLDER";
const PARTITIONS: u32 = 4;

fn topic() -> TopicName {
    "crash".parse().unwrap()
}

/// Not a test by itself: the process that is killed. It prints each ack as `partition offset value`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_appends_for_ever() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let bus = EmbeddedBus::open(Path::new(&folder), Settings::default()).unwrap();
    let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
    bus.ensure_topic(&TopicSpec { name: topic(), partitions: PARTITIONS, cleanup }).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    let bus = std::sync::Arc::new(bus);
    let round: u64 = std::env::var("ROUND").unwrap().parse().unwrap();
    for key in 0..8u64 {
        let bus = std::sync::Arc::clone(&bus);
        writers.spawn(async move {
            let mut pending = std::collections::VecDeque::new();
            for n in 0.. {
                let value = format!("{key} {:012}", round * 1_000_000_000 + n);
                let padded = format!("{value} {}", "x".repeat((n as usize * 37) % 20_000));
                let record = NewRecord { key: key.to_string().into(), value: padded.into(), ..NewRecord::default() };
                pending.push_back((value, bus.append(&topic(), record).await.unwrap()));
                if pending.len() > 16 {
                    let (value, append) = pending.pop_front().unwrap();
                    let position = append.await.unwrap();
                    let line = format!("ack {} {} {value}\n", position.partition, position.offset.0);
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }
        });
    }
    writers.join_all().await;
}

fn start_child(folder: &Path, round: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_appends_for_ever", "--nocapture"])
        .env(FOLDER, folder)
        .env("ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads acks until there are enough, kills the child, and reads those that were still in the pipe.
fn acks_until_killed(mut child: Child, enough: usize) -> Vec<(u32, u64, String)> {
    let mut acks = Vec::new();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        // The pipe may end within a line.
        if let ["ack", partition, offset, value] = words[..]
            && value.len() == 14
        {
            acks.push((partition.parse().unwrap(), offset.parse().unwrap(), value.to_owned()));
        }
        if acks.len() == enough {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_records_survive_kill_nine() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut acked = HashMap::new();
    for round in 1..=4 {
        for (partition, offset, value) in acks_until_killed(start_child(folder.path(), round), 700 * round as usize) {
            assert!(acked.insert((partition, offset), value).is_none(), "an offset was given out twice");
        }
        check(folder.path(), &acked).await;
    }
    assert!(acked.len() > 5_000);
}

async fn check(folder: &Path, acked: &HashMap<(u32, u64), String>) {
    let bus = EmbeddedBus::open(folder, Settings::default()).unwrap();
    let mut found = 0;
    for partition in 0..PARTITIONS {
        let at = TopicPartition { topic: topic(), partition };
        let mut last_of_key: HashMap<String, String> = HashMap::new();
        let mut next = NextOffset(0);
        loop {
            let records = bus.read(&at, next, 4 << 20).await.unwrap();
            if records.is_empty() {
                break;
            }
            for record in records {
                assert_eq!(record.offset.0, next.0, "a hole");
                next = record.offset.next();
                let value = std::str::from_utf8(&record.value).unwrap()[..14].to_owned();
                if let Some(expected) = acked.get(&(partition, record.offset.0)) {
                    assert_eq!(&value, expected);
                    found += 1;
                }
                let key = value[..1].to_owned();
                let before = last_of_key.insert(key, value.clone());
                assert!(before.is_none_or(|before| before < value), "order of a key");
            }
        }
        assert_eq!(bus.watermarks(&at).await.unwrap().high, next);
    }
    assert_eq!(found, acked.len(), "acked records are missing");
}
