//! Documents for the tests.

use logmesh_types::{AgentId, DocId, StreamId, TopicName, UnixNanos};
use serde_json::{Map, Value, json};

use super::query;
use crate::{Hit, NewDoc, Selection, Slice};

/// The time of the first document, 2026-01-31T12:00:00Z; also what `now` is in queries.
pub const NOON: UnixNanos = UnixNanos(1_769_860_800_000_000_000);

/// A document being made.
#[derive(Clone, Debug)]
pub struct Doc {
    slice: Slice,
    stream: StreamId,
    offset: i64,
    fields: Map<String, Value>,
}

/// A topic of this name.
pub fn topic(name: &str) -> TopicName {
    name.parse().unwrap()
}

/// The slice of a topic for a date.
pub fn slice(name: &str, date: &str) -> Slice {
    Slice { topic: topic(name), date: date.to_owned() }
}

/// One of several streams.
pub fn stream(number: u64) -> StreamId {
    let agent: AgentId = "host-1".parse().unwrap();
    StreamId::derive(&agent, number, 0, 0)
}

/// All documents of all topics that the query finds.
pub fn selection(text: &str) -> Selection {
    Selection { query: query(text), from: None, to: None, topics: Vec::new() }
}

/// The `log.offset` of a hit.
pub(super) fn offset_of(hit: &Hit) -> i64 {
    let document: Value = serde_json::from_slice(&hit.body).unwrap();
    document["log.offset"].as_i64().unwrap()
}

impl Doc {
    /// A document of topic `logs` whose `@timestamp` is as many seconds after [`NOON`] as its offset.
    pub fn new(offset: i64, message: &str) -> Self {
        let doc = Self { slice: slice("logs", "2026-01-31"), stream: stream(1), offset, fields: Map::new() };
        doc.at(offset * 1_000_000_000).with("message", json!(message))
    }

    /// Puts it into another slice.
    pub fn in_slice(mut self, slice: Slice) -> Self {
        self.slice = slice;
        self
    }

    /// Makes it one of another stream.
    pub fn of(mut self, stream: StreamId) -> Self {
        self.stream = stream;
        self
    }

    /// Sets its time, in nanoseconds after [`NOON`].
    pub fn at(self, nanos: i64) -> Self {
        self.with("@timestamp", json!(UnixNanos(NOON.0 + nanos).to_string()))
    }

    /// Sets a field.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.fields.insert(field.to_owned(), value);
        self
    }

    /// Its id.
    pub fn id(&self) -> DocId {
        DocId::of_event(&self.stream, self.offset as u64, b"event")
    }

    /// Its fields.
    pub fn document(&self) -> Map<String, Value> {
        let mut document = self.fields.clone();
        document.insert("log.offset".to_owned(), json!(self.offset));
        document.insert("logmesh.offset".to_owned(), json!(self.offset));
        document.insert("logmesh.length".to_owned(), json!(10));
        document.insert("logmesh.stream".to_owned(), json!(self.stream));
        document
    }

    /// The document as it's written.
    pub fn build(&self) -> NewDoc {
        let body = serde_json::to_vec(&self.document()).unwrap();
        NewDoc { slice: self.slice.clone().into(), id: self.id(), body: body.into() }
    }
}
