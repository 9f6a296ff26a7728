//! Where tantivy keeps a slice's files: its own memory-mapped directory, with fewer waits for the disk.
//!
//! Tantivy's directory waits for the disk twice for each file of a segment, one after the other: for the list of files it
//! manages, and for the file. A commit of one document is then some twenty waits. Nothing of that is needed before
//! `meta.json` names the files. So here the list isn't kept on disk but is what lies in the folder, and all files are
//! synced side by side when `meta.json` is about to be replaced, which is a commit's one point of no return. Tantivy
//! doesn't sync the folder after that, and would lose the commit with the machine's power; here it is synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crc32c::crc32c;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    AntiCallToken, Directory, DirectoryLock, FileHandle, Lock, MmapDirectory, TerminatingWrite, WatchCallback,
    WatchHandle, WritePtr,
};

use crate::suspect::at_work;

/// What names the files of the last commit.
pub(crate) const META: &str = "meta.json";
/// How it begins here, before its checksum. Tantivy gives no checksum to it, and passes over what it doesn't know in it.
const SEAL: &[u8] = b"{\"crc32c\":";
const MANAGED: &str = ".managed.json";
/// How the files begin that tantivy writes beside another and then renames.
const TEMPORARY: &str = ".tmp";

/// The files of one slice.
#[derive(Clone, Debug)]
pub(crate) struct SliceDirectory {
    inner: MmapDirectory,
    dir: PathBuf,
    /// Files that are complete but perhaps not on disk yet.
    unsynced: Arc<Mutex<Vec<File>>>,
}

impl SliceDirectory {
    pub(crate) fn open(dir: &Path) -> tantivy::Result<Self> {
        Ok(Self { inner: MmapDirectory::open(dir)?, dir: dir.to_owned(), unsynced: Arc::default() })
    }

    /// The files that are there, as the list that tantivy's garbage collection begins with. What was being written when
    /// a process was killed is in it, and goes when the slice's writer is opened.
    fn managed_files(&self) -> io::Result<Vec<u8>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            match entry.file_name().into_string() {
                Ok(name) if name.starts_with(TEMPORARY) => fs::remove_file(entry.path())?,
                Ok(name) if !name.starts_with('.') => names.push(name),
                _ => {}
            }
        }
        Ok(serde_json::to_vec(&names)?)
    }

    /// Brings everything that the next `meta.json` names onto the disk.
    fn sync_files(&self) -> io::Result<()> {
        let mut files = std::mem::take(&mut *self.unsynced());
        let folder = File::open(&self.dir)?;
        let synced = thread::scope(|scope| {
            let others: Vec<_> = files.iter().map(|file| scope.spawn(|| file.sync_data())).collect();
            let folder = folder.sync_all();
            let panicked = |_| Err(io::Error::other("a thread that synced a file panicked"));
            others.into_iter().map(|other| other.join().unwrap_or_else(panicked)).fold(folder, Result::and)
        });
        if synced.is_err() {
            // They may still be asked for, by a merge that ends after a commit failed.
            self.unsynced().append(&mut files);
        }
        synced
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory for SliceDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        at_work(&self.dir);
        self.inner.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.inner.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        at_work(&self.dir);
        let file = OpenOptions::new().write(true).create_new(true).open(self.dir.join(path));
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => OpenWriteError::FileAlreadyExists(path.to_owned()),
            _ => OpenWriteError::wrap_io_error(error, path.to_owned()),
        })?;
        Ok(BufWriter::new(Box::new(NewFile { file: Some(file), unsynced: Arc::clone(&self.unsynced) })))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        at_work(&self.dir);
        if path == Path::new(MANAGED) {
            return self.managed_files().map_err(|error| OpenReadError::wrap_io_error(error, path.to_owned()));
        }
        let data = self.inner.atomic_read(path)?;
        if path == Path::new(META) && !is_whole(&data) {
            return Err(OpenReadError::wrap_io_error(io::ErrorKind::InvalidData.into(), path.to_owned()));
        }
        Ok(data)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        at_work(&self.dir);
        if path == Path::new(MANAGED) {
            return Ok(());
        }
        if path == Path::new(META) {
            self.sync_files()?;
            self.inner.atomic_write(path, &sealed(data))?;
        } else {
            self.inner.atomic_write(path, data)?;
        }
        File::open(&self.dir)?.sync_all()
    }

    /// Does nothing: what matters is synced with `meta.json`, and a deleted file may come back with a loss of power, to
    /// be deleted again.
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.inner.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(callback)
    }
}

/// A JSON object with the checksum of all that follows it as its first field.
fn sealed(json: &[u8]) -> Vec<u8> {
    let Some(rest) = json.strip_prefix(b"{") else { return json.to_owned() };
    [SEAL, crc32c(rest).to_string().as_bytes(), b",", rest].concat()
}

/// False if a `meta.json` doesn't have its checksum. Those that were written without one are believed.
pub(crate) fn is_whole(meta: &[u8]) -> bool {
    let Some(sealed) = meta.strip_prefix(SEAL) else { return true };
    let mut parts = sealed.splitn(2, |byte| *byte == b',');
    let (sum, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    sum == crc32c(rest).to_string().as_bytes()
}

/// A file that is synced later.
struct NewFile {
    file: Option<File>,
    unsynced: Arc<Mutex<Vec<File>>>,
}

impl NewFile {
    fn file(&mut self) -> io::Result<&mut File> {
        self.file.as_mut().ok_or_else(|| io::Error::other("the file is complete"))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TerminatingWrite for NewFile {
    fn terminate_ref(&mut self, _: AntiCallToken) -> io::Result<()> {
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.extend(self.file.take());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &SliceDirectory, name: &str) {
        let mut file = directory.open_write(Path::new(name)).unwrap();
        file.write_all(b"content").unwrap();
        file.terminate().unwrap();
    }

    #[test]
    fn files_wait_for_the_meta_file_to_be_synced() {
        let folder = tempfile::tempdir().unwrap();
        let directory = SliceDirectory::open(folder.path()).unwrap();
        write(&directory, "a.term");
        write(&directory, "b.term");
        assert_eq!(directory.unsynced().len(), 2);
        directory.atomic_write(Path::new(META), b"{}").unwrap();
        assert!(directory.unsynced().is_empty());
        assert!(matches!(directory.open_write(Path::new("a.term")), Err(OpenWriteError::FileAlreadyExists(_))));
    }

    #[test]
    fn what_lies_in_the_folder_is_managed() {
        let folder = tempfile::tempdir().unwrap();
        let directory = SliceDirectory::open(folder.path()).unwrap();
        write(&directory, "a.term");
        fs::write(folder.path().join(".tmpx"), "left over").unwrap();
        directory.atomic_write(Path::new(MANAGED), b"[\"none\"]").unwrap();
        assert_eq!(directory.atomic_read(Path::new(MANAGED)).unwrap(), b"[\"a.term\"]");
        assert!(!folder.path().join(".tmpx").exists());
    }
}
