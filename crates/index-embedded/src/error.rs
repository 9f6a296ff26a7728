//! What tantivy and the file system say, in the words of the index's contract.

use std::io;
use std::path::Path;

use logmesh_index::IndexError;
use tantivy::TantivyError;

/// An error of tantivy. Errors of the disk pass with time or with an operator's help; those of the data don't.
pub(crate) fn from_tantivy(error: TantivyError) -> IndexError {
    let reason = error.to_string();
    match error {
        TantivyError::DataCorruption(_)
        | TantivyError::IncompatibleIndex(_)
        | TantivyError::SchemaError(_)
        | TantivyError::DeserializeError(_) => IndexError::Damaged { reason },
        TantivyError::InvalidArgument(_) => IndexError::Unsupported { reason },
        _ => IndexError::Unavailable { reason },
    }
}

/// An error of the file system at this path.
pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> IndexError + '_ {
    move |error| IndexError::Unavailable { reason: format!("{}: {error}", path.display()) }
}

/// A fault of our own: a task of the index ended by a panic.
pub(crate) fn panicked() -> IndexError {
    IndexError::Unavailable { reason: "a task of the index panicked; its log says why".to_owned() }
}
