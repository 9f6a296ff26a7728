//! The config store in one local file, on redb.
//!
//! One process holds the file at a time. Writes go through one thread, which commits what waits together with one fsync and
//! answers afterwards. Recent revisions stay in the file, so that a watch can begin in the past and a slow watcher needs no
//! queue in memory.

mod disk;
mod error;
mod read;
mod watch;
mod write;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use logmesh_store::{
    ChangeStream, ConfigStore, Lease, LeaseId, MAX_LEASE_TTL, Revision, Snapshot, StoreError, Txn, Versioned,
};
use redb::Database;
use tokio::sync::{Semaphore, oneshot};

use crate::disk::Disk;
pub use crate::error::OpenError;
use crate::error::storage;
use crate::writer::{Command, Request, Writer};

/// Settings of an [`EmbeddedStore`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many revisions a watch can go back at least, 10,000 by default; up to a tenth more are kept.
    pub history: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: 10_000 }
    }
}

/// Writes that wait or are being done at a time; further callers wait for room.
const MAX_WAITING_WRITES: usize = 256;

/// Watches at a time. One more ends at once with a retryable error.
const MAX_WATCHES: usize = 1024;

/// A [`ConfigStore`] in one file. When it's dropped, its watches end and the file is closed.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    requests: Option<std::sync::mpsc::Sender<Request>>,
    room: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What reads and watches need.
pub(crate) struct Shared {
    pub(crate) disk: Disk,
    /// The last revision that was committed.
    pub(crate) revision: tokio::sync::watch::Sender<Revision>,
    pub(crate) watches: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens the store in the file at `path`, which is made if it isn't there; its folder must exist. Blocks while it
    /// reads, for a moment after a crash.
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let (disk, revision) = Disk::open(path)?;
        let shared = Arc::new(Shared {
            disk,
            revision: tokio::sync::watch::Sender::new(revision),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
        });
        let writer = Writer::new(shared.clone(), options).map_err(|source| OpenError::storage(path, source))?;
        let (requests, receiver) = std::sync::mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|source| OpenError::Thread { source })?;
        let room = Arc::new(Semaphore::new(MAX_WAITING_WRITES));
        Ok(Self { shared, requests: Some(requests), room, writer: Mutex::new(Some(writer)) })
    }

    /// Sends a command to the writer and waits for its answer.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::unavailable("the embedded store has stopped");
        let room = self.room.clone().acquire_owned().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        requests.send(Request { command: command(answer), _room: room }).map_err(|_| closed())?;
        answered.await.map_err(|_| StoreError::unavailable("the write was given up; see the log"))?
    }

    /// Runs a read on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || shared.disk.with(read)).await;
        done.map_err(|_| StoreError::unavailable("the read was stopped"))?.map_err(storage)
    }
}

#[async_trait]
impl ConfigStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let key = key.to_owned();
        self.read(move |database| read::get(database, &key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |database| read::list(database, &prefix)).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |database| read::keys(database, &prefix)).await
    }

    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.check()?;
        self.ask(|answer| Command::Txn { txn, answer }).await
    }

    fn watch(&self, prefix: &str, after: Revision) -> ChangeStream {
        watch::stream(&self.shared, prefix.to_owned(), after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|answer| Command::Compact { revision, answer }).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, StoreError> {
        if ttl.is_zero() || ttl > MAX_LEASE_TTL {
            let longest = MAX_LEASE_TTL.as_secs();
            return Err(StoreError::Invalid(format!("a lease lives for more than 0 s and at most {longest} s")));
        }
        self.ask(|answer| Command::Grant { ttl, answer }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.ask(|answer| Command::KeepAlive { lease, answer }).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|answer| Command::Revoke { lease, answer }).await
    }
}

impl Drop for EmbeddedStore {
    /// Waits for the write that is being done, so that the file is free once this returns.
    fn drop(&mut self) {
        self.requests = None;
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the embedded store had panicked");
        }
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("revision", &*self.shared.revision.borrow()).finish_non_exhaustive()
    }
}
