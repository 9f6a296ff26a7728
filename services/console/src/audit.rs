//! The audit: proves of each stream that no byte is missing and none is there twice, or says where.
//!
//! Three parties are compared: what the agent says is durable, what the books on the bus say is done, and what the
//! index holds. They are read in the order in which a line passes them (agent, bus, books, index), so that a line which
//! moves on meanwhile is seen at a later place and never taken for a gap. What still looks bad is looked at again.
//!
//! Books are read once and followed from then on ([`shelf`]). The index is asked for sums first, all streams of a page in one
//! call ([`stream::sums`]); only of a stream that doesn't come to what its book says are the documents listed. What is missing
//! [`repair`] puts back: from the bus, and what that no longer holds from the [`file`]. What is there twice it takes away
//! ([`removal`]), where it's sure which of them is the [copy](copies).

mod copies;
mod coverage;
mod file;
mod ledger;
mod marks;
mod page;
mod removal;
mod repair;
mod service;
mod shelf;
mod source;
mod stream;
mod untold;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use logmesh_bus::BusError;
use logmesh_grpc::{internal, not_found, resource_exhausted, unavailable};
use logmesh_index::IndexError;
use tonic::{Code, Status};

use crate::search::index_status;
pub(crate) use service::Audit;

/// Why an audit could not be made.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error("the audit can't read the bus")]
    Bus(#[from] BusError),
    #[error("the audit can't read the index")]
    Index(#[from] IndexError),
    #[error("the audit can't ask config for the agents' streams: {}", .0.message())]
    Fleet(#[source] Status),
    #[error("{}, and these config services did not answer: {}", .0, .1.iter().cloned().collect::<Vec<_>>().join(", "))]
    Incomplete(String, BTreeSet<String>),
    #[error("as many audits are under way as this console makes at a time; try again later")]
    Busy,
    #[error("{0}")]
    Unknown(String),
    #[error("a repair is under way, and this console makes one at a time; try again when it's done")]
    Repairing,
}

impl AuditError {
    /// What was asked for isn't known, as far as all config services answered.
    fn unknown(what: String, silent: BTreeSet<String>) -> Self {
        if silent.is_empty() { Self::Unknown(what) } else { Self::Incomplete(what, silent) }
    }
}

impl From<AuditError> for Status {
    fn from(error: AuditError) -> Self {
        match &error {
            AuditError::Bus(cause) if cause.retryable() => unavailable("BUS_UNAVAILABLE", format!("{error}: {cause}")),
            AuditError::Fleet(cause) if matches!(cause.code(), Code::Unavailable | Code::DeadlineExceeded) => {
                unavailable("CONFIG_UNAVAILABLE", error.to_string())
            }
            AuditError::Incomplete(..) => unavailable("SERVERS_UNREACHABLE", error.to_string()),
            AuditError::Unknown(..) => not_found("UNKNOWN_STREAM", error.to_string()),
            AuditError::Repairing => resource_exhausted("TOO_MANY_REPAIRS", error.to_string()),
            AuditError::Busy => resource_exhausted("TOO_MANY_AUDITS", error.to_string()),
            AuditError::Bus(cause) => internal(format!("{error}: {cause}")),
            AuditError::Index(cause) => index_status(cause, format!("{error}: {cause}")),
            AuditError::Fleet(_) => internal(error),
        }
    }
}
