//! Which store this is. A store that was made anew counts its revisions anew: what an agent holds from the former one
//! may bear the same numbers and be something else. So each store has a random name, which agents are told.

use std::sync::Arc;
use std::time::Duration;

use logmesh_runtime::{RetryPolicy, Tasks};
use logmesh_store::{ConfigStore, ConfigWatcher, Precondition, PrefixState, StoreError};
use rand::Rng;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::keys::INCARNATION;

/// The name of a store's incarnation, 32 hex digits.
pub(crate) type Incarnation = Arc<str>;

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Follows the store's incarnation, and names the store if nobody has; `None` until it's known, and `first` has resolved.
pub(crate) fn follow(
    store: Arc<dyn ConfigStore>,
    first: impl Future<Output = ()> + Send + 'static,
    tasks: &Tasks,
) -> watch::Receiver<Option<Incarnation>> {
    let (watcher, driver) = ConfigWatcher::new(store.clone(), INCARNATION);
    let (sender, known) = watch::channel(None);
    let token = tasks.token();
    tasks.spawn("config-incarnation", async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = driver => {}
            () = async { first.await; publish(store, watcher.subscribe(), sender).await } => {}
        }
        Ok(())
    });
    known
}

async fn publish(
    store: Arc<dyn ConfigStore>,
    mut states: watch::Receiver<Arc<PrefixState>>,
    sender: watch::Sender<Option<Incarnation>>,
) {
    states.mark_changed();
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        if !state.is_loaded() {
            continue;
        }
        let held = state.entries.get(INCARNATION).map(|held| String::from_utf8_lossy(&held.value).into_owned());
        match held.filter(|name| !name.is_empty()) {
            Some(name) => {
                let name = Some(Incarnation::from(name));
                sender.send_if_modified(|known| std::mem::replace(known, name.clone()) != name);
            }
            // Its watcher shows the name that was written, ours or that of a server which was faster.
            None => name_store(store.as_ref()).await,
        }
    }
}

/// Names a store that has no name, however long it takes.
async fn name_store(store: &dyn ConfigStore) {
    let name = format!("{:032x}", rand::rng().random::<u128>());
    let mut attempt = 0;
    loop {
        match store.put(INCARNATION, name.clone().into(), Precondition::MustNotExist).await {
            Ok(_) => return info!(incarnation = %name, "this store is new"),
            Err(StoreError::PreconditionFailed { .. }) => return,
            Err(error) if attempt == 0 => warn!(%error, "cannot name the store; trying again"),
            Err(_) => {}
        }
        tokio::time::sleep(RETRY.delay(attempt)).await;
        attempt += 1;
    }
}
