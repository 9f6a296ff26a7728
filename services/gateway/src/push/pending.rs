//! A chunk on its way through the gateway.

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::join_all;
use logmesh_bus::{Append, Bus, BusError, Position, last_position};
use logmesh_proto::ingest::v1::{Ack, BusPosition, Chunk, Reject};
use logmesh_record::{Format, Times, codec};
use logmesh_types::{TopicName, metric};
use metrics::gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rejected::Refusal;

/// Bytes of a message that are taken from the room of all connections for as long as this lives.
#[derive(Debug)]
pub(crate) struct InFlight {
    bytes: usize,
    _room: Option<OwnedSemaphorePermit>,
}

impl InFlight {
    /// Waits for room.
    pub(crate) async fn new(room: &Arc<Semaphore>, bytes: usize) -> Self {
        // A message is at most some MiB, the room at most 4 GiB; the semaphore is never closed.
        let permit = Arc::clone(room).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok();
        gauge!(metric::GATEWAY_IN_FLIGHT_BYTES).increment(bytes as f64);
        Self { bytes, _room: permit }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        gauge!(metric::GATEWAY_IN_FLIGHT_BYTES).decrement(self.bytes as f64);
    }
}

/// A chunk that was appended, perhaps in vain.
pub(crate) struct Pending {
    /// Its records are made of it whenever it is appended: the chunk alone is a third of what they are.
    chunk: Chunk,
    times: Times,
    format: Format,
    /// When it came.
    pub(crate) since: Instant,
    pub(crate) topic: TopicName,
    /// The append under way; `None` before it and after its end.
    appending: Option<Append>,
    _in_flight: InFlight,
}

impl Pending {
    pub(crate) fn new(chunk: Chunk, times: Times, topic: TopicName, format: Format, in_flight: InFlight) -> Self {
        Self { chunk, times, format, since: Instant::now(), topic, appending: None, _in_flight: in_flight }
    }

    pub(crate) fn stream_id(&self) -> &str {
        &self.chunk.stream_id
    }

    pub(crate) fn start_offset(&self) -> u64 {
        self.chunk.start_offset
    }

    /// Bytes of its data.
    pub(crate) fn bytes(&self) -> u64 {
        self.chunk.data.len() as u64
    }

    /// It was acked before, and stands apart from the order of what is new.
    pub(crate) fn is_repeated(&self) -> bool {
        self.chunk.repeated
    }

    /// Appends all its records, from the first up to one that the bus doesn't take; waits only for room on the bus.
    pub(crate) async fn append(&mut self, bus: &dyn Bus) {
        let mut parts = Vec::new();
        for records in codec::records(&self.chunk, self.format, &self.times) {
            match bus.append_all(&self.topic, records).await {
                Ok(append) => parts.push(append),
                Err(error) => {
                    parts.push(async { Err(error) }.boxed());
                    break;
                }
            }
        }
        // All have an outcome before it is tried again: nothing of this chunk may still be under way then.
        self.appending = Some(join_all(parts).map(last_position).boxed());
    }

    /// The end of the append: the place of the last record.
    pub(crate) async fn appended(&mut self) -> Result<Position, BusError> {
        match &mut self.appending {
            Some(appending) => {
                let result = appending.await;
                self.appending = None;
                result
            }
            None => Err(BusError::Unavailable { reason: "not appended".to_owned() }),
        }
    }

    /// What tells the agent that it's refused.
    pub(crate) fn to_reject(&self, refusal: Refusal) -> Reject {
        refusal.of(&self.chunk.stream_id, self.chunk.start_offset..self.chunk.end_offset)
    }

    pub(crate) fn into_ack(self, position: &Position) -> Ack {
        let positions = vec![bus_position(&self.topic, position)];
        Ack { stream_id: self.chunk.stream_id, end_offset: self.chunk.end_offset, positions }
    }
}

/// A place on the bus as clients are told.
pub(crate) fn bus_position(topic: &TopicName, position: &Position) -> BusPosition {
    BusPosition { topic: topic.to_string(), partition: position.partition, offset: position.offset.0 }
}
