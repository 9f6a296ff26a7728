//! A bulk on its way: into the index, and then into the books.
//!
//! What is certain is written while the bulk before may be on its way still and the next one is filled. All that comes after happens in
//! the order of the bulks: what is doubtful, letters, books, and the offsets that may be committed then. A book says no more
//! than what is in the index: what is done is noted when a bulk is closed, since later bulks add to it while this one is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use logmesh_bus::{NextOffset, TopicPartition};
use logmesh_proto::transfer::v1::Counts;
use logmesh_record::{DeadLetter, Marks};
use logmesh_types::{ByteRange, Day, DocId, UnixNanos, metric};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::books::{Books, Closed, Kept};
use crate::bulk::Bulk;
use crate::freshness::Samples;
use crate::mend::Removed;
use crate::redrive::{Attempt, Redriven};
use crate::retired::{is_late, sift, stays, was_retired};
use crate::store::{Backends, Entry, Placed, Stop, Stored, append_all, create, create_missing};

/// What is certain of a bulk, when it is in the index.
type Created = Result<(Vec<(Entry, Stored)>, Samples), Stop>;

/// See the module. Dropped, it stops being written.
pub(crate) struct Writing {
    /// All but what is certain.
    rest: Bulk,
    /// The books that the bulk changes, as they were when it was closed; `None` if no other is filled before it is done.
    closed: Option<Vec<(TopicPartition, Closed)>>,
    begin: Instant,
    documents: usize,
    /// Writes what is certain: one task, which ends with this.
    task: JoinSet<Created>,
    created: Option<Created>,
}

impl Writing {
    /// Sends what is certain to the index.
    pub(crate) fn begin(mut bulk: Bulk, books: &mut HashMap<TopicPartition, Books>, to: &Backends) -> Self {
        let (documents, closed) = (bulk.len(), bulk.is_plain().then(|| close(books)));
        let (certain, mut samples) = (std::mem::take(&mut bulk.certain), std::mem::take(&mut bulk.samples));
        let to = to.clone();
        let work = async move {
            let stored = create(certain, &to).await?;
            stored.iter().for_each(|(entry, stored)| note(entry, stored, &mut samples));
            samples.stored(&to.shared.freshness);
            Ok((stored, samples))
        };
        let mut task = JoinSet::new();
        task.spawn(work);
        Self { rest: bulk, closed, begin: Instant::now(), documents, task, created: None }
    }

    /// The earliest date of what isn't certain.
    pub(crate) fn oldest(&self) -> Option<Day> {
        self.rest.oldest().filter(|_| !self.is_plain())
    }

    /// True if the next bulk may be filled before this one is done.
    pub(crate) fn is_plain(&self) -> bool {
        self.closed.is_some()
    }

    /// Waits until what is certain is in the index. May be dropped and asked again.
    pub(crate) async fn indexed(&mut self) {
        if self.created.is_none() {
            self.created = Some(match self.task.join_next().await {
                Some(Ok(created)) => created,
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Some(Err(_)) | None => Err(Stop::Cancelled), // the runtime ends
            });
        }
    }

    /// Writes the rest, when all bulks before are done, in this order: index, dead letters, books, what became of letters. The
    /// offsets that it returns may be committed then.
    ///
    /// # Errors
    /// [`Stop`] only when told to stop or when a backend fails for good; what it can't do now is tried for ever.
    pub(crate) async fn finish(
        mut self,
        books: &mut HashMap<TopicPartition, Books>,
        marks: &Marks,
        to: &Backends,
    ) -> Result<BTreeMap<TopicPartition, (NextOffset, UnixNanos)>, Stop> {
        self.indexed().await;
        let (stored, mut samples) = self.created.unwrap_or(Err(Stop::Cancelled))?;
        let Bulk { mut doubtful, redriven, unreadable, offsets, mut counts, bytes, .. } = self.rest;
        let mut letters = unreadable;
        place_all(&stored, books);
        for (entry, stored) in stored {
            take(entry, stored, &mut counts.duplicates, &mut counts.created, &mut letters);
        }
        counts.retired = sift(&mut doubtful, marks, books);
        if counts.retired > 0 {
            warn!(events = counts.retired, "events of days that are retired are not stored");
        }
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
        write_letters(letters, books, to).await?;
        match self.closed {
            Some(closed) => append_closed(closed, books, marks, to).await?,
            None => write_books(books, marks, to).await?,
        }
        to.shared.count(&counts);
        to.going();
        let took = self.begin.elapsed();
        metrics::histogram!(metric::TRANSFER_BULK_SECONDS).record(took.as_secs_f64());
        metrics::counter!(metric::TRANSFER_BYTES).increment(bytes as u64);
        debug!(documents = self.documents, bytes, millis = took.as_millis() as u64, "wrote a bulk");
        Ok(offsets)
    }
}

fn close(books: &mut HashMap<TopicPartition, Books>) -> Vec<(TopicPartition, Closed)> {
    books.iter_mut().filter_map(|(at, books)| Some((at.clone(), books.close()?))).collect()
}

async fn append_closed(
    closed: Vec<(TopicPartition, Closed)>,
    books: &mut HashMap<TopicPartition, Books>,
    marks: &Marks,
    to: &Backends,
) -> Result<(), Stop> {
    let mut records = Vec::new();
    for (at, closed) in closed {
        let Some(books) = books.get_mut(&at) else { continue }; // not reached: it's written before the partition is released
        let changed = books.records(closed, marks.before(&at.topic));
        records.extend(changed.map(|record| (at.topic.books(), record)));
    }
    let placed = append_all(records, to).await?;
    made_anew(placed, false, books, to).await?;
    for (at, books) in books.iter_mut() {
        if let Some(kept) = books.take_first() {
            to.keep(&Kept::key(at), &kept).await?;
        }
    }
    Ok(())
}

/// Writes letters. Where those before them turn out to be gone, only these are booked as rejected.
async fn write_letters(
    letters: Vec<(TopicPartition, DeadLetter)>,
    books: &mut HashMap<TopicPartition, Books>,
    to: &Backends,
) -> Result<(), Stop> {
    let records = letters.iter().map(|(at, letter)| (at.topic.dead_letters(), letter.encode())).collect();
    let placed = append_all(records, to).await?;
    let gone = made_anew(placed, true, books, to).await?;
    for (at, letter) in letters.iter().filter(|(at, _)| gone.contains(at)) {
        if let (Some((stream, range)), Some(books)) = (letter.document.stream, books.get_mut(at)) {
            books.reject(stream, range);
        }
    }
    Ok(())
}

/// Takes note of where books, or letters, were written: the partitions of which all that was written before is gone, since the topic
/// was made anew in between. Their books are to be written again.
async fn made_anew(
    placed: Vec<Placed>,
    letter: bool,
    books: &mut HashMap<TopicPartition, Books>,
    to: &Backends,
) -> Result<BTreeSet<TopicPartition>, Stop> {
    let mut anew = BTreeSet::new();
    for (beside, offset) in placed {
        let Some(topic) = beside.topic.owner() else { continue };
        let at = TopicPartition { topic, partition: beside.partition };
        let Some(books) = books.get_mut(&at).filter(|_| !anew.contains(&at)) else { continue };
        if !books.is_behind(letter, offset) {
            continue;
        }
        // A record that was appended again may lie before one that wasn't. Books can be written again for that; letters aren't given
        // up for it.
        if !letter || end_of(&beside, to).await? < books.ends()[1] {
            books.removed(&at, !letter, letter);
            anew.insert(at);
        }
    }
    Ok(anew)
}

/// Looks whether books or letters were removed that these partitions tell of, where that was seen of any topic: their books are to be
/// written again then.
pub(crate) async fn look_for_removed(
    books: &mut HashMap<TopicPartition, Books>,
    removed: &Removed,
    to: &Backends,
) -> Result<(), Stop> {
    for (at, books) in books.iter_mut() {
        if !books.is_news(at, removed) {
            continue;
        }
        let mut gone = [false; 2];
        for ((gone, topic), end) in gone.iter_mut().zip([at.topic.books(), at.topic.dead_letters()]).zip(books.ends()) {
            *gone = end > 0 && end_of(&TopicPartition { topic, partition: at.partition }, to).await? < end;
        }
        books.removed(at, gone[0], gone[1]);
    }
    Ok(())
}

/// The end of a partition, however long it takes to be told.
async fn end_of(at: &TopicPartition, to: &Backends) -> Result<u64, Stop> {
    let mut attempt = 0;
    loop {
        match to.bus.watermarks(at).await {
            Ok(marks) => return Ok(marks.high.0),
            Err(error) if error.retryable() => to.wait(&error, &mut attempt).await?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes the books that have changed, and then what became of letters.
pub(crate) async fn write_books(
    books: &mut HashMap<TopicPartition, Books>,
    marks: &Marks,
    to: &Backends,
) -> Result<(), Stop> {
    let closed = close(books);
    append_closed(closed, books, marks, to).await?;
    for (at, books) in books.iter_mut() {
        if let Some(redriven) = books.take_redriven() {
            to.keep(&Redriven::key(&at.topic, at.partition), redriven).await?;
        }
    }
    Ok(())
}

/// Notes where a document lies that was written just now, though its bytes may have been booked before.
pub(crate) fn note_place(entry: &Entry, stored: &Stored, books: &mut HashMap<TopicPartition, Books>) {
    if *stored == Stored::Created
        && let Some(books) = books.get_mut(&*entry.at)
    {
        books.place_document(&entry.document);
    }
}

/// Notes where the documents lie that aren't refused: were one there already, it would be there under this date. Those that follow
/// each other in a stream are noted at once.
fn place_all(stored: &[(Entry, Stored)], books: &mut HashMap<TopicPartition, Books>) {
    let is_there = |stored: &Stored| !matches!(stored, Stored::Rejected(_));
    let is_next = |(before, one): &(Entry, Stored), (next, other): &(Entry, Stored)| {
        let ends = before.document.stream.map(|(stream, range)| (stream, range.end));
        let starts = next.document.stream.map(|(stream, range)| (stream, range.start));
        is_there(one)
            && is_there(other)
            && ends == starts
            && (&before.at, &before.document.date) == (&next.at, &next.document.date)
    };
    for run in stored.chunk_by(is_next) {
        let [(first, stored), ..] = run else { continue };
        let last = run.last().and_then(|(last, _)| last.document.stream);
        let (Some((stream, range)), Some((_, last))) = (first.document.stream, last) else { continue };
        if is_there(stored)
            && let Some(books) = books.get_mut(&*first.at)
        {
            books.place(stream, ByteRange::new(range.start, last.end), first.document.date);
        }
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
    let key = |entry: &Entry| (TopicPartition::clone(&entry.at), entry.id, entry.document.date);
    let mut of_place: HashMap<(TopicPartition, DocId, Day), Vec<Attempt>> = HashMap::new();
    let mut entries = Vec::with_capacity(letters.len());
    for (mut entry, mut attempt) in letters {
        attempt.stays = is_late(&entry, marks);
        entry.refused = attempt.stays.then(|| stays(entry.document.date));
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
