//! The words of the store: revisions, entries, transactions and changes.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::StoreError;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// The largest value, in bytes (etcd refuses requests of more than 1.5 MiB).
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The most conditions, and the most operations, in one transaction (etcd's default).
pub const MAX_TXN_OPS: usize = 128;

/// The longest time to live of a lease: a day. A holder that's away for longer should ask anew.
pub const MAX_LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A point in the store's history. Each transaction that changes something makes one revision, greater than all before;
/// they need not follow on each other by one. The first revision of an empty store is at least 1, so that 0 is free to
/// mean "before everything".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a lease, chosen by the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A lease as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// How long it lives after being granted or kept alive. At least what was asked for: a store may round up.
    pub ttl: Duration,
}

/// A value with its place in history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The revision that last wrote the key.
    pub mod_revision: Revision,
    /// The lease whose end deletes the key.
    pub lease: Option<LeaseId>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub versioned: Versioned,
}

/// All keys of a prefix at one revision, in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision at which this was so. A watch after it misses nothing.
    pub revision: Revision,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// All that one revision changed beneath a watched prefix, or a bookmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision.
    pub revision: Revision,
    /// Its changes, each key once, in the order of the keys' bytes. Empty in a bookmark: every change up to the revision
    /// has been shown, and a watch after it misses nothing. A store that compacts by itself sends one now and then, so
    /// that a watch to which nothing happens can be resumed; others need not.
    pub keys: Vec<KeyChange>,
}

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The key.
    pub key: String,
    /// What it holds now; `None`: it was deleted, or its lease ended.
    pub value: Option<Versioned>,
}

/// What must be true of a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    None,
    /// The key doesn't exist.
    MustNotExist,
    /// The key exists and was last written by this revision.
    RevisionIs(Revision),
}

impl Precondition {
    /// Whether it holds for a key that was last written at `actual`, or doesn't exist.
    pub fn holds(self, actual: Option<Revision>) -> bool {
        match self {
            Self::None => true,
            Self::MustNotExist => actual.is_none(),
            Self::RevisionIs(expected) => actual == Some(expected),
        }
    }
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets the key. Its binding to a lease becomes the one given, or none.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease that it shall end with.
        lease: Option<LeaseId>,
    },
    /// Removes the key; no change if it doesn't exist.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    /// The key that it writes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// A transaction: if every condition holds, all operations happen, in one revision; otherwise none does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions, by key.
    pub conditions: Vec<(String, Precondition)>,
    /// The writes; a key at most once.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, precondition: Precondition) -> Self {
        self.conditions.push((key.into(), precondition));
        self
    }

    /// Sets a key that lives until it's deleted.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Sets a key that lives as long as `lease`.
    #[must_use]
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Checks the limits that hold in every implementation, before anything is done.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.conditions.len() > MAX_TXN_OPS || self.ops.len() > MAX_TXN_OPS {
            return Err(StoreError::Invalid(format!("a transaction takes at most {MAX_TXN_OPS} operations")));
        }
        let mut keys = BTreeSet::new();
        for op in &self.ops {
            check_key(op.key())?;
            if !keys.insert(op.key()) {
                return Err(StoreError::Invalid(format!("key `{}` is written twice in one transaction", op.key())));
            }
            if let Op::Put { key, value, .. } = op
                && value.len() > MAX_VALUE_BYTES
            {
                let length = value.len();
                return Err(StoreError::Invalid(format!(
                    "the value of `{key}` has {length} bytes; at most {MAX_VALUE_BYTES} are taken"
                )));
            }
        }
        self.conditions.iter().try_for_each(|(key, _)| check_key(key))
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        0 => Err(StoreError::Invalid("a key must not be empty".to_owned())),
        1..=MAX_KEY_BYTES => Ok(()),
        length => Err(StoreError::Invalid(format!("a key has {length} bytes; at most {MAX_KEY_BYTES} are taken"))),
    }
}
