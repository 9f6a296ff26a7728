//! What is retired isn't written: events of a day whose slice is retired, and those that lay in one, pushed again.
//!
//! Such an event is booked as done, and counted. Its slice isn't made again, and it is no dead letter.

use std::collections::HashMap;

use logmesh_bus::{BusError, TopicPartition};
use logmesh_record::Marks;
use logmesh_record::mark::RETIRED;

use crate::books::Books;
use crate::jobs::Jobs;
use crate::store::Entry;

/// The marks of all topics, as they are written now.
pub(crate) async fn marks(jobs: &Jobs) -> Result<Marks, BusError> {
    let mut marks = Marks::default();
    jobs.all(RETIRED).await?.into_iter().for_each(|(key, mark)| marks.take(&key, mark));
    Ok(marks)
}

/// True if the slice in which the document would be is retired.
pub(crate) fn is_late(entry: &Entry, marks: &Marks) -> bool {
    marks.is_retired(&entry.at.topic, &entry.document.date)
}

/// True also of a document whose bytes were in the index once, in a slice that is retired.
pub(crate) fn is_retired(entry: &Entry, marks: &Marks, books: &HashMap<TopicPartition, Books>) -> bool {
    if is_late(entry, marks) {
        return true;
    }
    // Of a stream whose earlier days are retired, sent again by an agent without its state: under the date of now, and not to be
    // found in the index any more.
    let book = entry.document.stream.and_then(|(stream, range)| Some((books.get(&*entry.at)?.get(stream)?, range)));
    book.is_some_and(|(book, range)| book.slices.is_retired(range, marks.before(&entry.at.topic)))
}
