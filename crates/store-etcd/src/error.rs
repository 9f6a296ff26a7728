//! What etcd's refusals and a broken connection mean for the caller.
//!
//! etcd says most of it in text: its codes are shared by refusals that have nothing in common. The texts are those of
//! `api/v3rpc/rpctypes/error.go`, which etcd's own clients compare too.

use std::error::Error as _;
use std::time::Duration;

use etcd_client::Error;
use logmesh_store::{LeaseId, StoreError};
use tonic::{Code, Status};

/// What went wrong, told apart by what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The lease isn't there.
    LeaseNotFound,
    /// The revision asked for was compacted away.
    Compacted,
    /// The revision asked for doesn't exist yet.
    FutureRevision,
    /// The answer is larger than what is taken into memory.
    AnswerTooLarge,
    /// The request can't be done by any member, at any time.
    Invalid,
    /// The user, its password or its rights are wrong. A human has to act.
    Denied,
    /// etcd's quota is used up. A human has to act.
    Full,
    /// etcd found its data damaged.
    Corrupt,
    /// The token of this connection has ended. Nothing was done.
    StaleToken,
    /// The member can't be reached. Nothing was done.
    NotSent,
    /// The member has no leader at present. Nothing was done.
    NoLeader,
    /// Whether it was done is unknown.
    Lost,
}

/// A request that wasn't answered as it should be.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    reason: String,
    source: Option<Error>,
}

impl Failure {
    pub(crate) fn new(member: &str, error: Error) -> Self {
        let (kind, text) = match &error {
            Error::GRpcStatus(status) => (kind(status), describe(status)),
            Error::LeaseKeepAliveError(text) if text == "lease not found" => (Kind::LeaseNotFound, text.clone()),
            other => (Kind::Lost, other.to_string()),
        };
        let reason = match kind {
            Kind::Denied => format!("etcd at {member}: {text}"),
            Kind::Full => {
                format!("etcd's space is used up; compact, defragment and disarm its alarm ({member}: {text})")
            }
            _ => format!("etcd at {member}: {text}"),
        };
        Self { kind, reason, source: Some(error) }
    }

    /// A member that didn't answer in time.
    pub(crate) fn silent(member: &str, waited: Duration) -> Self {
        let reason = format!("etcd at {member} did not answer within {waited:.1?}");
        Self { kind: Kind::Lost, reason, source: None }
    }

    /// Whether another member may do better.
    pub(crate) fn is_of_the_member(&self) -> bool {
        matches!(self.kind, Kind::NotSent | Kind::NoLeader | Kind::Lost | Kind::StaleToken)
    }

    /// Whether it's certain that nothing was done.
    pub(crate) fn was_not_done(&self) -> bool {
        matches!(self.kind, Kind::NotSent | Kind::NoLeader | Kind::StaleToken)
    }

    /// What the caller of an operation on a lease is told.
    pub(crate) fn of_lease(self, lease: LeaseId) -> StoreError {
        match self.kind {
            Kind::LeaseNotFound => StoreError::LeaseNotFound(lease),
            _ => self.into(),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match (failure.kind, failure.source) {
            (Kind::Invalid | Kind::FutureRevision, _) => Self::Invalid(failure.reason),
            (Kind::Corrupt, Some(source)) => Self::Storage(Box::new(source)),
            (Kind::Denied, _) => Self::Denied(failure.reason),
            // A used-up quota too: once a human has put it right in etcd, the same call succeeds.
            (_, source) => Self::Unavailable { reason: failure.reason, source: source.map(|source| source.into()) },
        }
    }
}

fn kind(status: &Status) -> Kind {
    let says = |text| status.message().contains(text);
    match status.code() {
        Code::NotFound if says("requested lease not found") => Kind::LeaseNotFound,
        Code::OutOfRange if says("has been compacted") => Kind::Compacted,
        Code::OutOfRange if says("future revision") => Kind::FutureRevision,
        Code::OutOfRange if says("message length too large") => Kind::AnswerTooLarge,
        Code::ResourceExhausted if says("database space exceeded") => Kind::Full,
        Code::ResourceExhausted if says("message larger than max") => Kind::Invalid,
        Code::DataLoss => Kind::Corrupt,
        Code::Unauthenticated => Kind::StaleToken,
        Code::InvalidArgument if says("revision of auth store is old") => Kind::StaleToken,
        Code::InvalidArgument if says("authentication failed") || says("user name is empty") => Kind::Denied,
        Code::FailedPrecondition if says("authentication is not enabled") => Kind::Denied,
        Code::PermissionDenied if says("etcdserver") => Kind::Denied,
        Code::InvalidArgument => Kind::Invalid,
        Code::Unavailable if says("no leader") => Kind::NoLeader,
        _ if was_never_sent(status) => Kind::NotSent,
        _ => Kind::Lost,
    }
}

fn was_never_sent(status: &Status) -> bool {
    causes(status).any(|error| error.is::<tonic::ConnectError>())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}

/// The message with what lies beneath it: tonic's own says "tcp connect error" and no more.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    for error in causes(status) {
        let more = error.to_string();
        if !text.contains(&more) && more != "transport error" {
            text = format!("{text}: {more}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: Code, message: &str) -> StoreError {
        Failure::new("a:1", Error::GRpcStatus(Status::new(code, message))).into()
    }

    #[test]
    fn what_a_human_has_to_do_is_said() {
        let full = told(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert!(full.retryable() && full.to_string().contains("disarm"), "{full}");
        let denied = told(Code::PermissionDenied, "etcdserver: permission denied");
        assert!(denied.to_string().contains("refuses this user"), "{denied}");
        let password = told(Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password");
        assert!(password.retryable() && password.to_string().contains("password"), "{password}");
    }

    #[test]
    fn what_can_never_be_done_is_not_tried_again() {
        let large = told(Code::InvalidArgument, "etcdserver: request is too large");
        assert!(matches!(large, StoreError::Invalid(_)), "{large}");
        let larger = told(Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2)");
        assert!(matches!(larger, StoreError::Invalid(_)), "{larger}");
        assert!(matches!(told(Code::DataLoss, "etcdserver: corrupt cluster"), StoreError::Storage(_)));
    }

    #[test]
    fn what_may_pass_is_not_available() {
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out, possibly due to connection lost"),
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::Unknown, "transport error"),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
        ] {
            let error = told(code, message);
            assert!(error.retryable() && error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn only_what_was_certainly_not_done_is_sent_again() {
        let failure = |code, message: &str| Failure::new("a:1", Error::GRpcStatus(Status::new(code, message)));
        assert!(failure(Code::Unavailable, "etcdserver: no leader").was_not_done());
        assert!(!failure(Code::Unavailable, "etcdserver: leader changed").was_not_done());
        assert!(!failure(Code::Unknown, "transport error").was_not_done());
        assert!(!Failure::silent("a:1", Duration::from_secs(5)).was_not_done());
    }
}
