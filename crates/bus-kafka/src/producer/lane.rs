//! The way of one partition's records into its log: in their order, each batch until Kafka has it or it's given up.
//!
//! At most one batch is under way, so that order is plain, and that nothing ever overtakes what is tried again. Meanwhile records
//! gather in the next one, which is how batches grow as load does, without waiting for more. A batch goes out with the same
//! number however often it's sent, by which Kafka stores it once. One that is given up may still lie in a broker that is frozen:
//! the next batch has a new epoch, and once that is stored Kafka refuses what bears the old one. That is how a record that failed
//! never appears behind the one that replaced it.
//!
//! A lane has a task while it has records, and nothing but a few numbers otherwise.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::{RecordRef, TopicPartition};
use logmesh_types::{UnixNanos, metric};
use metrics::counter;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::batch::{Batch, Packed, Stamp};
use super::cluster::Cluster;
use super::load::{Failure, Load, Share, Trouble};
use super::wire::{Meaning, Stored};
use crate::settings::Settings;

/// How long to wait before a batch is sent again: twice as long each time, up to a second.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long brokers may take to learn of a topic that was just made.
const PROPAGATION: Duration = Duration::from_secs(5);

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

/// What the next batch bears.
#[derive(Clone, Copy, Debug)]
struct Identity {
    stamp: Stamp,
    /// Something that bears it was sent, and isn't stored for sure.
    is_open: bool,
    /// Kafka doesn't take this number any more.
    is_spent: bool,
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
        loop {
            let Some(parcel) = packed.pop_front() else {
                let Some(load) = self.next_load() else { return };
                packed.extend(self.pack(load).await);
                continue;
            };
            self.carry(parcel, cluster, &mut packed).await;
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

    /// Sends one batch, and packs those that get full meanwhile: a batch takes a fraction of its memory then, and is still in a cache.
    async fn carry(&self, parcel: Parcel, cluster: &Cluster, packed: &mut VecDeque<Parcel>) {
        let Parcel { batch, count, bytes, born, room, fate } = parcel;
        let mut delivery = pin!(self.deliver(batch, count, born, cluster));
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut delivery => break outcome,
                full = self.next_full() => packed.extend(self.pack(full).await),
            }
        };
        match &outcome {
            Ok(_) => {
                counter!(metric::BUS_APPENDED_RECORDS).increment(count.into());
                counter!(metric::BUS_APPENDED_BYTES).increment(bytes);
            }
            Err(_) => counter!(metric::BUS_APPEND_FAILURES).increment(count.into()),
        }
        drop(room); // before anybody hears of the outcome
        fate.send_replace(Some(outcome));
    }

    async fn next_full(&self) -> Load<Batch> {
        loop {
            if let Some(full) = self.queue().full.pop_front() {
                return full;
            }
            self.filled.notified().await;
        }
    }

    /// Sends a batch until it's stored or can't be. Gives the offset of its first record.
    async fn deliver(&self, batch: Packed, count: u32, born: Instant, cluster: &Cluster) -> Result<u64, Failure> {
        let patience = self.settings.delivery_timeout;
        let (end, mut last) = (born + patience.0, Arc::from("it had to wait for others"));
        if Instant::now() < end
            && let Ok(outcome) = timeout_at(end, self.persist(batch, count, cluster, &mut last)).await
        {
            return outcome;
        }
        Err(Failure::Unavailable(format!("not stored within {patience}: {last}").into()))
    }

    /// Tries again after what passes.
    async fn persist(&self, batch: Packed, count: u32, cluster: &Cluster, last: &mut Arc<str>) -> Result<u64, Failure> {
        let mut sending = Sending { packed: Some(batch), bytes: Bytes::new() };
        let (mut failed, mut unknown_since) = (None, None);
        let mut pause = PAUSE;
        loop {
            let trouble = match self.attempt(&mut sending, cluster, failed).await {
                Ok(offset) => {
                    self.stored(count);
                    return Ok(offset);
                }
                Err(trouble) => trouble,
            };
            let now = Instant::now();
            match trouble {
                Trouble::Final(failure) => return Err(failure),
                Trouble::Unknown => {
                    if now - *unknown_since.get_or_insert(now) >= PROPAGATION {
                        return Err(Failure::Unknown);
                    }
                    *last = "unknown topic or partition".into();
                }
                Trouble::Passing(reason) => (*last, unknown_since) = (reason, None),
            }
            failed = Some(now);
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    /// Sends a batch once.
    async fn attempt(&self, sending: &mut Sending, cluster: &Cluster, failed: Option<Instant>) -> Result<u64, Trouble> {
        let link = cluster.leader(&self.at, failed).await?;
        if sending.packed.is_some() {
            let stamp = self.identify(cluster).await?;
            sending.stamp(stamp);
        }
        let stored = link.produce(&self.at, sending.bytes.clone()).await.map_err(Trouble::Passing)?;
        self.judge(&stored)
    }

    fn judge(&self, stored: &Stored) -> Result<u64, Trouble> {
        let Stored { code, offset, message, .. } = stored;
        let say = || {
            let text = if message.is_empty() { code.to_string() } else { format!("{code}: {message}") };
            Arc::from(text)
        };
        match code.meaning() {
            Meaning::Done => u64::try_from(*offset).map_err(|_| {
                let reason = "records are said to be stored, but not where; they may not be";
                Trouble::Final(Failure::Unavailable(reason.into()))
            }),
            Meaning::Passing => Err(Trouble::Passing(say())),
            Meaning::Unknown => Err(Trouble::Unknown),
            Meaning::TooLarge => Err(Trouble::Final(Failure::TooLarge)),
            Meaning::Refused => Err(Trouble::Final(Failure::Refused(say()))),
            Meaning::Fenced => {
                self.with_identity(|identity| identity.is_spent = true);
                Err(Trouble::Final(Failure::Unavailable(say())))
            }
            Meaning::Failed => Err(Trouble::Final(Failure::Unavailable(say()))),
        }
    }

    /// What the next batch bears: a new epoch if the last one wasn't stored for sure, and a new producer's number where there's
    /// no such.
    async fn identify(&self, cluster: &Cluster) -> Result<Stamp, Trouble> {
        let before = *self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = match before {
            Some(Identity { stamp, is_open: false, is_spent: false }) => stamp,
            Some(Identity { stamp, is_spent: false, .. }) if stamp.epoch < i16::MAX => {
                Stamp { epoch: stamp.epoch + 1, sequence: 0, ..stamp }
            }
            spent => {
                let (producer, epoch) = cluster.producer(spent.map(|identity| identity.stamp.producer)).await?;
                Stamp { producer, epoch, sequence: 0 }
            }
        };
        let identity = Identity { stamp, is_open: true, is_spent: false };
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity);
        Ok(stamp)
    }

    /// So many records are stored for sure.
    fn stored(&self, count: u32) {
        self.with_identity(|identity| {
            identity.is_open = false;
            identity.stamp.sequence = after(identity.stamp.sequence, count);
        });
    }

    fn with_identity(&self, change: impl FnOnce(&mut Identity)) {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch, which is stamped once, when there's somewhere to send it.
struct Sending {
    packed: Option<Packed>,
    bytes: Bytes,
}

impl Sending {
    fn stamp(&mut self, by: Stamp) {
        if let Some(packed) = self.packed.take() {
            self.bytes = packed.stamp(by);
        }
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
            let dropped = std::mem::take(&mut *self.lane.queue());
            drop(dropped);
        }
    }
}
