//! Finds out whether a slice's files are whole. Blocking: called from blocking tasks only.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use logmesh_index::IndexError;
use tantivy::directory::MmapDirectory;
use tantivy::directory::error::OpenReadError;
use tantivy::{Index, TantivyError};

use crate::directory::{META, is_whole};
use crate::error::at;

/// Bytes that end each file that tantivy writes: the length of a JSON text, and a number.
const SHORTEST: u64 = 8;

/// What is wrong with the slice in this folder, work with which gave this error; `None` if that isn't what it came of, or if the
/// files can't be read for now. Reads them only if they may be what it came of.
pub(crate) fn cause(dir: &Path, error: &TantivyError) -> Option<String> {
    if suspicious(error) { damage(dir).ok().flatten() } else { None }
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
/// the last commit names. `None` if all of it is whole; an error if that can't be told for now.
pub(crate) fn damage(dir: &Path) -> Result<Option<String>, IndexError> {
    let path = dir.join(META);
    match fs::read(&path) {
        Ok(meta) if !is_whole(&meta) => return Ok(Some(format!("{META} doesn't have its checksum"))),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(format!("{META} is missing"))),
        Err(error) => return Err(at(&path)(error)),
    }
    // Not by way of `SliceDirectory`, which tidies up: the slice may be open, and being written to.
    let directory = MmapDirectory::open(dir).map_err(|error| unread(dir, error.into()))?;
    let index = match Index::open(directory) {
        Ok(index) => index,
        Err(TantivyError::DataCorruption(error)) => return Ok(Some(format!("{error:?}"))),
        Err(error) => return Err(unread(dir, error)),
    };
    for file in files(&index, dir)? {
        if let Some(wrong) = wrong(&index, dir, &file)?
            // What a merge replaced meanwhile is no loss.
            && files(&index, dir)?.contains(&file)
        {
            return Ok(Some(format!("{} {wrong}", file.display())));
        }
    }
    Ok(None)
}

/// The files that the last commit names. Those of temporary stores are none of it, and one of deletions may not be there.
fn files(index: &Index, dir: &Path) -> Result<BTreeSet<PathBuf>, IndexError> {
    let metas = index.load_metas().map_err(|error| unread(dir, error))?;
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
    Ok(metas.list_segment_files().into_iter().filter(named).collect())
}

fn wrong(index: &Index, dir: &Path, file: &Path) -> Result<Option<&'static str>, IndexError> {
    // Tantivy panics at a file that is shorter than what ends each.
    if fs::metadata(dir.join(file)).is_ok_and(|file| file.len() < SHORTEST) {
        return Ok(Some("is cut short or overwritten"));
    }
    match index.directory().validate_checksum(file) {
        Ok(true) => Ok(None),
        Ok(false) => Ok(Some("doesn't have its checksum")),
        Err(OpenReadError::FileDoesNotExist(_)) => Ok(Some("is missing")),
        Err(OpenReadError::IoError { io_error, .. }) if is_of_content(&io_error) => {
            Ok(Some("is cut short or overwritten"))
        }
        Err(error) => Err(unread(dir, error.into())),
    }
}

/// The error of a slice of which it can't be told whether it's damaged.
fn unread(dir: &Path, error: TantivyError) -> IndexError {
    IndexError::Unavailable { reason: format!("cannot read the index in {} for now: {error}", dir.display()) }
}
