//! Appends: one idempotent producer, behind a queue that is bounded in bytes.
//!
//! librdkafka keeps the order of a partition over its own retries, and a record that it sent twice is stored once. When
//! it gives a record up, it takes a new epoch before it sends anything else: should a broker that was frozen come to
//! the old request later, it refuses it once a record of the new epoch is stored. That is how a record that failed never
//! appears behind the one that replaced it.
//!
//! Of a batch whose answer was lost or was an error librdkafka says that it's stored, without an offset, as soon as a later one
//! is: the broker would have refused that for its sequence number otherwise (`rd_kafka_dr_implicit_ack`). Not so the first
//! batches of a producer on a partition: there the broker takes any number, and those before it are lost (seen where a topic had
//! just been made). So a record without an offset counts as failed. It is appended again, and may be on the bus twice,
//! which ids and books are for.
//!
//! A producer that can't go on (a *fatal* error) is replaced after all that it
//! had under way has an outcome.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use logmesh_bus::{Append, BusError, NewRecord, Offset, Position, TopicPartition};
use logmesh_types::limits::MAX_RECORD_BYTES;
use logmesh_types::metric;
use metrics::{counter, gauge};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{error, warn};

use crate::clients::RECORD_COST;
use crate::context::{at_partition, log, report, stopping};
use crate::settings::Settings;

/// The most bytes of records that share an outcome, one record more at most: what they take of the queue is given back at once.
const GROUP_BYTES: usize = 1 << 20;

/// How long to wait when librdkafka's own queue is full, which ours is there to prevent.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// How long the thread that takes reports waits for one, and so how long it may outlive its producer.
const POLL: Duration = Duration::from_secs(1);

/// A client of librdkafka's, with a thread that takes its reports. rdkafka's own `ThreadedProducer` turns idly for a millisecond
/// of each tenth of a second, a hundredth of a core in every process.
struct Native {
    client: Arc<BaseProducer<Reports>>,
    over: Arc<AtomicBool>,
}

impl Native {
    fn new(settings: &Settings) -> Result<Self, KafkaError> {
        let client: Arc<BaseProducer<Reports>> = Arc::new(settings.producing().create_with_context(Reports)?);
        let over = Arc::new(AtomicBool::new(false));
        let (polled, end) = (Arc::clone(&client), Arc::clone(&over));
        let work = move || {
            while !end.load(Ordering::Relaxed) {
                polled.poll(POLL);
            }
        };
        let thread = std::thread::Builder::new().name("kafka-reports".to_owned()).spawn(work);
        thread.map_err(|error| KafkaError::ClientCreation(format!("no thread for a producer: {error}")))?;
        Ok(Self { client, over })
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // What isn't durable fails at once, though the thread ends later.
        self.client.purge(PurgeConfig::default().queue().inflight());
    }
}

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

/// Records that share an outcome, the room that they take, and who waits for them. Each record under way holds a share, and gives
/// it back with its own outcome: the last one ends the group.
struct Group {
    outcome: Mutex<Outcome>,
    reply: Option<oneshot::Sender<Outcome>>,
    room: Option<OwnedSemaphorePermit>,
}

/// What became of a group's records.
#[derive(Default)]
struct Outcome {
    /// Where the last one lies.
    last: Option<Position>,
    /// The first one's that failed.
    error: Option<KafkaError>,
    /// Some are said to be stored, and not where.
    unplaced: bool,
    stored: u64,
    bytes: u64,
    failed: u64,
}

impl Group {
    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let outcome = std::mem::take(self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner));
        counter!(metric::BUS_APPENDED_RECORDS).increment(outcome.stored);
        counter!(metric::BUS_APPENDED_BYTES).increment(outcome.bytes);
        if outcome.failed > 0 {
            counter!(metric::BUS_APPEND_FAILURES).increment(outcome.failed);
        }
        drop(self.room.take()); // before anybody hears of the outcome
        if let Some(reply) = self.reply.take() {
            drop(reply.send(outcome)); // who has gone away doesn't want it
        }
    }
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
    type DeliveryOpaque = Arc<Group>;

    fn delivery(&self, result: &DeliveryResult<'_>, group: Arc<Group>) {
        let mut outcome = group.outcome();
        match result {
            Ok(message) => match u64::try_from(message.offset()) {
                Ok(offset) => {
                    outcome.stored += 1;
                    outcome.bytes += (message.key_len() + message.payload_len()) as u64;
                    outcome.last = Some(Position { partition: message.partition() as u32, offset: Offset(offset) });
                }
                Err(_) => {
                    outcome.failed += 1;
                    outcome.unplaced = true;
                }
            },
            Err((error, _)) => {
                outcome.failed += 1;
                outcome.error.get_or_insert_with(|| error.clone());
            }
        }
    }
}

impl Producer {
    pub(crate) fn new(settings: &Arc<Settings>) -> Result<Self, KafkaError> {
        let native = Native::new(settings)?;
        Ok(Self {
            settings: Arc::clone(settings),
            room: Arc::new(Semaphore::new(settings.queue_bytes.0 as usize)),
            current: Arc::new(Mutex::new(Some(Arc::new(native)))),
        })
    }

    /// Queues records for this partition, in their order, up to the first that can't be, whose error comes beside the [`Append`]
    /// of those before it; waits for room.
    pub(crate) async fn append(&self, at: TopicPartition, records: &[NewRecord]) -> (Append, Option<BusError>) {
        let (mut answers, mut failed, mut left) = (Vec::new(), None, records);
        while !left.is_empty() && failed.is_none() {
            let (group, rest) = left.split_at(group_len(left));
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            failed = self.append_group(&at, group, reply).await.err();
            left = rest;
        }
        let largest = records.iter().map(NewRecord::size).max().unwrap_or(0);
        let append = async move {
            let mut result = Err(stopping());
            let mut error = None;
            for answer in answers {
                // All are waited for though one fails.
                let outcome = answer.await.map_err(|_| stopping())?;
                if let Some(failed) = outcome.error {
                    error.get_or_insert_with(|| to_bus(&failed, &at, largest));
                }
                if outcome.unplaced {
                    error.get_or_insert_with(unplaced);
                }
                if let Some(last) = outcome.last {
                    result = Ok(last);
                }
            }
            error.map_or(result, Err)
        };
        (Box::pin(append), failed)
    }

    /// Queues records that share an outcome, which the reply gets whether all could be queued or not.
    async fn append_group(
        &self,
        at: &TopicPartition,
        records: &[NewRecord],
        reply: oneshot::Sender<Outcome>,
    ) -> Result<(), BusError> {
        let cost = cost(records).min(self.settings.queue_bytes.0 as usize);
        let room = Arc::clone(&self.room).acquire_many_owned(cost as u32).await.map_err(|_| stopping())?;
        gauge!(metric::BUS_QUEUE_ROOM_BYTES).set(self.room.available_permits() as f64);
        let group = Arc::new(Group { outcome: Mutex::default(), reply: Some(reply), room: Some(room) });
        let until = Instant::now() + self.settings.delivery_timeout.0;
        for record in records {
            // Nothing is awaited between the room, which is given in the order of the calls, and the queue.
            while let Err(error) = self.send(at, record, Arc::clone(&group)) {
                let is_full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                if !is_full || Instant::now() >= until {
                    return Err(to_bus(&error, at, record.size()));
                }
                tokio::time::sleep(FULL_PAUSE).await;
            }
        }
        Ok(())
    }

    fn send(&self, at: &TopicPartition, record: &NewRecord, group: Arc<Group>) -> Result<(), KafkaError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(native) = current.as_ref() else {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::Fatal));
        };
        let mut out = BaseRecord::with_opaque_to(at.topic.as_str(), group)
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
        native.client.send(out).map_err(|(error, _)| {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
                && let Some(failed) = current.take()
            {
                self.replace(failed);
            }
            error
        })
    }

    /// Makes a new producer when everything that the failed one had under way has an outcome. Appends fail until then.
    fn replace(&self, failed: Arc<Native>) {
        let this = self.clone();
        let work = move || {
            warn!(error = ?failed.client.client().fatal_error(), "the kafka producer failed and is replaced");
            failed.client.purge(PurgeConfig::default().queue());
            if let Err(error) = failed.client.flush(this.settings.delivery_timeout.0) {
                warn!(%error, "the failed kafka producer leaves records without an outcome");
            }
            drop(failed);
            loop {
                match Native::new(&this.settings) {
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

/// What records take of the queue.
fn cost(records: &[NewRecord]) -> usize {
    records.iter().map(|record| record.size() + RECORD_COST).sum()
}

/// How many of the records, which are some, make the next group: one at least, else no more than have room in it.
fn group_len(records: &[NewRecord]) -> usize {
    let mut bytes = 0;
    let full = records.iter().position(|record| {
        bytes += record.size() + RECORD_COST;
        bytes > GROUP_BYTES
    });
    full.map_or(records.len(), |at| at.max(1))
}

fn headers(record: &NewRecord) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(record.headers.len());
    record
        .headers
        .iter()
        .fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_ref()) }))
}

fn unplaced() -> BusError {
    BusError::Unavailable { reason: "Kafka: records are said to be stored, but not where; they may not be".to_owned() }
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
        cluster.create_topic("t", 2, 1).unwrap();
        let settings = Settings {
            brokers: cluster.bootstrap_servers().split(',').map(str::to_owned).collect(),
            delivery_timeout: Span(Duration::from_secs(5)),
            client: BTreeMap::new(),
            ..Settings::default()
        };
        let producer = Producer::new(&Arc::new(settings)).unwrap();
        (cluster, producer, TopicPartition { topic: "t".parse().unwrap(), partition: 0 })
    }

    async fn append(producer: &Producer, at: &TopicPartition, value: &str) -> Result<Position, BusError> {
        match producer.append(at.clone(), &[record(value)]).await {
            (append, None) => append.await,
            (_, Some(error)) => Err(error),
        }
    }

    /// Many records fall into groups, and their one outcome is that of all of them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn records_that_are_appended_together_have_one_outcome() {
        let (cluster, producer, at) = simulated();
        let room = producer.room.available_permits();
        let records = vec![record(&"x".repeat(300_000)); 10];
        assert_eq!((group_len(&records), group_len(&records[..2])), (3, 2));
        assert_eq!(group_len(&[record(&"x".repeat(2 << 20)), record("y")]), 1);
        let (stored, failed) = producer.append(at.clone(), &records).await;
        assert!(failed.is_none());
        assert_eq!(stored.await.unwrap(), Position { partition: 0, offset: Offset(9) });
        assert_eq!(producer.room.available_permits(), room, "the room is given back");

        // One that can never be stored, among others: they are stored, and it's the outcome of all.
        let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED];
        cluster.request_errors(RDKafkaApiKey::Produce, &refused);
        let (outcome, failed) = producer.append(at.clone(), &records).await;
        assert!(failed.is_none());
        let error = outcome.await.unwrap_err();
        assert!(matches!(error, BusError::Refused { .. }), "{error}");
        assert_eq!(producer.room.available_permits(), room);
        let nothing = producer.append(at.clone(), &[]).await.0.await;
        assert!(nothing.unwrap_err().retryable());
    }

    /// Kafka says that it has the record, and not where: it is appended again rather than believed.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_record_without_a_place_is_not_stored() {
        let (cluster, producer, at) = simulated();
        append(&producer, &at, "0").await.unwrap();
        cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
        let error = append(&producer, &at, "1").await.unwrap_err();
        assert!(error.retryable() && error.to_string().contains("not where"), "{error}");
        append(&producer, &at, "1").await.unwrap();
    }

    /// The first batch of all is refused for now, as by a partition whose leader isn't ready, and the second taken, whatever its
    /// number: librdkafka then calls the first one stored.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_first_batch_that_the_second_overtakes_is_not_stored() {
        let (cluster, producer, at) = simulated();
        append(&producer, &TopicPartition { partition: 1, ..at.clone() }, "another partition's").await.unwrap();
        cluster.broker_round_trip_time(1, Duration::from_millis(300)).unwrap();
        let not_yet = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        cluster.request_errors(RDKafkaApiKey::Produce, &[not_yet]);
        let records = ["0", "1"].map(record);
        let (first, failed) = producer.append(at.clone(), &records[..1]).await;
        assert!(failed.is_none());
        // Past what librdkafka waits for more to fill a batch.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (second, failed) = producer.append(at.clone(), &records[1..]).await;
        assert!(failed.is_none());
        let (first, second) = tokio::join!(first, second);
        let places = [first, second].map(|outcome| outcome.map(|position| position.offset));
        match &places {
            [Err(error), Ok(Offset(0))] => assert!(error.retryable() && error.to_string().contains("not where")),
            other => panic!("the first batch wasn't overtaken: {other:?}"),
        }
    }

    /// After an error that librdkafka can't go on from, the same calls work again by themselves.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failed_producer_is_replaced() {
        let (cluster, producer, at) = simulated();
        append(&producer, &at, "0").await.unwrap();

        let failed = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[failed]);
        let error = append(&producer, &at, "1").await.unwrap_err();
        assert!(error.retryable(), "{error}");
        let end = Instant::now() + Duration::from_secs(60);
        let mut refused = 0;
        loop {
            match append(&producer, &at, "1").await {
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
