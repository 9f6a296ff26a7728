//! The embedded index: tantivy, one index for each day of each topic.
//!
//! A bulk is one commit for each slice it touches, and a commit is on disk before [`IndexWriter::write`] returns. A
//! document's id is looked up in its slice before it's written, under the slice's one writer, so that no id comes twice.
//! A slice whose files are damaged is set aside, and begins empty: what it held the audit then calls missing, and repairs.
//! If work with a slice ends with a panic, its files are checked before it's opened again.
//! Tantivy's work blocks; it runs on the blocking threads of tokio, a bounded number of calls at a time.

mod automaton;
mod catalog;
mod complement;
mod damage;
mod directory;
mod error;
mod facets;
mod folder;
mod live;
mod page;
mod repair;
mod schema;
mod search;
mod slice;
mod sum;
mod suspect;
mod translate;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logmesh_index::{
    Bar, EventSpan, Facets, FieldTypes, IndexError, IndexReader, IndexRepair, IndexWriter, NewDoc, Order, Outcome,
    Page, PageLimit, Place, Selection, Slice, StoredPage, StreamSum,
};
use logmesh_types::limits::MAX_PAGE_SIZE;
use logmesh_types::{ByteRange, DocId, StreamId, TopicName};
use tokio::sync::Semaphore;

use crate::catalog::Catalog;
use crate::folder::Folder;

/// What bounds the index's use of memory, files and threads.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Slices open for writing at a time. Each has a writer thread, two for merges, and
    /// [`Settings::writer_memory_bytes`].
    pub open_writers: usize,
    /// Slices open at a time, for reading or writing. More are opened only while all are in use.
    pub open_slices: usize,
    /// What one writer may hold before it writes to disk. At least 15 MB.
    pub writer_memory_bytes: usize,
    /// Bulks that are written at a time; others wait.
    pub concurrent_writes: usize,
    /// Searches and lookups that run at a time; others wait.
    pub concurrent_reads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            open_writers: 8,
            open_slices: 128,
            writer_memory_bytes: 64 << 20,
            concurrent_writes: 2,
            concurrent_reads: 8,
        }
    }
}

/// The index in a folder. Cheap to clone; the folder is held until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct EmbeddedIndex {
    catalog: Arc<Catalog>,
    writes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    /// One for whoever reads whole slices: searches don't wait for that.
    verifies: Arc<Semaphore>,
}

impl EmbeddedIndex {
    /// Opens the index in the folder, or makes one there. Fails if another process has it open.
    pub async fn open(dir: &Path, settings: Settings) -> Result<Self, IndexError> {
        let writes = Arc::new(Semaphore::new(settings.concurrent_writes.max(1)));
        let reads = Arc::new(Semaphore::new(settings.concurrent_reads.max(1)));
        suspect::mark_at_panics();
        let dir = dir.to_owned();
        let open = move || Catalog::open(settings, Folder::open(&dir)?);
        let catalog = tokio::task::spawn_blocking(open).await.map_err(|_| error::panicked())??;
        Ok(Self { catalog: Arc::new(catalog), writes, reads, verifies: Arc::new(Semaphore::new(1)) })
    }

    async fn write_with<T: Send + 'static>(
        &self,
        work: impl Fn(&Catalog) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        self.run(&self.writes, move |catalog| catalog.without_damaged(&work)).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        work: impl Fn(&Catalog) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        self.run(&self.reads, move |catalog| catalog.without_damaged(&work)).await
    }

    /// The same for those who take what they find for all there is: they are told once of each slice that was set aside.
    async fn search_with<T: Send + 'static>(
        &self,
        work: impl Fn(&Catalog) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        self.run(&self.reads, work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        slots: &Arc<Semaphore>,
        work: impl Fn(&Catalog) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        let slot = Arc::clone(slots).acquire_owned().await.map_err(|_| error::panicked())?;
        let catalog = Arc::clone(&self.catalog);
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&catalog);
            // The folder is let go before the caller goes on, who may open it again.
            drop(catalog);
            drop(slot);
            result
        });
        task.await.map_err(|_| error::panicked())?
    }
}

/// `2026-01-31`: nothing else becomes a part of a path.
fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| if matches!(at, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() })
}

fn write_bulk(catalog: &Catalog, docs: &[NewDoc]) -> Result<Vec<Outcome>, IndexError> {
    let mut by_slice: BTreeMap<&Slice, Vec<usize>> = BTreeMap::new();
    let no_date = |slice: &Slice| Outcome::Rejected { reason: format!("{:?} is not a date", slice.date) };
    let mut outcomes: Vec<Outcome> = docs.iter().map(|doc| no_date(&doc.slice)).collect();
    for (at, doc) in docs.iter().enumerate().filter(|(_, doc)| is_date(&doc.slice.date)) {
        by_slice.entry(&doc.slice).or_default().push(at);
    }
    for (slice, places) in by_slice {
        let of_slice: Vec<&NewDoc> = places.iter().map(|at| &docs[*at]).collect();
        for (at, outcome) in places.into_iter().zip(catalog.write(slice, &of_slice)?) {
            outcomes[at] = outcome;
        }
    }
    Ok(outcomes)
}

#[async_trait]
impl IndexWriter for EmbeddedIndex {
    async fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<(), IndexError> {
        let (topic, fields) = (topic.clone(), fields.clone());
        self.write_with(move |catalog| catalog.ensure_topic(&topic, &fields)).await
    }

    async fn write(&self, docs: Vec<NewDoc>) -> Result<Vec<Outcome>, IndexError> {
        self.write_with(move |catalog| write_bulk(catalog, &docs)).await
    }

    async fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        let (topic, ids) = (topic.clone(), ids.to_vec());
        self.read_with(move |catalog| catalog.contains(&topic, &ids)).await
    }

    async fn slices(&self, topic: &TopicName) -> Result<Vec<String>, IndexError> {
        let topic = topic.clone();
        self.read_with(move |catalog| {
            let newest_first = catalog.names(std::slice::from_ref(&topic));
            Ok(newest_first.into_iter().rev().map(|slice| slice.date).collect())
        })
        .await
    }

    async fn delete_slice(&self, slice: &Slice) -> Result<(), IndexError> {
        let slice = slice.clone();
        self.write_with(move |catalog| catalog.delete(&slice)).await
    }
}

#[async_trait]
impl IndexReader for EmbeddedIndex {
    async fn search(
        &self,
        selection: &Selection,
        order: Order,
        limit: PageLimit,
        page_token: Option<&str>,
    ) -> Result<Page, IndexError> {
        let limit = PageLimit { hits: limit.hits.clamp(1, MAX_PAGE_SIZE), ..limit };
        let (selection, token) = (selection.clone(), page_token.map(str::to_owned));
        self.search_with(move |catalog| catalog.search(&selection, order, limit, token.as_deref())).await
    }

    async fn count(&self, selection: &Selection) -> Result<u64, IndexError> {
        let selection = selection.clone();
        self.search_with(move |catalog| catalog.count(&selection)).await
    }

    async fn histogram(&self, selection: &Selection, interval: Duration) -> Result<Vec<Bar>, IndexError> {
        let selection = selection.clone();
        self.search_with(move |catalog| catalog.histogram(&selection, interval)).await
    }

    async fn facets(&self, selection: &Selection, field: &str, limit: usize) -> Result<Facets, IndexError> {
        let (selection, field) = (selection.clone(), field.to_owned());
        self.search_with(move |catalog| catalog.facets(&selection, &field, limit)).await
    }

    async fn spans(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<EventSpan>, IndexError> {
        let (topic, stream) = (topic.clone(), *stream);
        self.read_with(move |catalog| catalog.spans(&topic, &stream, from, limit)).await
    }

    async fn sums(&self, topic: &TopicName, streams: &[(StreamId, u64)]) -> Result<Vec<Vec<StreamSum>>, IndexError> {
        let (topic, streams) = (topic.clone(), streams.to_vec());
        self.read_with(move |catalog| catalog.sums(&topic, &streams)).await
    }

    async fn verify(&self, topic: &TopicName) -> Result<(), IndexError> {
        let topic = topic.clone();
        let slices = self.read_with(move |catalog| Ok(catalog.names(std::slice::from_ref(&topic)))).await?;
        // One by one: a caller that goes away ends it.
        for slice in slices {
            self.run(&self.verifies, move |catalog| catalog.verify(&slice)).await?;
        }
        Ok(())
    }

    async fn topics(&self) -> Result<Vec<TopicName>, IndexError> {
        self.read_with(Catalog::topics).await
    }

    async fn field_types(&self, topic: &TopicName) -> Result<FieldTypes, IndexError> {
        Ok(self.catalog.types(topic))
    }
}

#[async_trait]
impl IndexRepair for EmbeddedIndex {
    async fn stored(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        starts: ByteRange,
        limit: PageLimit,
    ) -> Result<StoredPage, IndexError> {
        let (topic, stream) = (topic.clone(), *stream);
        self.read_with(move |catalog| catalog.stored(&topic, &stream, starts, limit)).await
    }

    async fn delete(&self, topic: &TopicName, places: &[Place]) -> Result<Vec<bool>, IndexError> {
        let (topic, places) = (topic.clone(), places.to_vec());
        self.write_with(move |catalog| catalog.delete_documents(&topic, &places)).await
    }
}
