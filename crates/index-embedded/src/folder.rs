//! The index's folder on disk, apart from what tantivy keeps in it.
//!
//! ```text
//! VERSION                 the data's version
//! lock                    held while a process has the folder open
//! topics.json             the declared types of each topic
//! slices/TOPIC/DATE/      one tantivy index; `.suspect` in it: see `suspect.rs`
//! damaged/TOPIC@DATE.TIME/  slices that couldn't be read any more; nothing here removes them
//! trash/                  slices on their way out; emptied when the folder is opened
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use logmesh_index::{FieldTypes, IndexError, Slice};
use logmesh_types::{TopicName, UnixNanos};
use tracing::error;

use crate::directory::META;
use crate::error::at;

const VERSION: &str = "logmesh-index-embedded 1\n";

/// The declared types of all topics.
pub(crate) type Topics = BTreeMap<TopicName, FieldTypes>;

/// The folder, held by this process until dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    trashed: AtomicU64,
    _lock: File,
}

impl Folder {
    /// Takes the folder; makes it if there is none. Removes what a killed process left half done.
    pub(crate) fn open(dir: &Path) -> Result<Self, IndexError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let lock = take_lock(&dir.join("lock"))?;
        check_version(&dir.join("VERSION"))?;
        let folder = Self { dir: dir.to_owned(), trashed: AtomicU64::new(0), _lock: lock };
        for made in [folder.slices_dir(), folder.trash_dir()] {
            fs::create_dir_all(&made).map_err(at(&made))?;
        }
        sync_dir(dir)?;
        folder.empty_trash()?;
        Ok(folder)
    }

    fn slices_dir(&self) -> PathBuf {
        self.dir.join("slices")
    }

    fn trash_dir(&self) -> PathBuf {
        self.dir.join("trash")
    }

    /// Where a slice lies.
    pub(crate) fn slice_dir(&self, slice: &Slice) -> PathBuf {
        self.slices_dir().join(slice.topic.as_str()).join(&slice.date)
    }

    /// Makes the slice's folder, durably.
    pub(crate) fn make_slice(&self, slice: &Slice) -> Result<PathBuf, IndexError> {
        let dir = self.slice_dir(slice);
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        sync_dir(&self.slices_dir().join(slice.topic.as_str()))?;
        sync_dir(&self.slices_dir())?;
        Ok(dir)
    }

    /// All slices on disk. A folder in which tantivy made no index yet holds nothing and is removed. One that holds segments
    /// lost the file that names them, and is set aside.
    pub(crate) fn slices(&self) -> Result<BTreeSet<Slice>, IndexError> {
        let mut slices = BTreeSet::new();
        for (topic, topic_dir) in entries(&self.slices_dir())? {
            let Ok(topic) = topic.parse::<TopicName>() else { continue };
            for (date, dir) in entries(&topic_dir)? {
                let slice = Slice { topic: topic.clone(), date };
                if dir.join(META).try_exists().map_err(at(&dir))? {
                    slices.insert(slice);
                } else if let Some(damage) = nameless(&dir, false)? {
                    let reason = self.set_aside(&slice, damage)?;
                    error!(reason, "a slice of the index is damaged and was set aside");
                } else {
                    fs::remove_dir_all(&dir).map_err(at(&dir))?;
                }
            }
        }
        Ok(slices)
    }

    /// Moves a damaged slice to where it isn't found, and says so: why, where, and what to do.
    pub(crate) fn set_aside(&self, slice: &Slice, damage: &str) -> Result<String, IndexError> {
        let (dir, damaged) = (self.slice_dir(slice), self.dir.join("damaged"));
        fs::create_dir_all(&damaged).map_err(at(&damaged))?;
        let aside = damaged.join(format!("{}@{}.{}", slice.topic, slice.date, UnixNanos::now().0));
        let kept = match fs::rename(&dir, &aside) {
            Ok(()) => {
                for changed in [&self.dir, &damaged, &self.slices_dir().join(slice.topic.as_str())] {
                    sync_dir(changed)?;
                }
                format!("is kept as {}", aside.display())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => "nothing of it is left".to_owned(),
            Err(error) => return Err(at(&dir)(error)),
        };
        Ok(format!(
            "{} is damaged ({damage}), and {kept}; `logmesh audit --repair` brings its lines back from the bus or the files, and what \
             was sent without a stream (`IngestService.Write`) comes back by `logmesh replay start --topic {}`",
            dir.display(),
            slice.topic
        ))
    }

    /// Takes a slice away: in one step from the place where it is found, then from the disk.
    pub(crate) fn remove_slice(&self, slice: &Slice) -> Result<(), IndexError> {
        let dir = self.slice_dir(slice);
        let number = self.trashed.fetch_add(1, Ordering::Relaxed);
        let trash = self.trash_dir().join(format!("{}@{}.{number}", slice.topic, slice.date));
        match fs::rename(&dir, &trash) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(&dir)(error)),
        }
        sync_dir(&self.slices_dir().join(slice.topic.as_str()))?;
        fs::remove_dir_all(&trash).map_err(at(&trash))
    }

    fn empty_trash(&self) -> Result<(), IndexError> {
        for (_, dir) in entries(&self.trash_dir())? {
            fs::remove_dir_all(&dir).map_err(at(&dir))?;
        }
        Ok(())
    }

    /// Reads the declared types.
    pub(crate) fn load_topics(&self) -> Result<Topics, IndexError> {
        let path = self.dir.join("topics.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| IndexError::Damaged {
                    reason: format!(
                        "{} is damaged ({error}): move it away and start again; transfer declares the fields of its settings anew",
                        path.display()
                    ),
                }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Topics::new()),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Writes the declared types, durably.
    pub(crate) fn store_topics(&self, topics: &Topics) -> Result<(), IndexError> {
        let text = serde_json::to_vec_pretty(topics)
            .map_err(|error| IndexError::Unavailable { reason: format!("cannot write the topics' types: {error}") })?;
        replace(&self.dir.join("topics.json"), &text)?;
        sync_dir(&self.dir)
    }
}

fn take_lock(path: &Path) -> Result<File, IndexError> {
    let lock = File::create(path).map_err(at(path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(IndexError::Damaged {
            reason: format!("{} is held by another process: stop that, or name another folder", path.display()),
        }),
        Err(TryLockError::Error(error)) => Err(at(path)(error)),
    }
}

fn check_version(path: &Path) -> Result<(), IndexError> {
    match fs::read(path).map(|found| String::from_utf8_lossy(&found).into_owned()) {
        Ok(found) if found == VERSION => Ok(()),
        Ok(found) => Err(IndexError::Damaged {
            reason: format!(
                "{} says {:?}, and this program reads {:?}: run the version that wrote it, name another folder, or \
                 remove the file if it's damaged",
                path.display(),
                found.trim(),
                VERSION.trim()
            ),
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => replace(path, VERSION.as_bytes()),
        Err(error) => Err(at(path)(error)),
    }
}

/// Writes a file as a whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), IndexError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(at(path))
}

fn sync_dir(dir: &Path) -> Result<(), IndexError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

/// What is wrong with a slice's folder without the file that names the others: nothing if the slice isn't `known` and tantivy wrote no
/// documents there, which it does only after that file.
pub(crate) fn nameless(dir: &Path, known: bool) -> Result<Option<&'static str>, IndexError> {
    if dir.join(META).try_exists().map_err(at(dir))? || !(known || holds_segments(dir)?) {
        return Ok(None);
    }
    Ok(Some("meta.json is missing"))
}

/// True if tantivy wrote files there.
fn holds_segments(dir: &Path) -> Result<bool, IndexError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(at(dir))?,
    };
    for entry in entries {
        if !entry.map_err(at(dir))?.file_name().as_encoded_bytes().starts_with(b".") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The names and paths of the folders in a folder.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, IndexError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().is_dir()) {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}
