//! The folder that holds everything standalone keeps: one process at a time, one version of its layout.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use logmesh_runtime::files;
use rustix::fs::{FlockOperation, flock};

/// The layout that this build reads and writes. A change that an older build would misread raises it.
const VERSION: &str = "1";

/// Why a data folder can't be used. Nothing was changed in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    #[error("cannot use the data folder {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the data folder {} is in use by another logmesh; stop that one, or give this one another --data-dir", path.display())]
    InUse { path: PathBuf },
    #[error(
        "the data folder {} is of version {found:?} and this logmesh reads version {VERSION}; start the logmesh that wrote it, \
         or give this one another --data-dir",
        path.display()
    )]
    OtherVersion { path: PathBuf, found: String },
    #[error(
        "the folder {} holds other files and no logmesh data; give an empty or a new folder as --data-dir",
        path.display()
    )]
    NotOurs { path: PathBuf },
    #[error(
        "the data folder {} has lost its file `version`, or it holds no text; if this logmesh wrote the folder, make it anew: printf {VERSION} > '{}/version'",
        path.display(), path.display()
    )]
    NoVersion { path: PathBuf },
}

/// A data folder, held until this is dropped or the process ends in whatever way.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens the folder, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let failed = |source| DataDirError::Io { path: path.clone(), source };
        check_version(&path)?;
        let lock = File::create(path.join("lock")).map_err(failed)?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            return Err(match error {
                rustix::io::Errno::WOULDBLOCK => DataDirError::InUse { path },
                other => failed(other.into()),
            });
        }
        files::replace(&path.join("version"), VERSION.as_bytes()).map_err(failed)?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder's absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces a small file, whole or not at all.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        files::replace(&self.path.join(name), content)
            .map_err(|source| DataDirError::Io { path: self.path.clone(), source })
    }
}

fn check_version(path: &Path) -> Result<(), DataDirError> {
    match std::fs::read_to_string(path.join("version")) {
        Ok(found) if found.trim() == VERSION => Ok(()),
        Ok(found) => Err(DataDirError::OtherVersion { path: path.to_owned(), found: found.trim().to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = path.read_dir().map_err(|source| DataDirError::Io { path: path.to_owned(), source })?;
            // A start that was killed before it wrote the version leaves no more than these.
            match entries.all(|entry| {
                entry.is_ok_and(|entry| ["lock", "version.new"].iter().any(|ours| entry.file_name() == *ours))
            }) {
                true => Ok(()),
                false if path.join("index").join("VERSION").exists() => {
                    Err(DataDirError::NoVersion { path: path.to_owned() })
                }
                false => Err(DataDirError::NotOurs { path: path.to_owned() }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(DataDirError::NoVersion { path: path.to_owned() })
        }
        Err(source) => Err(DataDirError::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_and_the_next_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataDir::open(&path).unwrap();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse { .. })));
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn another_version_and_a_stranger_s_folder_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::NotOurs { .. })));
        std::fs::write(folder.path().join("version"), "99\n").unwrap();
        let error = DataDir::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("version \"99\""), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn a_folder_without_its_version_is_told_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        std::fs::create_dir(folder.path().join("index")).unwrap();
        std::fs::write(folder.path().join("index/VERSION"), "1").unwrap();
        std::fs::remove_file(folder.path().join("version")).unwrap();
        let refused = || {
            let error = DataDir::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("its file `version`") && error.contains("printf 1 >"), "{error}");
        };
        refused();
        std::fs::write(folder.path().join("version"), b"\xff1").unwrap();
        refused();
        std::fs::write(folder.path().join("version"), "1").unwrap();
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_start_that_was_killed_early_is_no_stranger() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("lock")).unwrap();
        DataDir::open(folder.path()).unwrap();
    }
}
