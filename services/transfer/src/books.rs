//! The books of the partitions that this worker holds: loaded when a partition is assigned, changed in memory as
//! documents enter a bulk, and written to the bus once they are in the index.

use std::collections::{BTreeSet, HashMap};

use logmesh_bus::{Bus, BusError, NewRecord, Offset, TopicPartition};
use logmesh_record::{Book, Document};
use logmesh_types::{ByteRange, Day, Ranges, StreamId, TopicName, UnixNanos, metric};
use tracing::{error, warn};

use crate::jobs::Jobs;
use crate::mend::Removed;
use crate::redrive::{Attempt, Redriven};
use crate::store::Stored;

/// How many bytes of books are read from the bus at a time.
const READ_BYTES: usize = 4 << 20;

/// What was done of streams when a bulk was closed.
#[derive(Debug)]
pub(crate) struct Closed(Vec<(StreamId, Ranges)>);

/// What is kept of a partition's books beside them: that there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Kept {
    /// All that there were are lost: of what has no book the index is asked.
    lost: bool,
    /// They were written again after this removal of their topic.
    #[serde(default)]
    since: Option<UnixNanos>,
}

impl Kept {
    /// The key of a partition's entry in `logmesh.jobs`.
    pub(crate) fn key(of: &TopicPartition) -> String {
        format!("books/{}/{}", of.topic, of.partition)
    }
}

/// The books of one partition.
#[derive(Debug, Default)]
pub(crate) struct Books {
    books: HashMap<StreamId, Book>,
    /// Streams whose book has changed since it was written.
    changed: BTreeSet<StreamId>,
    /// What is known of the partition's dead letters, and whether it has changed since it was written.
    redriven: Redriven,
    redriven_changed: bool,
    /// The books are to be written although no bulk does.
    to_write: bool,
    /// The removals of the books that all of them were written after,
    removed: Option<UnixNanos>,
    /// and those of books and letters that were seen.
    seen: [Option<UnixNanos>; 2],
    /// What is kept beside the books.
    kept: Option<Kept>,
    /// Where the partitions of the books and of the dead letters ended when they were seen last.
    end: u64,
    dead_end: u64,
    /// The latest time of the partition's records so far.
    latest: Option<UnixNanos>,
}

impl Books {
    /// Reads the books of the data partition `of`. They lie in the same partition of the books topic, since both
    /// topics have as many partitions and the same keys.
    pub(crate) async fn load(bus: &dyn Bus, jobs: &Jobs, of: &TopicPartition) -> Result<Self, BusError> {
        let at = TopicPartition { topic: of.topic.books(), partition: of.partition };
        let marks = bus.watermarks(&at).await?;
        let redriven = jobs.get(&Redriven::key(&of.topic, of.partition)).await?.unwrap_or_default();
        let kept = jobs.get(&Kept::key(of)).await?;
        let mut loaded = Self { redriven, kept, end: marks.high.0, ..Self::default() };
        let mut next = marks.low;
        while next < marks.high {
            let records = bus.read(&at, next, READ_BYTES).await?;
            let Some(last) = records.last() else { break };
            next = last.offset.next();
            for record in &records {
                loaded.take(&at.topic, &record.value);
            }
        }
        loaded.removed = Removed::read(jobs).await?.get(&at.topic);
        loaded.keep(jobs, of).await?;
        loaded.look_for_letters(bus, of).await?;
        Ok(loaded)
    }

    /// Notes that there are books, or that they are lost: there were some and there is no record of any.
    async fn keep(&mut self, jobs: &Jobs, of: &TopicPartition) -> Result<(), BusError> {
        let (is_empty, since) = (self.end == 0, self.removed);
        let lost = self.kept.is_some_and(|kept| is_empty || kept.lost || kept.since < since);
        let kept = (!is_empty || self.kept.is_some()).then_some(Kept { lost, since });
        if lost && kept != self.kept {
            let (topic, partition) = (&of.topic, of.partition);
            error!(%topic, partition, "the books of this partition were removed: what has none any more is looked up in the index, event by event; `logmesh audit --repair` writes them again");
        }
        if let Some(now) = kept.filter(|_| kept != self.kept) {
            jobs.put(&Kept::key(of), &now).await?;
        }
        self.kept = kept;
        Ok(())
    }

    /// What is to be kept beside the first books that were written.
    pub(crate) fn take_first(&mut self) -> Option<Kept> {
        let is_first = self.kept.is_none() && self.end > 0;
        is_first.then(|| *self.kept.insert(Kept { lost: false, since: self.removed }))
    }

    /// All books were written since this removal of their topic: what is to be kept of that.
    pub(crate) fn written_since(&mut self, removed: Option<UnixNanos>) -> Option<Kept> {
        self.removed = removed;
        let kept = self.kept.as_mut().filter(|kept| kept.since != removed)?;
        kept.since = removed;
        Some(*kept)
    }

    /// Whether books or letters were removed since it was looked for last.
    pub(crate) fn is_news(&mut self, of: &TopicPartition, removed: &Removed) -> bool {
        let seen = [of.topic.books(), of.topic.dead_letters()].map(|beside| removed.get(&beside));
        std::mem::replace(&mut self.seen, seen) != seen
    }

    /// Looks whether the dead letters are there of which the books tell.
    async fn look_for_letters(&mut self, bus: &dyn Bus, of: &TopicPartition) -> Result<(), BusError> {
        let dead = TopicPartition { topic: of.topic.dead_letters(), partition: of.partition };
        let (own, letters) = (bus.topic(&of.topic).await?, bus.topic(&dead.topic).await?);
        // Else a letter lies in another partition than its event.
        if let (Some(own), Some(letters)) = (own, letters)
            && own.partitions == letters.partitions
        {
            self.dead_end = bus.watermarks(&dead).await?.high.0;
            self.removed(of, false, self.dead_end == 0);
        }
        Ok(())
    }

    /// The books, or the dead letters, were removed from the bus, as far as any were known. Books are written again. What was rejected is forgotten: it's
    /// neither in the index nor a letter.
    pub(crate) fn removed(&mut self, of: &TopicPartition, books: bool, letters: bool) {
        self.to_write |= books || letters;
        if books {
            self.end = 0;
            self.changed.extend(self.books.keys());
        }
        if !letters {
            return;
        }
        self.dead_end = 0;
        self.redriven_changed |= self.redriven.forget_letters();
        let (mut events, today) = (0, Day::of(UnixNanos::now()));
        for (stream, book) in self.books.iter_mut().filter(|(_, book)| !book.rejected.is_empty()) {
            events += book.forget_rejected(today);
            self.changed.insert(*stream);
        }
        if events > 0 {
            let (topic, partition) = (&of.topic, of.partition);
            error!(%topic, partition, events, "the dead letters of this partition were removed: `logmesh audit` names what they held as gaps, `logmesh audit --repair` sends it through again");
        }
    }

    /// True if the books are to be written although no bulk does.
    pub(crate) fn is_to_write(&self) -> bool {
        self.to_write
    }

    /// Takes note of where a book, or a letter, was written; true if that's before the end that was seen: the topic may be another one.
    pub(crate) fn is_behind(&mut self, letter: bool, offset: Offset) -> bool {
        let end = if letter { &mut self.dead_end } else { &mut self.end };
        let behind = offset.0 < *end;
        *end = offset.next().0.max(*end);
        behind
    }

    /// The ends of the books and of the dead letters that were seen.
    pub(crate) fn ends(&self) -> [u64; 2] {
        [self.end, self.dead_end]
    }

    /// Takes a record of the books in. One that knows less than those before it was written late, by a worker that had lost
    /// the partition: the book is written again.
    fn take(&mut self, topic: &TopicName, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        let mut book = match Book::decode(topic, value) {
            Ok(book) => book,
            Err(error) => {
                // Without its book a stream's events are taken for new; their ids still keep them from being doubled within
                // a day's slice, and the audit shows the hole.
                warn!(topic = %topic, error, "a book can't be read and is left out");
                return;
            }
        };
        if let Some(before) = self.books.get(&book.stream) {
            let latest = book.clone();
            book.merge(before);
            if book != latest {
                self.changed.insert(book.stream);
            } else {
                self.changed.remove(&book.stream);
            }
        }
        self.books.insert(book.stream, book);
    }

    /// When the partition's next record came to the bus, which bears this time: not before those that lie before it, be the clock
    /// of the gateway that wrote it behind.
    pub(crate) fn arrived(&mut self, time: UnixNanos) -> UnixNanos {
        *self.latest.insert(self.latest.map_or(time, |latest| latest.max(time)))
    }

    /// The book of a stream, an empty one if there is none yet.
    pub(crate) fn book(&mut self, stream: StreamId) -> &mut Book {
        let left_out = u64::from(self.kept.is_some_and(|kept| kept.lost));
        self.books.entry(stream).or_insert_with(|| Book { left_out, ..Book::new(stream) })
    }

    /// Books a range as done, to be written.
    pub(crate) fn add(&mut self, stream: StreamId, range: ByteRange) {
        if !self.book(stream).add(range) {
            metrics::counter!(metric::TRANSFER_BOOK_RANGES_LEFT_OUT).increment(1);
        }
        self.changed.insert(stream);
    }

    /// Notes in which slice an event's bytes lie, to be written.
    pub(crate) fn place_document(&mut self, document: &Document) {
        if let Some((stream, range)) = document.stream {
            self.place(stream, range, document.date);
            self.changed.insert(stream);
        }
    }

    /// The same for bytes of a bulk that is being written, which writes their book.
    pub(crate) fn place(&mut self, stream: StreamId, range: ByteRange, day: Day) {
        self.book(stream).slices.place(range, day);
    }

    /// The book of a stream, if there is one.
    pub(crate) fn get(&self, stream: StreamId) -> Option<&Book> {
        self.books.get(&stream)
    }

    /// Books a range of a bulk that is being written, which writes its book, as rejected.
    pub(crate) fn reject(&mut self, stream: StreamId, range: ByteRange) {
        self.book(stream).reject(range);
    }

    /// Books a range as stored, be it one that was rejected or that isn't booked, to be written if that changes anything.
    pub(crate) fn settle(&mut self, stream: StreamId, range: ByteRange) {
        if self.book(stream).settle(range) {
            self.changed.insert(stream);
        }
    }

    /// Notes what became of a dead letter, to be written.
    pub(crate) fn note(&mut self, attempt: &Attempt, stored: &Stored) {
        self.redriven.note(attempt, stored);
        self.redriven_changed = true;
    }

    /// What is known of the partition's dead letters, if it has changed.
    pub(crate) fn take_redriven(&mut self) -> Option<&Redriven> {
        std::mem::take(&mut self.redriven_changed).then_some(&self.redriven)
    }

    /// What is done of the streams that have changed, to be written when it is in the index; `None` if none has.
    pub(crate) fn close(&mut self) -> Option<Closed> {
        self.to_write = false;
        let changed = std::mem::take(&mut self.changed);
        let done = |stream: StreamId| self.books.get(&stream).map(|book| (stream, book.done.clone()));
        (!changed.is_empty()).then(|| Closed(changed.into_iter().filter_map(done).collect()))
    }

    /// The records of books that were closed: all that is known of their streams, but not what was done since. They keep of slices
    /// dated before this day only that they are retired.
    pub(crate) fn records(&mut self, closed: Closed, retired: Option<Day>) -> impl Iterator<Item = NewRecord> {
        closed.0.into_iter().filter_map(move |(stream, done)| {
            let book = self.books.get_mut(&stream)?;
            retired.map(|before| book.slices.retire(before));
            let since = std::mem::replace(&mut book.done, done);
            let record = book.encode();
            book.done = since;
            Some(record)
        })
    }

    /// How many streams there are.
    pub(crate) fn len(&self) -> usize {
        self.books.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_book_is_merged_and_written_again() {
        let topic: TopicName = "logs.books".parse().unwrap();
        let stream = StreamId::from_bytes([7; 16]);
        let record = |end| {
            let mut book = Book::new(stream);
            book.add(ByteRange::new(0, end));
            book.encode().value
        };
        let mut books = Books::default();
        for end in [10, 30, 20] {
            books.take(&topic, &record(end));
        }
        assert_eq!(books.book(stream).watermark(), 30);
        assert_eq!(books.close().map(|closed| closed.0.len()), Some(1));
        books.take(&topic, &record(40));
        assert!(books.close().is_none(), "the last record says all");
    }
}
