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
    lengths: Lengths,
    /// What the places come to on average, each as often as its document has bytes.
    #[serde(default)]
    place: Number,
    first: Number,
    last: Number,
}

#[derive(Deserialize)]
struct Lengths {
    sum: Option<f64>,
    sum_of_squares: Option<f64>,
}

/// `null` where no document has the field.
#[derive(Default, Deserialize)]
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
            let answer = match self.ask(&indices, body(part, true)).await {
                // A foreign document of several lengths has no place by its length. Without one, sums look like a fault.
                Err(IndexError::Unsupported { .. }) => self.ask(&indices, body(part, false)).await?,
                answer => answer?,
            };
            let answered: Answered = answer.json()?;
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

fn body(streams: &[(StreamId, u64)], places: bool) -> Value {
    let mut of_day = json!({
        "lengths": { "extended_stats": { "field": "logmesh.length" } },
        "first": { "min": { "field": "logmesh.offset" } },
        "last": { "max": { "field": "logmesh.offset" } },
    });
    if places {
        let average = json!({ "value": { "field": "logmesh.offset" }, "weight": { "field": "logmesh.length" } });
        of_day["place"] = json!({ "weighted_avg": average });
    }
    let conditions: Vec<Value> = streams.iter().map(|(stream, before)| condition(stream, *before)).collect();
    // As many buckets as there can be, on each shard too: none is left out, and no count is a guess.
    json!({
        "query": { "bool": { "filter": [{ "bool": { "should": conditions } }] } },
        "size": 0, "track_total_hits": false,
        "aggs": { "streams": {
            "terms": { "field": "logmesh.stream", "size": streams.len(), "shard_size": streams.len() },
            "aggs": { "days": {
                "terms": { "field": "_index", "size": DAYS, "shard_size": DAYS },
                "aggs": of_day,
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
        let (first, last) = (number(&self.first), number(&self.last));
        let bytes = self.lengths.sum.unwrap_or_default();
        // For each document (start + length)² - start².
        let places = 2.0 * self.place.value.unwrap_or_default() * bytes;
        let squares = (places + self.lengths.sum_of_squares.unwrap_or_default()).round() as u128;
        StreamSum { first, last, documents: self.doc_count, bytes: bytes as u64, squares }
    }
}
