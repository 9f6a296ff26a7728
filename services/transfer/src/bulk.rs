//! One bulk: documents of several partitions on their way into the index.
//!
//! A document whose bytes aren't booked yet is *certain*: it is written by `create`, and if it is there already it was
//! written before a crash, into the same slice. One whose bytes are booked (or whose book was too full to say), or that a
//! client named, is *doubtful*: it may be there under another date, so the whole topic is asked for its id before it is
//! written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use logmesh_bus::{Bus, NewRecord, NextOffset, Record, TopicPartition};
use logmesh_index::{IndexError, IndexWriter, NewDoc, Outcome, Slice};
use logmesh_proto::transfer::v1::Counts;
use logmesh_record::{Content, Coverage, DeadLetter, Document, codec, document};
use logmesh_runtime::{CancellationToken, Readiness, RetryPolicy};
use logmesh_types::{DocId, TopicName, UnixNanos};
use tracing::{error, warn};

use crate::books::Books;
use crate::status::Shared;
use crate::worker::COMPONENT;

/// Attempts that may fail before the worker is called unready.
const PASSING: u32 = 3;

/// What a bulk writes to.
#[derive(Clone, Debug)]
pub(crate) struct Backends {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) index: Arc<dyn IndexWriter>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) readiness: Readiness,
    pub(crate) retry: RetryPolicy,
    pub(crate) token: CancellationToken,
}

/// The worker was told to stop, or something failed for good. Nothing that was read and not committed is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    #[error("told to stop")]
    Cancelled,
    #[error(transparent)]
    Bus(#[from] logmesh_bus::BusError),
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A document and where it came from.
#[derive(Debug)]
struct Entry {
    /// Shared by all documents of a record.
    at: Arc<TopicPartition>,
    document: Document,
    id: DocId,
}

/// Documents waiting to be written, and the offsets that may be committed once they are.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    certain: Vec<Entry>,
    doubtful: Vec<Entry>,
    /// Dead letters of records that could not be opened.
    unreadable: Vec<(TopicPartition, DeadLetter)>,
    offsets: BTreeMap<TopicPartition, (NextOffset, UnixNanos)>,
    bytes: usize,
    counts: Counts,
}

impl Bulk {
    /// Bytes of the documents.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many documents there are.
    pub(crate) fn len(&self) -> usize {
        self.certain.len() + self.doubtful.len()
    }

    /// True if there is nothing to write and nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Takes a record in, and books its bytes in memory.
    pub(crate) fn add(&mut self, at: &TopicPartition, record: &Record, books: &mut Books) {
        self.offsets.insert(at.clone(), (record.offset.next(), record.timestamp));
        let at = &Arc::new(at.clone());
        match codec::decode(record) {
            Ok(Content::Chunk(chunk)) => {
                let documents = document::of_chunk(&chunk);
                if let (Some(source), Some((stream, _))) = (&chunk.source, documents.first().and_then(|d| d.stream)) {
                    let book = books.book(stream);
                    book.agent.clone_from(&source.agent_id);
                    book.path.clone_from(&source.path);
                }
                for document in documents {
                    self.add_document(at, record, document, books);
                }
            }
            Ok(Content::Event(document)) => self.add_document(at, record, document, books),
            Err(reason) => self.add_unreadable(at, record, reason.to_string()),
        }
    }

    fn add_document(&mut self, at: &Arc<TopicPartition>, record: &Record, document: Document, books: &mut Books) {
        let id = document.id.unwrap_or_else(|| DocId::of_position(at.topic.as_str(), at.partition, record.offset.0, 0));
        self.counts.events += 1;
        self.bytes += document.body.len();
        let certain = match document.stream {
            // Without an id of its own the event is what lies at this place of the bus.
            None => document.id.is_none(),
            Some((stream, range)) => {
                let book = books.book(stream);
                let coverage = book.coverage(range);
                let complete = book.left_out == 0;
                if coverage == Coverage::Overlap {
                    self.counts.overlaps += 1;
                }
                books.add(stream, range);
                coverage == Coverage::New && complete
            }
        };
        let entry = Entry { at: at.clone(), document, id };
        if certain { self.certain.push(entry) } else { self.doubtful.push(entry) }
    }

    fn add_unreadable(&mut self, at: &TopicPartition, record: &Record, reason: String) {
        let document = Document {
            id: Some(DocId::of_position(at.topic.as_str(), at.partition, record.offset.0, 0)),
            stream: None,
            date: record.timestamp.date(),
            body: record.value.clone(),
        };
        self.unreadable.push((at.clone(), DeadLetter { document, reason, time: UnixNanos::now() }));
    }

    /// Writes everything, in this order: index, dead letters, books. The offsets that it returns may be committed then.
    ///
    /// # Errors
    /// [`Stop`] only when told to stop or when a backend fails for good; what it can't do now is tried for ever.
    pub(crate) async fn write(
        self,
        books: &mut HashMap<TopicPartition, Books>,
        to: &Backends,
    ) -> Result<BTreeMap<TopicPartition, (NextOffset, UnixNanos)>, Stop> {
        let Self { certain, doubtful, unreadable, offsets, mut counts, .. } = self;
        let mut letters = unreadable;
        create(certain, to, &mut counts, &mut letters).await?;
        let missing = keep_missing(doubtful, to, &mut counts).await?;
        create(missing, to, &mut counts, &mut letters).await?;
        counts.dead_letters += letters.len() as u64;
        // Once for each bulk: what is logged must not grow with the lines.
        if let Some((at, letter)) = letters.first() {
            let (topic, events) = (&at.topic, letters.len());
            error!(%topic, events, reason = ?letter.reason, "events go to the dead letters; this is the first one's reason");
        }
        if counts.overlaps > 0 {
            error!(events = counts.overlaps, "events overlap others of their stream; those with new ids are kept");
        }
        let mut records = Vec::new();
        for (at, letter) in letters {
            if let (Some((stream, range)), Some(books)) = (letter.document.stream, books.get_mut(&at)) {
                books.reject(stream, range);
            }
            records.push((at.topic.dead_letters(), letter.encode()));
        }
        append_all(records, to).await?;
        let mut records = Vec::new();
        for (at, books) in books.iter_mut() {
            records.extend(books.take_changed().into_iter().map(|record| (at.topic.books(), record)));
        }
        append_all(records, to).await?;
        to.shared.count(&counts);
        to.going();
        Ok(offsets)
    }
}

/// Writes documents by `create` until each is stored, was there, or is refused for good.
async fn create(
    entries: Vec<Entry>,
    to: &Backends,
    counts: &mut Counts,
    letters: &mut Vec<(TopicPartition, DeadLetter)>,
) -> Result<(), Stop> {
    let mut left = entries;
    let mut attempt = 0;
    while !left.is_empty() {
        let docs: Vec<NewDoc> = left.iter().map(Entry::to_doc).collect();
        let mut pause = None;
        match to.index.write(docs).await.and_then(|outcomes| one_for_each(left.len(), outcomes)) {
            Ok(outcomes) => {
                let mut busy = Vec::new();
                for (entry, outcome) in left.into_iter().zip(outcomes) {
                    match outcome {
                        Outcome::Created => counts.created += 1,
                        Outcome::Duplicate => counts.duplicates += 1,
                        Outcome::Busy { after, reason } => {
                            if pause.is_none() {
                                to.stuck(&format!("the index can't take documents now: {reason}"), attempt);
                                attempt += 1;
                            }
                            pause = pause.max(Some(after));
                            busy.push(entry);
                        }
                        Outcome::Rejected { reason } => letters.push(entry.into_letter(reason)),
                    }
                }
                left = busy;
            }
            Err(error) if error.retryable() => to.wait(&error, &mut attempt).await?,
            Err(error) => return Err(error.into()),
        }
        if let Some(pause) = pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = to.token.cancelled() => return Err(Stop::Cancelled),
            }
        }
    }
    Ok(())
}

/// The answers, if there are as many as were asked for: what got none would be taken for done. Asking again is harmless.
fn one_for_each<T>(asked: usize, answers: Vec<T>) -> Result<Vec<T>, IndexError> {
    if answers.len() == asked {
        return Ok(answers);
    }
    let reason = format!("it gave {} answers for {asked} documents", answers.len());
    Err(IndexError::Unavailable { reason })
}

/// The entries whose ids no slice of their topic holds, each id once. Asked after the certain ones were written.
async fn keep_missing(entries: Vec<Entry>, to: &Backends, counts: &mut Counts) -> Result<Vec<Entry>, Stop> {
    let mut by_topic: BTreeMap<TopicName, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        by_topic.entry(entry.at.topic.clone()).or_default().push(entry);
    }
    let mut missing = Vec::new();
    for (topic, entries) in by_topic {
        let ids: Vec<DocId> = entries.iter().map(|entry| entry.id).collect();
        let mut attempt = 0;
        let held = loop {
            match to.index.contains(&topic, &ids).await.and_then(|held| one_for_each(ids.len(), held)) {
                Ok(held) => break held,
                Err(error) if error.retryable() => to.wait(&error, &mut attempt).await?,
                Err(error) => return Err(error.into()),
            }
        };
        let mut seen = HashSet::new();
        for (entry, held) in entries.into_iter().zip(held) {
            if held || !seen.insert(entry.id) {
                counts.repeats += 1;
            } else {
                missing.push(entry);
            }
        }
    }
    Ok(missing)
}

/// Appends records and waits until all are durable. One that failed is appended again.
async fn append_all(records: Vec<(TopicName, NewRecord)>, to: &Backends) -> Result<(), Stop> {
    let mut left = records;
    let mut attempt = 0;
    while !left.is_empty() {
        let mut pending = Vec::with_capacity(left.len());
        for (topic, record) in left {
            let append = to.bus.append(&topic, record.clone()).await;
            pending.push((topic, record, append));
        }
        let mut failed = None;
        left = Vec::new();
        for (topic, record, append) in pending {
            let stored = match append {
                Ok(append) => append.await.map(drop),
                Err(error) => Err(error),
            };
            match stored {
                Ok(()) => {}
                Err(error) if error.retryable() => {
                    failed = Some(error);
                    left.push((topic, record));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Once for all that failed together.
        if let Some(error) = failed {
            to.wait(&error, &mut attempt).await?;
        }
    }
    Ok(())
}

impl Backends {
    /// Says what can't be done now and waits before the next attempt.
    pub(crate) async fn wait(&self, error: &(dyn std::fmt::Display + Sync), attempt: &mut u32) -> Result<(), Stop> {
        self.stuck(&error.to_string(), *attempt);
        let go_on = self.retry.pause(*attempt, &self.token).await;
        *attempt = attempt.saturating_add(1);
        if go_on { Ok(()) } else { Err(Stop::Cancelled) }
    }

    /// Says what keeps the worker from going on. What passes at once is no reason to call it unready.
    pub(crate) fn stuck(&self, reason: &str, attempt: u32) {
        warn!(reason, attempt, "transfer waits for a backend");
        self.shared.state().error = reason.to_owned();
        if attempt >= PASSING {
            self.readiness.set(COMPONENT, false, reason);
        }
    }

    /// Something was written, or there is nothing to write: nothing keeps the worker.
    pub(crate) fn going(&self) {
        self.shared.state().error.clear();
        self.readiness.set(COMPONENT, true, "");
    }
}

impl Entry {
    fn to_doc(&self) -> NewDoc {
        let slice = Slice { topic: self.at.topic.clone(), date: self.document.date.clone() };
        NewDoc { slice, id: self.id, body: self.document.body.clone() }
    }

    fn into_letter(self, reason: String) -> (TopicPartition, DeadLetter) {
        let document = Document { id: Some(self.id), ..self.document };
        (TopicPartition::clone(&self.at), DeadLetter { document, reason, time: UnixNanos::now() })
    }
}
