//! The index: documents written once by id, found by one query language.
//!
//! Two things implement [`IndexWriter`], [`IndexReader`] and [`IndexRepair`]: `logmesh-index-embedded` on tantivy, and
//! Elasticsearch. What an implementation owes is written on the traits and tested by [`conformance`]. The query language is
//! [`query`], parsed once into a tree that each index translates.

#[cfg(feature = "test-util")]
pub mod conformance;
pub mod facets;
pub mod query;
mod repair;
pub mod sum;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use logmesh_types::{ByteRange, DocId, StreamId, TopicName, UnixNanos};

pub use crate::facets::{Facet, Facets, MAX_FACETS};
use crate::query::Query;
pub use crate::repair::{IndexRepair, Place, Stored, StoredPage};
pub use crate::sum::StreamSum;

/// The part of the index that a document belongs to: one day of one topic. A function of the record alone (its topic
/// and the UTC date of its read time), never of "now", so that a record that comes again finds its document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice {
    /// The topic.
    pub topic: TopicName,
    /// The UTC date, `2026-01-31`.
    pub date: String,
}

/// A document on its way into the index.
#[derive(Clone, Debug)]
pub struct NewDoc {
    /// Where it belongs. Shared, since most documents of a bulk are of one slice.
    pub slice: Arc<Slice>,
    /// Its id, unique within a topic.
    pub id: DocId,
    /// The document: a JSON object with flat keys, as `DESIGN.md` names them.
    pub body: Bytes,
}

/// What became of one document of a bulk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored, durably.
    Created,
    /// A document of this id was there already in its slice. It is left as it is: this is success.
    Duplicate,
    /// Not now; the same document may be taken after this long.
    Busy {
        /// How long to wait before trying again.
        after: Duration,
        /// Why.
        reason: String,
    },
    /// Never: the document itself is refused.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// The type of a field that a topic declares under `attributes.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// A signed 64-bit integer.
    Long,
    /// A 64-bit float.
    Double,
    /// `true` or `false`.
    Boolean,
    /// An exact text.
    Keyword,
    /// A time, RFC 3339.
    Date,
}

/// The typed fields of a topic: names without their `attributes.` prefix.
pub type FieldTypes = BTreeMap<String, FieldType>;

/// What can go wrong with the index as a whole.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The index cannot do it now; the same call may succeed later.
    #[error("the index is not available: {reason}")]
    Unavailable {
        /// What it said.
        reason: String,
    },
    /// The query asks for something that this index can't answer.
    #[error("the query cannot be answered: {reason}")]
    Unsupported {
        /// What, and what to write instead.
        reason: String,
    },
    /// The field has no values that could be counted.
    #[error("the values of the field cannot be counted: {reason}")]
    NotCountable {
        /// Why, and what to ask for instead.
        reason: String,
    },
    /// The page token is none of this search's.
    #[error("the page token is not one that this search gave")]
    BadPageToken,
    /// Somebody else made a part of the index, with fields of other types: what is asked of it can't be answered.
    #[error("a part of the index wasn't made by logmesh: {reason}")]
    Mapping {
        /// Which part and field, and what to do.
        reason: String,
    },
    /// The index's own data is damaged, or of another version.
    #[error("the index's data cannot be used: {reason}")]
    Damaged {
        /// What is wrong and what to do.
        reason: String,
    },
}

impl IndexError {
    /// True if the same call may succeed later without anybody's help.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Writes documents. Used by transfer only.
///
/// Contract: when [`IndexWriter::write`] returns, every document with [`Outcome::Created`] or [`Outcome::Duplicate`]
/// survives `kill -9` and is found by searches from then on (embedded: at once; Elasticsearch: after its refresh).
#[async_trait]
pub trait IndexWriter: Debug + Send + Sync + 'static {
    /// Declares the typed fields of a topic, before its first document. Adding fields later is allowed, and counts for
    /// documents written from then on; changing the type of one is refused with [`IndexError::Unsupported`].
    async fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<(), IndexError>;

    /// Writes documents by `create`, and answers one [`Outcome`] for each, in their order. Two documents of one id in
    /// one bulk: the first is created, the second a duplicate. An error means that nothing is known of any of them.
    async fn write(&self, docs: Vec<NewDoc>) -> Result<Vec<Outcome>, IndexError>;

    /// Says of each id whether any slice of the topic holds a document of it, whatever was written before this call
    /// included.
    async fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError>;

    /// The dates of the topic's slices, oldest first, whatever wrote them.
    async fn slices(&self, topic: &TopicName) -> Result<Vec<String>, IndexError>;

    /// Removes the slice with all its documents. No slice of that name is success.
    async fn delete_slice(&self, slice: &Slice) -> Result<(), IndexError>;

    /// What is written is found by searches after this time at the latest.
    fn searchable_within(&self) -> Duration {
        Duration::ZERO
    }
}

/// In which order hits come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// By `@timestamp`, newest first; equal times by stream and falling offset.
    #[default]
    NewestFirst,
    /// By `@timestamp`, oldest first; equal times by stream and rising offset.
    OldestFirst,
}

/// Which documents are meant.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The query.
    pub query: Query,
    /// `@timestamp` at or after this.
    pub from: Option<UnixNanos>,
    /// `@timestamp` before this.
    pub to: Option<UnixNanos>,
    /// In these topics; empty: in all.
    pub topics: Vec<TopicName>,
}

impl Selection {
    /// What tells this search in this order from another: page tokens carry it.
    pub fn fingerprint(&self, order: Order) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new();
        let query = self.query.to_string();
        hasher.update(format!("{order:?} {:?} {:?} {} {query}", self.from, self.to, query.len()).as_bytes());
        for topic in &self.topics {
            hasher.update(format!(" {topic}").as_bytes());
        }
        let mut print = [0; 8];
        hasher.finalize_xof().fill(&mut print);
        print
    }
}

/// A document that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its id.
    pub id: DocId,
    /// The topic that it is in.
    pub topic: TopicName,
    /// The document as it was written: a JSON object.
    pub body: Bytes,
}

/// How much one page holds at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// Hits: 1 to [`MAX_PAGE_SIZE`](logmesh_types::limits::MAX_PAGE_SIZE).
    pub hits: usize,
    /// Bytes of documents. The first hit comes whatever its size.
    pub bytes: usize,
}

impl PageLimit {
    /// So many hits of whatever size.
    pub fn hits(hits: usize) -> Self {
        Self { hits, bytes: usize::MAX }
    }
}

/// One page of hits.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The hits, in the order asked for.
    pub hits: Vec<Hit>,
    /// Gives the next page; `None` on the last. Documents written meanwhile never make a page repeat or skip one that
    /// was there when the first page was asked for.
    pub next_page_token: Option<String>,
    /// How many documents there are in all, this page's included.
    pub total: u64,
}

/// A bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Where it begins: a multiple of the interval since the Unix epoch.
    pub start: UnixNanos,
    /// Documents with `@timestamp` in `[start, start + interval)`.
    pub count: u64,
}

/// A document's place in its stream, for the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventSpan {
    /// The bytes of the stream that the document holds.
    pub range: ByteRange,
    /// The document's id; `None` if it's none that logmesh gives: somebody wrote it by hand.
    pub id: Option<DocId>,
}

/// Finds documents. Used by the console only.
#[async_trait]
pub trait IndexReader: Debug + Send + Sync + 'static {
    /// One page of hits. `page_token` is the previous page's, of the same selection and order.
    async fn search(
        &self,
        selection: &Selection,
        order: Order,
        limit: PageLimit,
        page_token: Option<&str>,
    ) -> Result<Page, IndexError>;

    /// How many documents there are.
    async fn count(&self, selection: &Selection) -> Result<u64, IndexError>;

    /// How many documents there are in each interval, empty ones left out, by time. At most 10,000 bars, else
    /// [`IndexError::Unsupported`]; so may be an interval that isn't whole milliseconds.
    async fn histogram(&self, selection: &Selection, interval: Duration) -> Result<Vec<Bar>, IndexError>;

    /// The most frequent values of a field: at most `limit` of them, 1 to [`MAX_FACETS`].
    ///
    /// - A value is the text by which `field:"value"` finds it. A document counts once for each of its values, so that one
    ///   with an array may count for several, and one without the field for none.
    /// - `_topic` counts the documents of each topic; `labels` and `parsed` count every value in them.
    /// - A declared number has one text however it was written, `1.5` for `1.50`. (A document that holds one number twice,
    ///   in two ways of writing, may count twice.) A value that isn't of the declared type is listed by its text too. The
    ///   integers that every document has, as `log.offset`, are listed where they are integers.
    /// - A field that no document has gives an empty list.
    ///
    /// Counted in bounded memory: see [`Facets::error_bound`].
    ///
    /// # Errors
    /// [`IndexError::NotCountable`] for `message`, `_id`, `@timestamp`, and what one of the topics declares as a
    /// [`FieldType::Date`].
    async fn facets(&self, selection: &Selection, field: &str, limit: usize) -> Result<Facets, IndexError>;

    /// The spans of the documents of a stream, over all slices of the topic, with `range.start >= from`, by start, then
    /// id; at most `limit`. Documents that hold the same bytes twice come twice. With `from` 0, what was written before the
    /// call is among them, refreshed or not: the audit calls what it doesn't see a gap.
    async fn spans(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<EventSpan>, IndexError>;

    /// What the documents of each of these streams come to, in each slice of the topic that has any: of those that begin before
    /// the offset given with it. In the order of the streams, for each its slices in any order. What was written before the call
    /// is counted, refreshed or not.
    async fn sums(&self, topic: &TopicName, streams: &[(StreamId, u64)]) -> Result<Vec<Vec<StreamSum>>, IndexError>;

    /// Looks whether all that is kept of the topic can still be read. What can't is taken out of the index, with an error in
    /// the log that names it: to the audit it's missing then. Nothing to do for an index that sees to that itself.
    async fn verify(&self, _topic: &TopicName) -> Result<(), IndexError> {
        Ok(())
    }

    /// The topics that have a document.
    async fn topics(&self) -> Result<Vec<TopicName>, IndexError>;

    /// The declared types of a topic's fields; empty for a topic that isn't known. For evaluating a query on documents
    /// that aren't in the index yet.
    async fn field_types(&self, topic: &TopicName) -> Result<FieldTypes, IndexError>;
}
