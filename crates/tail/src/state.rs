//! What the tailer must remember over a crash: one record for each file, in a file that only one process opens.
//!
//! A commit is one transaction and is on the disk when it returns. A state that can't be read is set aside under a new
//! name, with a message, and the tailer begins anew: files are then read again from where their rules say, and the
//! mesh finds the repeated lines by their ids. Only a state that is in use, or that the disk refuses, stops the start.

mod past;

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use logmesh_types::{ByteRange, RuleName, StreamId, TopicName, UnixNanos, at_work};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use crate::framing::FramingSpec;
use crate::pathguard::FileKey;
use crate::status::Loss;

pub(crate) use past::Past;

/// The version of the tables and records below.
const VERSION: u64 = 1;

/// The file in the state folder.
pub const FILE_NAME: &str = "tail.redb";
/// redb's cache is for reading, which happens once.
const CACHE_BYTES: usize = 1 << 20;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Record number → [`Record`] as JSON.
const FILES: TableDefinition<u64, &[u8]> = TableDefinition::new("files");
/// (Rule, glob) pairs whose first scan is done: `start_at: end` no longer holds for what they match.
const SCANNED: TableDefinition<(&str, &str), ()> = TableDefinition::new("scanned");

/// Why the state can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it open.
    #[error("the state in {} is in use by another process; give each agent its own --state-dir", .0.display())]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("the state in {} cannot be opened: {error}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: String,
    },
    /// It can't be written.
    #[error("the state in {} cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: String,
    },
}

/// A hash of the bytes just before an offset: tells a file that has grown from one that was written anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Guard {
    /// How many bytes it covers, at most [`Guard::BYTES`].
    pub length: u8,
    pub hash: u64,
}

impl Guard {
    /// The most bytes that a guard covers.
    pub(crate) const BYTES: usize = 64;

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let bytes = &bytes[bytes.len().saturating_sub(Self::BYTES)..];
        let mut half = [0; 8];
        half.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
        Self { length: bytes.len() as u8, hash: u64::from_le_bytes(half) }
    }

    /// True if these bytes end with those that it covers.
    pub(crate) fn ends(self, bytes: &[u8]) -> bool {
        let length = usize::from(self.length);
        length <= bytes.len() && Self::of(&bytes[bytes.len() - length..]) == self
    }
}

/// By whom and how a file is read. It changes only where all that was sent is acked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Assignment {
    pub rule: RuleName,
    pub revision: i64,
    pub topic: TopicName,
    pub framing: FramingSpec,
    pub service: Option<String>,
}

impl Assignment {
    /// True if events cut under the one are the same events, in the same place, under the other.
    pub(crate) fn cuts_like(&self, other: &Self) -> bool {
        self.topic == other.topic && self.framing == other.framing
    }
}

/// All that is remembered of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Record {
    #[serde(skip)]
    pub number: u64,
    #[serde(flatten)]
    pub key: FileKey,
    /// The birth time in the stream's id: the file's, or minted where it has none or shares it.
    pub stream_birth: i64,
    pub epoch: u32,
    /// The inode in the stream's id, where it isn't the file's own: it is a copy that goes on with a truncated file's
    /// stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_inode: Option<u64>,
    /// Nothing of it was sent, and it may turn out to be a copy.
    #[serde(default)]
    pub fresh: bool,
    /// It was too old when it was first seen: it's begun when something is written to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
    /// Where it lay when last seen.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// The path by which a glob found it.
    #[serde(with = "path_text")]
    pub matched: PathBuf,
    pub size: u64,
    /// The first byte to collect.
    pub start: u64,
    pub acked: u64,
    /// Of the bytes before `acked`.
    pub guard: Guard,
    /// Of the file's first bytes, as far as they were seen.
    pub head: Guard,
    /// Offsets after `acked` where time ended an event.
    pub cuts: Vec<u64>,
    /// How what lies before `acked` was cut. `None`: an earlier version wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past: Option<Past>,
    pub assignment: Assignment,
    /// Bytes that were gone before they could be collected, of all generations.
    pub lost_bytes: u64,
    /// Where they were; see [`crate::losses`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<StreamLoss>,
    /// Bytes that weren't read when the file couldn't be found any more: lost, unless it's found again.
    #[serde(default)]
    pub missing: u64,
    /// When that was noticed.
    #[serde(default)]
    pub missing_since: Option<UnixNanos>,
    /// Bytes of former generations that are on their way: lost, if the process ends before they're acked.
    #[serde(default)]
    pub former: u64,
    /// Where they are, as far as there's room; by generation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_ranges: Vec<StreamRange>,
    /// All that was ever sent of it lies before this, on disk before it's sent. `None`: not known.
    #[serde(default)]
    pub sent_to: Option<u64>,
    /// The same to the byte, known to the process that sent it.
    #[serde(skip)]
    pub framed_to: Option<u64>,
    /// When it was last known to exist.
    pub seen: UnixNanos,
}

/// A range of a stream that isn't the record's present one, perhaps.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct StreamRange {
    pub stream: StreamId,
    pub topic: TopicName,
    pub range: ByteRange,
}

/// Lost bytes, and of which of the file's generations they were.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct StreamLoss {
    pub stream: StreamId,
    pub topic: TopicName,
    #[serde(flatten)]
    pub loss: Loss,
}

/// A path as text or, where it isn't UTF-8, as its bytes: one odd file name must not make the state unwritable.
mod path_text {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Text::deserialize(deserializer)? {
            Text::Text(text) => PathBuf::from(text),
            Text::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        })
    }
}

/// What a new state starts from.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub records: Vec<Record>,
    pub scanned: HashSet<(String, String)>,
}

/// Changes to write in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub records: Vec<Record>,
    pub removed: Vec<u64>,
    pub scanned: Vec<(String, String)>,
    pub unscanned: Vec<(String, String)>,
}

/// The open state. After a failed write it is opened again by the next one.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    database: Option<Database>,
}

impl State {
    /// Opens or makes the state in a folder; the second part says what was set aside, if anything was.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Loaded, Option<String>), StateError> {
        let path = dir.join(FILE_NAME);
        let unusable = |error: String| StateError::Unusable { path: path.clone(), error };
        std::fs::create_dir_all(dir).map_err(|e| unusable(e.to_string()))?;
        let (reason, suffix) = match load(&path) {
            Ok((database, loaded)) => return Ok((Self { path, database: Some(database) }, loaded, None)),
            Err(LoadError::InUse) => return Err(StateError::InUse(path)),
            Err(LoadError::Io(error)) => return Err(unusable(error)),
            Err(LoadError::Corrupt(reason)) => (reason, "corrupt"),
            Err(LoadError::Version(version)) => (format!("it is of version {version}, not {VERSION}"), "version"),
        };
        let aside = dir.join(format!("{FILE_NAME}.{suffix}-{}", UnixNanos::now().0));
        std::fs::rename(&path, &aside).map_err(|e| unusable(e.to_string()))?;
        let (database, loaded) = load(&path).map_err(|e| unusable(e.to_string()))?;
        let message = format!("{} cannot be read ({reason}); it is kept as {}", path.display(), aside.display());
        Ok((Self { path, database: Some(database) }, loaded, Some(message)))
    }

    /// Writes a batch; when this returns, it is durable.
    pub(crate) fn commit(&mut self, batch: &Batch) -> Result<(), StateError> {
        let result = self.try_commit(batch);
        if result.is_err() {
            // redb accepts nothing more after an I/O error: open it again at the next try.
            self.database = None;
        }
        result.map_err(|error| StateError::Write { path: self.path.clone(), error })
    }

    fn try_commit(&mut self, batch: &Batch) -> Result<(), String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => load(&self.path).map_err(|e| e.to_string())?.0,
        };
        let result = write(&database, batch).map_err(|e| e.to_string());
        self.database = Some(database);
        result
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("in use by another process")]
    InUse,
    #[error("{0}")]
    Io(String),
    #[error("corrupt: {0}")]
    Corrupt(String),
    #[error("of version {0}")]
    Version(u64),
}

impl From<DatabaseError> for LoadError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Self::InUse,
            DatabaseError::UpgradeRequired(version) => Self::Version(version.into()),
            DatabaseError::Storage(StorageError::Io(e)) if e.kind() != ErrorKind::InvalidData => {
                Self::Io(e.to_string())
            }
            error => Self::Corrupt(error.to_string()),
        }
    }
}

fn load(path: &Path) -> Result<(Database, Loaded), LoadError> {
    at_work::on(path, || open_and_read(path))
}

fn open_and_read(path: &Path) -> Result<(Database, Loaded), LoadError> {
    let is_new = !path.exists();
    // All checksums are looked at: redb believes what it reads, and panics on what nobody wrote.
    let database = Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)?;
    if is_new {
        sync_dir(path).map_err(|e| LoadError::Io(e.to_string()))?;
    }
    let loaded = read(&database).map_err(|e| LoadError::Corrupt(e.to_string()))?;
    loaded.map(|loaded| (database, loaded)).map_err(LoadError::Version)
}

/// Reads all; the inner error is another version.
fn read(database: &Database) -> Result<Result<Loaded, u64>, Box<dyn std::error::Error>> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("version")?.map(|value| value.value());
        match found {
            Some(version) if version != VERSION => return Ok(Err(version)),
            Some(_) => {}
            None => {
                meta.insert("version", VERSION)?;
                transaction.open_table(FILES)?;
                transaction.open_table(SCANNED)?;
            }
        }
    }
    transaction.commit()?;
    let mut loaded = Loaded::default();
    let transaction = database.begin_read()?;
    for entry in transaction.open_table(FILES)?.iter()? {
        let (number, bytes) = entry?;
        let record: Record = serde_json::from_slice(bytes.value())?;
        loaded.records.push(Record { number: number.value(), ..record });
    }
    for entry in transaction.open_table(SCANNED)?.iter()? {
        let (pair, ()) = entry.map(|(pair, _)| (pair, ()))?;
        let (rule, glob) = pair.value();
        loaded.scanned.insert((rule.to_owned(), glob.to_owned()));
    }
    Ok(Ok(loaded))
}

fn write(database: &Database, batch: &Batch) -> Result<(), Box<dyn std::error::Error>> {
    let transaction = database.begin_write()?;
    {
        let mut files = transaction.open_table(FILES)?;
        for record in &batch.records {
            files.insert(record.number, serde_json::to_vec(record)?.as_slice())?;
        }
        for number in &batch.removed {
            files.remove(number)?;
        }
        let mut scanned = transaction.open_table(SCANNED)?;
        for (rule, glob) in &batch.unscanned {
            scanned.remove((rule.as_str(), glob.as_str()))?;
        }
        for (rule, glob) in &batch.scanned {
            scanned.insert((rule.as_str(), glob.as_str()), ())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Makes the name of a new file durable.
fn sync_dir(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod recovery;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn record(number: u64) -> Record {
        Record {
            number,
            key: FileKey { dev: 1, inode: u64::MAX, birth: None },
            stream_birth: i64::MAX,
            epoch: 3,
            stream_inode: Some(5),
            fresh: true,
            ignored: false,
            path: "/var/log/ä.log".into(),
            matched: "/var/log/ä.log".into(),
            size: 10,
            start: 0,
            acked: 9,
            guard: Guard::of(b"abc"),
            head: Guard::of(b"a"),
            cuts: vec![10],
            past: Some(Past::since(2)),
            assignment: Assignment {
                rule: "a".parse().unwrap(),
                revision: 7,
                topic: "t".parse().unwrap(),
                framing: FramingSpec {
                    pattern: Some(crate::framing::Pattern::Start("^x".into())),
                    ..FramingSpec::default()
                },
                service: None,
            },
            lost_bytes: 7,
            losses: vec![StreamLoss {
                stream: StreamId::from_bytes([3; 16]),
                topic: "t".parse().unwrap(),
                loss: Loss { range: ByteRange::new(1, 8), cause: crate::LossCause::Gone, noted: UnixNanos(9) },
            }],
            missing: 1,
            missing_since: Some(UnixNanos(8)),
            former: 2,
            former_ranges: vec![StreamRange {
                stream: StreamId::from_bytes([4; 16]),
                topic: "t".parse().unwrap(),
                range: ByteRange::new(0, 2),
            }],
            sent_to: Some(11),
            framed_to: None,
            seen: UnixNanos(5),
        }
    }

    #[test]
    fn what_is_committed_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, loaded, message) = State::open(dir.path()).unwrap();
        assert!(loaded.records.is_empty() && message.is_none());
        let scanned = ("rules/a".to_owned(), "/x/*".to_owned());
        let batch = Batch { records: vec![record(1), record(2)], scanned: vec![scanned.clone()], ..Batch::default() };
        state.commit(&batch).unwrap();
        state.commit(&Batch { removed: vec![1], ..Batch::default() }).unwrap();
        drop(state);
        let (_state, loaded, message) = State::open(dir.path()).unwrap();
        assert_eq!(message, None);
        assert_eq!(loaded.records, [record(2)]);
        assert!(loaded.scanned.contains(&scanned));
    }

    #[test]
    fn the_second_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = State::open(dir.path()).unwrap();
        assert!(matches!(State::open(dir.path()), Err(StateError::InUse(_))));
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        for damage in ["garbage", "zeros", "truncated", "flipped", "json", "version"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE_NAME);
            State::open(dir.path()).unwrap().0.commit(&Batch { records: vec![record(1)], ..Batch::default() }).unwrap();
            damage_state(&path, damage);
            let (state, loaded, message) = State::open(dir.path()).unwrap();
            assert!(loaded.records.is_empty(), "{damage}");
            assert!(message.unwrap().contains("it is kept as"), "{damage}");
            drop(state);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "{damage}: the old one is kept");
            assert!(State::open(dir.path()).unwrap().2.is_none(), "{damage}: the next start is quiet");
        }
    }

    fn damage_state(path: &Path, damage: &str) {
        match damage {
            "garbage" => std::fs::write(path, "not a database".repeat(1000)).unwrap(),
            "zeros" => std::fs::write(path, vec![0; 8192]).unwrap(),
            "flipped" => logmesh_testing::flip_pages(path),
            "truncated" => File::options().write(true).open(path).unwrap().set_len(5000).unwrap(),
            kind => {
                let database = Database::create(path).unwrap();
                let transaction = database.begin_write().unwrap();
                match kind {
                    "json" => drop(transaction.open_table(FILES).unwrap().insert(9, b"{".as_slice()).unwrap()),
                    _ => drop(transaction.open_table(META).unwrap().insert("version", 99).unwrap()),
                }
                transaction.commit().unwrap();
            }
        }
    }
}
