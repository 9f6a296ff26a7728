//! Temporary folders that stay when the test fails, with what is needed to see why.

use std::ops::Deref;
use std::path::Path;

use tempfile::TempDir;

/// A temporary folder. It is removed with the value, but stays and is named when the test panics.
#[derive(Debug)]
pub struct Folder {
    inner: TempDir,
}

impl Folder {
    /// A new folder. Panics if there can't be one.
    #[allow(clippy::new_without_default)] // a default that touches the disk would surprise
    pub fn new() -> Self {
        let inner = tempfile::Builder::new().prefix("logmesh-test-").tempdir();
        Self { inner: inner.unwrap_or_else(|error| panic!("cannot make a temporary folder: {error}")) }
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.inner.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.inner.disable_cleanup(true);
            #[allow(clippy::print_stderr)] // shown with the failed test's output
            {
                eprintln!("kept for inspection: {}", self.inner.path().display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_a_success_and_stays_with_a_failure() {
        let folder = Folder::new();
        let path = folder.to_path_buf();
        drop(folder);
        assert!(!path.exists());

        let (send, receive) = std::sync::mpsc::channel();
        let failed = std::thread::spawn(move || {
            let folder = Folder::new();
            send.send(folder.to_path_buf()).unwrap();
            panic!("on purpose, to see that the folder stays");
        });
        assert!(failed.join().is_err());
        let kept = receive.recv().unwrap();
        assert!(kept.exists());
        std::fs::remove_dir_all(kept).unwrap();
    }
}
