//! What is retired isn't written: events of a day whose slice is retired, and those that lay in one, pushed again.
//!
//! Such an event is booked as done, and counted. Its slice isn't made again, and it is no dead letter. But one that came to the bus
//! on a day that is still kept bears a wrong date: the clock that dated it is behind. That one goes to the dead letters, and a redrive
//! brings it in.

use std::borrow::Cow;
use std::collections::HashMap;

use logmesh_bus::{BusError, TopicPartition};
use logmesh_record::Marks;
use logmesh_record::mark::RETIRED;
use logmesh_types::Day;

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
    marks.is_retired(&entry.at.topic, entry.document.date)
}

/// True of a document whose bytes were in the index once, in a slice that is retired.
///
/// So it is with a stream whose earlier days are retired, sent again by an agent without its state: under the date of now, and not
/// to be found in the index any more.
pub(crate) fn was_retired(entry: &Entry, marks: &Marks, books: &HashMap<TopicPartition, Books>) -> bool {
    let book = entry.document.stream.and_then(|(stream, range)| Some((books.get(&*entry.at)?.get(stream)?, range)));
    book.is_some_and(|(book, range)| {
        book.slices.is_retired(range, marks.before(&entry.at.topic)) && !book.is_rejected(range)
    })
}

/// Takes out what is retired, notes in the books that it is, and says how much that was. What bears a wrong date stays and is
/// refused, unless the index has it under another one.
pub(crate) fn sift(entries: &mut Vec<Entry>, marks: &Marks, books: &mut HashMap<TopicPartition, Books>) -> u64 {
    let all = entries.len();
    entries.retain_mut(|entry| {
        if was_retired(entry, marks, books) {
            return false;
        }
        if !is_late(entry, marks) {
            return true;
        }
        entry.refused = wrong_date(entry, marks);
        if entry.refused.is_none()
            && let Some(books) = books.get_mut(&*entry.at)
        {
            books.place_document(&entry.document);
        }
        entry.refused.is_some()
    });
    (all - entries.len()) as u64
}

/// What a document says of where its date comes from.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Said<'a> {
    #[serde(rename = "logmesh.agent", borrow)]
    agent: Cow<'a, str>,
    #[serde(rename = "host.name", borrow)]
    host: Cow<'a, str>,
    #[serde(rename = "logmesh.read_time", borrow)]
    read_time: Cow<'a, str>,
}

/// Why a document of a retired day is refused; `None` if its day was retired as well when it came to the bus.
fn wrong_date(entry: &Entry, marks: &Marks) -> Option<String> {
    let before = marks.before(&entry.at.topic).filter(|before| Day::of(entry.arrived) >= *before)?;
    let said: Said<'_> = serde_json::from_slice(&entry.document.body).unwrap_or_default();
    let read = if said.read_time.is_empty() { entry.document.date.to_string().into() } else { said.read_time };
    let whose = match said.agent.is_empty() {
        true => "the gateway that took it".to_owned(),
        false => format!("agent '{}' on host '{}'", said.agent, said.host),
    };
    Some(format!(
        "read at '{read}' by the clock of {whose}, and on the bus not before '{}'; days before {before} are retired. Set that clock \
         right, then redrive: this is stored under the day of its letter",
        entry.arrived
    ))
}

/// Why a letter stays one.
pub(crate) fn stays(date: Day) -> String {
    format!("its day {date} is retired, and the day of its letter too: no slice of the index takes it")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use logmesh_record::{Document, Mark};
    use logmesh_types::{ByteRange, DocId, StreamId, UnixNanos};

    use super::*;

    fn stream() -> StreamId {
        StreamId::from_bytes([7; 16])
    }

    fn entry(at: &Arc<TopicPartition>, date: &str, arrived: &str, body: &'static str) -> Entry {
        let document = Document {
            id: None,
            stream: Some((stream(), ByteRange::new(0, 9))),
            date: date.parse().unwrap(),
            body: Bytes::from_static(body.as_bytes()),
        };
        let arrived: UnixNanos = format!("{arrived}T00:00:00Z").parse().unwrap();
        let id = DocId::of_event(&stream(), 0, body.as_bytes());
        Entry { at: at.clone(), document, id, sample: None, arrived, refused: None }
    }

    #[test]
    fn a_retired_day_is_a_wrong_date_where_the_record_came_later() {
        let at = Arc::new(TopicPartition { topic: "logs".parse().unwrap(), partition: 0 });
        let mut marks = Marks::default();
        let mark = Mark { before: "2026-02-03".parse().unwrap(), today: "2026-02-10".parse().unwrap() };
        marks.take(&mark.key(&at.topic), mark);
        let mut books = HashMap::from([(TopicPartition::clone(&at), Books::default())]);
        let body = r#"{"host.name":"web \"1\"","logmesh.agent":"a-1","logmesh.read_time":"2026-02-02T23:00:00Z"}"#;
        for (date, arrived, refused) in [
            ("2026-02-02", "2026-02-10", true),
            ("2026-02-02", "2026-02-03", true),
            ("2026-02-03", "2026-02-10", false),
            ("2026-02-03", "2026-02-01", false),
        ] {
            let mut entries = vec![entry(&at, date, arrived, body)];
            assert_eq!(sift(&mut entries, &marks, &mut books), 0, "{date} {arrived}");
            assert_eq!(entries[0].refused.is_some(), refused, "{date} {arrived}");
        }
        let why = |body| wrong_date(&entry(&at, "2026-02-02", "2026-02-10", body), &marks).unwrap();
        assert!(why(body).contains(r#"'2026-02-02T23:00:00Z' by the clock of agent 'a-1' on host 'web "1"'"#));
        assert!(why("none").starts_with("read at '2026-02-02' by the clock of the gateway that took it"));

        // What came when its day was retired already, and again under another date.
        let mut entries = vec![entry(&at, "2026-02-02", "2026-02-02", body)];
        assert_eq!((sift(&mut entries, &marks, &mut books), entries.len()), (1, 0));
        let again = || entry(&at, "2026-02-10", "2026-02-10", body);
        assert_eq!(sift(&mut vec![again()], &marks, &mut books), 1, "its place is known");
        books.get_mut(&at).unwrap().reject(stream(), ByteRange::new(0, 9));
        assert_eq!(sift(&mut vec![again()], &marks, &mut books), 0, "what was rejected never lay there");
    }
}
