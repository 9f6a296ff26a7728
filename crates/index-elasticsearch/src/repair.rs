//! Lists documents with the indices that they lie in, whoever wrote them there, and deletes single ones.

use bytes::Bytes;
use logmesh_index::{IndexError, PageLimit, Place, Stored, StoredPage};
use logmesh_types::limits::MAX_PAGE_SIZE;
use logmesh_types::{ByteRange, StreamId, TopicName};
use reqwest::Method;
use serde_json::{Value, json};

use crate::Inner;
use crate::client::{Answer, Body, unavailable};
use crate::form::original;
use crate::search::{Found, FoundHit};

/// Documents that are deleted with one request.
const DELETED: usize = 1_000;

/// What is asked of Elasticsearch's answer.
const WANTED: &str = "items.*.status,items.*.error.type,items.*.error.reason";

impl Inner {
    pub(crate) async fn stored(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        starts: ByteRange,
        limit: PageLimit,
    ) -> Result<StoredPage, IndexError> {
        let indices = self.names.indices(topic);
        self.refresh(&indices).await?;
        let offset = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
        let within = json!({ "gte": offset(starts.start), "lt": offset(starts.end) });
        let filter = json!([{ "term": { "logmesh.stream": stream } }, { "range": { "logmesh.offset": within } }]);
        let mut size = limit.hits.clamp(1, MAX_PAGE_SIZE);
        loop {
            let body = json!({
                "query": { "bool": { "filter": filter } }, "size": size, "track_total_hits": false,
                "sort": [{ "logmesh.offset": { "order": "asc", "unmapped_type": "long" } }],
                "docvalue_fields": ["logmesh.offset", "logmesh.length"],
            });
            let answer = self.ask(&indices, body).await?;
            if answer.too_large && size > 1 {
                size /= 2;
                continue;
            }
            let found: Found<'_> = answer.json()?;
            let more = found.hits.hits.len() == size;
            let documents = found.hits.hits.into_iter().map(|hit| self.stored_of(topic, hit, &answer));
            return StoredPage::fill(documents, more, limit.bytes);
        }
    }

    fn stored_of(&self, topic: &TopicName, hit: FoundHit<'_>, answer: &Answer) -> Result<Stored, IndexError> {
        let range = hit.range().ok_or_else(|| unavailable("a document was found by an offset that it doesn't have"))?;
        let source = hit.source.ok_or_else(|| unavailable("an index of ours keeps no _source"))?;
        let body = original(answer.body.slice_ref(source.get().as_bytes()))?;
        let date = self.names.date_of(topic, &hit.index);
        Ok(Stored { place: Place { slice: hit.index, id: hit.id }, date, range, body })
    }

    pub(crate) async fn delete(&self, topic: &TopicName, places: &[Place]) -> Result<Vec<bool>, IndexError> {
        let of_topic = self.names.of_topic(topic);
        if let Some(other) = places.iter().find(|place| !place.slice.starts_with(&of_topic)) {
            let reason = format!("index {} is none of topic {topic}: nothing is deleted there", other.slice);
            return Err(IndexError::Unsupported { reason });
        }
        let mut deleted = Vec::with_capacity(places.len());
        for part in places.chunks(DELETED) {
            deleted.extend(self.delete_part(part).await?);
        }
        Ok(deleted)
    }

    async fn delete_part(&self, places: &[Place]) -> Result<Vec<bool>, IndexError> {
        let line = |place: &Place| format!("{}\n", json!({ "delete": { "_index": place.slice, "_id": place.id } }));
        let lines: String = places.iter().map(line).collect();
        let path = format!("_bulk?filter_path={WANTED}");
        let answer = self.client.call(Method::POST, &path, Body::Lines(Bytes::from(lines))).await?;
        let answered: Value = answer.json()?;
        let items = answered["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.len() != places.len() {
            let (got, sent) = (items.len(), places.len());
            return Err(unavailable(format!("{sent} deletions were answered for {got}")));
        }
        items.iter().map(|item| was_there(&item["delete"])).collect()
    }
}

/// Whether a document was there that is gone now.
fn was_there(item: &Value) -> Result<bool, IndexError> {
    match item["status"].as_u64() {
        Some(200) => Ok(true),
        Some(404) => Ok(false),
        status => {
            let (status, reason) = (status.unwrap_or_default(), item["error"]["reason"].as_str().unwrap_or_default());
            let rights = if matches!(status, 401 | 403) { " (a repair needs the privilege delete)" } else { "" };
            Err(unavailable(format!("a document can't be deleted: status {status}: {reason}{rights}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_deleted_is_an_error_but_what_is_not_there() {
        assert!(was_there(&json!({ "status": 200 })).unwrap());
        assert!(!was_there(&json!({ "status": 404 })).unwrap());
        let blocked = json!({ "status": 403, "error": { "reason": "blocked by: read-only" } });
        let error = was_there(&blocked).unwrap_err();
        assert!(error.retryable() && error.to_string().contains("blocked by: read-only (a repair needs"), "{error}");
        assert!(was_there(&json!({ "status": 429 })).is_err() && was_there(&Value::Null).is_err());
    }
}
