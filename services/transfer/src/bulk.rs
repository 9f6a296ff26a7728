//! One bulk: documents of several partitions on their way into the index.
//!
//! A document whose bytes aren't booked yet is *certain*: it is written by `create`, and if it is there already it was
//! written before a crash, into the same slice. One whose bytes are booked (or whose book was too full to say), or that a
//! client named, is *doubtful*: it may be there under another date, so the whole topic is asked for its id before it is
//! written. What is certain goes to the index as soon as the bulk is closed; all else waits until the bulks before are done, see
//! [`crate::writing`]. So an event that comes twice within two bulks is doubtful in the second, and is looked for when the first
//! is in the index.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use logmesh_bus::{NextOffset, Record, TopicPartition};
use logmesh_proto::transfer::v1::Counts;
use logmesh_record::codec::Found;
use logmesh_record::{Content, Coverage, DeadLetter, Document, Marks, codec, document};
use logmesh_types::{Day, DocId, UnixNanos};

use crate::books::Books;
use crate::freshness::Samples;
use crate::redrive::Attempt;
use crate::retired::is_late;
use crate::store::{Backends, Entry};
use crate::writing::Writing;

/// Documents waiting to be written, and the offsets that may be committed once they are.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    pub(crate) certain: Vec<Entry>,
    pub(crate) doubtful: Vec<Entry>,
    /// Dead letters that go through again, and where they lie.
    pub(crate) redriven: Vec<(Entry, Attempt)>,
    /// Dead letters of records that could not be opened.
    pub(crate) unreadable: Vec<(TopicPartition, DeadLetter)>,
    pub(crate) offsets: BTreeMap<TopicPartition, (NextOffset, UnixNanos)>,
    pub(crate) bytes: usize,
    pub(crate) counts: Counts,
    /// The earliest date of all documents.
    oldest: Option<Day>,
    pub(crate) samples: Samples,
}

impl Bulk {
    /// The earliest date of all documents: that of the slice that is retired first.
    pub(crate) fn oldest(&self) -> Option<Day> {
        self.oldest
    }

    fn note_date(&mut self, date: Day) {
        self.oldest = Some(self.oldest.map_or(date, |oldest| oldest.min(date)));
    }

    /// Bytes of the documents.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many documents there are.
    pub(crate) fn len(&self) -> usize {
        self.certain.len() + self.doubtful.len() + self.redriven.len()
    }

    /// True if there is nothing to write and nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Takes a record in that was handed out at `taken`, and books its bytes in memory.
    pub(crate) fn add(&mut self, at: &Arc<TopicPartition>, record: &Record, taken: UnixNanos, books: &mut Books) {
        let done = (record.offset.next(), record.timestamp);
        match self.offsets.get_mut(&**at) {
            Some(offsets) => *offsets = done,
            None => drop(self.offsets.insert(TopicPartition::clone(at), done)),
        }
        let found = Found::of(record);
        let sample = self.samples.of(at, record, &found, taken);
        match codec::decode_found(record, &found) {
            Ok(Content::Chunk(chunk)) => {
                let documents = document::of_chunk(&chunk);
                if let (Some(source), Some((stream, _))) = (&chunk.source, documents.first().and_then(|d| d.stream)) {
                    let book = books.book(stream);
                    book.agent.clone_from(&source.agent_id);
                    book.path.clone_from(&source.path);
                }
                for document in documents {
                    self.add_document(at, (record, &found), document, sample, books);
                }
            }
            Ok(Content::Event(document)) => match Attempt::of(record, &found, at.partition) {
                Some(attempt) => self.add_letter(at, document, attempt, record.timestamp),
                None => self.add_document(at, (record, &found), document, sample, books),
            },
            Err(reason) => self.add_unreadable(at, record, reason.to_string()),
        }
    }

    fn add_document(
        &mut self,
        at: &Arc<TopicPartition>,
        (record, found): (&Record, &Found<'_>),
        document: Document,
        sample: Option<usize>,
        books: &mut Books,
    ) {
        let id = document.id.unwrap_or_else(|| DocId::of_position(at.topic.as_str(), at.partition, record.offset.0, 0));
        self.counts.events += 1;
        self.bytes += document.body.len();
        self.note_date(document.date);
        let mut is_new = true;
        let certain = match document.stream {
            // Without an id of its own the event is what lies at this place of the bus.
            None => document.id.is_none(),
            Some((stream, range)) => {
                let book = books.book(stream);
                let coverage = book.coverage(range);
                // What is sent again may be in the index under another date, though its book was lost.
                let repeated = found.repeated.is_some();
                let certain = coverage == Coverage::New && book.left_out == 0 && !repeated;
                if coverage == Coverage::Overlap {
                    self.counts.overlaps += 1;
                }
                books.add(stream, range);
                is_new = coverage == Coverage::New;
                certain
            }
        };
        let (sample, arrived) = (sample.filter(|_| is_new), books.arrived(record.timestamp));
        let entry = Entry { at: at.clone(), document, id, sample, arrived, refused: None };
        if certain { self.certain.push(entry) } else { self.doubtful.push(entry) }
    }

    /// A dead letter: its bytes are booked, as rejected, and what becomes of it is booked when that is known.
    fn add_letter(&mut self, at: &Arc<TopicPartition>, document: Document, attempt: Attempt, arrived: UnixNanos) {
        let id = document.id.unwrap_or_else(|| DocId::of_position(at.topic.as_str(), at.partition, attempt.offset, 0));
        self.counts.events += 1;
        self.bytes += document.body.len();
        self.note_date(document.date);
        let entry = Entry { at: at.clone(), document, id, sample: None, arrived, refused: None };
        self.redriven.push((entry, attempt));
    }

    fn add_unreadable(&mut self, at: &TopicPartition, record: &Record, reason: String) {
        let document = Document {
            id: Some(DocId::of_position(at.topic.as_str(), at.partition, record.offset.0, 0)),
            stream: None,
            date: Day::of(record.timestamp),
            body: record.value.clone(),
        };
        self.unreadable.push((at.clone(), DeadLetter { document, reason, time: UnixNanos::now() }));
    }

    /// Closes the bulk and sends what is certain to the index.
    pub(crate) fn begin(mut self, books: &mut HashMap<TopicPartition, Books>, marks: &Marks, to: &Backends) -> Writing {
        // What is refused for its date may be there under another one.
        self.doubtful.extend(self.certain.extract_if(.., |entry| is_late(entry, marks)));
        Writing::begin(self, books, to)
    }

    /// True if all that follows the writing of its documents is to book them.
    pub(crate) fn is_plain(&self) -> bool {
        self.doubtful.is_empty() && self.redriven.is_empty() && self.unreadable.is_empty()
    }
}
