//! The latest state of a prefix, always at hand: who reads it sees states, never a queue of events.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use logmesh_runtime::RetryPolicy;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{Change, ConfigStore, Revision, Snapshot, StoreError, Versioned, WatchError};

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(100), max: Duration::from_secs(2) };

/// A watch that lived this long is of a store that's there: a silent one would have been noticed.
const SETTLED: Duration = Duration::from_secs(10);

/// Changes that are put together before a state is published, so that a burst costs one state.
const MAX_COALESCED: usize = 256;

/// All that a prefix holds at one revision.
#[derive(Clone, Debug, Default)]
pub struct PrefixState {
    /// The revision, 0 until the prefix was first read.
    pub revision: Revision,
    /// The entries by key.
    pub entries: BTreeMap<String, Versioned>,
}

impl PrefixState {
    /// Whether the prefix has been read at all.
    pub fn is_loaded(&self) -> bool {
        self.revision > Revision(0)
    }

    fn apply(&mut self, change: Change) {
        self.revision = change.revision;
        for key_change in change.keys {
            match key_change.value {
                Some(value) => self.entries.insert(key_change.key, value),
                None => self.entries.remove(&key_change.key),
            };
        }
    }
}

impl From<Snapshot> for PrefixState {
    fn from(snapshot: Snapshot) -> Self {
        let entries = snapshot.entries.into_iter().map(|entry| (entry.key, entry.versioned)).collect();
        Self { revision: snapshot.revision, entries }
    }
}

/// Follows a prefix, level-triggered: a reader who was slow finds the newest state and never those between.
///
/// Revisions only grow, unless the store was made anew, and every published state was the store's at its revision. While the
/// store is away, the last state stays. What was compacted or lost is made good by reading the prefix anew.
#[derive(Clone, Debug)]
pub struct ConfigWatcher {
    states: watch::Receiver<Arc<PrefixState>>,
}

impl ConfigWatcher {
    /// A watcher and the future that drives it, which the caller spawns as a task. The future ends when no watcher is
    /// left.
    pub fn new(store: Arc<dyn ConfigStore>, prefix: impl Into<String>) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, states) = watch::channel(Arc::new(PrefixState::default()));
        let driver = Driver { store, prefix: prefix.into(), sender };
        (Self { states }, driver.run())
    }

    /// The latest state; not loaded until the store was first reached.
    pub fn latest(&self) -> Arc<PrefixState> {
        self.states.borrow().clone()
    }

    /// A channel that always holds the latest state.
    pub fn subscribe(&self) -> watch::Receiver<Arc<PrefixState>> {
        self.states.clone()
    }

    /// Waits for a state of `revision` or later, as after an own write; [`Revision`] 1 waits for the first one. An error
    /// means that the driver was stopped.
    pub async fn reached(&self, revision: Revision) -> Result<Arc<PrefixState>, StoreError> {
        let mut states = self.states.clone();
        let state = states.wait_for(|state| state.is_loaded() && state.revision >= revision).await;
        state.map(|state| state.clone()).map_err(|_| StoreError::unavailable("its watcher has stopped"))
    }
}

struct Driver {
    store: Arc<dyn ConfigStore>,
    prefix: String,
    sender: watch::Sender<Arc<PrefixState>>,
}

impl Driver {
    async fn run(self) {
        tokio::select! {
            () = self.sender.closed() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let mut must_list = true;
        let mut outage = Outage::default();
        loop {
            let ended = if must_list { self.list().await } else { self.watch(&mut outage).await };
            match ended {
                Ok(()) => {
                    must_list = false;
                    outage.is_over(&self.prefix);
                    continue;
                }
                Err(WatchError::Compacted { oldest }) => {
                    info!(prefix = %self.prefix, %oldest, "reading the prefix anew after a compaction");
                    must_list = true;
                }
                Err(WatchError::Lost(error)) => outage.goes_on(&self.prefix, &error),
            }
            tokio::time::sleep(outage.pause()).await;
        }
    }

    async fn list(&self) -> Result<(), WatchError> {
        let snapshot = self.store.list(&self.prefix).await.map_err(WatchError::Lost)?;
        self.sender.send_replace(Arc::new(snapshot.into()));
        Ok(())
    }

    /// Publishes changes after the present state until the watch ends, which is always an error.
    async fn watch(&self, outage: &mut Outage) -> Result<(), WatchError> {
        let mut changes = self.store.watch(&self.prefix, self.revision()).ready_chunks(MAX_COALESCED);
        let mut settled = pin!(tokio::time::sleep(SETTLED));
        loop {
            let ready = tokio::select! {
                ready = changes.next() => ready,
                () = &mut settled, if outage.attempts > 0 => {
                    outage.is_over(&self.prefix);
                    continue;
                }
            };
            let without_error = || WatchError::Lost(StoreError::unavailable("the watch ended without an error"));
            self.publish(ready.ok_or_else(without_error)?)?;
            outage.is_over(&self.prefix);
        }
    }

    /// Publishes the state after all the changes that came, and then says how the watch ended if it did.
    fn publish(&self, ready: Vec<Result<Change, WatchError>>) -> Result<(), WatchError> {
        let mut state = PrefixState::clone(&self.sender.borrow());
        let mut ended = Ok(());
        for change in ready {
            match change {
                Ok(change) => state.apply(change),
                Err(error) => ended = Err(error),
            }
        }
        if state.revision > self.revision() {
            self.sender.send_replace(Arc::new(state));
        }
        ended
    }

    fn revision(&self) -> Revision {
        self.sender.borrow().revision
    }
}

/// Failures in a row: they are paced, and an outage is told once and not at every attempt.
#[derive(Default)]
struct Outage {
    attempts: u32,
    told: bool,
}

impl Outage {
    fn goes_on(&mut self, prefix: &str, error: &StoreError) {
        if self.told {
            debug!(%prefix, %error, "still cannot follow the config store");
        } else {
            warn!(%prefix, %error, "cannot follow the config store; trying again until it is back");
            self.told = true;
        }
    }

    fn is_over(&mut self, prefix: &str) {
        if self.told {
            info!(%prefix, "following the config store again");
        }
        *self = Self::default();
    }

    /// The wait before the next attempt.
    fn pause(&mut self) -> Duration {
        let pause = RETRY.delay(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause
    }
}
