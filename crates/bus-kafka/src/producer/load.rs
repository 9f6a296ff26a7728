//! What travels through a lane: a batch, the room that its records take, and who waits for what becomes of it.

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use logmesh_bus::{BusError, RecordRef, TopicPartition};
use logmesh_types::limits::MAX_RECORD_BYTES;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

use super::batch::{Batch, Packed};
use crate::clients::RECORD_COST;
use crate::context::unknown;
use crate::settings::Compression;

/// What became of a batch: the offset of its first record, or why it failed; `None` as long as nothing did.
pub(super) type Fate = Option<Result<u64, Failure>>;

/// Why records weren't stored, for all that it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The batch is larger than the topic takes.
    TooLarge,
    /// Kafka won't have it, however often it's asked.
    Refused(Arc<str>),
    /// There's no such topic or partition.
    Unknown,
    /// It may go well when it's appended again.
    Unavailable(Arc<str>),
}

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another may not.
    Passing(Arc<str>),
    /// Kafka doesn't know the partition, yet or any more.
    Unknown,
    /// Others would, too.
    Final(Failure),
}

impl Trouble {
    pub(super) fn passing(reason: impl Display) -> Self {
        Self::Passing(format!("{reason:#}").into())
    }
}

impl Failure {
    /// The bus's error for an append of records, the largest of which has so many bytes.
    pub(super) fn to_bus(&self, at: &TopicPartition, bytes: usize) -> BusError {
        match self {
            Self::TooLarge => {
                BusError::RecordTooLarge { topic: at.topic.clone(), size: bytes, limit: MAX_RECORD_BYTES }
            }
            Self::Refused(reason) => BusError::Refused { topic: at.topic.clone(), reason: format!("Kafka: {reason}") },
            Self::Unknown => unknown(at),
            Self::Unavailable(reason) => BusError::Unavailable { reason: format!("Kafka: {reason}") },
        }
    }
}

/// Records of one append that are in the same batch.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) fate: watch::Receiver<Fate>,
    /// The number of the last of them in the batch.
    pub(super) last: u32,
}

/// A batch's records, the room that they take, and who waits for them.
#[derive(Debug)]
pub(super) struct Load<B> {
    pub(super) batch: B,
    pub(super) count: u32,
    /// Of keys and values.
    pub(super) bytes: u64,
    /// When the first of them was appended.
    pub(super) born: Instant,
    /// Given back before anybody hears of the outcome, also if there is none: fields are dropped in their order.
    pub(super) room: Option<OwnedSemaphorePermit>,
    pub(super) fate: watch::Sender<Fate>,
}

impl Load<Batch> {
    /// One without records, in this memory.
    pub(super) fn new(memory: Vec<u8>) -> Self {
        let fate = watch::Sender::new(None);
        Self { batch: Batch::new(memory), count: 0, bytes: 0, born: Instant::now(), room: None, fate }
    }

    /// Adds as many of the records as fit, and takes their room; gives the others.
    pub(super) fn fill<'r>(
        &mut self,
        records: &'r [RecordRef<'r>],
        room: &mut OwnedSemaphorePermit,
        now: i64,
    ) -> (Option<Share>, &'r [RecordRef<'r>]) {
        let mut cost = 0;
        let fits = |record: &&RecordRef<'_>| {
            let time = record.timestamp.map_or(0, |time| time.0.div_euclid(1_000_000));
            let fits = self.batch.push(record, if time > 0 { time } else { now });
            if fits {
                cost += record.size() + RECORD_COST;
                self.bytes += (record.key.len() + record.value.len()) as u64;
            }
            fits
        };
        let taken = records.iter().take_while(fits).count();
        if taken == 0 {
            return (None, records);
        }
        if let Some(share) = room.split(cost.min(room.num_permits())) {
            match &mut self.room {
                Some(room) => room.merge(share),
                None => self.room = Some(share),
            }
        }
        self.count = self.batch.count();
        (Some(Share { fate: self.fate.subscribe(), last: self.count - 1 }), &records[taken..])
    }

    /// Compresses the batch, which for the slow way is no work for a thread that others wait for.
    /// Gives its memory back as well.
    pub(super) async fn pack(self, compression: Compression) -> io::Result<(Load<Packed>, Vec<u8>)> {
        let Self { batch, count, bytes, born, room, fate } = self;
        let (batch, spare) = match compression {
            Compression::Gzip => {
                let pack = tokio::task::spawn_blocking(move || batch.pack(compression));
                pack.await.map_err(io::Error::other)??
            }
            _ => batch.pack(compression)?,
        };
        Ok((Load { batch, count, bytes, born, room, fate }, spare))
    }
}
