//! Documents as they lie in the index, one by one: for telling a document from its copies, and removing those.

use async_trait::async_trait;
use bytes::Bytes;
use logmesh_types::{ByteRange, StreamId, TopicName};

use crate::{IndexError, IndexReader, PageLimit};

/// Names one document of a topic, whoever wrote it and under whatever id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The slice, by the name that it has in this index.
    pub slice: String,
    /// The id within the slice, which may be none of ours.
    pub id: String,
}

/// A document as it lies in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where.
    pub place: Place,
    /// The date of its slice; `None` if the slice isn't one that documents are written to, but a copy beside it.
    pub date: Option<String>,
    /// The bytes of the stream that it holds.
    pub range: ByteRange,
    /// The document as it was written: a JSON object.
    pub body: Bytes,
}

/// Some documents of a stream, by start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredPage {
    /// The documents. Those that begin where the last one does may be missing, if there are more.
    pub documents: Vec<Stored>,
    /// There may be more that begin where the last one does, or behind it.
    pub more: bool,
}

impl StoredPage {
    /// Takes documents until they have so many bytes; one at least. `more`: others follow them all.
    pub fn fill<E>(
        documents: impl IntoIterator<Item = Result<Stored, E>>,
        more: bool,
        max_bytes: usize,
    ) -> Result<Self, E> {
        let (mut page, mut bytes) = (Self { documents: Vec::new(), more }, 0_usize);
        for stored in documents {
            let stored = stored?;
            bytes = bytes.saturating_add(stored.body.len());
            if bytes > max_bytes && !page.documents.is_empty() {
                return Ok(Self { more: true, ..page });
            }
            page.documents.push(stored);
        }
        Ok(page)
    }
}

/// Finds copies of documents and removes them. Used by the console's repair only; nothing else deletes one document.
#[async_trait]
pub trait IndexRepair: IndexReader {
    /// The documents of a stream that begin within these bytes, over all slices of the topic, by start; one at
    /// least if there is any. What was written before the call is among them, refreshed or not; what was deleted isn't.
    async fn stored(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        starts: ByteRange,
        limit: PageLimit,
    ) -> Result<StoredPage, IndexError>;

    /// Deletes documents of the topic, each by its id within its slice, and says of each whether it was there. It's gone for good
    /// then: it survives `kill -9`, no search finds it, and its id may be written again. An error means that some may be gone.
    async fn delete(&self, topic: &TopicName, places: &[Place]) -> Result<Vec<bool>, IndexError>;
}
