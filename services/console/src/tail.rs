//! The live tail: documents as they arrive on the bus, before the index has them.
//!
//! Each tail is a task that reads the ends of its topics' partitions. It never holds anything up: what its reader is too
//! slow for is skipped and counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::select_all;
use futures::stream::BoxStream;
use logmesh_bus::{Bus, BusError, NextOffset, Record, TopicPartition};
use logmesh_grpc::{resource_exhausted, unavailable};
use logmesh_index::query::{Predicate, Query, field};
use logmesh_index::{FieldTypes, Hit, IndexReader};
use logmesh_proto::search::v1::TailResponse;
use logmesh_record::codec;
use logmesh_runtime::{CancellationToken, RetryPolicy, Tasks};
use logmesh_types::TopicName;
use serde_json::{Map, Value};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::debug;

use crate::search::hit;

/// Bytes that are read of one partition at a time.
const READ_BYTES: usize = 1 << 20;

/// Messages that wait for a slow reader, and the bytes of documents after which a message is full.
const QUEUE: usize = 8;
const MESSAGE_BYTES: usize = 256 << 10;

/// How often to look for new topics.
const LOOK_FOR_TOPICS: Duration = Duration::from_secs(1);

/// Opens live tails, a bounded number at a time.
#[derive(Clone, Debug)]
pub(crate) struct Tails {
    bus: Arc<dyn Bus>,
    index: Arc<dyn IndexReader>,
    places: Arc<Semaphore>,
    tasks: Tasks,
}

impl Tails {
    pub(crate) fn new(bus: Arc<dyn Bus>, index: Arc<dyn IndexReader>, max_tails: usize, tasks: Tasks) -> Self {
        Self { bus, index, places: Arc::new(Semaphore::new(max_tails)), tasks }
    }

    /// Begins a tail at the present ends of the topics; none stands for all, later ones too.
    pub(crate) async fn open(
        &self,
        query: Query,
        topics: Vec<TopicName>,
    ) -> Result<BoxStream<'static, Result<TailResponse, Status>>, Status> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            resource_exhausted("TOO_MANY_TAILS", "there are as many live tails as this console allows; try again later")
        })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (bus, index, token) = (self.bus.clone(), self.index.clone(), self.tasks.token());
        let mut tail = Tail { bus, index, query, topics, followed: BTreeMap::new(), sender, skipped: 0, _place: place };
        // Before the answer goes out: what is written after it must be seen.
        tail.look_for_topics(true).await.map_err(|error| unavailable("BUS_UNAVAILABLE", error.to_string()))?;
        self.tasks.spawn("tail", async move {
            tail.run(token).await;
            Ok(())
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }
}

/// A topic that is followed: what the query means there, and where each partition is read next.
struct Followed {
    predicate: Predicate,
    next: Vec<NextOffset>,
}

struct Tail {
    bus: Arc<dyn Bus>,
    index: Arc<dyn IndexReader>,
    query: Query,
    topics: Vec<TopicName>,
    followed: BTreeMap<TopicName, Followed>,
    sender: mpsc::Sender<Result<TailResponse, Status>>,
    /// Documents that matched and weren't sent since the last message.
    skipped: u64,
    _place: OwnedSemaphorePermit,
}

impl Tail {
    /// Runs until the reader goes away or the process stops. A bus that is away is tried again.
    async fn run(mut self, token: CancellationToken) {
        let sender = self.sender.clone();
        let work = async {
            let mut attempt = 0;
            loop {
                match self.follow().await {
                    Err(error) => {
                        debug!(%error, "a live tail waits for the bus");
                        if !RetryPolicy::default().pause(attempt, &token).await {
                            return;
                        }
                        attempt += 1;
                    }
                    Ok(()) => attempt = 0,
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = sender.closed() => {}
            () = token.cancelled() => {
                // A tail has no end of its own: its reader shall know that it's the server's.
                drop(sender.try_send(Err(unavailable("STOPPING", "the console is stopping"))));
            }
        }
    }

    /// Reads all partitions once, waits for more, and now and then looks for topics.
    async fn follow(&mut self) -> Result<(), BusError> {
        let look_again = Instant::now() + LOOK_FOR_TOPICS;
        while Instant::now() < look_again {
            if !self.read_all().await? {
                self.wait(look_again).await?;
            }
        }
        // A reader that has caught up is told what it missed, though nothing else comes.
        send(&self.sender, TailResponse::default(), &mut self.skipped);
        self.look_for_topics(false).await
    }

    /// Follows topics that aren't followed yet. At the beginning from their ends; later ones from their beginnings.
    async fn look_for_topics(&mut self, from_end: bool) -> Result<(), BusError> {
        for spec in self.bus.topics().await? {
            let name = spec.name;
            let wanted = !name.is_internal() && (self.topics.is_empty() || self.topics.contains(&name));
            if !wanted {
                continue;
            }
            // Asked for each time: a new topic's types come to be known a moment after its first records.
            let types: FieldTypes = self.index.field_types(&name).await.unwrap_or_default();
            let predicate = self.query.resolve(&types);
            if let Some(followed) = self.followed.get_mut(&name) {
                followed.predicate = predicate;
                continue;
            }
            let mut next = Vec::new();
            for partition in 0..spec.partitions {
                let at = TopicPartition { topic: name.clone(), partition };
                next.push(if from_end { self.bus.watermarks(&at).await?.high } else { NextOffset(0) });
            }
            self.followed.insert(name, Followed { predicate, next });
        }
        Ok(())
    }

    /// Reads what each partition has; true if there was anything.
    async fn read_all(&mut self) -> Result<bool, BusError> {
        let mut any = false;
        let topics: Vec<(TopicName, usize)> =
            self.followed.iter().map(|(topic, followed)| (topic.clone(), followed.next.len())).collect();
        for (topic, partitions) in topics {
            for partition in 0..partitions {
                any |= self.read(&topic, partition).await?;
            }
        }
        Ok(any)
    }

    async fn read(&mut self, topic: &TopicName, partition: usize) -> Result<bool, BusError> {
        let Some(followed) = self.followed.get_mut(topic) else { return Ok(false) };
        let at = TopicPartition { topic: topic.clone(), partition: partition as u32 };
        let records = self.bus.read(&at, followed.next[partition], READ_BYTES).await?;
        let Some(last) = records.last() else { return Ok(false) };
        followed.next[partition] = last.offset.next();
        let mut message = TailResponse::default();
        let mut bytes = 0;
        for record in &records {
            for found in matching(&at, record, &followed.predicate) {
                bytes += found.body.len();
                message.hits.push(hit(found));
                if bytes >= MESSAGE_BYTES {
                    bytes = 0;
                    send(&self.sender, std::mem::take(&mut message), &mut self.skipped);
                }
            }
        }
        send(&self.sender, message, &mut self.skipped);
        Ok(true)
    }

    /// Resolves when a partition has more, or at `until`.
    async fn wait(&self, until: Instant) -> Result<(), BusError> {
        let timeout = until.saturating_duration_since(Instant::now());
        let places: Vec<(TopicPartition, NextOffset)> = self
            .followed
            .iter()
            .flat_map(|(topic, followed)| {
                let place = |(partition, next): (usize, &NextOffset)| {
                    (TopicPartition { topic: topic.clone(), partition: partition as u32 }, *next)
                };
                followed.next.iter().enumerate().map(place)
            })
            .collect();
        if places.is_empty() {
            tokio::time::sleep(timeout).await;
            return Ok(());
        }
        let waits = places.iter().map(|(at, next)| self.bus.wait(at, *next, timeout));
        select_all(waits).await.0
    }
}

/// Sends a message if the reader has room for it, else counts its documents as skipped.
fn send(sender: &mpsc::Sender<Result<TailResponse, Status>>, mut message: TailResponse, skipped: &mut u64) {
    if message.hits.is_empty() && *skipped == 0 {
        return;
    }
    message.skipped = std::mem::take(skipped);
    match sender.try_send(Ok(message)) {
        Ok(()) | Err(TrySendError::Closed(_)) => {}
        Err(TrySendError::Full(Ok(message))) => *skipped = message.skipped + message.hits.len() as u64,
        Err(TrySendError::Full(Err(_))) => {}
    }
}

/// The documents of a record that the query finds. A record that can't be read has none: transfer deals with it. Nor has one
/// that a repair sent again: its lines aren't new.
fn matching(at: &TopicPartition, record: &Record, predicate: &Predicate) -> Vec<Hit> {
    if record.header(codec::REPEATED).is_some() {
        return Vec::new();
    }
    let documents = codec::documents(&at.topic, at.partition, record).unwrap_or_default();
    let hits = documents.into_iter().filter_map(|document| {
        let id = document.id?;
        let mut fields: Map<String, Value> = serde_json::from_slice(&document.body).ok()?;
        fields.insert(field::ID.to_owned(), Value::from(id.to_string()));
        fields.insert(field::TOPIC.to_owned(), Value::from(at.topic.as_str()));
        predicate.matches(&fields).then(|| Hit { id, topic: at.topic.clone(), body: document.body })
    });
    hits.collect()
}
