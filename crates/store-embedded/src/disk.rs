//! What lies in the file: its tables, its version, and how it's opened, once or again.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use logmesh_store::Revision;
use redb::{
    Database, DatabaseError, MultimapTableDefinition, ReadableDatabase, StorageError, TableDefinition, TableError,
};

use crate::error::OpenError;

/// The version of the tables below. A change that an older program would misread makes it one more.
const VERSION: u64 = 1;

/// Key → (revision of its last write, its lease or [`NO_LEASE`], value).
pub(crate) const CURRENT: TableDefinition<&str, StoredValue> = TableDefinition::new("current");

/// (Revision, key) → what the revision made of the key; `None`: deleted.
pub(crate) const HISTORY: TableDefinition<(u64, &str), Option<StoredValue>> = TableDefinition::new("history");

/// Lease → its time to live in milliseconds.
pub(crate) const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");

/// Lease → the keys that end with it.
pub(crate) const LEASE_KEYS: MultimapTableDefinition<u64, &str> = MultimapTableDefinition::new("lease_keys");

/// The numbers below, by name.
pub(crate) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The data version.
const META_VERSION: &str = "version";
/// The last revision.
pub(crate) const META_REVISION: &str = "revision";
/// The revision of the last compaction: history holds all revisions from it on.
pub(crate) const META_COMPACTED: &str = "compacted";
/// The lease granted last.
pub(crate) const META_LEASE: &str = "lease";

pub(crate) const NO_LEASE: u64 = 0;

/// (Revision, lease, value).
pub(crate) type StoredValue = (u64, u64, &'static [u8]);

/// Memory for pages of the file.
const CACHE_BYTES: usize = 16 << 20;

/// The open file. redb does nothing more after a write failed; so when room was wanting, the file is opened again.
pub(crate) struct Disk {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Disk {
    /// Opens or makes the file and answers with its last revision.
    pub(crate) fn open(path: &Path) -> Result<(Self, Revision), OpenError> {
        let (database, revision) = open(path)?;
        Ok((Self { path: path.to_owned(), database: RwLock::new(Some(database)) }, revision))
    }

    /// Does some work on the file.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(redb::Error::DatabaseClosed)?)
    }

    /// Closes the file, once no other work is being done on it, and opens it again. It stays closed if that fails.
    pub(crate) fn reopen(&self) -> Result<Revision, OpenError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        if !self.path.exists() {
            return Err(OpenError::NotAStore { path: self.path.clone() });
        }
        let (opened, revision) = open(&self.path)?;
        *database = Some(opened);
        Ok(revision)
    }
}

fn open(path: &Path) -> Result<(Database, Revision), OpenError> {
    let is_new = !path.exists();
    // All checksums are looked at: what was damaged is told now, instead of being taken for rules.
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let database = builder.create(path).map_err(|error| explain(path, error))?;
    let failed = |source: redb::Error| OpenError::storage(path, source);
    let revision = match stored_version(&database).map_err(failed)? {
        None if is_new || is_empty(&database).map_err(failed)? => {
            create_tables(&database).map_err(failed)?;
            sync_folder(path).map_err(|error| OpenError::storage(path, StorageError::Io(error)))?;
            FIRST_REVISION
        }
        None => return Err(OpenError::NotAStore { path: path.to_owned() }),
        Some(VERSION) => stored_revision(&database).map_err(failed)?,
        Some(found) => {
            let path = path.to_owned();
            return Err(OpenError::Version { path, found: found.to_string(), expected: VERSION });
        }
    };
    Ok((database, Revision(revision)))
}

/// The revision of an empty store, as in etcd.
const FIRST_REVISION: u64 = 1;

fn explain(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => OpenError::InUse { path },
        DatabaseError::UpgradeRequired(found) => {
            OpenError::Version { path, found: format!("redb {found}"), expected: VERSION }
        }
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::NotAStore { path }
        }
        other => OpenError::storage(&path, other),
    }
}

fn stored_version(database: &Database) -> Result<Option<u64>, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(META_VERSION)?.map(|version| version.value())),
        Err(TableError::TableDoesNotExist(_) | TableError::TableTypeMismatch { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn stored_revision(database: &Database) -> Result<u64, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta.get(META_REVISION)?.map_or(FIRST_REVISION, |revision| revision.value()))
}

fn is_empty(database: &Database) -> Result<bool, redb::Error> {
    Ok(database.begin_read()?.list_tables()?.next().is_none())
}

/// All at once, so that a crash leaves either an empty file or a whole store.
fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(CURRENT)?;
    transaction.open_table(HISTORY)?;
    transaction.open_table(LEASES)?;
    transaction.open_multimap_table(LEASE_KEYS)?;
    let mut meta = transaction.open_table(META)?;
    meta.insert(META_VERSION, VERSION)?;
    meta.insert(META_REVISION, FIRST_REVISION)?;
    meta.insert(META_COMPACTED, FIRST_REVISION)?;
    meta.insert(META_LEASE, NO_LEASE)?;
    drop(meta);
    Ok(transaction.commit()?)
}

/// The new file's name has to survive a power cut too.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
