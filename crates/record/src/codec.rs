//! How chunks, events and dead letters lie on the bus, and how they are read back.
//!
//! A record says in its header [`FORMAT`] what it is, so a topic can hold both: a topic of format `chunks` holds the
//! events of clients as `event` records. The key is the stream id as text, so that a stream keeps its order.

use std::io::Write;

use bytes::Bytes;
use logmesh_bus::{NewRecord, Record};
use logmesh_proto::ingest::v1::Chunk;
use logmesh_types::limits::MAX_RECORD_BYTES;
use logmesh_types::{ByteRange, Day, DocId, StreamId, TopicName, UnixNanos};
use prost::Message;

use crate::chunk;
use crate::document;

pub use logmesh_types::header::{DATE, FORMAT, ID, RANGE, REASON, REDRIVE, REPEATED};

/// The longest reason that a dead letter keeps, in bytes.
const MAX_REASON_BYTES: usize = 8_192;

/// The format of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One record for one event, as JSON: for topics that others read too.
    Events,
    /// One record for one chunk: an order of magnitude fewer records.
    Chunks,
}

/// A document with all that decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its id; `None` until the bus position gives it one.
    pub id: Option<DocId>,
    /// The stream and the range that it holds; `None` if it came from a client.
    pub stream: Option<(StreamId, ByteRange)>,
    /// The UTC date of its read time.
    pub date: String,
    /// The document: a JSON object.
    pub body: Bytes,
}

/// What a record holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// A chunk, checked.
    Chunk(Box<Chunk>),
    /// One event's document.
    Event(Document),
}

/// A record that is none of ours, or damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record can't be read: {0}")]
pub struct DecodeError(String);

/// The record of a chunk that [`chunk::check`] let through. Its time is that of its arrival: were it the agent's clock, a
/// host that lives in the year 1970 would see its lines removed from the bus at once.
pub fn encode_chunk(chunk: &Chunk) -> NewRecord {
    NewRecord {
        key: Bytes::copy_from_slice(chunk.stream_id.as_bytes()),
        value: Bytes::from(chunk.encode_to_vec()),
        headers: vec![(FORMAT.into(), Bytes::from_static(b"chunk"))],
        timestamp: None,
    }
}

/// The record of one document. Its time is that of its arrival, as a chunk's is.
pub fn encode_event(document: &Document) -> NewRecord {
    encode_events(std::slice::from_ref(document)).remove(0)
}

/// The records of documents, one for each. What consecutive ones have in common, and all short texts, lie in shared buffers.
pub fn encode_events(documents: &[Document]) -> Vec<NewRecord> {
    let mut texts = Vec::with_capacity(documents.len() * 64);
    let ends: Vec<(usize, usize, usize)> = documents.iter().map(|document| write_texts(document, &mut texts)).collect();
    let texts = Bytes::from(texts);
    let (mut start, mut stream_key, mut date) = (0, (None, Bytes::new()), Bytes::new());
    let encode = |(document, (id_end, range_end, date_end)): (&Document, (usize, usize, usize))| {
        let (id, range) = (texts.slice(start..id_end), texts.slice(id_end..range_end));
        if date != document.date.as_bytes() {
            date = texts.slice(range_end..date_end);
        }
        start = date_end;
        let mut headers = Vec::with_capacity(5);
        headers.push((FORMAT.into(), Bytes::from_static(b"event")));
        headers.push((DATE.into(), date.clone()));
        if document.id.is_some() {
            headers.push((ID.into(), id.clone()));
        }
        let key = match document.stream.map(|(stream, _)| stream) {
            None => id,
            Some(stream) => {
                headers.push((RANGE.into(), range));
                if stream_key.0 != Some(stream) {
                    stream_key = (Some(stream), Bytes::from(stream.to_string()));
                }
                stream_key.1.clone()
            }
        };
        NewRecord { key, value: document.body.clone(), headers, timestamp: None }
    };
    documents.iter().zip(ends).map(encode).collect()
}

/// Appends a document's id, range and date; where each ends.
fn write_texts(document: &Document, out: &mut Vec<u8>) -> (usize, usize, usize) {
    let mut put = |text: std::fmt::Arguments<'_>| {
        let written = out.write_fmt(text); // to a vector it can't fail
        debug_assert!(written.is_ok());
        out.len()
    };
    let id = match document.id {
        Some(id) => put(format_args!("{id}")),
        None => put(format_args!("")),
    };
    let range = document.stream.map_or(id, |(_, range)| put(format_args!("{}-{}", range.start, range.end)));
    (id, range, put(format_args!("{}", document.date)))
}

/// Marks a record as one that was on the bus before.
pub fn repeated(mut record: NewRecord) -> NewRecord {
    record.headers.push((REPEATED.into(), Bytes::from_static(b"repair")));
    record
}

/// Reads a record of either format.
///
/// # Errors
/// [`DecodeError`] if the record wasn't written by logmesh or is damaged; it then belongs in the dead letters.
pub fn decode(record: &Record) -> Result<Content, DecodeError> {
    match record.header(FORMAT).map(|format| format.as_ref()) {
        Some(b"chunk") => {
            let chunk = Chunk::decode(record.value.clone()).map_err(|error| DecodeError(error.to_string()))?;
            chunk::check(&chunk).map_err(|error| DecodeError(error.to_string()))?;
            Ok(Content::Chunk(Box::new(chunk)))
        }
        Some(b"event") => decode_event(record).map(Content::Event),
        Some(other) => Err(DecodeError(format!("its format is {:?}", String::from_utf8_lossy(other)))),
        None => Err(DecodeError(format!("it has no header {FORMAT}"))),
    }
}

/// All documents of a record, each with an id: those without one of their own take it from the record's place.
///
/// # Errors
/// As [`decode`].
pub fn documents(topic: &TopicName, partition: u32, record: &Record) -> Result<Vec<Document>, DecodeError> {
    Ok(match decode(record)? {
        Content::Chunk(chunk) => document::of_chunk(&chunk),
        Content::Event(mut event) => {
            event.id.get_or_insert_with(|| DocId::of_position(topic.as_str(), partition, record.offset.0, 0));
            vec![event]
        }
    })
}

fn decode_event(record: &Record) -> Result<Document, DecodeError> {
    let text = |name: &str| match record.header(name) {
        None => Ok(None),
        Some(value) => std::str::from_utf8(value).map(Some).map_err(|_| DecodeError(format!("{name} is not text"))),
    };
    let bad = |name: &str| DecodeError(format!("its header {name} can't be read"));
    let date = text(DATE)?.ok_or_else(|| bad(DATE))?.to_owned();
    // The date becomes a folder and an index name.
    if date.parse::<Day>().is_err() {
        return Err(bad(DATE));
    }
    let id = text(ID)?.map(|id| id.parse::<DocId>().map_err(|_| bad(ID))).transpose()?;
    let stream = match text(RANGE)? {
        None => None,
        Some(range) => {
            let (start, end) = range.split_once('-').ok_or_else(|| bad(RANGE))?;
            let range = ByteRange::new(start.parse().map_err(|_| bad(RANGE))?, end.parse().map_err(|_| bad(RANGE))?);
            let key = std::str::from_utf8(&record.key).ok().and_then(|key| key.parse::<StreamId>().ok());
            Some((key.ok_or_else(|| DecodeError("its key is not a stream id".to_owned()))?, range))
        }
    };
    Ok(Document { id, stream, date, body: record.value.clone() })
}

/// An event that could not be stored, as it lies in the dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event's document, or whatever bytes there were.
    pub document: Document,
    /// Why it could not be stored.
    pub reason: String,
    /// When it was given up.
    pub time: UnixNanos,
}

impl DeadLetter {
    /// The record of the dead letter. A body that would make the record too large is cut.
    pub fn encode(&self) -> NewRecord {
        let mut document = self.document.clone();
        document.body.truncate(MAX_RECORD_BYTES - 16_384);
        let mut record = encode_event(&document);
        record.timestamp = Some(self.time);
        record.headers.push((REASON.into(), Bytes::copy_from_slice(short_reason(&self.reason).as_bytes())));
        record
    }

    /// The record by which the letter goes through its topic again: the event as it was, with its id and slice, and the
    /// mark by which the worker that stores it knows where the letter lies.
    pub fn redrive(&self, mark: &Redrive) -> NewRecord {
        let mut record = self.encode();
        record.timestamp = None; // it arrives now: the bus mustn't remove it for the age of its letter
        let text = format!("{}/{}/{}", mark.operation, mark.partition, mark.offset);
        record.headers.push((REDRIVE.into(), Bytes::from(text)));
        record
    }

    /// Reads the dead letter back.
    ///
    /// # Errors
    /// [`DecodeError`] if the record is no dead letter.
    pub fn decode(record: &Record) -> Result<Self, DecodeError> {
        let reason = record.header(REASON).ok_or_else(|| DecodeError(format!("it has no header {REASON}")))?;
        Ok(Self {
            document: decode_event(record)?,
            reason: String::from_utf8_lossy(reason).into_owned(),
            time: record.timestamp,
        })
    }
}

/// Where a letter that was sent through again lies, and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    /// The operation that sent it.
    pub operation: String,
    /// The letter's partition in the dead-letter topic,
    pub partition: u32,
    /// and its offset there.
    pub offset: u64,
}

impl Redrive {
    /// The mark of a record; `None` if it is no letter sent through again.
    pub fn of(record: &Record) -> Option<Self> {
        let text = std::str::from_utf8(record.header(REDRIVE)?).ok()?;
        let mut parts = text.split('/');
        let (operation, partition, offset) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { operation: operation.to_owned(), partition: partition.parse().ok()?, offset: offset.parse().ok()? })
    }
}

/// A reason, cut to what a letter keeps of it.
pub fn short_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]
}

#[cfg(test)]
mod tests {
    use logmesh_bus::Offset;

    use super::*;
    use crate::chunk::tests::chunk;

    fn stored(record: NewRecord) -> Record {
        Record {
            offset: Offset(5),
            timestamp: record.timestamp.unwrap_or(UnixNanos(1)),
            key: record.key,
            value: record.value,
            headers: record.headers,
        }
    }

    #[test]
    fn both_formats_give_the_same_documents() {
        let topic: TopicName = "logs".parse().unwrap();
        let lines = chunk(3, b"one\ntwo\n\xff\n", &[]);
        let mut cut = chunk(0, b"2026-01-31T12:00:00Z stdout F a", &[31]);
        (cut.end_offset, cut.omitted_bytes, cut.format) = (99, 68, 1);
        let mut decoded = chunk(0, b"a\0\n\0", &[4]);
        decoded.encoding = "utf-16le".into();
        for (original, count) in [(lines, 3), (cut, 1), (decoded, 1)] {
            let from_chunk = documents(&topic, 0, &stored(encode_chunk(&original))).unwrap();
            let from_events: Vec<Document> = from_chunk
                .iter()
                .flat_map(|document| documents(&topic, 0, &stored(encode_event(document))).unwrap())
                .collect();
            assert_eq!(from_chunk, from_events);
            assert_eq!(from_chunk, document::of_chunk(&original));
            assert_eq!(from_chunk.len(), count);
        }
    }

    #[test]
    fn an_event_without_an_id_takes_its_place_as_one() {
        let topic: TopicName = "logs".parse().unwrap();
        let event = Document { id: None, stream: None, date: "2026-01-31".into(), body: Bytes::from("{}") };
        let read = documents(&topic, 2, &stored(encode_event(&event))).unwrap();
        assert_eq!(read[0].id, Some(DocId::of_position("logs", 2, 5, 0)));
    }

    #[test]
    fn a_stranger_s_record_is_refused_in_words() {
        let mut record = stored(encode_chunk(&chunk(0, b"a\n", &[])));
        record.value = Bytes::from_static(b"\x07not a chunk");
        assert!(decode(&record).is_err());
        record.headers.clear();
        assert_eq!(
            decode(&record).unwrap_err().to_string(),
            "the record can't be read: it has no header logmesh-format"
        );
        for date in ["2026-1-31", "../../etc", "2026-02-30", ""] {
            let event = Document { id: None, stream: None, date: date.into(), body: Bytes::from("{}") };
            assert!(decode(&stored(encode_event(&event))).is_err(), "{date:?}");
        }
    }

    #[test]
    fn dead_letters_round_trip() {
        let document = document::of_chunk(&chunk(0, b"a\n", &[])).remove(0);
        let letter = DeadLetter { document, reason: "no room".into(), time: UnixNanos(7) };
        assert_eq!(DeadLetter::decode(&stored(letter.encode())).unwrap(), letter);
        let mark = Redrive { operation: "a1".into(), partition: 3, offset: 12 };
        let again = stored(letter.redrive(&mark));
        assert_eq!(Redrive::of(&again), Some(mark));
        assert_eq!(again.timestamp, UnixNanos(1), "the time of its arrival");
        assert!(matches!(decode(&again).unwrap(), Content::Event(event) if event == letter.document));
        assert_eq!(Redrive::of(&stored(letter.encode())), None);
    }
}
