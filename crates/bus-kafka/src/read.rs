//! Reading without a group: a few consumers, each of which follows one partition for one read.
//!
//! A consumer that stayed at its partition would ask for more all the time; and a request that waits for records holds up
//! the next partition's. So each read costs some 20 ms, whatever it reads: callers read a MiB or more at a time.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use logmesh_bus::{BusError, NextOffset, Offset, Record, TopicPartition};
use logmesh_types::{UnixNanos, header};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::Offset as KafkaOffset;
use tokio::sync::Semaphore;

use crate::context::{Quiet, at_partition, is_unknown, patiently, stopping, unavailable};
use crate::ends::list;
use crate::settings::Settings;
use crate::topics::drain;

/// The most reads at a time; each holds a client with its threads and some MiB of memory.
const MAX_READERS: usize = 4;

/// Bytes of a buffer that the records that are read share: what keeps one of them keeps so much. What takes half of one has its own.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);

/// The readers, made when needed.
pub(crate) struct Readers {
    settings: Arc<Settings>,
    places: Arc<Semaphore>,
    /// Those that nobody uses.
    idle: Mutex<Vec<Reader>>,
}

/// A consumer that follows nothing between reads.
struct Reader {
    consumer: BaseConsumer<Quiet>,
    timeout: Duration,
}

impl Readers {
    pub(crate) fn new(settings: &Arc<Settings>) -> Self {
        Self { settings: Arc::clone(settings), places: Arc::new(Semaphore::new(MAX_READERS)), idle: Mutex::default() }
    }

    /// See [`logmesh_bus::Bus::read`]. Waits for its turn; then it takes no longer than two requests.
    pub(crate) async fn read(
        self: &Arc<Self>,
        at: &TopicPartition,
        from: NextOffset,
        max_bytes: usize,
    ) -> Result<Vec<Record>, BusError> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| stopping())?;
        let (this, at) = (Arc::clone(self), at.clone());
        // The closure ends by itself and gives the reader back, though nobody may wait for it any more.
        let work = move || {
            let _place = place;
            let reader = this.take().map_err(|error| unavailable(&error))?;
            let result = reader.read(&at, from.0, max_bytes);
            this.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| stopping())?
    }

    fn take(&self) -> Result<Reader, KafkaError> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.pop() {
            Some(reader) => Ok(reader),
            None => Reader::new(&self.settings),
        }
    }
}

impl Reader {
    fn new(settings: &Settings) -> Result<Self, KafkaError> {
        let consumer = settings.reading().create_with_context(Quiet::default())?;
        Ok(Self { consumer, timeout: settings.request_timeout.0 })
    }

    fn read(&self, at: &TopicPartition, from: u64, max_bytes: usize) -> Result<Vec<Record>, BusError> {
        drain(&self.consumer);
        let ask = || self.consumer.fetch_watermarks(at.topic.as_str(), at.partition as i32, self.timeout);
        let (low, high) = patiently(self.timeout, ask).map_err(|error| at_partition(&error, at))?;
        let (from, high) = (from.max(low as u64), high as u64);
        if from >= high {
            return Ok(Vec::new());
        }
        let place = list(std::slice::from_ref(at), KafkaOffset::Offset(from as i64));
        place.and_then(|place| self.consumer.assign(&place)).map_err(|error| at_partition(&error, at))?;
        let result = self.fetch(at, from..high, max_bytes);
        if let Err(error) = self.consumer.unassign() {
            tracing::debug!(%error, "cannot unassign a reader");
        }
        result
    }

    /// What there is of these offsets, up to so many bytes.
    fn fetch(&self, at: &TopicPartition, offsets: Range<u64>, max_bytes: usize) -> Result<Vec<Record>, BusError> {
        let (mut records, mut bytes, mut next) = (Vec::new(), 0, offsets.start);
        let mut buffer = BytesMut::with_capacity(max_bytes.min(BUFFER_BYTES));
        let end = Instant::now() + self.timeout;
        while next < offsets.end && bytes < max_bytes {
            let Some(record) = self.next(at, next, end, &mut buffer)? else { break };
            bytes += record.size();
            if bytes > max_bytes && !records.is_empty() {
                break;
            }
            next = record.offset.next().0;
            records.push(record);
        }
        Ok(records)
    }

    /// The first record at or after `next`; `None` at the partition's end.
    fn next(
        &self,
        at: &TopicPartition,
        next: u64,
        end: Instant,
        buffer: &mut BytesMut,
    ) -> Result<Option<Record>, BusError> {
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let here = message.topic() == at.topic.as_str() && message.partition() == at.partition as i32;
                    if here && message.offset() as u64 >= next {
                        return Ok(Some(to_record(&message, buffer)));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) if partition == at.partition as i32 => return Ok(None),
                Some(Err(error)) if error.rdkafka_error_code().is_some_and(is_final) => {
                    return Err(at_partition(&error, at));
                }
                // Others mend by themselves, or not in time.
                Some(Err(_)) | None => {}
            }
            if Instant::now() >= end {
                let reason = format!("Kafka: no answer for partition {} of topic {}", at.partition, at.topic);
                return Err(BusError::Unavailable { reason });
            }
        }
    }
}

/// True if waiting for it doesn't help.
fn is_final(code: RDKafkaErrorCode) -> bool {
    is_unknown(code) || matches!(code, RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::Authentication)
}

/// The record as the bus tells it. What Kafka calls null is empty here. Its bytes lie in the buffer, beside those of other
/// records that were read with it: an allocation for each was a tenth of transfer's CPU.
pub(crate) fn to_record(message: &BorrowedMessage<'_>, buffer: &mut BytesMut) -> Record {
    let mut part = |bytes: &[u8]| {
        if bytes.len() >= BUFFER_BYTES / 2 {
            return Bytes::copy_from_slice(bytes);
        }
        buffer.extend_from_slice(bytes);
        buffer.split().freeze()
    };
    let (key, value) = (part(message.key().unwrap_or_default()), part(message.payload().unwrap_or_default()));
    let found = message.headers();
    let mut headers = Vec::with_capacity(found.map_or(0, |headers| headers.count()));
    for header in found.into_iter().flat_map(|headers| headers.iter()) {
        let name = header::known(header.key).map_or_else(|| header.key.to_owned().into(), Cow::Borrowed);
        headers.push((name, part(header.value.unwrap_or_default())));
    }
    Record {
        offset: Offset(message.offset() as u64),
        timestamp: UnixNanos(message.timestamp().to_millis().unwrap_or(0).saturating_mul(1_000_000)),
        key,
        value,
        headers,
    }
}
