//! Why a store can't be opened, and how redb's errors look to callers.

use std::path::{Path, PathBuf};

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
        Self::Storage { path: path.to_owned(), source: Box::new(source.into()) }
    }
}

pub(crate) fn storage(error: redb::Error) -> StoreError {
    StoreError::Storage(Box::new(error))
}
