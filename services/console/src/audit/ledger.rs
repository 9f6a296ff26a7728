//! What the bus knows of some streams: which of their bytes are on their way, and what their books say.

use std::collections::{BTreeSet, HashMap, HashSet};

use logmesh_bus::{Bus, NextOffset, Offset, Record, TopicPartition, partition_of};
use logmesh_record::codec::{self, Content};
use logmesh_record::{Book, Marks, TRANSFER_GROUP, with_books};
use logmesh_types::{ByteRange, Ranges, StreamId, TopicName};

use super::AuditError;
use super::shelf::Shelf;

/// Bytes that are read from the bus at a time.
const READ_BYTES: usize = 4 << 20;

/// Bytes of a partition that are searched for what is on its way. Where more waits, it isn't known what of it is whose,
/// and nothing is called a gap until the index has caught up.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// A topic of data and its number of partitions.
#[derive(Clone, Debug)]
pub(super) struct Topic {
    pub(super) name: TopicName,
    pub(super) partitions: u32,
}

/// The topics that have books, by name. Others on the same bus are none of ours.
pub(super) async fn topics(bus: &dyn Bus) -> Result<Vec<Topic>, AuditError> {
    let topics = with_books(bus.topics().await?).into_iter();
    Ok(topics.map(|spec| Topic { name: spec.name, partitions: spec.partitions }).collect())
}

/// What the bus knows of a stream in one topic.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The stream's book; `None` if nothing of it is done.
    pub(super) book: Option<Book>,
    /// What lies on the bus and isn't committed by transfer.
    pub(super) waiting: Ranges,
    /// The first record of it.
    pub(super) waits_at: Option<Offset>,
    /// Too much waits to know all of it.
    pub(super) more_waits: bool,
}

/// What the bus knows of some streams, in all topics.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    topics: Vec<Topic>,
    /// Which days of the index are retired.
    pub(super) marks: Marks,
    entries: HashMap<StreamId, Vec<(TopicName, Entry)>>,
}

impl Ledger {
    /// Reads what the bus knows of these streams: first what waits, then the books, so that what transfer finishes
    /// meanwhile is found in one of them at least.
    pub(super) async fn read(bus: &dyn Bus, shelf: &Shelf, streams: &HashSet<StreamId>) -> Result<Self, AuditError> {
        let mut ledger = Self { marks: shelf.marks.read(bus).await?, ..Self::default() };
        let topics = topics(bus).await?;
        for topic in &topics {
            let partitions: BTreeSet<u32> = streams.iter().map(|stream| partition(*stream, topic)).collect();
            for partition in &partitions {
                let at = TopicPartition { topic: topic.name.clone(), partition: *partition };
                if !ledger.read_waiting(bus, &at, streams).await? {
                    let here = streams.iter().filter(|stream| super::ledger::partition(**stream, topic) == *partition);
                    here.for_each(|stream| ledger.entry(*stream, &topic.name).more_waits = true);
                }
            }
            for partition in partitions {
                let at = TopicPartition { topic: topic.name.books(), partition };
                shelf.read(bus, &at, |stream, book| ledger.take(&topic.name, streams, stream, book)).await?;
            }
        }
        ledger.topics = topics;
        Ok(ledger)
    }

    /// The partition of the topic in which the stream lies; `None` if there is no such topic.
    pub(super) fn partition(&self, topic: &TopicName, stream: StreamId) -> Option<u32> {
        self.topics.iter().find(|known| known.name == *topic).map(|known| partition(stream, known))
    }

    /// What is known of the stream, in each topic where anything is.
    pub(super) fn of(&self, stream: StreamId) -> &[(TopicName, Entry)] {
        self.entries.get(&stream).map_or(&[], Vec::as_slice)
    }

    /// Takes in what is said of a book.
    fn take(&mut self, topic: &TopicName, streams: &HashSet<StreamId>, stream: StreamId, book: Option<&Book>) {
        if !streams.contains(&stream) {
            return;
        }
        let entry = self.entry(stream, topic);
        let before = entry.book.take();
        entry.book = book.cloned().map(|mut book| {
            before.iter().for_each(|before| book.merge(before));
            book
        });
    }

    fn entry(&mut self, stream: StreamId, topic: &TopicName) -> &mut Entry {
        let entries = self.entries.entry(stream).or_default();
        let place = entries.iter().position(|(name, _)| name == topic).unwrap_or_else(|| {
            entries.push((topic.clone(), Entry::default()));
            entries.len() - 1
        });
        &mut entries[place].1
    }

    /// Notes what of the streams waits in a partition; false if that was too much to read.
    async fn read_waiting(
        &mut self,
        bus: &dyn Bus,
        at: &TopicPartition,
        streams: &HashSet<StreamId>,
    ) -> Result<bool, AuditError> {
        let committed = bus.committed(TRANSFER_GROUP, at).await?.unwrap_or(NextOffset(0));
        let marks = bus.watermarks(at).await?;
        let mut next = committed.max(marks.low);
        let mut read = 0;
        while next < marks.high {
            let records = bus.read(at, next, READ_BYTES).await?;
            let Some(last) = records.last() else { break };
            next = last.offset.next();
            for record in &records {
                read += record.size();
                if let Some((stream, range)) = range_of(record)
                    && streams.contains(&stream)
                {
                    let entry = self.entry(stream, &at.topic);
                    entry.waiting.insert(range);
                    entry.waits_at.get_or_insert(record.offset);
                }
            }
            if read > MAX_WAITING_BYTES {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The partition in which a stream lies.
fn partition(stream: StreamId, topic: &Topic) -> u32 {
    partition_of(stream.to_string().as_bytes(), topic.partitions)
}

/// The bytes that a record holds; `None` if it isn't of a stream, or can't be read and is a dead letter soon.
fn range_of(record: &Record) -> Option<(StreamId, ByteRange)> {
    match codec::decode(record).ok()? {
        Content::Chunk(chunk) => {
            Some((chunk.stream_id.parse().ok()?, ByteRange::new(chunk.start_offset, chunk.end_offset)))
        }
        Content::Event(document) => document.stream,
    }
}
