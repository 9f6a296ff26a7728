//! The config store: a small linearizable key-value store with revisions, watches and leases, in etcd's model.
//!
//! Two things implement [`ConfigStore`]: `logmesh-store-embedded` on one local file, and etcd. Services name neither;
//! they are handed an `Arc<dyn ConfigStore>`. What an implementation owes is written on the trait and tested by
//! [`conformance`]. Built above the trait, once for all implementations: [`ConfigWatcher`], the latest state of a
//! prefix, and [`Election`], one leader at a time.

#[cfg(feature = "test-util")]
pub mod conformance;
mod election;
mod error;
mod model;
mod store;
mod watcher;

pub use election::{Election, Leader, Leadership};
pub use error::{StoreError, WatchError};
pub use model::{
    Change, Entry, KeyChange, Lease, LeaseId, MAX_KEY_BYTES, MAX_LEASE_TTL, MAX_TXN_OPS, MAX_VALUE_BYTES, Op,
    Precondition, Revision, Snapshot, Txn, Versioned,
};
pub use store::{ChangeStream, ConfigStore};
pub use watcher::{ConfigWatcher, PrefixState};
