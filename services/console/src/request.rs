//! Reading requests: each bad field is refused by its name.

use std::fmt::Display;

use logmesh_grpc::{FieldViolation, invalid_argument};
use logmesh_index::Selection;
use logmesh_index::query::Query;
use logmesh_proto::time::unix_nanos;
use logmesh_types::TopicName;
use prost_types::Timestamp;
use tonic::Status;

/// A refusal that names the field.
pub(crate) fn bad_field(field: &str, error: impl Display) -> Status {
    let text = error.to_string();
    invalid_argument("BAD_REQUEST", format!("{field}: {text}"), &[FieldViolation::new(field, text)])
}

/// The query; a fault is refused with its place, and shown with a caret under it.
pub(crate) fn query(text: &str) -> Result<Query, Status> {
    Query::parse(text).map_err(|error| {
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
) -> Result<Selection, Status> {
    Ok(Selection { query: query(text)?, from: start.map(unix_nanos), to: end.map(unix_nanos), topics: topics(names)? })
}
