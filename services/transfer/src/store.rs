//! Writing to the index and the bus until it's done: what can't be done now is tried for ever, and only that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use logmesh_bus::{Bus, BusError, NewRecord, Offset, Position, TopicPartition};
use logmesh_index::{IndexError, IndexWriter, NewDoc, Outcome, Slice};
use logmesh_record::{DeadLetter, Document, Topics};
use logmesh_runtime::{CancellationToken, Readiness, RetryPolicy};
use logmesh_types::{DocId, TopicName, UnixNanos};
use tracing::warn;

use crate::jobs::Jobs;
use crate::pace::{Pace, Pressure};
use crate::status::Shared;
use crate::worker::COMPONENT;

/// Attempts that may fail before the worker is called unready.
const PASSING: u32 = 3;

/// What a worker writes to.
#[derive(Clone, Debug)]
pub(crate) struct Backends {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) index: Arc<dyn IndexWriter>,
    pub(crate) jobs: Arc<Jobs>,
    /// What topics are made as.
    pub(crate) specs: Topics,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) readiness: Readiness,
    pub(crate) retry: RetryPolicy,
    pub(crate) token: CancellationToken,
}

/// Where a record lies.
pub(crate) type Placed = (TopicPartition, Offset);

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
pub(crate) struct Entry {
    /// Its topic is the one in whose index the document is. Shared by all documents of a record.
    pub(crate) at: Arc<TopicPartition>,
    pub(crate) document: Document,
    pub(crate) id: DocId,
    /// Its number among the bulk's samples, if it is to be measured.
    pub(crate) sample: Option<usize>,
    /// When its record came to the bus.
    pub(crate) arrived: UnixNanos,
    /// Why it mustn't be written; if it isn't there, it is refused for that.
    pub(crate) refused: Option<String>,
}

/// What became of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It was written.
    Created,
    /// It was there.
    There,
    /// It is refused for good, for this reason.
    Rejected(String),
}

impl Entry {
    pub(crate) fn into_letter(self, reason: String) -> (TopicPartition, DeadLetter) {
        let document = Document { id: Some(self.id), ..self.document };
        (TopicPartition::clone(&self.at), DeadLetter { document, reason, time: UnixNanos::now() })
    }
}

/// The documents of entries; those that follow each other in one slice share it.
fn docs(entries: &[Entry]) -> Vec<NewDoc> {
    let is_same = |a: &Entry, b: &Entry| a.document.date == b.document.date && a.at.topic == b.at.topic;
    let mut docs = Vec::with_capacity(entries.len());
    for run in entries.chunk_by(is_same) {
        let slice =
            run.first().map(|first| Slice { topic: first.at.topic.clone(), date: first.document.date.to_string() });
        let Some(slice) = slice.map(Arc::new) else { continue }; // not reached: no run is empty
        docs.extend(run.iter().map(|entry| NewDoc {
            slice: slice.clone(),
            id: entry.id,
            body: entry.document.body.clone(),
        }));
    }
    docs
}

/// Writes documents by `create`, as many at a time as the pace allows, until each is stored, was there, or is refused for good.
pub(crate) async fn create(entries: Vec<Entry>, to: &Backends) -> Result<Vec<(Entry, Stored)>, Stop> {
    let (mut left, mut done) = (entries, Vec::new());
    let mut attempt = 0;
    while !left.is_empty() {
        let limits = to.pace.limits();
        let later = left.split_off(limits.documents.min(left.len()));
        let docs = docs(&left);
        let (begin, sent, bytes) = (Instant::now(), docs.len(), docs.iter().map(|doc| doc.body.len()).sum());
        let mut pause = None;
        match to.index.write(docs).await.and_then(|outcomes| one_for_each(sent, outcomes)) {
            Ok(outcomes) => {
                let mut busy = Vec::new();
                for (entry, outcome) in left.into_iter().zip(outcomes) {
                    match outcome {
                        Outcome::Created => done.push((entry, Stored::Created)),
                        Outcome::Duplicate => done.push((entry, Stored::There)),
                        Outcome::Rejected { reason } => done.push((entry, Stored::Rejected(reason))),
                        Outcome::Busy { after, reason } => {
                            if pause.is_none() {
                                to.stuck(&format!("the index can't take documents now: {reason}"), attempt);
                                attempt += 1;
                            }
                            pause = pause.max(Some(after));
                            busy.push(entry);
                        }
                    }
                }
                match pause {
                    Some(_) => to.pace.pressed(limits, Pressure::Busy),
                    None => to.pace.answered(limits, sent, bytes, begin.elapsed()),
                }
                left = busy;
            }
            Err(error) if error.retryable() => {
                to.pace.pressed(limits, Pressure::Failed);
                to.wait(&error, &mut attempt).await?;
            }
            Err(error) => return Err(error.into()),
        }
        left.extend(later);
        if let Some(pause) = pause {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = to.token.cancelled() => return Err(Stop::Cancelled),
            }
        }
    }
    Ok(done)
}

/// The answers, if there are as many as were asked for: what got none would be taken for done. Asking again is harmless.
fn one_for_each<T>(asked: usize, answers: Vec<T>) -> Result<Vec<T>, IndexError> {
    if answers.len() == asked {
        return Ok(answers);
    }
    let reason = format!("it gave {} answers for {asked} documents", answers.len());
    Err(IndexError::Unavailable { reason })
}

/// Writes documents that may be there under another date: the whole topic is asked for their ids first, and each id is
/// written once. Of several with one id the first tells what became of it; were it refused, so are the others.
pub(crate) async fn create_missing(entries: Vec<Entry>, to: &Backends) -> Result<Vec<(Entry, Stored)>, Stop> {
    let mut by_topic: BTreeMap<TopicName, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        by_topic.entry(entry.at.topic.clone()).or_default().push(entry);
    }
    let (mut done, mut missing) = (Vec::new(), Vec::new());
    let mut again: Vec<Entry> = Vec::new();
    for (topic, entries) in by_topic {
        let held = held(&topic, &entries, to).await?;
        let mut seen = HashSet::new();
        for (mut entry, held) in entries.into_iter().zip(held) {
            if held {
                done.push((entry, Stored::There));
            } else if let Some(reason) = entry.refused.take() {
                done.push((entry, Stored::Rejected(reason)));
            } else if seen.insert(entry.id) {
                missing.push(entry);
            } else {
                again.push(entry);
            }
        }
    }
    let stored = create(missing, to).await?;
    let place = |entry: &Entry| (entry.at.topic.clone(), entry.id);
    let refused: HashMap<(TopicName, DocId), Stored> = stored
        .iter()
        .filter(|(_, stored)| matches!(stored, Stored::Rejected(_)))
        .map(|(entry, stored)| (place(entry), stored.clone()))
        .collect();
    done.extend(again.into_iter().map(|entry| {
        let stored = refused.get(&place(&entry)).cloned().unwrap_or(Stored::There);
        (entry, stored)
    }));
    done.extend(stored);
    Ok(done)
}

async fn held(topic: &TopicName, entries: &[Entry], to: &Backends) -> Result<Vec<bool>, Stop> {
    let ids: Vec<DocId> = entries.iter().map(|entry| entry.id).collect();
    let mut attempt = 0;
    loop {
        match to.index.contains(topic, &ids).await.and_then(|held| one_for_each(ids.len(), held)) {
            Ok(held) => return Ok(held),
            Err(error) if error.retryable() => to.wait(&error, &mut attempt).await?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Appends records and waits until all are durable: where they lie. One that failed is appended again; where its topic was
/// removed and can be made again, it's made.
pub(crate) async fn append_all(records: Vec<(TopicName, NewRecord)>, to: &Backends) -> Result<Vec<Placed>, Stop> {
    let (mut left, mut placed) = (records, Vec::new());
    let mut attempt = 0;
    while !left.is_empty() {
        let mut pending = Vec::with_capacity(left.len());
        for (topic, record) in left {
            let append = to.bus.append(&topic, record.clone()).await;
            pending.push((topic, record, append));
        }
        let (mut failed, mut gone) = (None, BTreeMap::new());
        left = Vec::new();
        for (topic, record, append) in pending {
            let stored = match append {
                Ok(append) => append.await,
                Err(error) => Err(error),
            };
            match stored {
                Ok(Position { partition, offset }) => placed.push((TopicPartition { topic, partition }, offset)),
                Err(error) if error.retryable() => {
                    failed = Some(error);
                    left.push((topic, record));
                }
                Err(error @ BusError::UnknownPartition { .. }) => {
                    gone.insert(topic.clone(), error);
                    left.push((topic, record));
                }
                Err(error) => return Err(error.into()),
            }
        }
        for (topic, error) in gone {
            if !to.is_mended(&topic).await? {
                return Err(error.into());
            }
            failed = Some(error);
        }
        // Once for all that failed together.
        if let Some(error) = failed {
            to.wait(&error, &mut attempt).await?;
        }
    }
    Ok(placed)
}

impl Backends {
    /// True of a topic that isn't there if it is again now, or may be soon.
    async fn is_mended(&self, topic: &TopicName) -> Result<bool, Stop> {
        match self.mend_named(topic).await {
            Err(error) if error.retryable() => Ok(true),
            mended => Ok(mended?),
        }
    }

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

    /// Keeps a state of the mesh's own, however long that takes.
    pub(crate) async fn keep<T: serde::Serialize + Sync>(&self, key: &str, state: &T) -> Result<(), Stop> {
        let mut attempt = 0;
        loop {
            match self.jobs.put(key, state).await {
                Ok(()) => return Ok(()),
                Err(error) if error.retryable() => self.wait(&error, &mut attempt).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
