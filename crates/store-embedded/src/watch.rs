//! Watches: each is a place in history and nothing else, so that a slow one costs no memory.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use futures::StreamExt;
use logmesh_store::{Change, ChangeStream, Revision, StoreError, WatchError};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::error::storage;
use crate::read::{self, History};
use crate::{MAX_WATCHES, Shared};

/// The most that one read of history takes into memory, in keys and in bytes (and one revision more).
const MAX_ROWS: usize = 512;
const MAX_BYTES: usize = 1 << 20;

/// The changes of `prefix` after a revision. It ends with `Lost` when the store is dropped.
pub(crate) fn stream(shared: &Arc<Shared>, prefix: String, after: Revision) -> ChangeStream {
    let Ok(permit) = shared.watches.clone().try_acquire_owned() else {
        let reason = format!("there are {MAX_WATCHES} watches already, which is the limit");
        return futures::stream::iter([Err(WatchError::Lost(StoreError::unavailable(reason)))]).boxed();
    };
    let watch = Watch {
        shared: Arc::downgrade(shared),
        committed: shared.revision.subscribe(),
        prefix,
        seen: after,
        ready: VecDeque::new(),
        _permit: permit,
    };
    futures::stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(change) => Some((Ok(change), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct Watch {
    /// Weak, so that a forgotten watch doesn't keep the file open.
    shared: Weak<Shared>,
    committed: watch::Receiver<Revision>,
    prefix: String,
    /// Every change up to here was read.
    seen: Revision,
    ready: VecDeque<Change>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    async fn next(&mut self) -> Result<Change, WatchError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            let seen = self.seen;
            let wait = self.committed.wait_for(|committed| *committed > seen).await.map(|_| ());
            wait.map_err(|_| WatchError::Lost(closed()))?;
            match self.read().await.map_err(WatchError::Lost)? {
                History::Changes { changes, through } => (self.ready, self.seen) = (changes.into(), through),
                History::Compacted { oldest } => return Err(WatchError::Compacted { oldest }),
            }
        }
    }

    async fn read(&self) -> Result<History, StoreError> {
        let shared = self.shared.upgrade().ok_or_else(closed)?;
        let (prefix, seen) = (self.prefix.clone(), self.seen);
        let read = move |database: &_| read::history(database, &prefix, seen, MAX_ROWS, MAX_BYTES);
        tokio::task::spawn_blocking(move || shared.disk.with(read)).await.map_err(|_| closed())?.map_err(storage)
    }
}

fn closed() -> StoreError {
    StoreError::unavailable("the embedded store has stopped")
}
