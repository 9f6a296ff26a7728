//! The database file: its tables, its version, and what happens when the disk fails under it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use logmesh_bus::BusError;
use logmesh_types::at_work;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageError, TableDefinition, WriteTransaction,
};
use tracing::{error, info};

use crate::Settings;

/// What this version writes. Another version's data is refused, never guessed at.
const FORMAT: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Topic name to its id and spec, JSON.
pub(crate) const TOPICS: TableDefinition<&str, &[u8]> = TableDefinition::new("topics");
/// Low, high, bytes, latest time, and the latest entry of [`TIMES`]: time and offset.
pub(crate) type PartitionRow = (u64, u64, u64, i64, i64, u64);

/// (topic id, partition) to where it stands.
pub(crate) const PARTITIONS: TableDefinition<(u32, u32), PartitionRow> = TableDefinition::new("partitions");
/// (topic id, partition, offset) to the record.
pub(crate) const RECORDS: TableDefinition<(u32, u32, u64), &[u8]> = TableDefinition::new("records");
/// (topic id, partition, time) to the first offset at which the latest time so far was that. Sparse.
pub(crate) const TIMES: TableDefinition<(u32, u32, i64), u64> = TableDefinition::new("times");
/// Compacted topics: (topic id, partition, key) to the offset of its record.
pub(crate) const KEYS: TableDefinition<(u32, u32, &[u8]), u64> = TableDefinition::new("keys");
/// Compacted topics: (time stored, topic id, partition, offset) of each record with an empty value.
pub(crate) const TOMBSTONES: TableDefinition<(i64, u32, u32, u64), ()> = TableDefinition::new("tombstones");
/// (group, topic id, partition) to the committed offset.
pub(crate) const COMMITS: TableDefinition<(&str, u32, u32), u64> = TableDefinition::new("commits");

/// Why a bus could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle in this one, has it open.
    #[error("the bus in {path} is in use by another process; stop that one or choose another data folder")]
    AlreadyOpen {
        /// The database file.
        path: PathBuf,
    },
    /// It was written by another version of logmesh.
    #[error(
        "the bus in {path} has format {found}, this version reads format {expected}; use the version that wrote it"
    )]
    OtherFormat {
        /// The database file.
        path: PathBuf,
        /// The format found.
        found: u64,
        /// The format that this version reads and writes.
        expected: u64,
    },
    /// It is damaged or no bus.
    #[error("the bus in {path} cannot be read ({reason}); restore the file from a backup or move it away")]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot open the bus in {path}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn unreadable(path: &Path, error: BusError) -> Self {
        Self::Damaged { path: path.to_owned(), reason: error.to_string() }
    }

    fn from_redb(path: &Path, error: redb::Error) -> Self {
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::AlreadyOpen { path },
            redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => Self::Io { path, source },
            other => Self::Damaged { path, reason: other.to_string() },
        }
    }
}

/// The database. After an I/O error redb refuses everything until it is opened anew, which this does by itself.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` between a failure and the next opening that succeeds.
    database: RwLock<Option<Database>>,
    /// Set when a write failed: nobody knows whether it took effect, so what is held in memory must be read again.
    doubtful: AtomicBool,
}

impl Store {
    pub(crate) fn open(folder: &Path, settings: &Settings) -> Result<Self, OpenError> {
        let &Settings { cache_bytes, checked_bytes, .. } = settings;
        let io = |source| OpenError::Io { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let path = folder.join("bus.redb");
        if !path.try_exists().map_err(io)? {
            // Made under another name, so that a crash on the way leaves nothing half-made under this one.
            let new = folder.join("bus.redb.new");
            if new.try_exists().map_err(io)? {
                fs::remove_file(&new).map_err(io)?;
            }
            make_database(&new, cache_bytes).map_err(|error| OpenError::from_redb(&new, error))?;
            fs::rename(&new, &path).map_err(io)?;
            fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        }
        let opened = at_work::on(&path, || open_checked(&path, cache_bytes, checked_bytes));
        let database = opened.map_err(|error| OpenError::from_redb(&path, error.into()))?;
        at_work::on(&path, || check_format(&path, &database))?;
        Ok(Self { path, cache_bytes, database: RwLock::new(Some(database)), doubtful: AtomicBool::new(false) })
    }

    /// Reads from one snapshot. Blocks.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, BusError> {
        let result = self.with_database(|database| work(&database.begin_read()?));
        result.map_err(|error| self.failed(error))
    }

    /// Writes all or nothing, durable when it returns. Blocks, also while another write is under way.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, BusError> {
        let result = self.with_database(|database| {
            let mut transaction = database.begin_write()?;
            // Without it an open after a crash reads the whole file: seconds for each GiB.
            transaction.set_quick_repair(true);
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        result.map_err(|error| {
            self.doubtful.store(true, Ordering::SeqCst);
            self.failed(error)
        })
    }

    /// True once after a failed write; see the field.
    pub(crate) fn take_doubt(&self) -> bool {
        self.doubtful.swap(false, Ordering::SeqCst)
    }

    /// Says again that what is held in memory must be read again.
    pub(crate) fn doubt(&self) {
        self.doubtful.store(true, Ordering::SeqCst);
    }

    fn with_database<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let mut guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            drop(guard);
            self.open_again()?;
            guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        }
        let Some(database) = guard.as_ref() else { return Err(redb::Error::PreviousIo) };
        at_work::on(&self.path, || work(database))
    }

    /// Turns a failure into the bus's error, after closing a database that will not work again.
    fn failed(&self, error: redb::Error) -> BusError {
        match &error {
            redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } => {
                let reason = format!("{error} in {}; restore it from a backup or move it away", self.path.display());
                error!(path = %self.path.display(), error = %error, "the bus's data is damaged");
                BusError::Damaged { reason }
            }
            _ => {
                error!(path = %self.path.display(), error = %error, "the bus failed to read or write; opening it again");
                self.database.write().unwrap_or_else(PoisonError::into_inner).take();
                BusError::Unavailable { reason: format!("{error} ({})", self.path.display()) }
            }
        }
    }

    fn open_again(&self) -> Result<(), redb::Error> {
        let mut guard = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(at_work::on(&self.path, || open_database(&self.path, self.cache_bytes))?);
            info!(path = %self.path.display(), "opened the bus again");
        }
        Ok(())
    }
}

/// Opens a database and looks at all checksums of a short one: redb believes what it reads, and panics on what nobody
/// wrote.
fn open_checked(path: &Path, cache_bytes: usize, checked_bytes: u64) -> Result<Database, DatabaseError> {
    if path.metadata().is_ok_and(|file| file.len() <= checked_bytes) {
        let mut builder = Database::builder();
        match builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true).create(path) {
            // The check ends with a commit, for which a full disk may have no room.
            Err(DatabaseError::Storage(StorageError::Io(error))) if error.kind() != io::ErrorKind::InvalidData => {}
            opened => return opened,
        }
    }
    open_database(path, cache_bytes)
}

fn open_database(path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(cache_bytes).create(path)
}

/// Makes a database with its version and every table, so that readers need not ask whether it is there.
fn make_database(path: &Path, cache_bytes: usize) -> Result<(), redb::Error> {
    let database = open_database(path, cache_bytes)?;
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(TOPICS)?;
    transaction.open_table(PARTITIONS)?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(TIMES)?;
    transaction.open_table(KEYS)?;
    transaction.open_table(TOMBSTONES)?;
    transaction.open_table(COMMITS)?;
    Ok(transaction.commit()?)
}

fn check_format(path: &Path, database: &Database) -> Result<(), OpenError> {
    let found = || -> Result<Option<u64>, redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(meta.get("format")?.map(|format| format.value()))
    };
    match found().map_err(|error| OpenError::from_redb(path, error))? {
        Some(FORMAT) => Ok(()),
        Some(found) => Err(OpenError::OtherFormat { path: path.to_owned(), found, expected: FORMAT }),
        None => Err(OpenError::Damaged { path: path.to_owned(), reason: "it names no format".to_owned() }),
    }
}

/// An error for data that is not what this program writes.
pub(crate) fn damaged(what: String) -> redb::Error {
    StorageError::Corrupted(what).into()
}
