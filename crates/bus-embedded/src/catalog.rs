//! The topics and where each partition stands, held in memory. Written by the writer after its commits, and by
//! [`Catalog::ensure`] for new topics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use logmesh_bus::{BusError, Cleanup, TopicSpec};
use logmesh_types::TopicName;
use redb::{ReadTransaction, ReadableTable};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::{PARTITIONS, PartitionRow, Store, TOPICS, damaged};

/// Where a partition stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartitionState {
    /// The oldest offset that may be there.
    pub(crate) low: u64,
    /// The next offset.
    pub(crate) high: u64,
    /// Bytes of keys, values and headers.
    pub(crate) bytes: u64,
    /// The latest timestamp of any record there ever was; of no meaning while `high` is 0.
    pub(crate) latest: i64,
    /// The latest entry of the index by time.
    pub(crate) indexed_time: i64,
    /// The offset of that entry.
    pub(crate) indexed_offset: u64,
}

impl PartitionState {
    pub(crate) fn to_row(self) -> PartitionRow {
        (self.low, self.high, self.bytes, self.latest, self.indexed_time, self.indexed_offset)
    }

    fn from_row((low, high, bytes, latest, indexed_time, indexed_offset): PartitionRow) -> Self {
        Self { low, high, bytes, latest, indexed_time, indexed_offset }
    }
}

/// A topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) id: u32,
    pub(crate) name: TopicName,
    cleanup: Mutex<Cleanup>,
    pub(crate) partitions: Vec<watch::Sender<PartitionState>>,
}

impl Topic {
    pub(crate) fn spec(&self) -> TopicSpec {
        TopicSpec { name: self.name.clone(), partitions: self.partitions.len() as u32, cleanup: self.cleanup() }
    }

    pub(crate) fn cleanup(&self) -> Cleanup {
        *self.lock_cleanup()
    }

    fn lock_cleanup(&self) -> MutexGuard<'_, Cleanup> {
        self.cleanup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a partition stands; it must be one of this topic.
    pub(crate) fn state(&self, partition: u32) -> PartitionState {
        *self.partitions[partition as usize].borrow()
    }
}

/// A topic as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: u32,
    partitions: u32,
    compact: bool,
    max_age_millis: Option<u64>,
    max_bytes: Option<u64>,
}

impl Stored {
    fn new(id: u32, spec: &TopicSpec) -> Self {
        let (compact, max_age, max_bytes) = match spec.cleanup {
            Cleanup::Compact => (true, None, None),
            Cleanup::Delete { max_age, max_bytes } => (false, max_age, max_bytes),
        };
        let max_age_millis = max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Self { id, partitions: spec.partitions, compact, max_age_millis, max_bytes }
    }

    fn cleanup(&self) -> Cleanup {
        match self.compact {
            true => Cleanup::Compact,
            false => {
                Cleanup::Delete { max_age: self.max_age_millis.map(Duration::from_millis), max_bytes: self.max_bytes }
            }
        }
    }
}

/// All topics, by name.
#[derive(Debug)]
pub(crate) struct Catalog {
    topics: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
    /// Held while a topic is made or changed.
    making: Mutex<()>,
}

impl Catalog {
    /// Reads the topics and their partitions. Blocks.
    pub(crate) fn load(store: &Store) -> Result<Self, BusError> {
        let topics = store.read(|transaction| {
            let mut topics = BTreeMap::new();
            for entry in transaction.open_table(TOPICS)?.iter()? {
                let (name, stored) = entry?;
                let topic = load_topic(transaction, name.value(), stored.value())?;
                topics.insert(topic.name.clone(), Arc::new(topic));
            }
            Ok(topics)
        })?;
        Ok(Self { topics: RwLock::new(topics), making: Mutex::new(()) })
    }

    /// Reads where every partition stands again, after a write of which nobody knows whether it took effect.
    pub(crate) fn reload(&self, store: &Store) -> Result<(), BusError> {
        store.read(|transaction| {
            for topic in self.all() {
                for (partition, sender) in (0..).zip(&topic.partitions) {
                    sender.send_replace(load_state(transaction, topic.id, partition)?);
                }
            }
            Ok(())
        })
    }

    pub(crate) fn get(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes the topic, or takes over its new retention; true if it was made. Blocks.
    pub(crate) fn ensure(&self, store: &Store, spec: TopicSpec) -> Result<bool, BusError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(topic) = self.get(&spec.name) else {
            self.make(store, spec)?;
            return Ok(true);
        };
        let found = topic.spec();
        if found == spec {
            return Ok(false);
        }
        let same_kind = matches!(found.cleanup, Cleanup::Compact) == matches!(spec.cleanup, Cleanup::Compact);
        if found.partitions != spec.partitions || !same_kind {
            return Err(BusError::TopicDiffers { topic: spec.name.clone(), found: kind(&found), wanted: kind(&spec) });
        }
        save(store, topic.id, &spec)?;
        *topic.lock_cleanup() = spec.cleanup;
        Ok(false)
    }

    fn make(&self, store: &Store, spec: TopicSpec) -> Result<(), BusError> {
        if spec.partitions == 0 {
            let wanted = kind(&spec);
            return Err(BusError::TopicDiffers { topic: spec.name, found: "at least 1 partition".to_owned(), wanted });
        }
        let id = self.all().iter().map(|topic| topic.id + 1).max().unwrap_or(0);
        save(store, id, &spec)?;
        let partitions = (0..spec.partitions).map(|_| watch::Sender::new(PartitionState::default())).collect();
        let topic = Topic { id, name: spec.name.clone(), cleanup: Mutex::new(spec.cleanup), partitions };
        self.topics.write().unwrap_or_else(PoisonError::into_inner).insert(spec.name, Arc::new(topic));
        Ok(())
    }
}

fn kind(spec: &TopicSpec) -> String {
    let cleanup = if matches!(spec.cleanup, Cleanup::Compact) { "compaction" } else { "deletion" };
    format!("{} partitions and {cleanup}", spec.partitions)
}

fn save(store: &Store, id: u32, spec: &TopicSpec) -> Result<(), BusError> {
    let stored = serde_json::to_vec(&Stored::new(id, spec))
        .map_err(|error| BusError::Damaged { reason: format!("topic {} cannot be stored: {error}", spec.name) })?;
    store.write(|transaction| {
        transaction.open_table(TOPICS)?.insert(spec.name.as_str(), stored.as_slice())?;
        Ok(())
    })
}

fn load_topic(transaction: &ReadTransaction, name: &str, stored: &[u8]) -> Result<Topic, redb::Error> {
    let stored: Stored =
        serde_json::from_slice(stored).map_err(|error| damaged(format!("topic {name:?} is not readable: {error}")))?;
    let parsed: TopicName = name.parse().map_err(|error| damaged(format!("a topic's name is wrong: {error}")))?;
    let partitions = (0..stored.partitions)
        .map(|partition| load_state(transaction, stored.id, partition).map(watch::Sender::new))
        .collect::<Result<_, _>>()?;
    Ok(Topic { id: stored.id, name: parsed, cleanup: Mutex::new(stored.cleanup()), partitions })
}

fn load_state(transaction: &ReadTransaction, id: u32, partition: u32) -> Result<PartitionState, redb::Error> {
    let row = transaction.open_table(PARTITIONS)?.get((id, partition))?;
    Ok(row.map_or_else(PartitionState::default, |row| PartitionState::from_row(row.value())))
}
