//! Why a store can't be opened, and how redb's errors look to callers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use logmesh_store::StoreError;

/// Why the file can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store of this one, holds the file.
    #[error("the config store `{path}` is in use by another process; stop that one or choose another data folder")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Another version of the program wrote it.
    #[error(
        "the config store `{path}` has data version {found}, this program reads {expected}; use the program that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// This program's.
        expected: u64,
    },
    /// It holds something else.
    #[error("`{path}` is not a config store; choose another data folder or move the file away")]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// Its bytes aren't those that were written.
    #[error(
        "the config store `{path}` is damaged ({found}); put a copy in its place, or move it away to begin with an empty one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// It can't be read or written.
    #[error("failed to open the config store `{path}`")]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// The writer's thread can't be made.
    #[error("failed to start the config store's writer thread")]
    Thread {
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    pub(crate) fn storage(path: &Path, source: impl Into<redb::Error>) -> Self {
        let path = path.to_owned();
        match source.into() {
            redb::Error::Corrupted(found) => Self::Damaged { path, found },
            source => Self::Storage { path, source: Box::new(source) },
        }
    }
}

/// What the caller of an operation is told.
pub(crate) fn storage(error: impl Into<Arc<redb::Error>>) -> StoreError {
    let error = error.into();
    let source: Option<Box<dyn std::error::Error + Send + Sync>> = Some(Box::new(error.clone()));
    match &*error {
        full if is_full(full) => {
            StoreError::Unavailable { reason: "its disk is full; make room on it".to_owned(), source }
        }
        redb::Error::DatabaseClosed => {
            StoreError::Unavailable { reason: "its file can't be opened again; see the log".to_owned(), source }
        }
        _ => StoreError::Storage(Box::new(error)),
    }
}

/// Whether there was no room for a write. Such an error passes; after any other, what is on the disk is in doubt.
pub(crate) fn is_full(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error, redb::Error::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge))
}
