//! Finds out whether a slice's files are whole. Blocking: called from blocking tasks only.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tantivy::directory::MmapDirectory;
use tantivy::directory::error::OpenReadError;
use tantivy::{Index, TantivyError};

use crate::directory::{META, is_whole};

/// Bytes that end each file that tantivy writes: the length of a JSON text, and a number.
const SHORTEST: u64 = 8;

/// What is wrong with the slice in this folder, work with which gave this error; `None` if that isn't what it came of. Reads its
/// files only if it may be.
pub(crate) fn cause(dir: &Path, error: &TantivyError) -> Option<String> {
    if suspicious(error) { damage(dir) } else { None }
}

/// True of an error that a damaged file may be the cause of, and not a full disk, say.
fn suspicious(error: &TantivyError) -> bool {
    match error {
        TantivyError::DataCorruption(_)
        | TantivyError::IncompatibleIndex(_)
        | TantivyError::SchemaError(_)
        | TantivyError::DeserializeError(_)
        | TantivyError::InternalError(_)
        | TantivyError::OpenReadError(OpenReadError::FileDoesNotExist(_) | OpenReadError::IncompatibleIndex(_)) => true,
        TantivyError::IoError(error) | TantivyError::OpenReadError(OpenReadError::IoError { io_error: error, .. }) => {
            is_of_content(error)
        }
        _ => false,
    }
}

fn is_of_content(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof)
}

/// What is wrong with the slice in this folder: the first file that is missing or doesn't have its checksum. Reads all that
/// the last commit names. `None` if that's whole, or can't be read for now.
pub(crate) fn damage(dir: &Path) -> Option<String> {
    if fs::read(dir.join(META)).is_ok_and(|meta| !is_whole(&meta)) {
        return Some(format!("{META} doesn't have its checksum"));
    }
    // Not by way of `SliceDirectory`, which tidies up: the slice may be open, and being written to.
    let index = match Index::open(MmapDirectory::open(dir).ok()?) {
        Ok(index) => index,
        Err(TantivyError::DataCorruption(error)) => return Some(format!("{error:?}")),
        Err(_) => return None,
    };
    let files = files(&index)?;
    files.iter().find_map(|file| {
        let wrong = wrong(&index, dir, file)?;
        // What a merge replaced meanwhile is no loss.
        self::files(&index)?.contains(file).then(|| format!("{} {wrong}", file.display()))
    })
}

/// The files that the last commit names. Those of temporary stores are none of it, and one of deletions may not be there.
fn files(index: &Index) -> Option<BTreeSet<PathBuf>> {
    let metas = index.load_metas().ok()?;
    let deleted: Vec<String> = metas
        .segments
        .iter()
        .filter(|segment| segment.has_deletes())
        .map(|segment| segment.id().uuid_string())
        .collect();
    let named = |file: &PathBuf| match file.extension().and_then(|extension| extension.to_str()) {
        Some("del") => deleted.iter().any(|id| file.to_string_lossy().starts_with(id)),
        Some("temp") => false,
        _ => true,
    };
    Some(metas.list_segment_files().into_iter().filter(named).collect())
}

fn wrong(index: &Index, dir: &Path, file: &Path) -> Option<&'static str> {
    // Tantivy panics at a file that is shorter than what ends each.
    if fs::metadata(dir.join(file)).is_ok_and(|file| file.len() < SHORTEST) {
        return Some("is cut short or overwritten");
    }
    match index.directory().validate_checksum(file) {
        Ok(false) => Some("doesn't have its checksum"),
        Err(OpenReadError::FileDoesNotExist(_)) => Some("is missing"),
        Err(OpenReadError::IoError { io_error, .. }) if is_of_content(&io_error) => Some("is cut short or overwritten"),
        Ok(true) | Err(_) => None,
    }
}
