//! The worker's loop: read, fill a bulk, write it while the next one is filled, commit in the order of the bulks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use logmesh_bus::{BusError, Consumer, Event, NextOffset, Record, TopicPartition};
use logmesh_proto::transfer::v1::Counts;
use logmesh_record::Marks;
use logmesh_types::{Day, TopicName, UnixNanos};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::books::{Books, Kept};
use crate::bulk::Bulk;
use crate::mend::{Found, Removed};
use crate::paused::Paused;
use crate::replay::run::Replays;
use crate::retired::marks;
use crate::status::Partition;
use crate::store::{Backends, Stop};
use crate::writing::{Writing, look_for_removed, write_books};
use crate::{GROUP, Settings};

/// What it is called where readiness is shown.
pub(crate) const COMPONENT: &str = "transfer";

/// Ready while the index takes every topic.
pub(crate) const TOPICS: &str = "topics";

/// Why one membership in the consumer group ended.
enum End {
    /// There are new topics to read.
    TopicsChanged,
    /// Partitions were lost with their records under way: begin again from what was committed.
    Lost,
}

pub(crate) struct Worker {
    to: Backends,
    settings: Settings,
}

/// True if the worker begins anew: also when the bus says that there's no such partition. A broker of Kafka's that has just come
/// up says so of every topic, until it has heard from the others. Where a topic was removed the worker isn't ready, and says which.
fn passes(error: &BusError) -> bool {
    error.retryable() || matches!(error, BusError::NotOwner { .. } | BusError::UnknownPartition { .. })
}

impl Worker {
    pub(crate) fn new(to: Backends, settings: Settings) -> Self {
        Self { to, settings }
    }

    /// Runs until told to stop. An error is one that no waiting mends.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        self.to.readiness.set(COMPONENT, false, "joining the consumer group");
        let mut attempt = 0;
        loop {
            match self.member(&mut attempt).await {
                Ok(End::TopicsChanged) => {}
                Ok(End::Lost) => warn!("partitions were lost; reading again from what was committed"),
                Err(Stop::Cancelled) => return Ok(()),
                Err(Stop::Bus(error)) if passes(&error) => {
                    if self.to.wait(&error, &mut attempt).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Joins the group for all topics that there are now, and works until there are others.
    async fn member(&self, attempt: &mut u32) -> Result<End, Stop> {
        let Found { topics, refused, .. } = self.wait_for_topics().await?;
        for (topic, reason) in &refused {
            error!(%topic, reason, "the topic is left out until that is mended: its records stay on the bus");
            self.to.readiness.set(TOPICS, false, format!("topic {topic} is left out: {reason}"));
        }
        let mut usable = Vec::new();
        for topic in &topics {
            if self.ensure_topic(topic).await? {
                self.to.own(topic).await?;
                usable.push(topic.clone());
            }
        }
        info!(topics = ?usable.iter().map(TopicName::as_str).collect::<Vec<_>>(), "transfer reads these topics");
        let mut consumer = self.to.bus.subscribe(GROUP, &usable).await?;
        if *attempt == 0 {
            self.to.going();
        }
        if usable.len() == topics.len() && refused.is_empty() {
            self.to.readiness.set(TOPICS, true, "");
        }
        let mut holding = Holding::default();
        let end = self.work(consumer.as_mut(), &topics, &mut holding, attempt).await;
        self.to.shared.state().partitions.clear();
        end
    }

    /// Declares the topic in the index; false if the index refuses it, which must not keep the others.
    async fn ensure_topic(&self, topic: &TopicName) -> Result<bool, Stop> {
        let fields = &self.settings.topics.get(topic).fields;
        let mut attempt = 0;
        while let Err(error) = self.to.index.ensure_topic(topic, fields).await {
            if !error.retryable() {
                error!(%topic, %error, "the index refuses the topic: its records stay on the bus until that is mended and transfer started again");
                self.to.readiness.set(TOPICS, false, format!("topic {topic} is left out: {error}"));
                return Ok(false);
            }
            self.to.wait(&error, &mut attempt).await?;
        }
        Ok(true)
    }

    /// The topics to read, when there is at least one.
    async fn wait_for_topics(&self) -> Result<Found, Stop> {
        loop {
            let found = self.topics().await?;
            if !found.topics.is_empty() {
                return Ok(found);
            }
            self.to.going(); // nothing to do is no fault
            tokio::select! {
                () = tokio::time::sleep(self.settings.topic_refresh.0) => {}
                () = self.to.token.cancelled() => return Err(Stop::Cancelled),
            }
        }
    }

    /// The topics that are to be read: those that aren't paused.
    async fn topics(&self) -> Result<Found, BusError> {
        let paused = Paused::read(&self.to.jobs).await?;
        let mut found = self.to.topics().await?;
        found.topics.retain(|topic| !paused.holds(topic));
        Ok(found)
    }

    /// Writes books whose topic was removed, or of whose letters that's true, once all that is held is in the index.
    async fn write_again(
        &self,
        removed: &Removed,
        consumer: &mut dyn Consumer,
        holding: &mut Holding,
    ) -> Result<(), Stop> {
        look_for_removed(&mut holding.books, removed, &self.to).await?;
        if holding.books.values().any(Books::is_to_write) {
            self.flush(consumer, holding).await?;
        }
        for (at, books) in &mut holding.books {
            if let Some(kept) = books.written_since(removed.get(&at.topic.books())) {
                self.to.keep(&Kept::key(at), &kept).await?;
            }
        }
        Ok(())
    }

    async fn work(
        &self,
        consumer: &mut dyn Consumer,
        topics: &[TopicName],
        holding: &mut Holding,
        attempt: &mut u32,
    ) -> Result<End, Stop> {
        let mut look_for_topics = Instant::now() + self.settings.topic_refresh.0;
        loop {
            let replay_at = self.replay_at(holding);
            let wake = [holding.flush_at, replay_at].into_iter().flatten().fold(look_for_topics, Instant::min);
            let under_way = holding.writing.front_mut();
            tokio::select! {
                biased;
                () = self.to.token.cancelled() => {
                    return match self.flush(consumer, holding).await {
                        Ok(()) => Err(Stop::Cancelled),
                        Err(stop) => Err(stop),
                    };
                }
                () = indexed(under_way) => self.finish(consumer, holding).await?,
                () = tokio::time::sleep_until(wake) => {
                    if holding.flush_at.is_some_and(|at| at <= Instant::now()) {
                        self.write(consumer, holding).await?;
                    }
                    if replay_at.is_some_and(|at| at <= Instant::now()) {
                        // It writes books, which say what is in the index.
                        self.flush(consumer, holding).await?;
                        holding.replays.step(&mut holding.books, &holding.marks, &self.to).await?;
                    }
                    if look_for_topics <= Instant::now() {
                        look_for_topics = Instant::now() + self.settings.topic_refresh.0;
                        holding.replays.look(&holding.books, &self.to).await?;
                        match marks(&self.to.jobs).await {
                            Ok(marks) => holding.marks = marks,
                            Err(error) => debug!(%error, "can't look for retired slices now"),
                        }
                        match self.topics().await {
                            Ok(found) => {
                                self.write_again(&found.removed, consumer, holding).await?;
                                if found.topics != topics {
                                    self.flush(consumer, holding).await?;
                                    return Ok(End::TopicsChanged);
                                }
                            }
                            // Those that are known go on.
                            Err(error) if error.retryable() => debug!(%error, "can't look for new topics now"),
                            Err(error) => return Err(error.into()),
                        }
                        // What was wrong is over when nothing waits to be written; else the write says so.
                        if holding.is_idle() && std::mem::take(attempt) > 0 {
                            self.to.going();
                        }
                    }
                }
                event = consumer.next() => match event? {
                    Event::Assigned(partitions) => self.assigned(&partitions, holding).await?,
                    Event::Records { at, records } => self.records(&at, &records, consumer, holding).await?,
                    Event::Revoking(partitions) => {
                        self.flush(consumer, holding).await?;
                        self.forget(&partitions, holding);
                        consumer.release(&partitions).await?;
                    }
                    Event::Lost(_) => return Ok(End::Lost),
                }
            }
        }
    }

    async fn assigned(&self, partitions: &[TopicPartition], holding: &mut Holding) -> Result<(), Stop> {
        holding.marks = marks(&self.to.jobs).await?;
        for at in partitions {
            let books = Books::load(self.to.bus.as_ref(), &self.to.jobs, at).await?;
            let committed = self.to.bus.committed(GROUP, at).await?;
            info!(topic = %at.topic, partition = at.partition, streams = books.len(), "holds a partition");
            holding.next.insert(at.clone(), committed.unwrap_or(NextOffset(0)));
            let status = Partition { fresh: None, streams: books.len() };
            self.to.shared.state().partitions.insert(at.clone(), status);
            holding.books.insert(at.clone(), books);
        }
        Ok(())
    }

    fn forget(&self, partitions: &[TopicPartition], holding: &mut Holding) {
        for at in partitions {
            holding.books.remove(at);
            holding.replays.forget(at);
            holding.next.remove(at);
            self.to.shared.state().partitions.remove(at);
        }
    }

    async fn records(
        &self,
        at: &TopicPartition,
        records: &[Record],
        consumer: &mut dyn Consumer,
        holding: &mut Holding,
    ) -> Result<(), Stop> {
        if let (Some(next), Some(first), Some(last)) = (holding.next.get_mut(at), records.first(), records.last()) {
            let lost = first.offset.0.saturating_sub(next.0);
            if lost > 0 {
                let (topic, partition, from) = (&at.topic, at.partition, next.0);
                error!(%topic, partition, from, records = lost, "the bus removed records that were not in the index yet; audit shows their lines");
                self.to.shared.count(&Counts { lost_records: lost, ..Counts::default() });
            }
            *next = last.offset.next();
        }
        let (taken, shared) = (UnixNanos::now(), Arc::new(at.clone()));
        for record in records {
            let Some(books) = holding.books.get_mut(at) else { continue }; // revoked: its next owner reads it
            holding.bulk.add(&shared, record, taken, books);
            holding.flush_at.get_or_insert_with(|| Instant::now() + self.settings.bulk_wait.0);
            let is_full = holding.bulk.bytes() as u64 >= self.settings.bulk_bytes.0;
            if is_full || holding.bulk.len() >= self.to.pace.limits().documents {
                self.write(consumer, holding).await?;
            }
        }
        Ok(())
    }

    /// Reads the marks once more before something is written that may be retired since: what was read before yesterday.
    async fn know_marks(&self, oldest: Option<Day>, holding: &mut Holding) -> Result<(), Stop> {
        let yesterday = Day::of(UnixNanos::now()).minus(1);
        let mut attempt = 0;
        while oldest.is_some_and(|oldest| oldest < yesterday) {
            match marks(&self.to.jobs).await {
                Ok(marks) => {
                    holding.marks = marks;
                    break;
                }
                Err(error) if error.retryable() => self.to.wait(&error, &mut attempt).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Has the bulk written, while the next one is filled: as many side by side as the pace allows.
    async fn write(&self, consumer: &mut dyn Consumer, holding: &mut Holding) -> Result<(), Stop> {
        holding.flush_at = None;
        let bulk = std::mem::take(&mut holding.bulk);
        if bulk.is_empty() {
            return Ok(());
        }
        let most = self.to.pace.limits().requests;
        let is_full = holding.writing.len() >= most;
        if let Some(first) = holding.writing.front_mut().filter(|_| is_full) {
            first.indexed().await;
        }
        self.know_marks(bulk.oldest(), holding).await?;
        let writing = bulk.begin(&mut holding.books, &holding.marks, &self.to);
        let most = if writing.is_plain() { most } else { 0 };
        holding.writing.push_back(writing);
        while holding.writing.len() > most {
            self.finish(consumer, holding).await?;
        }
        Ok(())
    }

    /// Finishes the bulk that was begun first, and commits its offsets.
    async fn finish(&self, consumer: &mut dyn Consumer, holding: &mut Holding) -> Result<(), Stop> {
        let Some(mut first) = holding.writing.pop_front() else { return Ok(()) };
        first.indexed().await;
        self.know_marks(first.oldest(), holding).await?;
        let done = first.finish(&mut holding.books, &holding.marks, &self.to).await?;
        let offsets: Vec<(TopicPartition, NextOffset)> =
            done.iter().map(|(at, (next, _))| (at.clone(), *next)).collect();
        consumer.commit(&offsets).await?;
        let mut state = self.to.shared.state();
        for (at, (_, time)) in done {
            let streams = holding.books.get(&at).map_or(0, Books::len);
            let status = Partition { fresh: Some(time), streams };
            state.partitions.insert(at, status);
        }
        Ok(())
    }

    /// Writes all that is held, and commits its offsets.
    async fn flush(&self, consumer: &mut dyn Consumer, holding: &mut Holding) -> Result<(), Stop> {
        self.write(consumer, holding).await?;
        while !holding.writing.is_empty() {
            self.finish(consumer, holding).await?;
        }
        if holding.books.values().any(Books::is_to_write) {
            write_books(&mut holding.books, &holding.marks, &self.to).await?;
        }
        Ok(())
    }

    /// When a replay has its next step: it waits a little for the bulk that is filled, which it would cut short.
    fn replay_at(&self, holding: &Holding) -> Option<Instant> {
        let due = holding.replays.due()?;
        Some(holding.flush_at.map_or(due, |at| due.max(at.min(due + self.settings.bulk_wait.0))))
    }
}

/// Waits until this bulk is in the index; for ever if there is none.
async fn indexed(writing: Option<&mut Writing>) {
    match writing {
        Some(writing) => writing.indexed().await,
        None => std::future::pending().await,
    }
}

/// What a member holds: the books of its partitions, and the bulk being filled.
#[derive(Default)]
struct Holding {
    books: HashMap<TopicPartition, Books>,
    /// The next offset that each of its partitions will give.
    next: HashMap<TopicPartition, NextOffset>,
    bulk: Bulk,
    /// The bulks that are being written, in their order.
    writing: VecDeque<Writing>,
    /// Which slices are retired.
    marks: Marks,
    /// Its parts of replays.
    replays: Replays,
    /// When the bulk is written at the latest; `None` while it is empty.
    flush_at: Option<Instant>,
}

impl Holding {
    /// True if nothing is to be written.
    fn is_idle(&self) -> bool {
        self.bulk.is_empty() && self.writing.is_empty()
    }
}
