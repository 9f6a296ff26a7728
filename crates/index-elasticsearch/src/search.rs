//! Finding: pages, counts, bars, spans and ids.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use logmesh_index::query::field::TIMESTAMP;
use logmesh_index::{Bar, EventSpan, Hit, IndexError, Order, Page, PageLimit, Selection};
use logmesh_types::limits::MAX_PAGE_SIZE;
use logmesh_types::{ByteRange, DocId, StreamId, TopicName, UnixNanos};
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::Inner;
use crate::client::{Answer, Body, unavailable};
use crate::form::{NO_TIME, original};
use crate::page;
use crate::scope::Scope;
use crate::template::EARLY;
use crate::topic::LENIENT;

/// The most bars that a histogram may have.
const MAX_BARS: usize = 10_000;
/// Documents of a page that are asked for before their size is known.
const FIRST_BATCH: usize = 100;
/// The most bytes of documents that are asked for at a time, by the size of those before.
const BATCH_BYTES: usize = 16 << 20;
/// Ids that are looked up at a time.
const IDS: usize = 1_000;
/// The most indices that topics are read from.
pub(crate) const MAX_INDICES: usize = 60_000;

const NANOS_PER_MILLI: i64 = 1_000_000;

#[derive(Deserialize)]
pub(crate) struct Found<'a> {
    #[serde(borrow)]
    pub(crate) hits: FoundHits<'a>,
    #[serde(default)]
    aggregations: Value,
}

#[derive(Deserialize)]
pub(crate) struct FoundHits<'a> {
    total: Option<Total>,
    #[serde(borrow, default)]
    pub(crate) hits: Vec<FoundHit<'a>>,
}

#[derive(Deserialize)]
struct Total {
    value: u64,
}

#[derive(Deserialize)]
pub(crate) struct FoundHit<'a> {
    #[serde(rename = "_index")]
    pub(crate) index: String,
    #[serde(rename = "_id")]
    pub(crate) id: String,
    #[serde(rename = "_source", borrow)]
    pub(crate) source: Option<&'a RawValue>,
    #[serde(default)]
    sort: Vec<Value>,
    #[serde(default)]
    fields: Value,
}

impl FoundHits<'_> {
    fn total(&self) -> Result<u64, IndexError> {
        self.total.as_ref().map(|total| total.value).ok_or_else(|| unavailable("an answer has no total"))
    }
}

impl FoundHit<'_> {
    /// The bytes of its stream that the document holds, if its place was asked for.
    pub(crate) fn range(&self) -> Option<ByteRange> {
        let start = self.fields["logmesh.offset"][0].as_u64()?;
        let length = self.fields["logmesh.length"][0].as_u64().unwrap_or(0);
        Some(ByteRange::new(start, start.saturating_add(length)))
    }
}

impl Inner {
    /// A search of which every shard must take part: half an answer would look like missing documents.
    pub(crate) async fn ask(&self, indices: &str, body: Value) -> Result<Answer, IndexError> {
        let path = format!("{indices}/_search?{LENIENT}&allow_partial_search_results=false");
        let answer = self.client.call(Method::POST, &path, Body::Json(body)).await?;
        if answer.is_ok() {
            return Ok(answer);
        }
        Err(match answer.error() {
            error @ IndexError::Unsupported { .. } => self.mapped_otherwise(indices).await.unwrap_or(error),
            error => error,
        })
    }

    pub(crate) async fn search(
        &self,
        selection: &Selection,
        order: Order,
        limit: PageLimit,
        token: Option<&str>,
    ) -> Result<Page, IndexError> {
        let after = token.map(|token| page::read_token(selection, order, token)).transpose()?;
        let Some(scope) = self.scope(selection).await? else { return Ok(Page::default()) };
        let limit = PageLimit { hits: limit.hits.clamp(1, MAX_PAGE_SIZE), ..limit };
        let mut filling = Filling { limit, after, hits: Vec::new(), bytes: 0, more: false, total: None };
        // One more than the page holds tells whether there is another.
        let mut batch = if limit.bytes == usize::MAX { limit.hits + 1 } else { FIRST_BATCH };
        loop {
            let size = batch.min(limit.hits + 1 - filling.hits.len());
            let answer = self.ask(&scope.indices, filling.body(&scope, order, size)).await?;
            if answer.too_large && size > 1 {
                batch = size / 2;
                continue;
            }
            if self.fill(&mut filling, &answer, size)? {
                break;
            }
            let average = (filling.bytes / filling.hits.len().max(1)).max(1);
            batch = (BATCH_BYTES / average).clamp(1, MAX_PAGE_SIZE + 1);
        }
        let last = filling.after.filter(|_| filling.more);
        let next_page_token = last.map(|last| page::token(selection, order, &last));
        Ok(Page { hits: filling.hits, next_page_token, total: filling.total.unwrap_or_default() })
    }

    /// Takes hits into the page. True if it is full, or there are no more.
    fn fill(&self, filling: &mut Filling, answer: &Answer, size: usize) -> Result<bool, IndexError> {
        let found: Found<'_> = answer.json()?;
        if filling.total.is_none() {
            filling.total = Some(found.hits.total()?);
        }
        let end = found.hits.hits.len() < size;
        for mut found in found.hits.hits {
            let sort = std::mem::take(&mut found.sort);
            let Some(hit) = self.hit(found, answer)? else {
                filling.after = Some(sort);
                continue;
            };
            let over = filling.bytes.saturating_add(hit.body.len()) > filling.limit.bytes && !filling.hits.is_empty();
            if over || filling.hits.len() == filling.limit.hits {
                filling.more = true;
                return Ok(true);
            }
            filling.bytes += hit.body.len();
            filling.hits.push(hit);
            filling.after = Some(sort);
        }
        Ok(end)
    }

    /// The hit; `None` for a document of somebody else's index that is named like one of ours.
    fn hit(&self, found: FoundHit<'_>, answer: &Answer) -> Result<Option<Hit>, IndexError> {
        let (Some(topic), Ok(id)) = (self.names.topic_of(&found.index), found.id.parse::<DocId>()) else {
            return Ok(None);
        };
        let source = found.source.ok_or_else(|| unavailable("an index of ours keeps no _source"))?;
        let body = original(answer.body.slice_ref(source.get().as_bytes()))?;
        Ok(Some(Hit { id, topic, body }))
    }

    pub(crate) async fn count(&self, selection: &Selection) -> Result<u64, IndexError> {
        let Some(scope) = self.scope(selection).await? else { return Ok(0) };
        let body = json!({ "query": scope.query, "size": 0, "track_total_hits": true });
        let answer = self.ask(&scope.indices, body).await?;
        answer.json::<Found<'_>>()?.hits.total()
    }

    pub(crate) async fn histogram(&self, selection: &Selection, interval: Duration) -> Result<Vec<Bar>, IndexError> {
        let nanos = i64::try_from(interval.as_nanos()).ok().filter(|nanos| *nanos > 0).ok_or_else(|| {
            IndexError::Unsupported { reason: "a bar must be between 1 ns and 292 years wide".to_owned() }
        })?;
        if nanos % NANOS_PER_MILLI != 0 {
            let reason =
                "Elasticsearch counts by whole milliseconds: ask for bars that are some of them wide".to_owned();
            return Err(IndexError::Unsupported { reason });
        }
        let Some(scope) = self.scope(selection).await? else { return Ok(Vec::new()) };
        let fixed_interval = format!("{}ms", nanos / NANOS_PER_MILLI);
        let body = json!({ "query": scope.query, "size": 0, "track_total_hits": false, "aggs": {
            "bars": { "date_histogram": { "field": TIMESTAMP, "fixed_interval": fixed_interval, "min_doc_count": 1 } },
            "early": { "terms": { "field": EARLY, "size": MAX_BARS + 2 } },
        } });
        let path = format!("{}/_search?{LENIENT}&allow_partial_search_results=false", scope.indices);
        let answer = self.client.call(Method::POST, &path, Body::Json(body)).await?;
        let too_many = || IndexError::Unsupported {
            reason: format!("the histogram has more than {MAX_BARS} bars: ask for wider ones, or for less time"),
        };
        if !answer.is_ok() && String::from_utf8_lossy(&answer.body).contains("too_many_buckets_exception") {
            return Err(too_many());
        }
        let aggregations = answer.json::<Found<'_>>()?.aggregations;
        let mut bars: BTreeMap<i64, u64> = BTreeMap::new();
        for (key, count) in buckets(&aggregations["bars"]) {
            bars.insert(key.saturating_mul(NANOS_PER_MILLI), count);
        }
        for (time, count) in buckets(&aggregations["early"]).filter(|(time, _)| *time != NO_TIME) {
            *bars.entry(time.saturating_sub(time.rem_euclid(nanos))).or_default() += count;
        }
        if bars.len() > MAX_BARS || aggregations["early"]["sum_other_doc_count"].as_u64() > Some(0) {
            return Err(too_many());
        }
        Ok(bars.into_iter().map(|(start, count)| Bar { start: UnixNanos(start), count }).collect())
    }

    pub(crate) async fn spans(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<EventSpan>, IndexError> {
        let Ok(mut from) = i64::try_from(from) else { return Ok(Vec::new()) };
        if from == 0 {
            // Once for each stream that is gone through: what the audit doesn't see it must call a gap.
            self.refresh(&self.names.indices(topic)).await?;
        }
        let mut spans = Vec::new();
        while spans.len() < limit {
            let (mut part, full) = self.spans_from(topic, stream, from).await?;
            if full && let Some(last) = part.last().map(|span| span.range.start) {
                // More documents may begin where the last one does: they come together with the next part.
                let complete = part.partition_point(|span| span.range.start < last);
                match complete {
                    0 => from = next(last),
                    _ => {
                        part.truncate(complete);
                        from = i64::try_from(last).unwrap_or(i64::MAX);
                    }
                }
            }
            part.sort();
            spans.extend(part);
            if !full {
                break;
            }
        }
        spans.truncate(limit);
        Ok(spans)
    }

    /// Spans by their start, from `from` on, and whether there may be more.
    async fn spans_from(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        from: i64,
    ) -> Result<(Vec<EventSpan>, bool), IndexError> {
        let filter =
            json!([{ "term": { "logmesh.stream": stream } }, { "range": { "logmesh.offset": { "gte": from } } }]);
        let body = json!({
            "query": { "bool": { "filter": filter } }, "size": MAX_PAGE_SIZE, "track_total_hits": false, "_source": false,
            "sort": [{ "logmesh.offset": { "order": "asc", "unmapped_type": "long" } }],
            "docvalue_fields": ["logmesh.offset", "logmesh.length"],
        });
        let answer = self.ask(&self.names.indices(topic), body).await?;
        let found: Found<'_> = answer.json()?;
        let full = found.hits.hits.len() == MAX_PAGE_SIZE;
        let span = |hit: FoundHit<'_>| Some(EventSpan { range: hit.range()?, id: hit.id.parse().ok() });
        Ok((found.hits.hits.into_iter().filter_map(span).collect(), full))
    }

    /// The topics that have a document.
    pub(crate) async fn topics(&self) -> Result<Vec<TopicName>, IndexError> {
        let body = json!({ "size": 0, "track_total_hits": false, "aggs": {
            "indices": { "terms": { "field": "_index", "size": MAX_INDICES } },
        } });
        let answer = self.ask(&self.names.all_indices(), body).await?;
        let aggregations = answer.json::<Found<'_>>()?.aggregations;
        let indices = aggregations["indices"]["buckets"].as_array().into_iter().flatten();
        let topics: BTreeSet<TopicName> =
            indices.filter_map(|bucket| self.names.topic_of(bucket["key"].as_str()?)).collect();
        Ok(topics.into_iter().collect())
    }

    /// Which ids the topic holds. What was written must be findable first, so the topic's indices are refreshed; those
    /// without news cost nothing. (A lookup by id in each index needs no refresh, but is one for each day: with 30 days
    /// kept, 30 times as many.)
    pub(crate) async fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let indices = self.names.indices(topic);
        self.refresh(&indices).await?;
        let mut held: HashSet<DocId> = HashSet::new();
        let mut left: Vec<Vec<DocId>> = ids.chunks(IDS).map(<[DocId]>::to_vec).collect();
        while let Some(mut part) = left.pop() {
            let values: Vec<String> = part.iter().map(DocId::to_string).collect();
            let body = json!({
                "query": { "bool": { "filter": [{ "ids": { "values": values } }] } },
                "size": MAX_PAGE_SIZE, "track_total_hits": true, "_source": false,
            });
            let answer = self.ask(&indices, body).await?;
            let found: Found<'_> = answer.json()?;
            let all_seen = found.hits.total()? <= found.hits.hits.len() as u64;
            held.extend(found.hits.hits.iter().filter_map(|hit| hit.id.parse::<DocId>().ok()));
            // The same ids in very many indices.
            if !all_seen && part.len() > 1 {
                left.push(part.split_off(part.len() / 2));
                left.push(part);
            }
        }
        Ok(ids.iter().map(|id| held.contains(id)).collect())
    }
}

fn next(start: u64) -> i64 {
    i64::try_from(start).unwrap_or(i64::MAX).saturating_add(1)
}

fn buckets(aggregation: &Value) -> impl Iterator<Item = (i64, u64)> + '_ {
    let buckets = aggregation["buckets"].as_array().into_iter().flatten();
    buckets.filter_map(|bucket| Some((bucket["key"].as_i64()?, bucket["doc_count"].as_u64()?)))
}

/// A page that isn't full yet.
struct Filling {
    limit: PageLimit,
    /// The sort values of the last hit.
    after: Option<Vec<Value>>,
    hits: Vec<Hit>,
    bytes: usize,
    /// There are hits after the last one.
    more: bool,
    total: Option<u64>,
}

impl Filling {
    fn body(&self, scope: &Scope, order: Order, size: usize) -> Value {
        let mut body = json!({
            "query": scope.query, "size": size, "sort": page::sort(order), "track_total_hits": self.total.is_none(),
        });
        if let Some(after) = &self.after {
            body["search_after"] = Value::from(after.as_slice());
        }
        body
    }
}
