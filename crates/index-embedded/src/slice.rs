//! One slice: a tantivy index with at most one writer.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use logmesh_index::{NewDoc, Outcome};
use logmesh_types::DocId;
use tantivy::indexer::{IndexWriterOptions, LogMergePolicy};
use tantivy::schema::Field;
use tantivy::{Index, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, Searcher, TantivyDocument, Term};

use crate::directory::SliceDirectory;
use crate::live::{note_live, sorted};
use crate::schema::{Fields, register_tokenizer, schema};

/// Segments of less than this many documents are merged as soon as there are [`MERGED_SEGMENTS`] of them.
const SMALL_SEGMENT_DOCS: u32 = 20_000;
/// How many segments of a size are merged into one. A lookup by id asks each segment.
const MERGED_SEGMENTS: usize = 6;
/// Segments beyond this are left as they are: merging them costs more than it saves.
const LARGE_SEGMENT_DOCS: usize = 4_000_000;

/// An open slice. Its documents are those of the last commit.
pub(crate) struct SliceIndex {
    index: Index,
    reader: IndexReader,
    fields: Fields,
    writer: Mutex<WriterState>,
}

/// What there is to write with.
enum WriterState {
    /// None yet, or given back.
    Closed,
    /// Held.
    Open(Box<IndexWriter>),
    /// The slice was deleted, or failed: the handle is of no use any more.
    Gone,
}

/// What came of a try to write to a slice.
pub(crate) enum Written<T> {
    /// It's written, or deleted.
    Done(T),
    /// The handle is of no use: open the slice again.
    Gone,
}

impl fmt::Debug for SliceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SliceIndex").field("directory", self.index.directory()).finish_non_exhaustive()
    }
}

impl SliceIndex {
    /// Opens the index in the folder, or makes one there.
    pub(crate) fn open(dir: &Path) -> tantivy::Result<Self> {
        let (schema, fields) = schema();
        let directory = SliceDirectory::open(dir)?;
        // A thread for each segment's compression would cost a small bulk more than the compression does.
        let settings = IndexSettings { docstore_compress_dedicated_thread: false, ..IndexSettings::default() };
        let builder = Index::builder().schema(schema).settings(settings);
        let index = builder.open_or_create(directory)?;
        register_tokenizer(&index);
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual);
        let reader = reader.doc_store_cache_num_blocks(16).try_into()?;
        Ok(Self { index, reader, fields, writer: Mutex::new(WriterState::Closed) })
    }

    /// The documents of the last commit.
    pub(crate) fn searcher(&self) -> Searcher {
        self.reader.searcher()
    }

    pub(crate) fn fields(&self) -> &Fields {
        &self.fields
    }

    /// True if a writer is held.
    pub(crate) fn is_writing(&self) -> bool {
        match self.writer.try_lock() {
            Ok(writer) => matches!(*writer, WriterState::Open(_)),
            Err(_) => true,
        }
    }

    fn writer(&self) -> MutexGuard<'_, WriterState> {
        // A panic in between leaves a writer whose documents aren't committed: the next commit would take them in, but
        // they are the same documents as in the try that follows, and these are then duplicates.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes documents of this slice, durably. After an error the handle is [`Written::Gone`].
    pub(crate) fn write(&self, docs: &[&NewDoc], memory_bytes: usize) -> tantivy::Result<Written<Vec<Outcome>>> {
        self.change(|state| self.write_with(state, docs, memory_bytes))
    }

    /// Deletes documents, durably, and says of each whether it was there. After an error the handle is [`Written::Gone`].
    pub(crate) fn delete(&self, ids: &[DocId], memory_bytes: usize) -> tantivy::Result<Written<Vec<bool>>> {
        self.change(|state| self.delete_with(state, ids, memory_bytes))
    }

    fn change<T>(&self, work: impl FnOnce(&mut WriterState) -> tantivy::Result<T>) -> tantivy::Result<Written<T>> {
        let mut state = self.writer();
        if matches!(*state, WriterState::Gone) {
            return Ok(Written::Gone);
        }
        let result = work(&mut state);
        if result.is_err() {
            // Part of the documents may lie in the writer, and it may be broken: drop both, and open the slice anew.
            *state = WriterState::Gone;
        }
        result.map(Written::Done)
    }

    fn write_with(
        &self,
        state: &mut WriterState,
        docs: &[&NewDoc],
        memory_bytes: usize,
    ) -> tantivy::Result<Vec<Outcome>> {
        let ids: Vec<DocId> = docs.iter().map(|doc| doc.id).collect();
        let present = contains(&self.searcher(), self.fields.id, &ids)?;
        let writer = self.open_writer(state, memory_bytes)?;
        let mut seen = HashSet::with_capacity(docs.len());
        let mut outcomes = Vec::with_capacity(docs.len());
        for (doc, present) in docs.iter().zip(present) {
            if present || seen.contains(&doc.id) {
                outcomes.push(Outcome::Duplicate);
                continue;
            }
            outcomes.push(match self.fields.document(doc) {
                Ok(document) => {
                    // What ended the writer's thread is known to its commit only.
                    if let Err(error) = writer.add_document(document) {
                        return Err(writer.commit().err().unwrap_or(error));
                    }
                    seen.insert(doc.id);
                    Outcome::Created
                }
                Err(reason) => Outcome::Rejected { reason },
            });
        }
        if !seen.is_empty() {
            writer.commit()?;
            self.reader.reload()?;
        }
        Ok(outcomes)
    }

    fn delete_with(&self, state: &mut WriterState, ids: &[DocId], memory_bytes: usize) -> tantivy::Result<Vec<bool>> {
        let present = contains(&self.searcher(), self.fields.id, ids)?;
        if present.contains(&true) {
            let writer = self.open_writer(state, memory_bytes)?;
            for (id, _) in ids.iter().zip(&present).filter(|(_, present)| **present) {
                writer.delete_term(Term::from_field_text(self.fields.id, &id.to_string()));
            }
            writer.commit()?;
            self.reader.reload()?;
        }
        Ok(present)
    }

    fn open_writer<'a>(
        &self,
        state: &'a mut WriterState,
        memory_bytes: usize,
    ) -> tantivy::Result<&'a mut IndexWriter<TantivyDocument>> {
        if !matches!(state, WriterState::Open(_)) {
            let options = IndexWriterOptions::builder()
                .num_worker_threads(1)
                .num_merge_threads(1)
                .memory_budget_per_thread(memory_bytes)
                .build();
            let writer: IndexWriter = self.index.writer_with_options(options)?;
            let mut policy = LogMergePolicy::default();
            policy.set_min_layer_size(SMALL_SEGMENT_DOCS);
            policy.set_min_num_segments(MERGED_SEGMENTS);
            policy.set_max_docs_before_merge(LARGE_SEGMENT_DOCS);
            writer.set_merge_policy(Box::new(policy));
            // A process that was killed left files that no commit names.
            writer.garbage_collect_files().wait()?;
            *state = WriterState::Open(Box::new(writer));
        }
        match state {
            WriterState::Open(writer) => Ok(writer),
            WriterState::Closed | WriterState::Gone => {
                Err(tantivy::TantivyError::InternalError("the writer was just opened".to_owned()))
            }
        }
    }

    /// Gives the writer back, once its merges are done.
    pub(crate) fn close_writer(&self) -> tantivy::Result<()> {
        let mut state = self.writer();
        if let WriterState::Open(writer) = std::mem::replace(&mut *state, WriterState::Closed) {
            writer.wait_merging_threads()?;
            self.reader.reload()?;
        }
        Ok(())
    }

    /// Ends the use of this handle, while `remove` runs.
    pub(crate) fn retire<T>(&self, remove: impl FnOnce() -> T) -> T {
        let mut state = self.writer();
        *state = WriterState::Gone;
        remove()
    }

    /// Says of each id whether there's a document of it.
    pub(crate) fn contains(&self, ids: &[DocId]) -> tantivy::Result<Vec<bool>> {
        contains(&self.searcher(), self.fields.id, ids)
    }
}

fn contains(searcher: &Searcher, id_field: Field, ids: &[DocId]) -> tantivy::Result<Vec<bool>> {
    let mut found = vec![false; ids.len()];
    let sorted = sorted(ids);
    searcher.segment_readers().iter().try_for_each(|segment| note_live(segment, id_field, &sorted, &mut found))?;
    Ok(found)
}
