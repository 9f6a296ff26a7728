//! Which store this is. A store that was made anew counts its revisions anew: what an agent holds from the former one
//! may bear the same numbers and be something else. So each store has a random name, which agents are told.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use logmesh_runtime::{RetryPolicy, Tasks};
use logmesh_store::{ConfigStore, ConfigWatcher, Precondition, PrefixState, Revision, StoreError};
use rand::Rng;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::keys::INCARNATION;

/// The name of a store's incarnation, 32 hex digits.
pub(crate) type Incarnation = Arc<str>;

const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Follows the store's incarnation, and names the store if nobody has; `None` until it's known, and `first` has resolved. A
/// store that was made anew fails the task, and so takes the process down: what is kept here by the revisions of the former
/// one, such as compiled rules and agents, means nothing any more, and the next process has none of it.
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
            () = token.cancelled() => Ok(()),
            () = driver => Ok(()),
            ended = async { first.await; publish(store, watcher.subscribe(), sender).await } => ended,
        }
    });
    known
}

async fn publish(
    store: Arc<dyn ConfigStore>,
    mut states: watch::Receiver<Arc<PrefixState>>,
    sender: watch::Sender<Option<Incarnation>>,
) -> anyhow::Result<()> {
    let mut reached = Revision(0);
    states.mark_changed();
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        if !state.is_loaded() {
            continue;
        }
        let at = state.revision;
        ensure!(
            at >= reached,
            "the store went back from revision {reached} to {at}: it was made anew, or restored from a backup (see \
             docs/decisions/0016); its state is read anew by the next process"
        );
        reached = at;
        let held = state.entries.get(INCARNATION).map(|held| String::from_utf8_lossy(&held.value).into_owned());
        match held.filter(|name| !name.is_empty()) {
            Some(name) => {
                let same = sender.borrow().as_ref().is_none_or(|known| **known == *name);
                ensure!(same, "the store was made anew, it is {name} now; its state is read anew by the next process");
                sender.send_if_modified(|known| known.replace(Incarnation::from(name)).is_none());
            }
            // Its watcher shows the name that was written, ours or that of a server which was faster.
            None => name_store(store.as_ref()).await,
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use logmesh_store_embedded::{EmbeddedStore, Options};

    use super::*;

    #[tokio::test]
    async fn another_name_ends_the_process_and_is_told_to_nobody() {
        const PATIENCE: Duration = Duration::from_secs(30);
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&folder.path().join("config.redb"), Options::default()).unwrap();
        let (store, tasks): (Arc<dyn ConfigStore>, _) = (Arc::new(store), Tasks::new());
        let mut known = follow(store.clone(), async {}, &tasks);
        let first = known.wait_for(Option::is_some).await.unwrap().clone();
        store.put(INCARNATION, "another".into(), Precondition::None).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, tasks.finish(PATIENCE)).await.expect("in time").unwrap_err();
        assert!(ended.to_string().contains("made anew, it is another now"), "{ended}");
        assert_eq!(*known.borrow(), first);
    }
}
