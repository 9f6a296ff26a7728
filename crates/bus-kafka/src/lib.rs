//! The bus on Apache Kafka, 3.6 or newer: appends through a producer of our own, everything else through librdkafka.
//!
//! One producer writes everything ([`producer`]), a few consumers of librdkafka's read without a group ([`read`]), each member of a
//! group has a client and a thread of its own ([`group`]), and one client asks about topics ([`topics`]) and offsets
//! ([`ends`]). Calls that block run on tokio's blocking threads or threads of their own. Kafka that is away makes calls
//! fail with [`BusError::Unavailable`] within their time-outs; the same clients find it again by themselves. See
//! docs/decisions/0005-kafka-client.md and 0027-producer.md.

mod clients;
mod context;
mod ends;
mod group;
mod producer;
mod read;
mod settings;
mod topics;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logmesh_bus::{
    Append, Bus, BusError, Consumer, NewRecord, NextOffset, Record, RecordRef, Records, TopicPartition, TopicSpec,
    Watermarks, partition_of,
};
use logmesh_types::{TopicName, UnixNanos, limits};
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;

use context::{Quiet, unknown};
use ends::Ends;
use group::{GroupConsumer, Leaving};
use producer::Producer;
use read::Readers;
use topics::Topics;

pub use settings::{Compression, Mechanism, Sasl, Settings};

/// How long [`KafkaBus::ping`] may take.
const PING: Duration = Duration::from_secs(5);

/// How long dropping the bus waits for its consumers to leave their groups.
const LEAVE: Duration = Duration::from_secs(3);

/// Why there can't be a bus with these settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A setting can't work.
    #[error("{0:#}")]
    Setting(anyhow::Error),
    /// librdkafka refused them.
    #[error("the kafka client refuses its settings: {0}")]
    Client(KafkaError),
}

/// A [`Bus`] on Kafka. Dropping the last handle fails what isn't durable yet, and waits up to three seconds for dropped
/// consumers to leave their groups.
pub struct KafkaBus {
    settings: Arc<Settings>,
    topics: Topics,
    ends: Arc<Ends>,
    producer: Producer,
    readers: Arc<Readers>,
    leaving: Leaving,
}

impl fmt::Debug for KafkaBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaBus").field("brokers", &self.settings.brokers).finish_non_exhaustive()
    }
}

impl KafkaBus {
    /// A bus with these settings. It doesn't wait for Kafka: what is asked of it does.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        settings.check().map_err(SettingsError::Setting)?;
        let settings = Arc::new(settings);
        let asking: BaseConsumer<Quiet> =
            settings.asking().create_with_context(Quiet::default()).map_err(SettingsError::Client)?;
        let asking = Arc::new(asking);
        Ok(Self {
            topics: Topics::new(&settings, Arc::clone(&asking)).map_err(SettingsError::Client)?,
            ends: Arc::new(Ends::new(&settings, asking)),
            producer: Producer::new(&settings),
            readers: Arc::new(Readers::new(&settings)),
            leaving: Leaving::default(),
            settings,
        })
    }

    /// Asks Kafka something small. Fails within five seconds if it doesn't answer.
    pub async fn ping(&self) -> Result<(), BusError> {
        let late = || BusError::Unavailable { reason: "Kafka: no answer within five seconds".to_owned() };
        tokio::time::timeout(PING, self.ends.ping(PING)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Where records of this key lie.
    async fn place(&self, topic: &TopicName, key: &[u8]) -> Result<TopicPartition, BusError> {
        let partitions = self.topics.partitions(topic).await?;
        let partition = partitions.map(|partitions| partition_of(key, partitions));
        let at = TopicPartition { topic: topic.clone(), partition: partition.unwrap_or(0) };
        if partition.is_some() { Ok(at) } else { Err(unknown(&at)) }
    }

    async fn check(&self, at: &TopicPartition) -> Result<(), BusError> {
        match self.topics.partitions(&at.topic).await? {
            Some(partitions) if at.partition < partitions => Ok(()),
            _ => Err(unknown(at)),
        }
    }

    /// Forgets the topic if the answer is that there's no such thing: it was removed.
    fn note(&self, error: &BusError) {
        if let BusError::UnknownPartition { topic, .. } = error {
            self.topics.forget(topic);
        }
    }

    fn noted<T>(&self, result: Result<T, BusError>) -> Result<T, BusError> {
        result.inspect_err(|error| self.note(error))
    }
}

/// Says that a record is larger than records may be, if it is.
fn check_size(topic: &TopicName, record: &RecordRef<'_>) -> Result<(), BusError> {
    let (size, limit) = (record.size(), limits::MAX_RECORD_BYTES);
    if size > limit { Err(BusError::RecordTooLarge { topic: topic.clone(), size, limit }) } else { Ok(()) }
}

#[async_trait]
impl Bus for KafkaBus {
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), BusError> {
        self.topics.ensure(spec).await
    }

    async fn topic(&self, name: &TopicName) -> Result<Option<TopicSpec>, BusError> {
        self.topics.topic(name).await
    }

    async fn topics(&self) -> Result<Vec<TopicSpec>, BusError> {
        self.topics.all().await
    }

    async fn append(&self, topic: &TopicName, record: NewRecord) -> Result<Append, BusError> {
        let record = RecordRef::from(&record);
        check_size(topic, &record)?;
        let at = self.place(topic, record.key).await?;
        Ok(self.producer.append(at, &[record]).await)
    }

    async fn append_all(&self, topic: &TopicName, records: Records) -> Result<Append, BusError> {
        let records: Vec<RecordRef<'_>> = records.iter().collect();
        let fitting = records.iter().take_while(|record| check_size(topic, record).is_ok()).count();
        let mut too_large = records.get(fitting).and_then(|record| check_size(topic, record).err());
        if fitting == 0
            && let Some(error) = too_large.take()
        {
            return Err(error);
        }
        let at = self.place(topic, records.first().map_or(&[], |record| record.key)).await?;
        let append = self.producer.append(at, &records[..fitting]).await;
        Ok(match too_large {
            None => append,
            // What comes of those before it is waited for, and isn't what went wrong.
            Some(error) => Box::pin(async {
                drop(append.await);
                Err(error)
            }),
        })
    }

    async fn read(&self, at: &TopicPartition, from: NextOffset, max_bytes: usize) -> Result<Vec<Record>, BusError> {
        self.check(at).await?;
        self.noted(self.readers.read(at, from, max_bytes).await)
    }

    async fn wait(&self, at: &TopicPartition, from: NextOffset, timeout: Duration) -> Result<(), BusError> {
        self.check(at).await?;
        self.ends.wait(at, from, timeout).await
    }

    async fn watermarks(&self, at: &TopicPartition) -> Result<Watermarks, BusError> {
        self.check(at).await?;
        self.noted(self.ends.watermarks(at).await)
    }

    async fn offset_at(&self, at: &TopicPartition, time: UnixNanos) -> Result<NextOffset, BusError> {
        self.check(at).await?;
        self.noted(self.ends.offset_at(at, time).await)
    }

    async fn committed(&self, group: &str, at: &TopicPartition) -> Result<Option<NextOffset>, BusError> {
        self.check(at).await?;
        self.ends.committed(group, at).await
    }

    async fn subscribe(&self, group: &str, topics: &[TopicName]) -> Result<Box<dyn Consumer>, BusError> {
        Ok(Box::new(GroupConsumer::join(&self.settings, group, topics, self.leaving.clone())?))
    }
}

impl Drop for KafkaBus {
    fn drop(&mut self) {
        self.leaving.wait(LEAVE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_property_that_there_is_not_is_named() {
        let client = BTreeMap::from([("no.such.property".to_owned(), "x".to_owned())]);
        let error = KafkaBus::new(Settings { client, ..Settings::default() }).unwrap_err();
        assert!(error.to_string().contains("no.such.property"), "{error}");
    }
}
