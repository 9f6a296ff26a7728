//! Large records, slow readers, and bounded queues.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::time::Duration;

use common::{at, bus, noise, record, soon, topic};
use logmesh_bus::{Bus, Event, NextOffset};
use logmesh_testing::servers;
use logmesh_types::limits::MAX_RECORD_BYTES;
use logmesh_types::unit::{ByteSize, Span};

/// More than fits into the queues at once, of the largest records there are: appended, read, and handed to a group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_records_pass_through_small_queues() {
    let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
    let bus = bus(&server.address(), |settings| {
        settings.queue_bytes = ByteSize(16 << 20);
        settings.fetch_bytes = ByteSize(16 << 20);
        settings.delivery_timeout = Span(Duration::from_secs(60));
    });
    let topic = topic(&bus, "large", 1).await;
    let place = at(&topic, 0);
    let value = |number: u64| noise(MAX_RECORD_BYTES - 1, number);
    let mut pending = Vec::new();
    for number in 0..6 {
        pending.push(soon("room", bus.append(&topic, record("k", value(number)))).await.unwrap());
    }
    for append in pending {
        soon("a large append", append).await.unwrap();
    }
    for number in 0..6 {
        let records = bus.read(&place, NextOffset(number), 1 << 20).await.unwrap();
        assert_eq!(records.len(), 1);
        assert!(records[0].value == value(number), "record {number} differs");
    }
    let mut group = bus.subscribe("large", std::slice::from_ref(&topic)).await.unwrap();
    let mut next = 0;
    while next < 6 {
        if let Event::Records { records, .. } = soon("a large record", group.next()).await.unwrap() {
            for record in records {
                assert_eq!(record.offset.0, next);
                assert!(record.value == value(next), "record {next} differs");
                next += 1;
            }
        }
    }
}

/// A reader that is slower than the pause of fetching keeps its partitions, gets each record once and in order, and is
/// told of a rebalance though it is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_keeps_its_partitions() {
    let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
    let bus = bus(&server.address(), |settings| {
        settings.fetch_bytes = ByteSize(16 << 20);
        settings.session_timeout = Span(Duration::from_secs(6));
    });
    let topic = topic(&bus, "slow", 2).await;
    let mut pending = Vec::new();
    for number in 0..80u64 {
        let key = number.to_string();
        pending.push(bus.append(&topic, record(&key, noise(512 << 10, number))).await.unwrap());
    }
    for append in pending {
        soon("an append", append).await.unwrap();
    }
    let topics = std::slice::from_ref(&topic);
    let mut first = bus.subscribe("slow", topics).await.unwrap();
    let (mut next, mut handled) = ([0, 0], 0);
    while handled < 40 {
        match soon("an event", first.next()).await.unwrap() {
            Event::Assigned(_) => {}
            Event::Records { at, records } => {
                for record in records {
                    assert_eq!(record.offset.0, next[at.partition as usize]);
                    next[at.partition as usize] += 1;
                    handled += 1;
                }
                tokio::time::sleep(Duration::from_millis(700)).await; // slow on purpose
            }
            other => panic!("{other:?}"),
        }
    }
    let mut second = bus.subscribe("slow", topics).await.unwrap();
    let revoked = loop {
        match soon("to be asked", first.next()).await.unwrap() {
            Event::Revoking(partitions) => break partitions,
            Event::Records { at, records } => {
                assert_eq!(records[0].offset.0, next[at.partition as usize]);
                next[at.partition as usize] = records.last().unwrap().offset.next().0;
            }
            other => panic!("{other:?}"),
        }
    };
    let commit: Vec<_> = revoked.iter().map(|at| (at.clone(), NextOffset(next[at.partition as usize]))).collect();
    first.commit(&commit).await.unwrap();
    first.release(&revoked).await.unwrap();
    let assigned = loop {
        if let Event::Assigned(partitions) = soon("the second's share", second.next()).await.unwrap() {
            break partitions;
        }
    };
    assert_eq!(assigned, revoked);
}

/// Who doesn't release in time loses the partition, is told so, and can't commit it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_release_loses_it() {
    let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
    let bus = bus(&server.address(), |settings| settings.release_timeout = Span(Duration::from_secs(2)));
    let topic = topic(&bus, "kept", 2).await;
    let topics = std::slice::from_ref(&topic);
    let mut first = bus.subscribe("kept", topics).await.unwrap();
    assert!(matches!(soon("all", first.next()).await.unwrap(), Event::Assigned(all) if all.len() == 2));
    let mut second = bus.subscribe("kept", topics).await.unwrap();
    let Event::Revoking(asked) = soon("to be asked", first.next()).await.unwrap() else { panic!("not asked") };
    let Event::Lost(lost) = soon("to lose it", first.next()).await.unwrap() else { panic!("not lost") };
    assert_eq!(asked, lost);
    assert!(first.commit(&[(lost[0].clone(), NextOffset(0))]).await.is_err());
    let Event::Assigned(got) = soon("the share", second.next()).await.unwrap() else { panic!("nothing assigned") };
    assert_eq!(got, lost);
}
