//! What transfer's workers remember beside the books: a small map in a compacted topic of the mesh's own, `logmesh.jobs`,
//! so that it works on every bus and outlives each worker. Every key has one writer at a time, the holder of a partition,
//! but for a replay's wanted state, where the last word counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::{Bus, BusError, Cleanup, NewRecord, NextOffset, TopicPartition, TopicSpec};
use logmesh_types::TopicName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tracing::warn;

/// How many bytes are read at a time.
const READ_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Jobs {
    bus: Arc<dyn Bus>,
    at: TopicPartition,
    view: Mutex<View>,
}

/// What was read up to now.
#[derive(Debug)]
struct View {
    is_made: bool,
    next: NextOffset,
    entries: BTreeMap<String, Bytes>,
}

impl Jobs {
    pub(crate) fn new(bus: Arc<dyn Bus>) -> Self {
        let view = View { is_made: false, next: NextOffset(0), entries: BTreeMap::new() };
        Self { bus, at: TopicPartition { topic: TopicName::jobs(), partition: 0 }, view: Mutex::new(view) }
    }

    /// The entries whose keys begin so, by key; what anybody wrote before this call is among them.
    pub(crate) async fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<BTreeMap<String, T>, BusError> {
        let mut view = self.view.lock().await;
        self.refresh(&mut view).await?;
        let of_prefix = view.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(of_prefix.filter_map(|(key, value)| Some((key.clone(), read(key, value)?))).collect())
    }

    /// One entry.
    pub(crate) async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, BusError> {
        let mut view = self.view.lock().await;
        self.refresh(&mut view).await?;
        Ok(view.entries.get(key).and_then(|value| read(key, value)))
    }

    /// Writes an entry; it's durable when this returns.
    pub(crate) async fn put<T: Serialize>(&self, key: &str, state: &T) -> Result<(), BusError> {
        let value = serde_json::to_vec(state).unwrap_or_default();
        self.write(key, Bytes::from(value)).await
    }

    /// Removes an entry.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), BusError> {
        self.write(key, Bytes::new()).await
    }

    /// Waits until there is something that this process hasn't read, or for so long.
    pub(crate) async fn wait(&self, timeout: Duration) -> Result<(), BusError> {
        let next = {
            let mut view = self.view.lock().await;
            self.ensure(&mut view).await?;
            view.next
        };
        self.bus.wait(&self.at, next, timeout).await
    }

    async fn write(&self, key: &str, value: Bytes) -> Result<(), BusError> {
        self.ensure(&mut *self.view.lock().await).await?;
        let record = NewRecord { key: Bytes::from(key.to_owned()), value, ..NewRecord::default() };
        self.bus.append(&self.at.topic, record).await?.await?;
        Ok(())
    }

    async fn ensure(&self, view: &mut View) -> Result<(), BusError> {
        if !view.is_made {
            let spec = TopicSpec { name: self.at.topic.clone(), partitions: 1, cleanup: Cleanup::Compact };
            self.bus.ensure_topic(&spec).await?;
            view.is_made = true;
        }
        Ok(())
    }

    async fn refresh(&self, view: &mut View) -> Result<(), BusError> {
        self.ensure(view).await?;
        let marks = self.bus.watermarks(&self.at).await?;
        while view.next < marks.high {
            let records = self.bus.read(&self.at, view.next, READ_BYTES).await?;
            let Some(last) = records.last() else { break };
            view.next = last.offset.next();
            for record in records {
                let Ok(key) = String::from_utf8(record.key.to_vec()) else { continue };
                match record.value.is_empty() {
                    true => view.entries.remove(&key),
                    // A copy: the record shares its buffer with all that were read with it.
                    false => view.entries.insert(key, Bytes::copy_from_slice(&record.value)),
                };
            }
        }
        Ok(())
    }
}

/// An entry, if it can be read.
fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    let read = serde_json::from_slice(value);
    read.inspect_err(|error| warn!(key, %error, "an entry of logmesh.jobs can't be read and is left out")).ok()
}
