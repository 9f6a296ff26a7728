//! The way of one partition's records into its log: in their order, each batch until Kafka has it or it's given up.
//!
//! As long as all goes well, some batches are under way at once; each bears the number that follows the one before, and Kafka takes
//! them in that order or not at all. At the first answer that isn't well, all that aren't stored go back, and the first of them goes
//! out alone until it's stored: a batch has the same number however often it's sent, by which Kafka stores it once. One that is
//! given up may still lie in a broker that is frozen: what comes after it has a new epoch, and once that is stored Kafka refuses what
//! bears the old one. That is how a record that failed never appears behind the one that replaced it.
//!
//! Meanwhile records gather in the next batch, which is how batches grow as load does, without waiting for more. A lane has a task
//! while it has records, and nothing but a few numbers otherwise.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logmesh_bus::{RecordRef, TopicPartition};
use logmesh_types::{UnixNanos, metric};
use metrics::counter;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::batch::{Batch, Packed, Stamp};
use super::cluster::Cluster;
use super::link::{Answer, Link};
use super::load::{Failure, Load, Share, Trouble};
use super::wire::{Meaning, Stored};
use crate::settings::Settings;

/// How long to wait before a batch is sent again: twice as long each time, up to a second.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long brokers may take to learn of a topic that was just made.
const PROPAGATION: Duration = Duration::from_secs(5);

/// Batches under way at once: the broker works on one and has the next at hand, and one more lies in the link. Kafka can say where the
/// last five of a producer's in each partition lie, should they come again (`ProducerStateEntry` in its source).
const WINDOW: usize = 3;

/// What [`Trouble::Unknown`] is told as.
const UNKNOWN: &str = "unknown topic or partition";

/// A batch on its way.
type Parcel = Load<Packed>;

/// What waits to be sent.
#[derive(Debug, Default)]
struct Queue {
    /// Full ones, in their order, and the one that takes records.
    full: VecDeque<Load<Batch>>,
    open: Option<Load<Batch>>,
    /// The memory of a batch that was packed, for the next one; none when there is no task.
    spare: Vec<u8>,
    /// A task sees to it.
    is_running: bool,
}

/// How the next batch goes out: beside others over the link that has stored one, or alone, after what went wrong with it last.
type Way = Result<Link, Option<Setback>>;

/// An attempt that failed.
#[derive(Debug)]
struct Setback {
    at: Instant,
    reason: Arc<str>,
}

/// What the next batch bears.
#[derive(Clone, Copy, Debug)]
struct Identity {
    next: Stamp,
    state: Validity,
}

/// What a producer's number and epoch are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Good,
    /// Something that bears them was given up, and may be stored yet: the next epoch comes.
    Over,
    /// Kafka doesn't take this number any more.
    Spent,
}

/// One partition's way to Kafka.
#[derive(Debug)]
pub(super) struct Lane {
    at: TopicPartition,
    settings: Arc<Settings>,
    queue: Mutex<Queue>,
    /// Told when a batch is full.
    filled: Notify,
    /// `None` until the first batch.
    identity: Mutex<Option<Identity>>,
}

impl Lane {
    pub(super) fn new(at: &TopicPartition, settings: &Arc<Settings>) -> Arc<Self> {
        Arc::new(Self {
            at: at.clone(),
            settings: Arc::clone(settings),
            queue: Mutex::default(),
            filled: Notify::new(),
            identity: Mutex::default(),
        })
    }

    /// Takes records, with the room they have. True: [`Lane::run`] has to be run.
    pub(super) fn push<'r>(
        &self,
        mut records: &'r [RecordRef<'r>],
        mut room: OwnedSemaphorePermit,
        shares: &mut Vec<Share>,
    ) -> bool {
        let now = UnixNanos::now().0 / 1_000_000;
        let mut queue = self.queue();
        while !records.is_empty() {
            let Queue { open, spare, .. } = &mut *queue;
            let open = open.get_or_insert_with(|| Load::new(std::mem::take(spare)));
            let (share, left) = open.fill(records, &mut room, now);
            shares.extend(share);
            records = left;
            if !records.is_empty() {
                let full = queue.open.take();
                queue.full.extend(full);
                self.filled.notify_one();
            }
        }
        !std::mem::replace(&mut queue.is_running, true)
    }

    /// Sends what there is, until there's nothing.
    pub(super) fn run(self: Arc<Self>, cluster: Arc<Cluster>) -> impl Future<Output = ()> + Send + 'static {
        // Before the task begins: a runtime that ends may drop it unbegun.
        let begun = Running { lane: self, is_done: false };
        async move {
            let mut running = begun;
            running.lane.send_all(&cluster).await;
            running.is_done = true;
        }
    }

    async fn send_all(&self, cluster: &Cluster) {
        let mut packed = VecDeque::new();
        // The first goes alone: a broker that knows nothing of a producer takes any number, and so a later one before it.
        let mut way = Err(None);
        while let Some(parcel) = self.next(&mut packed).await {
            way = match way {
                Ok(link) => self.stream(link, parcel, &mut packed).await,
                Err(setback) => self.carry(parcel, setback, cluster, &mut packed).await,
            };
        }
    }

    /// The next batch to be sent; `None`: the task is over.
    async fn next(&self, packed: &mut VecDeque<Parcel>) -> Option<Parcel> {
        loop {
            if let Some(parcel) = packed.pop_front() {
                return Some(parcel);
            }
            let load = self.next_load()?;
            packed.extend(self.pack(load).await);
        }
    }

    /// The oldest batch there is, full or not; `None`: the task is over.
    fn next_load(&self) -> Option<Load<Batch>> {
        let mut queue = self.queue();
        let load = queue.full.pop_front().or_else(|| queue.open.take());
        if load.is_none() {
            *queue = Queue::default();
        }
        load
    }

    async fn pack(&self, load: Load<Batch>) -> Option<Parcel> {
        let (fate, count) = (load.fate.clone(), load.count);
        match load.pack(self.settings.compression).await {
            Ok((parcel, spare)) => {
                self.queue().spare = spare;
                Some(parcel)
            }
            Err(error) => {
                counter!(metric::BUS_APPEND_FAILURES).increment(count.into());
                let reason = format!("a batch can't be compressed: {error}").into();
                fate.send_replace(Some(Err(Failure::Unavailable(reason))));
                None
            }
        }
    }

    /// Sends this batch, and others beside it, as long as there are any. When something isn't well, what isn't stored goes back, in its
    /// order.
    async fn stream(&self, link: Link, first: Parcel, packed: &mut VecDeque<Parcel>) -> Way {
        packed.push_front(first);
        let mut flying = VecDeque::new();
        let way = loop {
            while flying.len() < WINDOW
                && let Some(mut parcel) = packed.pop_front()
            {
                let end = self.end_of(flying.front().map_or(&parcel, |(front, _)| front));
                match self.launch(&link, &mut parcel, end).await {
                    Some(answer) => flying.push_back((parcel, answer)),
                    None => {
                        packed.push_front(parcel);
                        break;
                    }
                }
            }
            let Some((parcel, answer)) = flying.front_mut() else {
                break if packed.is_empty() { Ok(link) } else { Err(None) };
            };
            let stored = tokio::select! {
                biased;
                answer = timeout_at(self.end_of(parcel), answer) => match answer {
                    Ok(answer) => self.read(answer),
                    Err(_) => Err(Trouble::passing("no answer yet")),
                },
                full = self.next_full() => {
                    packed.extend(self.pack(full).await);
                    continue;
                }
            };
            let outcome = match stored {
                Ok(offset) => Ok(offset),
                Err(Trouble::Final(failure)) => Err(failure),
                Err(Trouble::Unknown) => break Err(Some(Setback::now(UNKNOWN.into()))),
                Err(Trouble::Passing(reason)) => break Err(Some(Setback::now(reason))),
            };
            let is_well = outcome.is_ok();
            if let Some((parcel, _)) = flying.pop_front() {
                self.settle(parcel, outcome);
            }
            if !is_well {
                break Err(None);
            }
        };
        for (parcel, _) in flying.into_iter().rev() {
            packed.push_front(parcel);
        }
        way
    }

    /// Hands a batch to a link until that time. `None`: it wasn't.
    async fn launch(&self, link: &Link, parcel: &mut Parcel, end: Instant) -> Option<Answer> {
        if Instant::now() >= end {
            return None;
        }
        let stamp = self.stamp_of(parcel)?;
        timeout_at(end, link.produce(&self.at, parcel.batch.stamp(stamp))).await.ok()
    }

    /// Sends one batch, and packs those that get full meanwhile: a batch takes a fraction of its memory then, and is still in a cache.
    async fn carry(
        &self,
        mut parcel: Parcel,
        setback: Option<Setback>,
        cluster: &Cluster,
        packed: &mut VecDeque<Parcel>,
    ) -> Way {
        let delivered = {
            let mut delivery = pin!(self.deliver(&mut parcel, setback, cluster));
            loop {
                tokio::select! {
                    biased;
                    delivered = &mut delivery => break delivered,
                    full = self.next_full() => packed.extend(self.pack(full).await),
                }
            }
        };
        let (outcome, way) = match delivered {
            Ok((offset, link)) => (Ok(offset), Ok(link)),
            Err(failure) => (Err(failure), Err(None)),
        };
        self.settle(parcel, outcome);
        way
    }

    async fn next_full(&self) -> Load<Batch> {
        loop {
            if let Some(full) = self.queue().full.pop_front() {
                return full;
            }
            self.filled.notified().await;
        }
    }

    /// Until when a batch may be tried.
    fn end_of(&self, parcel: &Parcel) -> Instant {
        parcel.born + self.settings.delivery_timeout.0
    }

    /// Sends a batch until it's stored or can't be. Gives the offset of its first record, and the link that it went over.
    async fn deliver(
        &self,
        parcel: &mut Parcel,
        mut setback: Option<Setback>,
        cluster: &Cluster,
    ) -> Result<(u64, Link), Failure> {
        let end = self.end_of(parcel);
        if Instant::now() < end
            && let Ok(outcome) = timeout_at(end, self.persist(parcel, cluster, &mut setback)).await
        {
            return outcome;
        }
        let last = setback.map_or("it had to wait for others".into(), |setback| setback.reason);
        Err(Failure::Unavailable(format!("not stored within {}: {last}", self.settings.delivery_timeout).into()))
    }

    /// Tries again after what passes.
    async fn persist(
        &self,
        parcel: &mut Parcel,
        cluster: &Cluster,
        setback: &mut Option<Setback>,
    ) -> Result<(u64, Link), Failure> {
        let mut unknown_since = None;
        let mut pause = PAUSE;
        loop {
            let trouble = match self.attempt(parcel, cluster, setback.as_ref().map(|setback| setback.at)).await {
                Ok(stored) => return Ok(stored),
                Err(trouble) => trouble,
            };
            let now = Instant::now();
            let reason = match trouble {
                Trouble::Final(failure) => return Err(failure),
                Trouble::Unknown => {
                    if now - *unknown_since.get_or_insert(now) >= PROPAGATION {
                        return Err(Failure::Unknown);
                    }
                    UNKNOWN.into()
                }
                Trouble::Passing(reason) => {
                    unknown_since = None;
                    reason
                }
            };
            *setback = Some(Setback::now(reason));
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    /// Sends a batch once.
    async fn attempt(
        &self,
        parcel: &mut Parcel,
        cluster: &Cluster,
        failed: Option<Instant>,
    ) -> Result<(u64, Link), Trouble> {
        let link = cluster.leader(&self.at, failed).await?;
        let stamp = self.identify(parcel, cluster).await?;
        let answer = link.produce(&self.at, parcel.batch.stamp(stamp)).await;
        Ok((self.read(answer.await)?, link))
    }

    /// Tells all that wait for it what became of a batch.
    fn settle(&self, parcel: Parcel, outcome: Result<u64, Failure>) {
        let Parcel { batch, count, bytes, room, fate, .. } = parcel;
        if outcome.is_ok() {
            counter!(metric::BUS_APPENDED_RECORDS).increment(count.into());
            counter!(metric::BUS_APPENDED_BYTES).increment(bytes);
        } else {
            counter!(metric::BUS_APPEND_FAILURES).increment(count.into());
            if batch.stamped().is_some() {
                self.end(Validity::Over);
            }
        }
        drop(room); // before anybody hears of the outcome
        fate.send_replace(Some(outcome));
    }

    /// What an answer says: where a batch lies, or why not.
    fn read(&self, answer: Result<Result<Stored, Arc<str>>, RecvError>) -> Result<u64, Trouble> {
        let stored = answer.unwrap_or_else(|_| Err("the connection is gone".into())).map_err(Trouble::Passing)?;
        let Stored { code, offset, message, .. } = stored;
        let say = || {
            let text = if message.is_empty() { code.to_string() } else { format!("{code}: {message}") };
            Arc::from(text)
        };
        match code.meaning() {
            Meaning::Done => u64::try_from(offset).map_err(|_| {
                let reason = "records are said to be stored, but not where; they may not be";
                Trouble::Final(Failure::Unavailable(reason.into()))
            }),
            Meaning::Passing => Err(Trouble::Passing(say())),
            Meaning::Unknown => Err(Trouble::Unknown),
            Meaning::TooLarge => Err(Trouble::Final(Failure::TooLarge)),
            Meaning::Refused => Err(Trouble::Final(Failure::Refused(say()))),
            Meaning::Fenced => {
                self.end(Validity::Spent);
                Err(Trouble::Final(Failure::Unavailable(say())))
            }
            Meaning::Failed => Err(Trouble::Final(Failure::Unavailable(say()))),
        }
    }

    /// What a batch bears: what it did if it was sent before, else the next number. `None`: there's none under this epoch.
    fn stamp_of(&self, parcel: &Parcel) -> Option<Stamp> {
        let mut identity = self.identity();
        let Identity { next, .. } = identity.as_mut().filter(|identity| identity.state == Validity::Good)?;
        let is_of = |stamp: &Stamp| (stamp.producer, stamp.epoch) == (next.producer, next.epoch);
        if let Some(stamp) = parcel.batch.stamped().filter(is_of) {
            return Some(stamp);
        }
        let stamp = *next;
        next.sequence = after(stamp.sequence, parcel.count);
        Some(stamp)
    }

    /// The same under a new epoch where that is needed, and a new producer's number where there's no such.
    async fn identify(&self, parcel: &Parcel, cluster: &Cluster) -> Result<Stamp, Trouble> {
        loop {
            if let Some(stamp) = self.stamp_of(parcel) {
                return Ok(stamp);
            }
            let before = *self.identity();
            let next = match before {
                Some(Identity { next, state }) if state != Validity::Spent && next.epoch < i16::MAX => {
                    Stamp { epoch: next.epoch + 1, sequence: 0, ..next }
                }
                spent => {
                    let (producer, epoch) = cluster.producer(spent.map(|identity| identity.next.producer)).await?;
                    Stamp { producer, epoch, sequence: 0 }
                }
            };
            *self.identity() = Some(Identity { next, state: Validity::Good });
        }
    }

    /// Nothing more bears what batches bear now.
    fn end(&self, state: Validity) {
        if let Some(identity) = self.identity().as_mut().filter(|identity| identity.state == Validity::Good) {
            identity.state = state;
        }
    }

    fn identity(&self) -> MutexGuard<'_, Option<Identity>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Setback {
    fn now(reason: Arc<str>) -> Self {
        Self { at: Instant::now(), reason }
    }
}

/// The number of the record after so many: after the largest comes 0.
fn after(sequence: i32, count: u32) -> i32 {
    ((i64::from(sequence) + i64::from(count)) & i64::from(i32::MAX)) as i32
}

/// Ends with the task of a lane. If that was stopped, what it had fails, and the lane can have another.
struct Running {
    lane: Arc<Lane>,
    is_done: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_done {
            self.lane.end(Validity::Over);
            let dropped = std::mem::take(&mut *self.lane.queue());
            drop(dropped);
        }
    }
}
