//! The worker's part of replays: one step after another, each of one partition, between its bulks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::{NextOffset, Record, TopicPartition};
use logmesh_record::codec::{self, DecodeError};
use logmesh_record::{Document, Marks};
use logmesh_types::{DocId, UnixNanos, metric};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Progress, Replay, Wanted};
use crate::GROUP;
use crate::books::Books;
use crate::retired::sift;
use crate::store::{Backends, Entry, Stop, Stored, create_missing};
use crate::writing::{note_place, write_books};

/// Bytes that one step reads; with a rate less, so that the rate holds over short times too.
const STEP_BYTES: usize = 2 << 20;
const PACED_BYTES: usize = 64 << 10;

/// How long to wait for records that transfer itself has yet to commit.
const NOT_COMMITTED: Duration = Duration::from_millis(500);

/// The shortest pause between two steps: what comes from the bus has its turn.
const PAUSE: Duration = Duration::from_millis(2);

/// Offsets of unreadable records that a step tells in the log.
const MAX_TOLD: usize = 20;

/// The parts that this worker does now.
#[derive(Debug, Default)]
pub(crate) struct Replays(Vec<Task>);

/// One partition of one replay.
#[derive(Debug)]
struct Task {
    replay: Replay,
    at: TopicPartition,
    progress: Progress,
    /// Its share of the replay's events per second; 0: as fast as it goes.
    rate: f64,
    /// When the next step is due.
    due: Instant,
}

impl Replays {
    /// When the next step is due, if there is any.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.0.iter().map(|task| task.due).min()
    }

    /// Looks which parts there are to do, now that these partitions are held.
    pub(crate) async fn look(&mut self, held: &HashMap<TopicPartition, Books>, to: &Backends) -> Result<(), Stop> {
        let mut due: HashMap<(String, TopicPartition), Instant> =
            self.0.drain(..).map(|task| ((task.replay.id, task.at), task.due)).collect();
        let all = match super::all(&to.jobs).await {
            Ok(all) => all,
            // Those that were known are taken up again by the next look.
            Err(error) if error.retryable() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for status in all.into_values() {
            if status.replay.wanted != Wanted::Running {
                continue;
            }
            let rate = status.replay.rate as f64 / status.left().max(1) as f64;
            for (partition, part) in &status.replay.parts {
                let at = TopicPartition { topic: status.replay.topic.clone(), partition: *partition };
                if status.is_done(*partition) || !held.contains_key(&at) {
                    continue;
                }
                let begin = || Progress { next: part.start, ..Progress::default() };
                let progress = status.progress.get(partition).cloned().unwrap_or_else(begin);
                let due = due.remove(&(status.replay.id.clone(), at.clone())).unwrap_or_else(Instant::now);
                self.0.push(Task { replay: status.replay.clone(), at, progress, rate, due });
            }
        }
        Ok(())
    }

    /// The partition is another's from now on.
    pub(crate) fn forget(&mut self, at: &TopicPartition) {
        self.0.retain(|task| task.at != *at);
    }

    /// Does the step that is due, if one is.
    pub(crate) async fn step(
        &mut self,
        books: &mut HashMap<TopicPartition, Books>,
        marks: &Marks,
        to: &Backends,
    ) -> Result<(), Stop> {
        let begin = Instant::now();
        let next = self.0.iter().enumerate().filter(|(_, task)| task.due <= begin).min_by_key(|(_, task)| task.due);
        let Some((index, _)) = next else { return Ok(()) };
        let events = match self.0[index].step(books, marks, to).await {
            Ok(Some(events)) => events,
            Ok(None) => {
                self.0[index].due = Instant::now() + NOT_COMMITTED;
                return Ok(());
            }
            // Nothing is lost by trying later, and it mustn't hold up what is new.
            Err(Stop::Bus(error)) if error.retryable() => {
                warn!(%error, "a replay waits for the bus");
                self.0[index].due = Instant::now() + NOT_COMMITTED;
                return Ok(());
            }
            Err(stop) => return Err(stop),
        };
        let task = &mut self.0[index];
        let end = task.replay.parts.get(&task.at.partition).map_or(0, |part| part.end);
        if task.progress.next >= end {
            let (replay, topic, partition) = (&task.replay.id, &task.at.topic, task.at.partition);
            info!(replay, %topic, partition, "a partition of a replay is done");
            self.0.swap_remove(index);
            return Ok(());
        }
        // By when it was due, so that a late step is made up for, though not more than a second's.
        let from = task.due.max(begin.checked_sub(Duration::from_secs(1)).unwrap_or(begin));
        let paced = if task.rate > 0.0 { Duration::from_secs_f64(events as f64 / task.rate) } else { Duration::ZERO };
        task.due = (from + paced).max(Instant::now() + PAUSE);
        Ok(())
    }
}

impl Task {
    /// Reads, writes, and notes how far it is: the events that were done; `None` if the records aren't committed yet.
    async fn step(
        &mut self,
        books: &mut HashMap<TopicPartition, Books>,
        marks: &Marks,
        to: &Backends,
    ) -> Result<Option<u64>, Stop> {
        let end = self.replay.parts.get(&self.at.partition).map_or(0, |part| part.end);
        // Beyond the commit transfer itself is at work, and takes what it has never seen for new.
        let committed = to.bus.committed(GROUP, &self.at).await?.map_or(0, |next| next.0);
        let end_now = end.min(committed);
        if self.progress.next >= end_now {
            return Ok(None);
        }
        let bytes = if self.rate > 0.0 { PACED_BYTES } else { STEP_BYTES };
        let read = to.bus.read(&self.at, NextOffset(self.progress.next), bytes).await?;
        let records: Vec<Record> = read.into_iter().take_while(|record| record.offset.0 < end_now).collect();
        // None: the bus has removed them all.
        let next = records.last().map_or(end_now, |last| last.offset.next().0);
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        for record in records.iter().filter(|record| self.replay.may_hold(record)) {
            match self.entries(record) {
                Ok(meant) => entries.extend(meant),
                Err(error) => unreadable.push((record.offset.0, error)),
            }
        }
        self.tell(&unreadable);
        let events = entries.len() as u64;
        // Of the index of another name no slice is retired.
        self.progress.retired += sift(&mut entries, marks, books);
        for (entry, stored) in create_missing(entries, to).await? {
            note_place(&entry, &stored, books);
            self.count(&entry, stored, books);
        }
        write_books(books, marks, to).await?;
        self.progress.next = next;
        self.progress.events += events;
        self.progress.unreadable += unreadable.len() as u64;
        self.progress.updated = Some(UnixNanos::now());
        to.keep(&Replay::progress_key(&self.replay.id, self.at.partition), &self.progress).await?;
        metrics::counter!(metric::TRANSFER_REPLAYED_EVENTS).increment(events);
        to.going();
        Ok(Some(events))
    }

    /// The events of a record that are meant.
    fn entries(&self, record: &Record) -> Result<Vec<Entry>, DecodeError> {
        let documents = codec::documents(&self.at.topic, self.at.partition, record)?;
        let at = Arc::new(TopicPartition { topic: self.replay.target().clone(), partition: self.at.partition });
        let meant = documents.into_iter().filter(|document| self.replay.holds(document.stream));
        let entry = |document: Document| {
            let place = || DocId::of_position(self.at.topic.as_str(), self.at.partition, record.offset.0, 0);
            let id = document.id.unwrap_or_else(place);
            Entry { at: at.clone(), id, document, sample: None, arrived: record.timestamp, refused: None }
        };
        Ok(meant.map(entry).collect())
    }

    /// Tells the log of records that can't be read, by offset. One that never could be is a dead letter since it was read for
    /// the first time; one that was damaged later is nowhere else on the bus.
    fn tell(&self, unreadable: &[(u64, DecodeError)]) {
        let Some((_, error)) = unreadable.first() else { return };
        let offsets: Vec<u64> = unreadable.iter().map(|(offset, _)| *offset).take(MAX_TOLD).collect();
        let (replay, topic, partition) = (&self.replay.id, &self.at.topic, self.at.partition);
        let records = unreadable.len();
        warn!(replay, %topic, partition, records, ?offsets, %error, "a replay can't read records: see logmesh audit --repair");
    }

    fn count(&mut self, entry: &Entry, stored: Stored, books: &mut HashMap<TopicPartition, Books>) {
        match stored {
            Stored::Created => self.progress.indexed += 1,
            Stored::There => self.progress.there += 1,
            Stored::Rejected(reason) => {
                if self.progress.refused == 0 {
                    warn!(replay = self.replay.id, reason, "an event of a replay is refused");
                }
                self.progress.refused += 1;
                self.progress.reason = codec::short_reason(&reason).to_owned();
                return;
            }
        }
        // One that was rejected once, or whose book was lost, and that is in the index now.
        if let (None, Some((stream, range)), Some(books)) =
            (&self.replay.into, entry.document.stream, books.get_mut(&self.at))
        {
            books.settle(stream, range);
        }
    }
}
