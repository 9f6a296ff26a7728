//! The books of the partitions that this worker holds: loaded when a partition is assigned, changed in memory as
//! documents enter a bulk, and written to the bus once they are in the index.

use std::collections::{BTreeSet, HashMap};

use logmesh_bus::{Bus, BusError, NewRecord, TopicPartition};
use logmesh_record::{Book, Document};
use logmesh_types::{ByteRange, Day, Ranges, StreamId, TopicName, UnixNanos, metric};
use tracing::warn;

use crate::jobs::Jobs;
use crate::redrive::{Attempt, Redriven};
use crate::store::Stored;

/// How many bytes of books are read from the bus at a time.
const READ_BYTES: usize = 4 << 20;

/// What was done of streams when a bulk was closed.
#[derive(Debug)]
pub(crate) struct Closed(Vec<(StreamId, Ranges)>);

/// The books of one partition.
#[derive(Debug, Default)]
pub(crate) struct Books {
    books: HashMap<StreamId, Book>,
    /// Streams whose book has changed since it was written.
    changed: BTreeSet<StreamId>,
    /// What is known of the partition's dead letters, and whether it has changed since it was written.
    redriven: Redriven,
    redriven_changed: bool,
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
        let mut loaded = Self { redriven, ..Self::default() };
        let mut next = marks.low;
        while next < marks.high {
            let records = bus.read(&at, next, READ_BYTES).await?;
            let Some(last) = records.last() else { break };
            next = last.offset.next();
            for record in &records {
                loaded.take(&at.topic, &record.value);
            }
        }
        Ok(loaded)
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
        self.books.entry(stream).or_insert_with(|| Book::new(stream))
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
        if let (Some((stream, range)), Ok(day)) = (document.stream, document.date.parse()) {
            self.place(stream, range, day);
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

    /// Books a range that was rejected as stored, to be written if that changes anything.
    pub(crate) fn settle(&mut self, stream: StreamId, range: ByteRange) {
        if self.book(stream).settle(range) {
            self.changed.insert(stream);
        }
    }

    /// The same for a range of which it isn't known whether it was rejected.
    pub(crate) fn settle_rejected(&mut self, stream: StreamId, range: ByteRange) {
        if self.books.get(&stream).is_some_and(|book| book.is_rejected(range)) {
            self.settle(stream, range);
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

    /// What is done of the streams that have changed, to be written when it is in the index.
    pub(crate) fn close(&mut self) -> Closed {
        let changed = std::mem::take(&mut self.changed);
        let done = |stream: StreamId| self.books.get(&stream).map(|book| (stream, book.done.clone()));
        Closed(changed.into_iter().filter_map(done).collect())
    }

    /// The records of books that were closed: all that is known of their streams, but not what was done since. They keep of slices
    /// dated before this day only that they are retired.
    pub(crate) fn records(&mut self, closed: Closed, retired: Option<Day>) -> impl Iterator<Item = NewRecord> {
        closed.0.into_iter().filter_map(move |(stream, done)| {
            let book = self.books.get_mut(&stream)?;
            retired.map(|before| book.slices.retire(before));
            Some(Book { done, ..book.clone() }.encode())
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
        assert_eq!(books.close().0.len(), 1);
        books.take(&topic, &record(40));
        assert!(books.close().0.is_empty(), "the last record says all");
    }
}
