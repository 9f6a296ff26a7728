//! The bus on local files: one redb database, one writer thread that commits appends in groups.
//!
//! An append is queued (bounded in bytes), the writer takes all that is queued into one transaction, and the futures
//! resolve after its fsync: many small appends cost one fsync together. Offsets are given out in the order of the
//! queue. Reads run on tokio's blocking threads against redb's snapshots and never wait for the writer. Consumer groups
//! live in this process; only their commits are stored. See docs/decisions/0004-embedded-bus.md.

mod catalog;
mod codec;
mod consumer;
mod group;
mod read;
mod retention;
mod store;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logmesh_bus::{
    Append, Bus, BusError, Consumer, NewRecord, NextOffset, Record, TopicPartition, TopicSpec, Watermarks, partition_of,
};
use logmesh_types::{TopicName, UnixNanos, limits, metric};
use metrics::gauge;
use tokio::sync::{Semaphore, oneshot, watch};

use catalog::{Catalog, Topic};
use consumer::GroupConsumer;
use group::Groups;
use store::Store;
use writer::{Op, Writer};

pub use store::OpenError;

/// Figures that an operator may want to move.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of records that wait to be durable; more make [`Bus::append`] wait. Each record counts 256 bytes more.
    pub queue_bytes: usize,
    /// Bytes of memory for redb's cache.
    pub cache_bytes: usize,
    /// The longest file whose checksums are all looked at when it's opened. That reads it: seconds for each GiB.
    pub checked_bytes: u64,
    /// How often records are looked for that retention lets go.
    pub retention_interval: Duration,
    /// How long a consumer may take to release a partition before it loses it.
    pub release_timeout: Duration,
    /// How long a compacted topic shows that a key was removed.
    pub tombstone_age: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            checked_bytes: 64 << 20,
            retention_interval: Duration::from_secs(60),
            release_timeout: Duration::from_secs(30),
            tombstone_age: Duration::from_secs(24 * 3600),
        }
    }
}

/// What a record costs in the queue beyond its bytes, so that empty ones are bounded too.
const RECORD_COST: usize = 256;

/// A [`Bus`] on local files. Dropping the last handle (and the last consumer) waits for the commit under way.
#[derive(Debug)]
pub struct EmbeddedBus {
    shared: Arc<Shared>,
}

/// What the bus and its consumers share.
#[derive(Debug)]
pub(crate) struct Shared {
    settings: Settings,
    store: Arc<Store>,
    catalog: Arc<Catalog>,
    groups: Groups,
    room: Arc<Semaphore>,
    /// Counts commits, to wake consumers.
    commits: watch::Receiver<u64>,
    writer: Writer,
}

impl EmbeddedBus {
    /// Opens the bus in this folder, which is made if it isn't there. Blocks for some milliseconds, also after a crash.
    pub fn open(folder: &Path, settings: Settings) -> Result<Self, OpenError> {
        let store = Arc::new(Store::open(folder, &settings)?);
        let catalog = Arc::new(Catalog::load(&store).map_err(|error| OpenError::unreadable(folder, error))?);
        let (committed, commits) = watch::channel(0);
        let writer = Writer::start(Arc::clone(&store), Arc::clone(&catalog), settings.clone(), committed)
            .map_err(|source| OpenError::Io { path: folder.to_owned(), source })?;
        let room = Arc::new(Semaphore::new(settings.queue_bytes));
        let groups = Groups::new(Arc::clone(&catalog), settings.release_timeout);
        Ok(Self { shared: Arc::new(Shared { settings, store, catalog, groups, room, commits, writer }) })
    }
}

impl Shared {
    /// Runs blocking work on the store away from the async threads.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Shared) -> Result<T, BusError> + Send + 'static,
    ) -> Result<T, BusError> {
        let shared = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .map_err(|_| BusError::Unavailable { reason: "the process is shutting down".to_owned() })?
    }

    fn topic_of(&self, at: &TopicPartition) -> Result<Arc<Topic>, BusError> {
        let unknown = || BusError::UnknownPartition { topic: at.topic.clone(), partition: at.partition };
        let topic = self.catalog.get(&at.topic).ok_or_else(unknown)?;
        if (at.partition as usize) < topic.partitions.len() { Ok(topic) } else { Err(unknown()) }
    }

    async fn committed(self: &Arc<Self>, group: &str, at: &TopicPartition) -> Result<Option<NextOffset>, BusError> {
        let topic = self.topic_of(at)?;
        let (group, partition) = (group.to_owned(), at.partition);
        self.blocking(move |shared| read::committed(&shared.store, &group, topic.id, partition)).await
    }

    async fn read(
        self: &Arc<Self>,
        at: &TopicPartition,
        from: NextOffset,
        max_bytes: usize,
    ) -> Result<Vec<Record>, BusError> {
        let topic = self.topic_of(at)?;
        let partition = at.partition;
        self.blocking(move |shared| read::records(&shared.store, topic.id, partition, from.0, max_bytes)).await
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), BusError> {
        let spec = spec.clone();
        let made = self.shared.blocking(move |shared| shared.catalog.ensure(&shared.store, spec)).await?;
        if made {
            self.shared.groups.rebalance_all();
        }
        Ok(())
    }

    async fn topic(&self, name: &TopicName) -> Result<Option<TopicSpec>, BusError> {
        Ok(self.shared.catalog.get(name).map(|topic| topic.spec()))
    }

    async fn topics(&self) -> Result<Vec<TopicSpec>, BusError> {
        Ok(self.shared.catalog.all().iter().map(|topic| topic.spec()).collect())
    }

    async fn append(&self, topic: &TopicName, record: NewRecord) -> Result<Append, BusError> {
        let topic = self.shared.topic_of(&TopicPartition { topic: topic.clone(), partition: 0 })?;
        let size = record.size();
        if size > limits::MAX_RECORD_BYTES {
            let limit = limits::MAX_RECORD_BYTES;
            return Err(BusError::RecordTooLarge { topic: topic.name.clone(), size, limit });
        }
        let partition = partition_of(&record.key, topic.partitions.len() as u32);
        let cost = (size + RECORD_COST).min(self.shared.settings.queue_bytes);
        let room = Arc::clone(&self.shared.room)
            .acquire_many_owned(u32::try_from(cost).unwrap_or(u32::MAX))
            .await
            .map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        gauge!(metric::BUS_QUEUE_ROOM_BYTES).set(self.shared.room.available_permits() as f64);
        // Nothing is awaited between the room, which is given in the order of the calls, and the queue.
        self.shared.writer.send(Op::Append { topic, partition, record, reply, room })?;
        Ok(Box::pin(async move { answer.await.unwrap_or_else(|_| Err(closed())) }))
    }

    async fn read(&self, at: &TopicPartition, from: NextOffset, max_bytes: usize) -> Result<Vec<Record>, BusError> {
        self.shared.read(at, from, max_bytes).await
    }

    async fn wait(&self, at: &TopicPartition, from: NextOffset, timeout: Duration) -> Result<(), BusError> {
        let topic = self.shared.topic_of(at)?;
        let mut state = topic.partitions[at.partition as usize].subscribe();
        let arrived = state.wait_for(|state| state.high > from.0);
        match tokio::time::timeout(timeout, arrived).await {
            Ok(Err(_)) => Err(closed()),
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    async fn watermarks(&self, at: &TopicPartition) -> Result<Watermarks, BusError> {
        let state = self.shared.topic_of(at)?.state(at.partition);
        Ok(Watermarks { low: NextOffset(state.low), high: NextOffset(state.high) })
    }

    async fn offset_at(&self, at: &TopicPartition, time: UnixNanos) -> Result<NextOffset, BusError> {
        let topic = self.shared.topic_of(at)?;
        let partition = at.partition;
        self.shared.blocking(move |shared| read::offset_at(&shared.store, &topic, partition, time)).await
    }

    async fn committed(&self, group: &str, at: &TopicPartition) -> Result<Option<NextOffset>, BusError> {
        self.shared.committed(group, at).await
    }

    async fn subscribe(&self, group: &str, topics: &[TopicName]) -> Result<Box<dyn Consumer>, BusError> {
        Ok(Box::new(GroupConsumer::join(Arc::clone(&self.shared), group, topics)))
    }
}

pub(crate) fn closed() -> BusError {
    BusError::Unavailable { reason: "the embedded bus is closed".to_owned() }
}

/// The answer to an append, or to a commit.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, BusError>>;
