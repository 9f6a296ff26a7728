//! Which slice a panic came of. Tantivy believes what it reads, so that damaged files may make it panic, in release builds the end of
//! the process. A panic hook marks the slice that its thread works on; marked slices are checked before they're read again, so that a
//! process ends of one damage only once.

use std::cell::Cell;
use std::fs::{self, File};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

use logmesh_index::IndexError;
use tantivy::TantivyError;
use tracing::{error, warn};

use crate::damage::damage;

/// An empty file in a slice's folder. Tantivy's garbage collection leaves names alone that begin with a dot.
const MARK: &str = ".suspect";

thread_local! {
    static AT_WORK: Cell<Option<PathBuf>> = const { Cell::new(None) };
}

/// From now on, until another is named, a panic on this thread is one of the slice in this folder. [`SliceDirectory`] says so of each
/// use: that is how it's known of tantivy's own threads, each of which works for one slice.
///
/// [`SliceDirectory`]: crate::directory::SliceDirectory
pub(crate) fn at_work(dir: &Path) {
    AT_WORK.set(Some(dir.to_owned()));
}

/// Does some of tantivy's work with the slice in this folder. A panic is an error where it doesn't end the process.
pub(crate) fn watched<T>(dir: &Path, work: impl FnOnce() -> tantivy::Result<T>) -> tantivy::Result<T> {
    at_work(dir);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    AT_WORK.take();
    result.unwrap_or_else(|_| {
        Err(TantivyError::InternalError(format!(
            "a panic, of which the log tells more, in work with {}",
            dir.display()
        )))
    })
}

/// Has panics of this process mark the slice they come of. Whatever else happens at a panic happens after that.
pub(crate) fn mark_at_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let next = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if let Ok(Some(dir)) = AT_WORK.try_with(Cell::take) {
                mark(&dir);
            }
            next(panic);
        }));
    });
}

fn mark(dir: &Path) {
    let slice = dir.display();
    match File::create(dir.join(MARK)).and_then(|mark| mark.sync_all()).and_then(|()| File::open(dir)?.sync_all()) {
        Ok(()) => {
            error!(%slice, "a panic in work with a slice of the index: its files are checked before it's opened again")
        }
        Err(error) => {
            error!(%slice, %error, "a panic in work with a slice of the index, which can't be marked for a check")
        }
    }
}

/// What is wrong with the slice in this folder if a panic came of it and nobody checked it since; `None` if nothing is. An error if
/// that can't be told for now: it stays marked.
pub(crate) fn check(dir: &Path) -> Result<Option<String>, IndexError> {
    let mark = dir.join(MARK);
    if !mark.exists() {
        return Ok(None);
    }
    let damage = damage(dir)?;
    if damage.is_none() {
        warn!(slice = %dir.display(), "a panic came of work with a slice of the index, though its files have their checksums");
        if let Err(error) = fs::remove_file(&mark) {
            warn!(file = %mark.display(), %error, "cannot be removed: the slice is checked again when it's opened again");
        }
    }
    Ok(damage)
}
