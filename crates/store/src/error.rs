//! What can go wrong with a store, told apart by what the caller can do about it.

use std::error::Error;

use crate::{LeaseId, Revision};

/// Why an operation wasn't done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition of the transaction doesn't hold, so that nothing was written. Read again and decide anew.
    #[error("key `{key}` is not as the write expects it: {}", describe_actual(.actual))]
    PreconditionFailed {
        /// The first key whose condition failed.
        key: String,
        /// The revision that last wrote it; `None`: it doesn't exist.
        actual: Option<Revision>,
    },
    /// The lease was never granted, was revoked or has ended. Its keys are gone; ask for a new one.
    #[error("lease {0} does not exist or has ended")]
    LeaseNotFound(LeaseId),
    /// The request itself can't be done: a limit is exceeded, a key written twice.
    #[error("{0}")]
    Invalid(String),
    /// The store can't be reached, or is shutting down. Whether a write was done is *unknown*.
    #[error("the config store is not available: {reason}")]
    Unavailable {
        /// What happened, for people.
        reason: String,
        /// The cause beneath.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// The store doesn't let this user in, or not to this key. Once a human has put that right, the same call succeeds.
    #[error("the config store refuses this user: {0}")]
    Denied(String),
    /// The store's disk or its data is damaged or full. A human has to act; whether a write was done is *unknown*.
    #[error("the config store failed to read or write its data")]
    Storage(#[source] Box<dyn Error + Send + Sync>),
}

fn describe_actual(actual: &Option<Revision>) -> String {
    match actual {
        Some(revision) => format!("it was last written at revision {revision}"),
        None => "it does not exist".to_owned(),
    }
}

impl StoreError {
    /// An [`StoreError::Unavailable`] without a cause beneath.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), source: None }
    }

    /// Whether the same call may succeed later without anyone's doing.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Denied(_))
    }
}

/// Why a watch ended. Both are the end of its stream.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Changes that the watch should have shown next have been compacted away. List the prefix anew, and watch after the
    /// revision of that.
    #[error("the changes before revision {oldest} have been compacted")]
    Compacted {
        /// The revision of the compaction. A watch after this one or a later one works.
        oldest: Revision,
    },
    /// The connection to the store, or the store, went away. Watch again after the last revision seen.
    #[error("the watch was lost")]
    Lost(#[source] StoreError),
}
