//! One bulk: documents of several partitions on their way into the index.
//!
//! A document whose bytes aren't booked yet is *certain*: it is written by `create`, and if it is there already it was
//! written before a crash, into the same slice. One whose bytes are booked (or whose book was too full to say), or that a
//! client named, is *doubtful*: it may be there under another date, so the whole topic is asked for its id before it is
//! written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use logmesh_bus::{NextOffset, Record, TopicPartition};
use logmesh_proto::transfer::v1::Counts;
use logmesh_record::{Content, Coverage, DeadLetter, Document, Marks, codec, document};
use logmesh_types::{DocId, UnixNanos};
use tracing::{error, warn};

use crate::books::Books;
use crate::freshness::Samples;
use crate::redrive::{Attempt, Redriven};
use crate::retired::{is_late, sift, stays, was_retired};
use crate::store::{Backends, Entry, Stop, Stored, append_all, create, create_missing};

/// Documents waiting to be written, and the offsets that may be committed once they are.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    certain: Vec<Entry>,
    doubtful: Vec<Entry>,
    /// Dead letters that go through again, and where they lie.
    redriven: Vec<(Entry, Attempt)>,
    /// Dead letters of records that could not be opened.
    unreadable: Vec<(TopicPartition, DeadLetter)>,
    offsets: BTreeMap<TopicPartition, (NextOffset, UnixNanos)>,
    bytes: usize,
    counts: Counts,
    /// The earliest date of all documents.
    oldest: Option<String>,
    samples: Samples,
}

impl Bulk {
    /// The earliest date of all documents: that of the slice that is retired first.
    pub(crate) fn oldest(&self) -> Option<&str> {
        self.oldest.as_deref()
    }

    fn note_date(&mut self, date: &str) {
        if self.oldest.as_deref().is_none_or(|oldest| date < oldest) {
            self.oldest = Some(date.to_owned());
        }
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
    pub(crate) fn add(&mut self, at: &TopicPartition, record: &Record, taken: UnixNanos, books: &mut Books) {
        self.offsets.insert(at.clone(), (record.offset.next(), record.timestamp));
        let at = &Arc::new(at.clone());
        let sample = self.samples.of(at, record, taken);
        match codec::decode(record) {
            Ok(Content::Chunk(chunk)) => {
                let documents = document::of_chunk(&chunk);
                if let (Some(source), Some((stream, _))) = (&chunk.source, documents.first().and_then(|d| d.stream)) {
                    let book = books.book(stream);
                    book.agent.clone_from(&source.agent_id);
                    book.path.clone_from(&source.path);
                }
                for document in documents {
                    self.add_document(at, record, document, sample, books);
                }
            }
            Ok(Content::Event(document)) => match Attempt::of(record, at.partition) {
                Some(attempt) => self.add_letter(at, document, attempt, record.timestamp),
                None => self.add_document(at, record, document, sample, books),
            },
            Err(reason) => self.add_unreadable(at, record, reason.to_string()),
        }
    }

    fn add_document(
        &mut self,
        at: &Arc<TopicPartition>,
        record: &Record,
        document: Document,
        sample: Option<usize>,
        books: &mut Books,
    ) {
        let id = document.id.unwrap_or_else(|| DocId::of_position(at.topic.as_str(), at.partition, record.offset.0, 0));
        self.counts.events += 1;
        self.bytes += document.body.len();
        self.note_date(&document.date);
        let mut is_new = true;
        let certain = match document.stream {
            // Without an id of its own the event is what lies at this place of the bus.
            None => document.id.is_none(),
            Some((stream, range)) => {
                let book = books.book(stream);
                let coverage = book.coverage(range);
                // What is sent again may be in the index under another date, though its book was lost.
                let repeated = record.header(codec::REPEATED).is_some();
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
        self.note_date(&document.date);
        let entry = Entry { at: at.clone(), document, id, sample: None, arrived, refused: None };
        self.redriven.push((entry, attempt));
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

    /// Writes everything, in this order: index, dead letters, books, what became of letters. The offsets that it returns may
    /// be committed then.
    ///
    /// # Errors
    /// [`Stop`] only when told to stop or when a backend fails for good; what it can't do now is tried for ever.
    pub(crate) async fn write(
        self,
        books: &mut HashMap<TopicPartition, Books>,
        marks: &Marks,
        to: &Backends,
    ) -> Result<BTreeMap<TopicPartition, (NextOffset, UnixNanos)>, Stop> {
        let Self { mut certain, mut doubtful, redriven, unreadable, offsets, mut counts, mut samples, .. } = self;
        let mut letters = unreadable;
        // What is refused for its date may be there under another one.
        doubtful.extend(certain.extract_if(.., |entry| is_late(entry, marks)));
        counts.retired = sift(&mut doubtful, marks, books);
        if counts.retired > 0 {
            warn!(events = counts.retired, "events of days that are retired are not stored");
        }
        for (entry, stored) in create(certain, to).await? {
            // Were it there already, it would be there under this date.
            if !matches!(stored, Stored::Rejected(_)) {
                place(&entry, books);
            }
            note(&entry, &stored, &mut samples);
            take(entry, stored, &mut counts.duplicates, &mut counts.created, &mut letters);
        }
        samples.stored(&to.shared.freshness);
        for (entry, stored) in create_missing(doubtful, to).await? {
            note_place(&entry, &stored, books);
            note(&entry, &stored, &mut samples);
            take(entry, stored, &mut counts.repeats, &mut counts.created, &mut letters);
        }
        samples.stored(&to.shared.freshness);
        for (at, letter) in &letters {
            if let (Some((stream, range)), Some(books)) = (letter.document.stream, books.get_mut(at)) {
                books.reject(stream, range);
            }
        }
        // After all others, so that one that came again by itself is found.
        redrive(redriven, books, marks, to, &mut counts, &mut letters).await?;
        counts.dead_letters += letters.len() as u64;
        // Once for each bulk: what is logged must not grow with the lines.
        if let Some((at, letter)) = letters.first() {
            let (topic, events) = (&at.topic, letters.len());
            error!(%topic, events, reason = ?letter.reason, "events go to the dead letters; this is the first one's reason");
        }
        if counts.overlaps > 0 {
            error!(events = counts.overlaps, "events overlap others of their stream; those with new ids are kept");
        }
        let records = letters.into_iter().map(|(at, letter)| (at.topic.dead_letters(), letter.encode())).collect();
        append_all(records, to).await?;
        write_books(books, marks, to).await?;
        to.shared.count(&counts);
        to.going();
        Ok(offsets)
    }
}

/// Writes the books that have changed, and then what became of letters.
pub(crate) async fn write_books(
    books: &mut HashMap<TopicPartition, Books>,
    marks: &Marks,
    to: &Backends,
) -> Result<(), Stop> {
    let mut records = Vec::new();
    for (at, books) in books.iter_mut() {
        let retired = marks.before(&at.topic);
        records.extend(books.take_changed(retired).into_iter().map(|record| (at.topic.books(), record)));
    }
    append_all(records, to).await?;
    for (at, books) in books.iter_mut() {
        if let Some(redriven) = books.take_redriven() {
            to.keep(&Redriven::key(&at.topic, at.partition), redriven).await?;
        }
    }
    Ok(())
}

/// Notes where a document lies that was written just now, though its bytes may have been booked before.
pub(crate) fn note_place(entry: &Entry, stored: &Stored, books: &mut HashMap<TopicPartition, Books>) {
    if *stored == Stored::Created {
        place(entry, books);
    }
}

fn place(entry: &Entry, books: &mut HashMap<TopicPartition, Books>) {
    if let Some(books) = books.get_mut(&*entry.at) {
        books.place(&entry.document);
    }
}

/// Notes an event that is new in the index, to be measured.
fn note(entry: &Entry, stored: &Stored, samples: &mut Samples) {
    if *stored == Stored::Created {
        samples.created(entry.sample);
    }
}

/// Counts what became of a document, and makes a letter of one that is refused.
fn take(
    entry: Entry,
    stored: Stored,
    there: &mut u64,
    created: &mut u64,
    letters: &mut Vec<(TopicPartition, DeadLetter)>,
) {
    match stored {
        Stored::Created => *created += 1,
        Stored::There => *there += 1,
        Stored::Rejected(reason) => letters.push(entry.into_letter(reason)),
    }
}

/// Stores dead letters once more.
async fn redrive(
    letters: Vec<(Entry, Attempt)>,
    books: &mut HashMap<TopicPartition, Books>,
    marks: &Marks,
    to: &Backends,
    counts: &mut Counts,
    refused: &mut Vec<(TopicPartition, DeadLetter)>,
) -> Result<(), Stop> {
    if letters.is_empty() {
        return Ok(());
    }
    let key = |entry: &Entry| (TopicPartition::clone(&entry.at), entry.id, entry.document.date.clone());
    let mut of_place: HashMap<(TopicPartition, DocId, String), Vec<Attempt>> = HashMap::new();
    let mut entries = Vec::with_capacity(letters.len());
    for (mut entry, mut attempt) in letters {
        attempt.stays = is_late(&entry, marks);
        entry.refused = attempt.stays.then(|| stays(&entry.document.date));
        of_place.entry(key(&entry)).or_default().push(attempt);
        entries.push(entry);
    }
    let (retired, entries): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| was_retired(entry, marks, books));
    counts.retired += retired.len() as u64;
    // A letter of what was in the index until its day was retired is done with.
    let retired = retired.into_iter().map(|entry| (entry, Stored::There));
    let stored = create_missing(entries, to).await?;
    counts.repeats += stored.iter().filter(|(_, stored)| *stored == Stored::There).count() as u64;
    let mut noted = Vec::new();
    for (entry, stored) in stored.into_iter().chain(retired) {
        note_place(&entry, &stored, books);
        counts.created += u64::from(stored == Stored::Created);
        let Some(attempt) = of_place.get_mut(&key(&entry)).and_then(Vec::pop) else {
            continue; // not reached: each entry has its attempt
        };
        noted.push((entry, attempt, stored));
    }
    // In their order on the bus, by which they are counted once.
    noted.sort_by(|a, b| (&a.0.at, a.1.offset).cmp(&(&b.0.at, b.1.offset)));
    for (entry, attempt, stored) in noted {
        let Some(books) = books.get_mut(&*entry.at) else { continue };
        books.note(&attempt, &stored);
        match (stored, entry.document.stream) {
            (Stored::Rejected(reason), _) if attempt.is_news(&reason) => refused.push(entry.into_letter(reason)),
            (Stored::Rejected(_), _) | (_, None) => {}
            (_, Some((stream, range))) => books.settle(stream, range),
        }
    }
    Ok(())
}
