//! Errors as gRPC statuses.

use std::fmt::Display;

use logmesh_grpc::{FieldViolation, aborted, failed_precondition, internal, invalid_argument, unavailable};
use logmesh_rules::Violations;
use logmesh_store::StoreError;
use tonic::Status;

/// An error of the store that the caller of the API can't be told more of. Failed preconditions are handled before.
pub(crate) fn store(error: StoreError) -> Status {
    match error {
        StoreError::Unavailable { reason, .. } => {
            unavailable("STORE_UNAVAILABLE", format!("the config store is not available: {reason}"))
        }
        StoreError::Denied(_) => unavailable("STORE_DENIED", error.to_string()),
        StoreError::PreconditionFailed { .. } => aborted("CONFLICT", "somebody else changed it at the same time"),
        StoreError::LeaseNotFound(_) => failed_precondition("LEASE_ENDED", error.to_string()),
        StoreError::Invalid(_) => internal(error),
        StoreError::Storage(source) => internal(format!("config store: {source}")),
    }
}

/// A request with one bad field.
pub(crate) fn bad_field(field: &str, description: impl Display) -> Status {
    logmesh_grpc::bad_field(field, description)
}

/// A rule that isn't right; fields are named by their path in the request, `rule.paths[0]`.
pub(crate) fn bad_rule(violations: Violations) -> Status {
    let count = violations.0.len();
    let fields: Vec<FieldViolation> = (violations.0.into_iter())
        .map(|violation| FieldViolation::new(format!("rule.{}", violation.field), violation.description))
        .collect();
    let noun = if count == 1 { "1 field" } else { &format!("{count} fields") };
    invalid_argument("INVALID_RULE", format!("the rule is refused: {noun} to correct"), &fields)
}

/// The server is about to stop; the caller connects again, elsewhere or a little later.
pub(crate) fn stopping() -> Status {
    unavailable("STOPPING", "the config service is stopping; connect again")
}
