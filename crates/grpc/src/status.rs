//! One way to say what was wrong: a gRPC code, a text for people, and `google.rpc` details for programs.
//!
//! `reason` is UPPER_SNAKE, stable, and part of the contract (`google.rpc.ErrorInfo`, domain `logmesh`).

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::error;

pub use tonic_types::FieldViolation;

/// The entries of a page that doesn't say, as the protos promise.
const DEFAULT_PAGE: usize = 100;

/// The domain of our reasons.
const DOMAIN: &str = "logmesh";

/// The request can never succeed as it is. `violations` name each bad field by its path, `rule.paths[0]`.
pub fn invalid_argument(reason: &str, message: impl Into<String>, violations: &[FieldViolation]) -> Status {
    let mut details = info(reason);
    if !violations.is_empty() {
        details.set_bad_request(violations);
    }
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// The request can never succeed, for the sake of one field: [`invalid_argument`] with its one violation and the reason
/// `INVALID_FIELD`.
pub fn bad_field(field: &str, error: impl Display) -> Status {
    let text = error.to_string();
    invalid_argument("INVALID_FIELD", format!("{field}: {text}"), &[FieldViolation::new(field, text)])
}

/// How many entries a page shall hold, of which there may be `most`; 0 leaves it to us. `None` if it is negative.
pub fn page_size(asked: i32, most: usize) -> Option<usize> {
    match usize::try_from(asked).ok()? {
        0 => Some(DEFAULT_PAGE),
        asked => Some(asked.min(most)),
    }
}

/// There's no such thing.
pub fn not_found(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::NotFound, reason, message)
}

/// There is one already.
pub fn already_exists(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::AlreadyExists, reason, message)
}

/// The system isn't in a state for this; the caller has to change something first.
pub fn failed_precondition(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::FailedPrecondition, reason, message)
}

/// Somebody changed the thing meanwhile (its etag is another): read it again and decide anew.
pub fn aborted(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::Aborted, reason, message)
}

/// The caller may not do this.
pub fn permission_denied(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::PermissionDenied, reason, message)
}

/// A limit was reached; the same call may succeed later or smaller.
pub fn resource_exhausted(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::ResourceExhausted, reason, message)
}

/// Not now; the same call may succeed later.
pub fn unavailable(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::Unavailable, reason, message)
}

/// The same error, which tells the caller when to try again.
pub fn come_again(status: &Status, after: Duration) -> Status {
    let mut details = status.get_error_details();
    details.set_retry_info(Some(after));
    Status::with_error_details(status.code(), status.message(), details)
}

/// Data that was kept is damaged. The text says which, and what to do.
pub fn data_loss(reason: &str, message: impl Into<String>) -> Status {
    with_reason(Code::DataLoss, reason, message)
}

/// A fault of ours. What it was is for our log only: it may hold paths and other people's data.
pub fn internal(cause: impl Display) -> Status {
    error!(error = format!("{cause:#}"), "internal error");
    with_reason(Code::Internal, "INTERNAL", "internal error; the server's log says more")
}

/// The stable reason that the server gave, if any.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// The whole error for people: the message, then each bad field on a line of its own.
pub fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    // The one of `bad_field` is the message.
    for violation in status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default() {
        let violation = format!("{}: {}", violation.field, violation.description);
        if violation != text {
            text.push_str(&format!("\n  {violation}"));
        }
    }
    text
}

/// The cause of all causes, for people: the transport's own words are "transport error".
pub fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn with_reason(code: Code, reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, info(reason))
}

fn info(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrong_comes_back_whole() {
        let fields = [FieldViolation::new("paths[0]", "not a glob"), FieldViolation::new("topic", "empty")];
        let status = invalid_argument("BAD_RULE", "the rule is refused", &fields);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason(&status).as_deref(), Some("BAD_RULE"));
        assert_eq!(describe(&status), "the rule is refused\n  paths[0]: not a glob\n  topic: empty");
        assert_eq!(status.get_details_error_info().unwrap().domain, "logmesh");
        assert_eq!(describe(&bad_field("topic", "empty")), "topic: empty");
    }

    #[test]
    fn each_kind_has_its_code_and_reason() {
        let all = [
            (Code::NotFound, not_found("X", "m")),
            (Code::AlreadyExists, already_exists("X", "m")),
            (Code::FailedPrecondition, failed_precondition("X", "m")),
            (Code::Aborted, aborted("X", "m")),
            (Code::PermissionDenied, permission_denied("X", "m")),
            (Code::ResourceExhausted, resource_exhausted("X", "m")),
            (Code::Unavailable, unavailable("X", "m")),
        ];
        for (code, status) in all {
            assert_eq!((status.code(), reason(&status).as_deref(), describe(&status).as_str()), (code, Some("X"), "m"));
        }
    }

    #[test]
    fn an_internal_error_tells_the_peer_nothing() {
        let status = internal(anyhow_like());
        assert!(!format!("{status:?}").contains("/etc/shadow"));
    }

    fn anyhow_like() -> std::io::Error {
        std::io::Error::other("cannot open /etc/shadow")
    }
}
