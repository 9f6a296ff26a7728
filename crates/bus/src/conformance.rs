//! What every [`Bus`] owes, as tests. An implementation writes a [`Fixture`] and calls
//! [`conformance_tests!`](crate::conformance_tests) in an integration test.
//!
//! A fixture may share one backend among all tests: topics and groups get their names from it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::select_all;
use logmesh_types::TopicName;

use crate::{
    Bus, BusError, Cleanup, Consumer, Event, NewRecord, NextOffset, Position, Record, TopicPartition, TopicSpec,
};

mod groups;
mod topics;

pub use groups::*;
pub use topics::*;

/// How long any one condition may take to come true; a slow backend needs most of it to rebalance.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes buses for the tests, all on the same data.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A bus on this fixture's data.
    async fn open(&self) -> Arc<dyn Bus>;

    /// Closes the bus, whose last handle this is, and opens its data again, as a restart would.
    async fn reopen(&self, bus: Arc<dyn Bus>) -> Arc<dyn Bus>;

    /// A name of a topic or group that no other test uses.
    fn unique(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// Makes a test of each function of the suite. The argument is an expression that makes the [`Fixture`].
#[macro_export]
macro_rules! conformance_tests {
    ($fixture:expr) => {
        $crate::conformance_tests!(@each $fixture;
            keeps_the_order_of_a_key, appends_many_as_one, chooses_the_partition_by_key, keeps_records_whole,
            reads_by_size, waits_for_a_record, seeks_by_time, refuses_what_is_too_large, makes_a_topic_once, knows_only_its_topics,
            compacts_by_key, keeps_everything_over_a_restart, goes_on_from_the_commit, commits_only_forwards,
            refuses_commits_of_others, groups_do_not_disturb_each_other, seeks_back_within_a_group,
            takes_up_a_topic_made_later, shares_partitions_and_rebalances, moves_partitions_of_a_dropped_consumer
        );
    };
    (@each $fixture:expr; $($name:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::conformance::$name(&$fixture).await;
            }
        )*
    };
}

/// Fails the test if the future takes longer than [`PATIENCE`].
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

const KEEP: Cleanup = Cleanup::Delete { max_age: None, max_bytes: None };

async fn make_topic(fixture: &dyn Fixture, bus: &dyn Bus, partitions: u32, cleanup: Cleanup) -> TopicName {
    let name: TopicName = fixture.unique("t").parse().unwrap();
    bus.ensure_topic(&TopicSpec { name: name.clone(), partitions, cleanup }).await.unwrap();
    name
}

fn record(key: &str, value: &str) -> NewRecord {
    NewRecord { key: Bytes::from(key.to_owned()), value: Bytes::from(value.to_owned()), ..NewRecord::default() }
}

fn at(topic: &TopicName, partition: u32) -> TopicPartition {
    TopicPartition { topic: topic.clone(), partition }
}

/// Appends without waiting in between, then waits for all.
async fn append_all(bus: &dyn Bus, topic: &TopicName, records: impl IntoIterator<Item = NewRecord>) -> Vec<Position> {
    let mut pending = Vec::new();
    for record in records {
        pending.push(bus.append(topic, record).await.unwrap());
    }
    let mut positions = Vec::new();
    for append in pending {
        positions.push(soon("an append", append).await.unwrap());
    }
    positions
}

/// Everything that a partition holds from an offset on.
async fn read_all(bus: &dyn Bus, at: &TopicPartition, from: NextOffset) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut next = from;
    loop {
        let more = bus.read(at, next, 1 << 20).await.unwrap();
        let Some(last) = more.last() else { return records };
        next = last.offset.next();
        records.extend(more);
    }
}

fn values(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| std::str::from_utf8(&record.value).unwrap()).collect()
}

/// A consumer that behaves: it commits what it has read and releases when asked.
struct Member {
    consumer: Box<dyn Consumer>,
    held: Vec<TopicPartition>,
    read: Vec<(TopicPartition, Record)>,
}

impl Member {
    async fn join(bus: &dyn Bus, group: &str, topics: &[TopicName]) -> Self {
        Self { consumer: bus.subscribe(group, topics).await.unwrap(), held: Vec::new(), read: Vec::new() }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Assigned(partitions) => {
                assert!(partitions.iter().all(|partition| !self.held.contains(partition)), "assigned twice");
                self.held.extend(partitions);
            }
            Event::Revoking(partitions) => {
                let next: Vec<_> = partitions.iter().filter_map(|at| self.next_of(at)).collect();
                self.consumer.commit(&next).await.unwrap();
                self.consumer.release(&partitions).await.unwrap();
                self.held.retain(|held| !partitions.contains(held));
            }
            Event::Lost(partitions) => self.held.retain(|held| !partitions.contains(held)),
            Event::Records { at, records } => {
                assert!(self.held.contains(&at), "records of {at:?}, which isn't held");
                assert!(!records.is_empty());
                self.read.extend(records.into_iter().map(|record| (at.clone(), record)));
            }
        }
    }

    /// What to commit for a partition: after the last record read of it.
    fn next_of(&self, at: &TopicPartition) -> Option<(TopicPartition, NextOffset)> {
        let last = self.read.iter().rev().find(|(of, _)| of == at)?;
        Some((at.clone(), last.1.offset.next()))
    }

    async fn commit_all(&mut self) {
        let next: Vec<_> = self.held.iter().filter_map(|at| self.next_of(at)).collect();
        self.consumer.commit(&next).await.unwrap();
    }

    fn values(&self) -> Vec<&str> {
        self.read.iter().map(|(_, record)| std::str::from_utf8(&record.value).unwrap()).collect()
    }
}

/// Lets all members work until the condition holds.
async fn drive(what: &str, members: &mut [Member], done: impl Fn(&[Member]) -> bool) {
    soon(what, async {
        while !done(members) {
            let (index, event) = {
                let next = members
                    .iter_mut()
                    .enumerate()
                    .map(|(index, member)| Box::pin(async move { (index, member.consumer.next().await) }));
                select_all(next).await.0
            };
            members[index].handle(event.unwrap()).await;
        }
    })
    .await;
}
