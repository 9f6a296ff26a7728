//! Revisions of the store as messages carry them.

use logmesh_store::Revision;

/// The number that a message carries: protobuf's clients count with a sign.
pub(crate) fn on_wire(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}
