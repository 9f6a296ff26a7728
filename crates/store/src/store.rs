//! The trait, with the contract that the conformance suite tests.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{Change, Lease, LeaseId, Precondition, Revision, Snapshot, StoreError, Txn, Versioned, WatchError};

/// The changes of a watch. It ends after an error, and only then.
pub type ChangeStream = BoxStream<'static, Result<Change, WatchError>>;

/// A linearizable key-value store with revisions.
///
/// - **Linearizable**: a read sees every write that was answered before the read began, from whichever process.
/// - **Durable**: a write that was answered survives `kill -9` of every process.
/// - **Atomic**: a transaction happens whole, in one revision, or not at all; a change shows it whole.
/// - **Ordered**: each revision is greater than all before it.
///
/// Calls may be made from many tasks at once. A dropped call may or may not happen; the store stays whole.
#[async_trait]
pub trait ConfigStore: Debug + Send + Sync + 'static {
    /// What a key holds, or `None`.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// All keys that begin with `prefix` as they are at one revision. The empty prefix means every key.
    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError>;

    /// The keys that begin with `prefix`, without what they hold, in the order of their bytes.
    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        Ok(self.list(prefix).await?.entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Does all operations in one revision if all conditions hold, and answers with the revision. Otherwise nothing is
    /// done, and [`StoreError::PreconditionFailed`] names the first key whose condition failed. A transaction that
    /// changes nothing (no operation, or the deletion of nothing) makes no revision and answers with the present one.
    /// A put always changes something, even if the value is the same.
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// Sets one key, which no lease ends.
    async fn put(&self, key: &str, value: Bytes, precondition: Precondition) -> Result<Revision, StoreError> {
        self.txn(Txn::new().when(key, precondition).put(key, value)).await
    }

    /// Deletes one key.
    async fn delete(&self, key: &str, precondition: Precondition) -> Result<Revision, StoreError> {
        self.txn(Txn::new().when(key, precondition).delete(key)).await
    }

    /// Every change beneath `prefix` with a revision greater than `after`: each once, in order, none left out. Where one
    /// was compacted away before it was shown, the stream says [`WatchError::Compacted`] instead of leaving it out. To
    /// resume, watch again after the last revision seen. `after` may lie in the future; a store that isn't so far and may
    /// have been made anew says [`WatchError::Compacted`]. A [`Change`] without keys is a bookmark, and no change.
    ///
    /// A slow reader costs no memory but a bounded buffer. A store that went silent is noticed within 10 s and ends the
    /// stream with [`WatchError::Lost`].
    fn watch(&self, prefix: &str, after: Revision) -> ChangeStream;

    /// Gives up the changes before `revision`, which must not lie in the future. What keys hold isn't touched. Afterwards
    /// `watch` after `revision` or later works, and after `revision - 2` or earlier doesn't. Compacting at or below an
    /// earlier compaction does nothing.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// Grants a lease that lives for `ttl` or a little longer (whole seconds, say), and anew from each keep-alive. When
    /// it ends, the keys bound to it are deleted, all in one revision. It's never ended early; a restart of the store
    /// begins its time anew. `ttl` is more than zero and at most [`MAX_LEASE_TTL`](crate::MAX_LEASE_TTL).
    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// Begins the lease's time anew and answers with it, or with [`StoreError::LeaseNotFound`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease now, and deletes the keys bound to it. No error if it has ended already.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;
}
