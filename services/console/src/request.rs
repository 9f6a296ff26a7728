//! Reading requests: each bad field is refused by its name.

use std::fmt::Display;

use logmesh_grpc::{FieldViolation, invalid_argument};
use logmesh_index::query::Query;
use logmesh_index::{IndexError, Selection};
use logmesh_proto::time::unix_nanos;
use logmesh_types::{TopicName, UnixNanos};
use prost_types::Timestamp;
use tonic::Status;

/// A refusal that names the field.
pub(crate) fn bad_field(field: &str, error: impl Display) -> Status {
    logmesh_grpc::bad_field(field, error)
}

/// The query; a fault is refused with its place, and shown with a caret under it.
pub(crate) fn query(text: &str, now: UnixNanos) -> Result<Query, Status> {
    Query::parse_at(text, now).map_err(|error| {
        let place = format!("{} (at byte {})", error.message, error.at);
        invalid_argument("BAD_QUERY", format!("bad query: {error}"), &[FieldViolation::new("query", place)])
    })
}

/// The topics; none stands for all.
pub(crate) fn topics(names: &[String]) -> Result<Vec<TopicName>, Status> {
    let topic =
        |(place, name): (usize, &String)| name.parse().map_err(|error| bad_field(&format!("topics[{place}]"), error));
    names.iter().enumerate().map(topic).collect()
}

/// What the common fields of a search select.
pub(crate) fn selection(
    text: &str,
    start: Option<&Timestamp>,
    end: Option<&Timestamp>,
    names: &[String],
    now: UnixNanos,
) -> Result<Selection, Status> {
    Ok(Selection {
        query: query(text, now)?,
        from: start.map(unix_nanos),
        to: end.map(unix_nanos),
        topics: topics(names)?,
    })
}

/// A page token of ours: what `now` in the query was on the first page, and the index's token. So that a window up to
/// `now` doesn't move while it's paged through.
pub(crate) fn page_token(now: UnixNanos, token: &str) -> String {
    format!("{}.{token}", now.0)
}

/// What a request's page token says; the present and no token for the first page.
pub(crate) fn read_page_token(text: &str) -> Result<(UnixNanos, Option<&str>), Status> {
    if text.is_empty() {
        return Ok((UnixNanos::now(), None));
    }
    let parts = text.split_once('.').and_then(|(now, token)| Some((UnixNanos(now.parse().ok()?), Some(token))));
    parts.ok_or_else(|| bad_field("page_token", IndexError::BadPageToken))
}
