//! Questions about offsets, and waiting for a partition to grow: one request for all partitions that are waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logmesh_bus::{BusError, NextOffset, TopicPartition, Watermarks};
use logmesh_types::UnixNanos;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::watch;

use crate::context::{Quiet, at_partition, patiently, stopping, unavailable};
use crate::settings::Settings;
use crate::topics::{drain, explain};

/// How often the ends are asked for while somebody waits.
const TICK: Duration = Duration::from_millis(50);

/// The most groups of which a client is kept.
const MAX_GROUPS: usize = 8;

/// Asks for offsets.
pub(crate) struct Ends {
    settings: Arc<Settings>,
    asking: Arc<BaseConsumer<Quiet>>,
    groups: Mutex<HashMap<String, Arc<BaseConsumer<Quiet>>>>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// The ends as they were told last, or why not.
    ends: HashMap<TopicPartition, watch::Sender<Seen>>,
    /// True while there is a thread that asks.
    asked: bool,
}

/// What was told of a partition's end; `None`: nothing yet.
type Seen = Option<Result<u64, Arc<str>>>;

impl Ends {
    pub(crate) fn new(settings: &Arc<Settings>, asking: Arc<BaseConsumer<Quiet>>) -> Self {
        Self { settings: Arc::clone(settings), asking, groups: Mutex::default(), waiting: Mutex::default() }
    }

    /// Runs a question away from the async threads.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Quiet>, Duration) -> Result<T, BusError> + Send + 'static,
    ) -> Result<T, BusError> {
        let (asking, timeout) = (Arc::clone(&self.asking), self.settings.request_timeout.0);
        let work = move || {
            drain(&asking);
            question(&asking, timeout)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| stopping())?
    }

    /// A cheap round trip.
    pub(crate) async fn ping(&self, timeout: Duration) -> Result<(), BusError> {
        self.ask(move |asking, _| {
            let metadata = asking.fetch_metadata(Some("__consumer_offsets"), timeout);
            metadata.map(drop).map_err(|error| explain(asking, &error))
        })
        .await
    }

    pub(crate) async fn watermarks(&self, at: &TopicPartition) -> Result<Watermarks, BusError> {
        let at = at.clone();
        self.ask(move |asking, timeout| {
            let ask = || asking.fetch_watermarks(at.topic.as_str(), at.partition as i32, timeout);
            let (low, high) = patiently(timeout, ask).map_err(|error| at_partition(&error, &at))?;
            Ok(Watermarks { low: NextOffset(low as u64), high: NextOffset(high as u64) })
        })
        .await
    }

    pub(crate) async fn offset_at(&self, at: &TopicPartition, time: UnixNanos) -> Result<NextOffset, BusError> {
        let (list_at, millis) = (at.clone(), time.0.max(0).saturating_add(999_999) / 1_000_000);
        let found = self
            .ask(move |asking, timeout| {
                let ask = || {
                    let list = list(std::slice::from_ref(&list_at), Offset::Offset(millis))?;
                    only_offset(&asking.offsets_for_times(list, timeout)?) // none: nothing is as late
                };
                patiently(timeout, ask).map_err(|error| at_partition(&error, &list_at))
            })
            .await?;
        match found {
            Some(offset) => Ok(NextOffset(offset)),
            None => Ok(self.watermarks(at).await?.high),
        }
    }

    pub(crate) async fn committed(&self, group: &str, at: &TopicPartition) -> Result<Option<NextOffset>, BusError> {
        let (group, at) = (self.group(group)?, at.clone());
        let timeout = self.settings.request_timeout.0;
        let work = move || {
            drain(&group);
            let ask = || {
                let list = list(std::slice::from_ref(&at), Offset::Invalid)?;
                only_offset(&group.committed_offsets(list, timeout)?)
            };
            let committed = patiently(timeout, ask).map_err(|error| at_partition(&error, &at))?;
            Ok(committed.map(NextOffset))
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| stopping())?
    }

    /// The client that asks about a group.
    fn group(&self, group: &str) -> Result<Arc<BaseConsumer<Quiet>>, BusError> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = groups.get(group) {
            return Ok(Arc::clone(client));
        }
        if groups.len() >= MAX_GROUPS {
            let gone = std::mem::take(&mut *groups);
            drop(std::thread::spawn(move || drop(gone))); // which waits for their threads
        }
        let client = self.settings.asking_group(group).create_with_context(Quiet::default());
        let client: Arc<BaseConsumer<Quiet>> = Arc::new(client.map_err(|error| unavailable(&error))?);
        groups.insert(group.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    /// See [`logmesh_bus::Bus::wait`].
    pub(crate) async fn wait(
        self: &Arc<Self>,
        at: &TopicPartition,
        from: NextOffset,
        timeout: Duration,
    ) -> Result<(), BusError> {
        let mut seen = self.follow(at)?;
        let arrived = seen.wait_for(|seen| match seen {
            Some(Ok(end)) => *end > from.0,
            Some(Err(_)) => true,
            None => false,
        });
        let answer = match tokio::time::timeout(timeout, arrived).await {
            Err(_) => return Ok(()),
            Ok(Err(_)) => return Err(stopping()),
            Ok(Ok(seen)) => seen.clone(),
        };
        match answer {
            Some(Err(reason)) => Err(BusError::Unavailable { reason: reason.to_string() }),
            _ => Ok(()),
        }
    }

    /// What is told of the partition's end from now on. Starts the thread that asks, unless there is one.
    fn follow(self: &Arc<Self>, at: &TopicPartition) -> Result<watch::Receiver<Seen>, BusError> {
        let mut waiting = self.lock();
        let receiver = match waiting.ends.get(at) {
            Some(sender) => {
                // What somebody else saw may be old, but an end that was reached stays reached.
                let receiver = sender.subscribe();
                if matches!(*sender.borrow(), Some(Err(_))) {
                    sender.send_replace(None);
                }
                receiver
            }
            None => {
                let (sender, receiver) = watch::channel(None);
                waiting.ends.insert(at.clone(), sender);
                receiver
            }
        };
        if !waiting.asked {
            let this = Arc::clone(self);
            let thread = std::thread::Builder::new().name("kafka-ends".to_owned()).spawn(move || this.ask_for_ends());
            thread.map_err(|error| BusError::Unavailable { reason: format!("no thread to wait with: {error}") })?;
            waiting.asked = true;
        }
        Ok(receiver)
    }

    /// Asks for the ends of all partitions that are waited for, until none is.
    fn ask_for_ends(self: Arc<Self>) {
        loop {
            let followed: Vec<TopicPartition> = {
                let mut waiting = self.lock();
                waiting.ends.retain(|_, sender| sender.receiver_count() > 0);
                waiting.asked = !waiting.ends.is_empty();
                if !waiting.asked {
                    return;
                }
                waiting.ends.keys().cloned().collect()
            };
            drain(&self.asking);
            self.tell(ends(&self.asking, &followed, self.settings.request_timeout.0));
            std::thread::sleep(TICK);
        }
    }

    fn tell(&self, answer: Result<HashMap<TopicPartition, u64>, BusError>) {
        let waiting = self.lock();
        let answer = answer.map_err(|error| Arc::<str>::from(error.to_string()));
        for (at, sender) in &waiting.ends {
            match &answer {
                Ok(ends) => {
                    if let Some(end) = ends.get(at) {
                        sender.send_replace(Some(Ok(*end)));
                    }
                }
                Err(reason) => drop(sender.send_replace(Some(Err(Arc::clone(reason))))),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ends of these partitions; those that Kafka has no answer for are left out.
fn ends(
    asking: &BaseConsumer<Quiet>,
    of: &[TopicPartition],
    timeout: Duration,
) -> Result<HashMap<TopicPartition, u64>, BusError> {
    let ask = || asking.offsets_for_times(list(of, Offset::End)?, timeout);
    let answer = patiently(timeout, ask).map_err(|error| unavailable(&error))?;
    let ends = answer.elements().into_iter().filter_map(|element| {
        let Offset::Offset(end) = element.offset() else { return None };
        element.error().ok()?;
        let at = TopicPartition { topic: element.topic().parse().ok()?, partition: element.partition() as u32 };
        Some((at, u64::try_from(end).ok()?))
    });
    Ok(ends.collect())
}

/// The offset of the only partition in an answer, if it has one.
fn only_offset(answer: &TopicPartitionList) -> Result<Option<u64>, KafkaError> {
    let elements = answer.elements();
    let Some(element) = elements.first() else { return Ok(None) };
    element.error()?;
    match element.offset() {
        Offset::Offset(offset) => Ok(u64::try_from(offset).ok()),
        _ => Ok(None),
    }
}

/// The partitions as Kafka's list, all with this offset.
pub(crate) fn list(of: &[TopicPartition], offset: Offset) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(of.len());
    for at in of {
        list.add_partition_offset(at.topic.as_str(), at.partition as i32, offset)?;
    }
    Ok(list)
}
