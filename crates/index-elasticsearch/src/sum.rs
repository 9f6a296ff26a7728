//! Adds up what the documents of streams come to, in aggregations.
//!
//! Elasticsearch adds in floating point. Sums beyond 2^53 may be off; they then look like a fault, and the audit lists the
//! documents: never the other way round.

use std::collections::HashMap;

use logmesh_index::{IndexError, StreamSum};
use logmesh_types::{StreamId, TopicName};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Inner;
use crate::client::unavailable;

/// Streams of one request. With [`DAYS`] of each it stays below the 65,536 buckets that an answer may have.
const STREAMS: usize = 100;

/// The most indices of a topic in which a stream may lie, one a day.
const DAYS: usize = 600;

#[derive(Deserialize)]
struct Answered {
    /// None where no index was asked.
    #[serde(default)]
    aggregations: Option<Aggregations>,
}

#[derive(Deserialize)]
struct Aggregations {
    streams: Buckets<Stream>,
}

#[derive(Deserialize)]
struct Buckets<T> {
    buckets: Vec<T>,
    sum_other_doc_count: u64,
}

#[derive(Deserialize)]
struct Stream {
    key: String,
    days: Buckets<Day>,
}

#[derive(Deserialize)]
struct Day {
    doc_count: u64,
    bytes: Number,
    first: Number,
    last: Number,
}

/// `null` where no document has the field.
#[derive(Deserialize)]
struct Number {
    value: Option<f64>,
}

impl Inner {
    pub(crate) async fn sums(
        &self,
        topic: &TopicName,
        streams: &[(StreamId, u64)],
    ) -> Result<Vec<Vec<StreamSum>>, IndexError> {
        let indices = self.names.indices(topic);
        if !streams.is_empty() {
            self.refresh(&indices).await?;
        }
        let mut sums = Vec::with_capacity(streams.len());
        for part in streams.chunks(STREAMS) {
            let answered: Answered = self.ask(&indices, body(part)).await?.json()?;
            let found = answered.aggregations.map_or_else(|| Ok(HashMap::new()), |all| by_stream(all.streams))?;
            sums.extend(part.iter().map(|(stream, _)| found.get(&stream.to_string()).cloned().unwrap_or_default()));
        }
        Ok(sums)
    }
}

fn by_stream(streams: Buckets<Stream>) -> Result<HashMap<String, Vec<StreamSum>>, IndexError> {
    if streams.sum_other_doc_count > 0 || streams.buckets.iter().any(|one| one.days.sum_other_doc_count > 0) {
        return Err(unavailable(format!("a topic has more than {DAYS} indices, or an answer leaves streams out")));
    }
    Ok(streams.buckets.into_iter().map(|one| (one.key, one.days.buckets.iter().map(Day::sum).collect())).collect())
}

fn body(streams: &[(StreamId, u64)]) -> Value {
    let conditions: Vec<Value> = streams.iter().map(|(stream, before)| condition(stream, *before)).collect();
    // As many buckets as there can be, on each shard too: none is left out, and no count is a guess.
    json!({
        "query": { "bool": { "filter": [{ "bool": { "should": conditions } }] } },
        "size": 0, "track_total_hits": false,
        "aggs": { "streams": {
            "terms": { "field": "logmesh.stream", "size": streams.len(), "shard_size": streams.len() },
            "aggs": { "days": {
                "terms": { "field": "_index", "size": DAYS, "shard_size": DAYS },
                "aggs": {
                    "bytes": { "sum": { "field": "logmesh.length" } },
                    "first": { "min": { "field": "logmesh.offset" } },
                    "last": { "max": { "field": "logmesh.offset" } },
                },
            } },
        } },
    })
}

fn condition(stream: &StreamId, before: u64) -> Value {
    let stream = json!({ "term": { "logmesh.stream": stream } });
    match i64::try_from(before) {
        Ok(before) => json!({ "bool": { "filter": [stream, { "range": { "logmesh.offset": { "lt": before } } }] } }),
        Err(_) => stream,
    }
}

impl Day {
    fn sum(&self) -> StreamSum {
        let number = |number: &Number| number.value.unwrap_or_default() as u64;
        let (first, last, bytes) = (number(&self.first), number(&self.last), number(&self.bytes));
        StreamSum { first, last, documents: self.doc_count, bytes }
    }
}
