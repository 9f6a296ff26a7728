//! Appends: one idempotent producer, behind a queue that is bounded in bytes.
//!
//! librdkafka keeps the order of a partition over its own retries, and a record that it sent twice is stored once. When
//! it gives a record up, it takes a new epoch before it sends anything else: should a broker that was frozen come to
//! the old request later, it refuses it once a record of the new epoch is stored. That is how a record that failed never
//! appears behind the one that replaced it. A producer that can't go on (a *fatal* error) is replaced after all that it
//! had under way has an outcome.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use logmesh_bus::{Append, BusError, NewRecord, Offset, Position, TopicPartition};
use logmesh_types::limits::MAX_RECORD_BYTES;
use metrics::{counter, gauge};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{error, warn};

use crate::clients::RECORD_COST;
use crate::context::{at_partition, log, report, stopping};
use crate::settings::Settings;

/// Bytes of records that may still be queued; at 0 appends wait.
const QUEUE_ROOM: &str = "logmesh_bus_queue_room_bytes";
/// Records, and their bytes, that became durable.
const RECORDS_TOTAL: &str = "logmesh_bus_appended_records_total";
const BYTES_TOTAL: &str = "logmesh_bus_appended_bytes_total";
/// Records that failed.
const FAILURES_TOTAL: &str = "logmesh_bus_append_failures_total";

/// How long to wait when librdkafka's own queue is full, which ours is there to prevent.
const FULL_PAUSE: Duration = Duration::from_millis(10);

type Native = ThreadedProducer<Reports>;

/// Writes records. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Producer {
    settings: Arc<Settings>,
    room: Arc<Semaphore>,
    /// `None` while it is replaced.
    current: Arc<Mutex<Option<Arc<Native>>>>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Producer")
    }
}

/// Who waits for a record, and the room that it takes.
struct Delivery {
    bytes: usize,
    reply: oneshot::Sender<Result<Position, KafkaError>>,
    _room: OwnedSemaphorePermit,
}

/// Takes the outcomes of records.
struct Reports;

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        report(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let outcome = match result {
            Ok(message) => Ok(Position {
                partition: message.partition() as u32,
                // Without one it was stored by an attempt whose answer was lost: a later batch's answer, or Kafka's
                // memory of its number, shows that it's there.
                offset: u64::try_from(message.offset()).ok().map(Offset),
            }),
            Err((error, _)) => Err(error.clone()),
        };
        match &outcome {
            Ok(_) => {
                counter!(RECORDS_TOTAL).increment(1);
                counter!(BYTES_TOTAL).increment(delivery.bytes as u64);
            }
            Err(_) => counter!(FAILURES_TOTAL).increment(1),
        }
        drop(delivery.reply.send(outcome)); // who has gone away doesn't want it
    }
}

impl Producer {
    pub(crate) fn new(settings: &Arc<Settings>) -> Result<Self, KafkaError> {
        let native = settings.producing().create_with_context(Reports)?;
        Ok(Self {
            settings: Arc::clone(settings),
            room: Arc::new(Semaphore::new(settings.queue_bytes.0 as usize)),
            current: Arc::new(Mutex::new(Some(Arc::new(native)))),
        })
    }

    /// Queues a record for this partition; waits for room.
    pub(crate) async fn append(&self, at: TopicPartition, record: NewRecord) -> Result<Append, BusError> {
        let bytes = record.size();
        let cost = (bytes + RECORD_COST).min(self.settings.queue_bytes.0 as usize);
        let room = Arc::clone(&self.room).acquire_many_owned(cost as u32).await.map_err(|_| stopping())?;
        gauge!(QUEUE_ROOM).set(self.room.available_permits() as f64);
        let (reply, answer) = oneshot::channel();
        let mut delivery = Box::new(Delivery { bytes, reply, _room: room });
        let until = Instant::now() + self.settings.delivery_timeout.0;
        loop {
            // Nothing is awaited between the room, which is given in the order of the calls, and the queue.
            match self.send(&at, &record, delivery) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) if Instant::now() < until => {
                    delivery = back;
                }
                Err((error, _)) => return Err(to_bus(&error, &at, bytes)),
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
        Ok(Box::pin(async move {
            let outcome = answer.await.map_err(|_| stopping())?;
            outcome.map_err(|error| to_bus(&error, &at, bytes))
        }))
    }

    fn send(
        &self,
        at: &TopicPartition,
        record: &NewRecord,
        delivery: Box<Delivery>,
    ) -> Result<(), (KafkaError, Box<Delivery>)> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(native) = current.as_ref() else {
            return Err((KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), delivery));
        };
        let mut out = BaseRecord::with_opaque_to(at.topic.as_str(), delivery)
            .partition(at.partition as i32)
            .key(record.key.as_ref());
        if !record.value.is_empty() {
            out = out.payload(record.value.as_ref()); // else null: what removes a key when Kafka compacts
        }
        if let Some(time) = record.timestamp {
            out = out.timestamp(time.0.div_euclid(1_000_000));
        }
        if !record.headers.is_empty() {
            out = out.headers(headers(record));
        }
        native.send(out).map_err(|(error, out)| {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
                && let Some(failed) = current.take()
            {
                self.replace(failed);
            }
            (error, out.delivery_opaque)
        })
    }

    /// Makes a new producer when everything that the failed one had under way has an outcome. Appends fail until then.
    fn replace(&self, failed: Arc<Native>) {
        let this = self.clone();
        let work = move || {
            warn!(error = ?failed.client().fatal_error(), "the kafka producer failed and is replaced");
            failed.purge(PurgeConfig::default().queue());
            if let Err(error) = failed.flush(this.settings.delivery_timeout.0) {
                warn!(%error, "the failed kafka producer leaves records without an outcome");
            }
            drop(failed);
            loop {
                match this.settings.producing().create_with_context(Reports) {
                    Ok(native) => {
                        *this.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(native));
                        return;
                    }
                    Err(error) => error!(%error, "cannot make a kafka producer; trying again"),
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        };
        if let Err(error) = std::thread::Builder::new().name("kafka-producer".to_owned()).spawn(work) {
            error!(%error, "cannot replace the kafka producer: no thread");
        }
    }
}

fn headers(record: &NewRecord) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(record.headers.len());
    record
        .headers
        .iter()
        .fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_ref()) }))
}

fn to_bus(error: &KafkaError, at: &TopicPartition, bytes: usize) -> BusError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            BusError::RecordTooLarge { topic: at.topic.clone(), size: bytes, limit: MAX_RECORD_BYTES }
        }
        Some(RDKafkaErrorCode::Fatal) => {
            BusError::Unavailable { reason: "Kafka: the producer failed and is being replaced".to_owned() }
        }
        _ => at_partition(error, at),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use logmesh_types::unit::Span;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    fn record(value: &str) -> NewRecord {
        NewRecord { key: "k".into(), value: value.to_owned().into(), ..NewRecord::default() }
    }

    /// A producer for partition 0 of a topic on a simulated broker, whose errors can be chosen.
    fn simulated<'c>() -> (MockCluster<'c, DefaultProducerContext>, Producer, TopicPartition) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let settings = Settings {
            brokers: cluster.bootstrap_servers().split(',').map(str::to_owned).collect(),
            delivery_timeout: Span(Duration::from_secs(5)),
            client: BTreeMap::new(),
            ..Settings::default()
        };
        let producer = Producer::new(&Arc::new(settings)).unwrap();
        (cluster, producer, TopicPartition { topic: "t".parse().unwrap(), partition: 0 })
    }

    /// Kafka stored a record by an attempt whose answer was lost, and has forgotten where: that is no failure.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_record_that_is_there_already_is_stored() {
        let (cluster, producer, at) = simulated();
        let stored = producer.append(at.clone(), record("0")).await.unwrap().await.unwrap();
        assert_eq!(stored, Position { partition: 0, offset: Some(Offset(0)) });
        cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
        let stored = producer.append(at.clone(), record("1")).await.unwrap().await.unwrap();
        assert_eq!(stored, Position { partition: 0, offset: None });
    }

    /// After an error that librdkafka can't go on from, the same calls work again by themselves.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_producer_is_replaced() {
        let (cluster, producer, at) = simulated();
        producer.append(at.clone(), record("0")).await.unwrap().await.unwrap();

        let failed = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[failed]);
        let error = producer.append(at.clone(), record("1")).await.unwrap().await.unwrap_err();
        assert!(error.retryable(), "{error}");
        let end = Instant::now() + Duration::from_secs(60);
        let mut refused = 0;
        loop {
            let outcome = match producer.append(at.clone(), record("1")).await {
                Ok(append) => append.await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(_) => break,
                Err(error) if Instant::now() < end => {
                    assert!(error.retryable(), "{error}");
                    refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(refused > 0, "the producer never failed");
    }
}
