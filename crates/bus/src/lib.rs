//! The bus: topics of partitions of records, durable once acknowledged, read by consumer groups.
//!
//! Two things implement [`Bus`]: `logmesh-bus-embedded` on local files, and Kafka. Services name neither; they are
//! handed an `Arc<dyn Bus>`. What an implementation owes is written on the trait and tested by [`conformance`].

#[cfg(feature = "test-util")]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub mod conformance;
mod partition;
mod records;

use std::borrow::Cow;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use logmesh_types::{TopicName, UnixNanos};

pub use partition::partition_of;
pub use records::{RecordRef, Records};

/// What a topic is, fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: TopicName,
    /// How many partitions it has, at least 1. Fixed for the topic's life, since order is by key.
    pub partitions: u32,
    /// Which records it keeps.
    pub cleanup: Cleanup,
}

/// Which records a topic keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Records younger than `max_age`, and of each partition at most `max_bytes` of keys, values and headers; the
    /// oldest go first. `None`: for ever. They may go, they need not: the embedded bus keeps what a group that has
    /// commits on the partition has yet to commit, and, where the topic `T` has a topic `T.books`, everything until the
    /// first commit. A group that is given up thus holds records until the disk is full, and then appends fail.
    Delete {
        /// Age after which a record may go.
        max_age: Option<Duration>,
        /// Bytes of a partition beyond which the oldest records may go.
        max_bytes: Option<u64>,
    },
    /// At least the latest record of each key; an empty value removes its key. Earlier ones may go at any time; the
    /// record with the empty value stays for a day at least, so that readers see the removal.
    Compact,
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition, from 0.
    pub partition: u32,
}

/// Where a record lies in its partition, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

/// The offset of the next record to read, which is what a group commits: one more than the last one done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(pub u64);

impl Offset {
    /// The position after this record.
    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

/// Where a record was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The partition that the key chose.
    pub partition: u32,
    /// The record's offset there.
    pub offset: Offset,
}

/// Names and values. The names of those that are written by the million are constants.
pub type Headers = Vec<(Cow<'static, str>, Bytes)>;

/// A record on its way to the bus. Key, value and headers together are at most
/// [`MAX_RECORD_BYTES`](logmesh_types::limits::MAX_RECORD_BYTES).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NewRecord {
    /// Records of one key keep their order. It chooses the partition.
    pub key: Bytes,
    /// The content. In a compacted topic an empty value removes the key.
    pub value: Bytes,
    /// Names and values that a reader needs without opening the value.
    pub headers: Headers,
    /// The time that seeks and retention go by; `None`: when it is stored.
    pub timestamp: Option<UnixNanos>,
}

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it lies in its partition.
    pub offset: Offset,
    /// See [`NewRecord::timestamp`]; milliseconds at least are kept.
    pub timestamp: UnixNanos,
    /// See [`NewRecord::key`].
    pub key: Bytes,
    /// See [`NewRecord::value`].
    pub value: Bytes,
    /// See [`NewRecord::headers`].
    pub headers: Headers,
}

impl Record {
    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        record_size(&self.key, &self.value, &self.headers)
    }
}

impl NewRecord {
    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        record_size(&self.key, &self.value, &self.headers)
    }
}

fn record_size(key: &Bytes, value: &Bytes, headers: &Headers) -> usize {
    key.len() + value.len() + headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
}

/// The offsets that a partition holds: `low <= offset < high`. `high` is where the next record will lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The oldest offset that may still be read.
    pub low: NextOffset,
    /// The offset after the newest durable record.
    pub high: NextOffset,
}

/// What can go wrong with the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no such topic, or it has no such partition.
    #[error("the bus has no topic {topic} with a partition {partition}")]
    UnknownPartition {
        /// The topic asked for.
        topic: TopicName,
        /// The partition asked for.
        partition: u32,
    },
    /// The topic is there already, and is not what was asked for.
    #[error("topic {topic} exists with {found}, which cannot be changed to {wanted}")]
    TopicDiffers {
        /// The topic.
        topic: TopicName,
        /// What it is.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The record can never be stored: it is too large.
    #[error("a record of {size} bytes for topic {topic} is larger than {limit} bytes")]
    RecordTooLarge {
        /// The topic.
        topic: TopicName,
        /// Its size in bytes.
        size: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// The bus does not let us use the topic, however often it is asked: its rights, or a policy of its owner, forbid it.
    #[error("the bus refuses topic {topic}: {reason}")]
    Refused {
        /// The topic.
        topic: TopicName,
        /// What it said.
        reason: String,
    },
    /// A commit for a partition that this consumer does not hold, any more or yet.
    #[error("partition {partition} of topic {topic} is not assigned to this consumer")]
    NotOwner {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: u32,
    },
    /// The bus cannot do it now; the same call may succeed later.
    #[error("the bus is not available: {reason}")]
    Unavailable {
        /// What it said.
        reason: String,
    },
    /// The bus's own data is damaged, or of another version.
    #[error("the bus's data cannot be used: {reason}")]
    Damaged {
        /// What is wrong and what to do.
        reason: String,
    },
}

impl BusError {
    /// True if the same call may succeed later without anybody's help.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Resolves once the record is durable, with its place. Dropping it does not take the record back.
pub type Append = BoxFuture<'static, Result<Position, BusError>>;

/// Topics of partitions of records.
///
/// Contract, beyond what each method says:
/// - An append whose future resolved with a [`Position`] survives `kill -9` of any process and, as far as the disks are
///   honest, of the machine. Every group reads it at least once, until retention removes it.
/// - Records of one key go to the partition that [`partition_of`] names and keep the order in which [`Bus::append`] was
///   called.
/// - Offsets of a partition only grow. In a compacted topic some are missing.
/// - An append that failed may still appear (a lost acknowledgement). It never appears between later ones of its key
///   that succeeded after it was tried again.
#[async_trait]
pub trait Bus: Debug + Send + Sync + 'static {
    /// Makes the topic, or does nothing if it is there with as many partitions and the same kind of [`Cleanup`]
    /// (new retention figures are taken over).
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), BusError>;

    /// What the topic is; `None` if there is none.
    async fn topic(&self, name: &TopicName) -> Result<Option<TopicSpec>, BusError>;

    /// All topics, by name.
    async fn topics(&self) -> Result<Vec<TopicSpec>, BusError>;

    /// Takes a record. Waits while the bus's queue is full (that is the back-pressure); the returned [`Append`]
    /// resolves when the record is durable.
    async fn append(&self, topic: &TopicName, record: NewRecord) -> Result<Append, BusError>;

    /// Takes records of one key in their order, as [`Bus::append`] called for one after the other would, up to the first that it
    /// can't take; waits while the queue is full. The returned [`Append`] resolves when each that was taken has an outcome: to the
    /// last one's place if all are durable, else to the first error. An error here: none of them was taken. Of no records the
    /// outcome is [`BusError::Unavailable`].
    async fn append_all(&self, topic: &TopicName, records: Records) -> Result<Append, BusError> {
        let mut appends = Vec::new();
        for record in records.split() {
            match self.append(topic, record).await {
                Ok(append) => appends.push(append),
                Err(error) if appends.is_empty() => return Err(error),
                Err(error) => {
                    appends.push(async { Err(error) }.boxed());
                    break;
                }
            }
        }
        Ok(join_all(appends).map(last_position).boxed())
    }

    /// Reads records of a partition from `from` on, without a group: at most `max_bytes` of them, but at least one if
    /// there is any. Empty at the end; it doesn't wait. An offset below the low watermark reads from there.
    async fn read(&self, at: &TopicPartition, from: NextOffset, max_bytes: usize) -> Result<Vec<Record>, BusError>;

    /// Resolves when the partition holds a record at or after `from`, or after `timeout`.
    async fn wait(&self, at: &TopicPartition, from: NextOffset, timeout: Duration) -> Result<(), BusError>;

    /// The offsets that the partition holds.
    async fn watermarks(&self, at: &TopicPartition) -> Result<Watermarks, BusError>;

    /// The first offset whose record's timestamp is `time` or later; the high watermark if there is none.
    async fn offset_at(&self, at: &TopicPartition, time: UnixNanos) -> Result<NextOffset, BusError>;

    /// What the group committed last for the partition; `None` if nothing yet.
    async fn committed(&self, group: &str, at: &TopicPartition) -> Result<Option<NextOffset>, BusError>;

    /// Joins the group as a consumer of these topics. Each partition is held by one consumer of the group at a time; a
    /// partition without a commit is read from its beginning. A topic that isn't there yet is taken up when it is made.
    async fn subscribe(&self, group: &str, topics: &[TopicName]) -> Result<Box<dyn Consumer>, BusError>;
}

/// The outcome of several appends: see [`Bus::append_all`].
pub fn last_position(outcomes: Vec<Result<Position, BusError>>) -> Result<Position, BusError> {
    let nothing = Err(BusError::Unavailable { reason: "there was nothing to append".to_owned() });
    outcomes.into_iter().try_fold(None, |_, outcome| outcome.map(Some)).transpose().unwrap_or(nothing)
}

/// What a consumer is told, in one order: a change of its partitions can't race with their records.
#[derive(Debug)]
pub enum Event {
    /// These partitions are this consumer's from now on; their records follow, from the committed offset.
    Assigned(Vec<TopicPartition>),
    /// These partitions are wanted by another. Finish what is under way, commit, and call [`Consumer::release`];
    /// none of their records come after this.
    Revoking(Vec<TopicPartition>),
    /// These partitions are another's already: drop what is under way, commit nothing.
    Lost(Vec<TopicPartition>),
    /// Consecutive records of one partition, at least one.
    Records {
        /// The partition.
        at: TopicPartition,
        /// The records, by offset.
        records: Vec<Record>,
    },
}

/// A member of a consumer group. Dropping it leaves the group: its partitions go to the others.
#[async_trait]
pub trait Consumer: Debug + Send + 'static {
    /// The next event; waits for one. Safe to drop while it waits. Each record is handed out once, from the committed
    /// offset on, until the partition is revoked or [`Consumer::seek`] goes back.
    async fn next(&mut self) -> Result<Event, BusError>;

    /// Commits the next offset to read of each partition; durable when it returns. [`BusError::NotOwner`] if any of
    /// them isn't held, and then none is committed. A commit never goes back: an offset behind the one committed before
    /// changes nothing.
    async fn commit(&mut self, offsets: &[(TopicPartition, NextOffset)]) -> Result<(), BusError>;

    /// Reads the partition from `from` on next.
    async fn seek(&mut self, at: &TopicPartition, from: NextOffset) -> Result<(), BusError>;

    /// Gives partitions up that [`Event::Revoking`] asked for.
    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BusError>;
}
