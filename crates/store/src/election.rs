//! One leader at a time, from a lease and a key that must not exist. A lock is the same thing: whoever wants it campaigns,
//! holds it beside its work, and resigns.
//!
//! A leader that lost touch with the store can't know at once that another took over. So what only the leader may write
//! is written in a transaction with [`Leadership::condition`]: a write of a former leader is then refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tracing::debug;

use crate::{ConfigStore, Lease, Precondition, Revision, StoreError, Txn};

/// The pause after a lost watch or a failed keep-alive.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// An office that at most one candidate holds.
#[derive(Clone, Debug)]
pub struct Election {
    store: Arc<dyn ConfigStore>,
    key: String,
    ttl: Duration,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// What it called itself when it campaigned.
    pub candidate: String,
    /// The revision at which it was elected; each leader's is greater than those before.
    pub revision: Revision,
}

/// The office as held. It ends `ttl` after the last keep-alive, which [`Leadership::hold`] sends.
#[derive(Debug)]
pub struct Leadership {
    election: Election,
    lease: Lease,
    revision: Revision,
}

impl Election {
    /// The election whose leader is written at `key`. A leader that dies is followed by another after `ttl`.
    pub fn new(store: Arc<dyn ConfigStore>, key: impl Into<String>, ttl: Duration) -> Self {
        Self { store, key: key.into(), ttl }
    }

    /// Who leads now, or `None`.
    pub async fn leader(&self) -> Result<Option<Leader>, StoreError> {
        let versioned = self.store.get(&self.key).await?;
        Ok(versioned.map(|versioned| Leader {
            candidate: String::from_utf8_lossy(&versioned.value).into_owned(),
            revision: versioned.mod_revision,
        }))
    }

    /// Waits until the office is free and takes it. Dropping the future gives up; a lease that it was about to use ends
    /// by itself. Errors that [`StoreError::retryable`] says may pass are passed on, so that the caller paces retries.
    pub async fn campaign(&self, candidate: &str) -> Result<Leadership, StoreError> {
        loop {
            // A list says at which revision the office is held. The holder's own may have been compacted long ago.
            let seen = self.store.list(&self.key).await?;
            if seen.entries.iter().any(|entry| entry.key == self.key) {
                self.wait_for_change(seen.revision).await;
            } else if let Some(leadership) = self.try_take(candidate).await? {
                return Ok(leadership);
            }
        }
    }

    async fn try_take(&self, candidate: &str) -> Result<Option<Leadership>, StoreError> {
        let lease = self.store.grant_lease(self.ttl).await?;
        let txn = Txn::new().when(&self.key, Precondition::MustNotExist).put_leased(
            &self.key,
            candidate.to_owned(),
            lease.id,
        );
        match self.store.txn(txn).await {
            Ok(revision) => Ok(Some(Leadership { election: self.clone(), lease, revision })),
            Err(StoreError::PreconditionFailed { .. }) => self.store.revoke_lease(lease.id).await.map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Returns when the key changed after `revision`, or the watch ended: the caller looks again.
    async fn wait_for_change(&self, revision: Revision) {
        let mut changes = self.store.watch(&self.key, revision);
        loop {
            match changes.next().await {
                Some(Ok(change)) => {
                    if change.keys.iter().any(|key_change| key_change.key == self.key) {
                        return;
                    }
                }
                Some(Err(error)) => {
                    debug!(key = %self.key, %error, "lost the watch of an election");
                    return tokio::time::sleep(RETRY_PAUSE).await;
                }
                None => return tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }
}

impl Leadership {
    /// The revision of this leadership: greater than that of every leader before.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The condition that holds as long as this leadership does, to be added to the leader's own transactions.
    pub fn condition(&self) -> (String, Precondition) {
        (self.election.key.clone(), Precondition::RevisionIs(self.revision))
    }

    /// How long the office is held after a sign of life.
    pub fn ttl(&self) -> Duration {
        self.lease.ttl
    }

    /// Begins the office's time anew, for a leader who gives signs of life by other ways than [`Leadership::hold`].
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`]: the office is lost.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        self.election.store.keep_alive(self.lease.id).await.map(drop)
    }

    /// Keeps the office; returns when it's lost. The leader's work runs beside it and stops when it returns.
    pub async fn hold(&self) {
        let mut alive = Instant::now();
        let mut pause = self.lease.ttl / 3;
        loop {
            let left = self.lease.ttl.saturating_sub(alive.elapsed());
            tokio::time::sleep(pause.min(left)).await;
            let asked = Instant::now();
            let left = self.lease.ttl.saturating_sub(alive.elapsed());
            match tokio::time::timeout(left, self.election.store.keep_alive(self.lease.id)).await {
                Ok(Ok(ttl)) => (alive, pause) = (asked, ttl / 3),
                Ok(Err(error)) if error.retryable() && !left.is_zero() => pause = RETRY_PAUSE,
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Gives up the office now.
    pub async fn resign(self) -> Result<(), StoreError> {
        self.election.store.revoke_lease(self.lease.id).await
    }
}
