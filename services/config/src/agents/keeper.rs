//! Keeps what is known of agents in the store: only what is new or changed, many at a time, and nobody waits for it.
//!
//! While the store is away or full, agents are served all the same; it's written when that is over.

use std::sync::Arc;
use std::time::Duration;

use logmesh_runtime::{CancellationToken, RetryPolicy, Tasks};
use logmesh_store::{ConfigStore, ConfigWatcher, Precondition, Revision, StoreError, Txn};
use logmesh_types::metric;
use metrics::counter;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::registry::{Registry, Unsaved};
use super::stored::seen_step;
use crate::keys;
use crate::limits::{GATHER, MAX_AGENT_BYTES, MAX_AGENTS_WRITTEN};
use crate::settings::Settings;

/// How it's tried again while the store is away or full.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(30) };

/// How often it's looked for agents whose time in the store has become old, at least.
const LOOK_FOR_OLD: Duration = Duration::from_secs(600);

/// How far what the store keeps of agents was taken in: the store's revision, 0 until it was read.
#[derive(Clone, Debug)]
pub(crate) struct Kept(watch::Receiver<Revision>);

impl Kept {
    /// Waits until this revision was taken in; 1 waits for the first one.
    pub(crate) async fn wait(&self, revision: Revision) {
        let mut kept = self.0.clone();
        // An error means that the process ends.
        drop(kept.wait_for(|kept| *kept >= revision.max(Revision(1))).await);
    }
}

/// Moves agents between the registry and the store.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Arc<dyn ConfigStore>,
    registry: Registry,
    /// How old an agent's time in the store may be.
    seen_step: Duration,
}

impl Keeper {
    /// Begins to read and to write, until the tasks are asked to end.
    pub(crate) fn start(store: Arc<dyn ConfigStore>, registry: Registry, settings: &Settings, tasks: &Tasks) -> Kept {
        let (watcher, driver) = ConfigWatcher::new(store.clone(), keys::AGENTS);
        let (sender, kept) = watch::channel(Revision(0));
        let (token, reader) = (tasks.token(), registry.clone());
        tasks.spawn("config-agents", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = driver => {}
                () = read(reader, watcher, sender) => {}
            }
            Ok(())
        });
        let keeper = Self { store, registry, seen_step: seen_step(settings.agent_retention.0) };
        tasks.spawn("config-agents-writer", keeper.write(tasks.token()));
        Kept(kept)
    }

    /// Writes what the store lacks until the token is cancelled.
    async fn write(self, token: CancellationToken) -> anyhow::Result<()> {
        let mut failed = 0;
        // It comes however often something else is to be written.
        let mut look = tokio::time::interval(LOOK_FOR_OLD.min(self.seen_step / 2));
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = self.registry.unsaved() => {}
                _ = look.tick() => self.registry.look_for_old(),
            }
            loop {
                // Agents that come together are written together.
                let pause = if failed == 0 { GATHER } else { GATHER + RETRY.delay(failed) };
                tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    () = tokio::time::sleep(pause) => {}
                }
                let batch = self.registry.take_unsaved(MAX_AGENTS_WRITTEN);
                if batch.is_empty() {
                    break;
                }
                failed = match self.write_batch(batch).await {
                    Ok(()) => recovered(failed),
                    Err(error) => told(failed, &error),
                };
            }
        }
    }

    /// Writes these agents in one transaction. Where somebody else wrote one of them first, what they wrote is taken in
    /// before the next attempt.
    async fn write_batch(&self, batch: Vec<Unsaved>) -> Result<(), StoreError> {
        let mut txn = Txn::new();
        for one in &batch {
            let key = keys::agent(&one.id);
            let condition = one.former.map_or(Precondition::MustNotExist, Precondition::RevisionIs);
            txn = txn.when(&key, condition).put(&key, one.to_json());
        }
        let count = batch.len();
        match self.store.txn(txn).await {
            Ok(revision) => {
                debug!(agents = count, %revision, "agents written");
                counter!(metric::CONFIG_AGENTS_WRITTEN).increment(count as u64);
                counter!(metric::CONFIG_AGENT_WRITES).increment(1);
                self.registry.saved(batch, revision);
                Ok(())
            }
            Err(StoreError::PreconditionFailed { key, .. }) => {
                let held = self.store.get(&key).await?;
                if let Some(id) = keys::agent_of(&key) {
                    self.registry.keep_one(&id, held.as_ref());
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Takes in what the store keeps, at once and at each change.
async fn read(registry: Registry, watcher: ConfigWatcher, kept: watch::Sender<Revision>) {
    let mut states = watcher.subscribe();
    states.mark_changed();
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        if state.is_loaded() {
            registry.keep_all(&state);
            kept.send_replace(state.revision);
        }
    }
}

impl Unsaved {
    /// Its record. One of very many labels is kept without the host's, which come again with the agent.
    fn to_json(&self) -> Vec<u8> {
        let json = serde_json::to_vec(&*self.record).unwrap_or_default();
        if json.len() <= MAX_AGENT_BYTES {
            return json;
        }
        let short = super::stored::StoredAgent { host_labels: Default::default(), ..(*self.record).clone() };
        serde_json::to_vec(&short).unwrap_or_default()
    }
}

fn recovered(failed: u32) -> u32 {
    if failed > 0 {
        info!("agents are written to the store again");
    }
    0
}

fn told(failed: u32, error: &StoreError) -> u32 {
    if failed == 0 {
        let error = logmesh_runtime::telemetry::chain(error);
        warn!(%error, "agents can't be written to the store; they are served all the same, and written later");
    }
    failed + 1
}
