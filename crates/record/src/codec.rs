//! How chunks, events and dead letters lie on the bus, and how they are read back.
//!
//! A record says in its header [`FORMAT`] what it is, so a topic can hold both: a topic of format `chunks` holds the
//! events of clients as `event` records. The key is the stream id as text, so that a stream keeps its order.

use std::borrow::Cow;
use std::io::Write;

use bytes::Bytes;
use logmesh_bus::{Headers, NewRecord, Record, Records};
use logmesh_proto::ingest::v1::Chunk;
use logmesh_types::limits::MAX_RECORD_BYTES;
use logmesh_types::{ByteRange, Day, DocId, StreamId, TopicName, UnixNanos};
use prost::Message;

use crate::chunk;
use crate::document::{self, Builder};
use crate::hops::Times;

pub use logmesh_types::header::{DATE, FORMAT, ID, RANGE, REASON, REDRIVE, REPEATED, TIMES};

/// The longest reason that a dead letter keeps, in bytes.
const MAX_REASON_BYTES: usize = 8_192;

/// Bytes of events' records after which a part ends: see [`records`].
const PART_BYTES: usize = 256 << 10;

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
    /// The UTC day of its read time.
    pub date: Day,
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
    let id = document.id.map(|id| Bytes::copy_from_slice(&id.to_text()));
    let mut headers = vec![event_format(), (DATE.into(), Bytes::from(document.date.to_string()))];
    headers.extend(id.clone().map(|id| (ID.into(), id)));
    let key = match document.stream {
        None => id.unwrap_or_default(),
        Some((stream, range)) => {
            headers.push((RANGE.into(), Bytes::from(format!("{}-{}", range.start, range.end))));
            Bytes::from(stream.to_string())
        }
    };
    NewRecord { key, value: document.body.clone(), headers, timestamp: None }
}

/// The headers of ours that a record has, each the first of its name: found in one pass, since records come by the million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found<'r> {
    /// See [`FORMAT`].
    pub format: Option<&'r Bytes>,
    /// See [`DATE`].
    pub date: Option<&'r Bytes>,
    /// See [`ID`].
    pub id: Option<&'r Bytes>,
    /// See [`RANGE`].
    pub range: Option<&'r Bytes>,
    /// See [`TIMES`].
    pub times: Option<&'r Bytes>,
    /// See [`REASON`].
    pub reason: Option<&'r Bytes>,
    /// See [`REDRIVE`].
    pub redrive: Option<&'r Bytes>,
    /// See [`REPEATED`].
    pub repeated: Option<&'r Bytes>,
}

impl<'r> Found<'r> {
    /// Those of a record.
    pub fn of(record: &'r Record) -> Self {
        let mut found = Self::default();
        for (name, value) in &record.headers {
            let place = match name.as_ref() {
                FORMAT => &mut found.format,
                DATE => &mut found.date,
                ID => &mut found.id,
                RANGE => &mut found.range,
                TIMES => &mut found.times,
                REASON => &mut found.reason,
                REDRIVE => &mut found.redrive,
                REPEATED => &mut found.repeated,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        found
    }
}

/// Marks a record as one that was on the bus before.
pub fn repeated(mut record: NewRecord) -> NewRecord {
    record.headers.push(repeat());
    record
}

fn repeat() -> (Cow<'static, str>, Bytes) {
    (REPEATED.into(), Bytes::from_static(b"repair"))
}

fn event_format() -> (Cow<'static, str>, Bytes) {
    (FORMAT.into(), Bytes::from_static(b"event"))
}

/// All records of a chunk that [`chunk::check`] let through, in their order and always the same, in parts of about 256 KiB:
/// what is made of one is done with before the next is made, and never leaves a core's cache.
pub fn records<'c>(chunk: &'c Chunk, format: Format, times: &Times) -> Box<dyn Iterator<Item = Records> + Send + 'c> {
    let mut common = vec![times.header()];
    if chunk.repeated {
        common.push(repeat());
    }
    match format {
        Format::Chunks => {
            let mut record = encode_chunk(chunk);
            record.headers.extend(common);
            Box::new(std::iter::once(record.into()))
        }
        Format::Events => Box::new(event_records(chunk, common)),
    }
}

fn event_records(chunk: &Chunk, mut common: Headers) -> impl Iterator<Item = Records> + Send {
    let key = Bytes::copy_from_slice(chunk.stream_id.as_bytes());
    let builder = Builder::of(chunk);
    if let Some(builder) = &builder {
        common.extend([event_format(), (DATE.into(), Bytes::from(builder.date.to_string()))]);
    }
    let mut events = chunk::events(chunk).peekable();
    std::iter::from_fn(move || {
        let builder = builder.as_ref()?;
        events.peek()?;
        let room = (2 * chunk.data.len() + 16 * builder.overhead()).min(PART_BYTES + PART_BYTES / 8);
        let mut records = Records::new(key.clone(), common.clone(), room);
        while records.bytes() < PART_BYTES
            && let Some(event) = events.next()
        {
            builder.write(records.value(), &event);
            records.header(ID).extend_from_slice(&builder.id(&event).to_text());
            let written = write!(records.header(RANGE), "{}-{}", event.range.start, event.range.end);
            debug_assert!(written.is_ok(), "to a vector it can't fail");
        }
        Some(records)
    })
}

/// Reads a record of either format.
///
/// # Errors
/// [`DecodeError`] if the record wasn't written by logmesh or is damaged; it then belongs in the dead letters.
pub fn decode(record: &Record) -> Result<Content, DecodeError> {
    decode_found(record, &Found::of(record))
}

/// The same, of a record whose headers were looked through already.
///
/// # Errors
/// As [`decode`].
pub fn decode_found(record: &Record, found: &Found<'_>) -> Result<Content, DecodeError> {
    match found.format.map(|format| format.as_ref()) {
        Some(b"chunk") => {
            let chunk = Chunk::decode(record.value.clone()).map_err(|error| DecodeError(error.to_string()))?;
            chunk::check(&chunk).map_err(|error| DecodeError(error.to_string()))?;
            Ok(Content::Chunk(Box::new(chunk)))
        }
        Some(b"event") => decode_event(record, found).map(Content::Event),
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

fn text<'r>(value: Option<&'r Bytes>, name: &str) -> Result<Option<&'r str>, DecodeError> {
    let text = value.map(|value| std::str::from_utf8(value)).transpose();
    text.map_err(|_| DecodeError(format!("{name} is not text")))
}

fn decode_event(record: &Record, found: &Found<'_>) -> Result<Document, DecodeError> {
    let bad = |name: &str| DecodeError(format!("its header {name} can't be read"));
    let date = text(found.date, DATE)?.and_then(|date| date.parse().ok()).ok_or_else(|| bad(DATE))?;
    let id = text(found.id, ID)?.map(|id| id.parse::<DocId>().map_err(|_| bad(ID))).transpose()?;
    let stream = match text(found.range, RANGE)? {
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
        let found = Found::of(record);
        let reason = found.reason.ok_or_else(|| DecodeError(format!("it has no header {REASON}")))?;
        Ok(Self {
            document: decode_event(record, &found)?,
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
    /// The mark of a record with these headers; `None` if it is no letter sent through again.
    pub fn of(found: &Found<'_>) -> Option<Self> {
        let text = std::str::from_utf8(found.redrive?).ok()?;
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
    use logmesh_types::limits::MAX_EVENT_BYTES;

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

    /// What the gateway writes in one go is what each document's record would be, whatever the parts.
    #[test]
    fn records_of_a_chunk_are_those_of_its_documents() {
        let line = format!("{}\n", "x".repeat(999));
        let mut lines = chunk(7, line.repeat(700).as_bytes(), &[]);
        lines.repeated = true;
        let times = Times { received: Some(UnixNanos(5)), ..Times::default() };
        let sorted = |mut record: NewRecord| {
            record.headers.sort();
            record
        };
        let parts: Vec<Records> = records(&lines, Format::Events, &times).collect();
        assert!(parts.len() > 2 && parts.iter().all(|part| part.bytes() < PART_BYTES + 2_000), "{}", parts.len());
        let expected = document::of_chunk(&lines).into_iter().map(|document| {
            let mut record = encode_event(&document);
            times.stamp(&mut record);
            sorted(repeated(record))
        });
        assert!(parts.into_iter().flat_map(Records::split).map(sorted).eq(expected));
    }

    /// The longest event, of which everything grows as much as it can, is a record that the bus takes.
    #[test]
    fn no_event_becomes_too_large() {
        let mut data = vec![1; MAX_EVENT_BYTES];
        data[0] = 0xff;
        let mut worst = chunk(u64::MAX / 2, &data, &[MAX_EVENT_BYTES as u32]);
        let source = worst.source.as_mut().unwrap();
        source.labels = (0..5).map(|n| (format!("label-{n}"), "\u{1}".repeat(250))).collect();
        chunk::check(&worst).unwrap();
        let records: Vec<Records> = records(&worst, Format::Events, &Times::default()).collect();
        let size = records[0].iter().next().unwrap().size();
        assert!((7 << 20..MAX_RECORD_BYTES).contains(&size), "{size}");
    }

    #[test]
    fn an_event_without_an_id_takes_its_place_as_one() {
        let topic: TopicName = "logs".parse().unwrap();
        let date = "2026-01-31".parse().unwrap();
        let event = Document { id: None, stream: None, date, body: Bytes::from("{}") };
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
            let day = "2026-01-31".parse().unwrap();
            let event = Document { id: None, stream: None, date: day, body: Bytes::from("{}") };
            let mut record = stored(encode_event(&event));
            assert!(decode(&record).is_ok());
            record.headers[1].1 = Bytes::from_static(date.as_bytes());
            assert!(decode(&record).is_err(), "{date:?}");
        }
    }

    #[test]
    fn dead_letters_round_trip() {
        let document = document::of_chunk(&chunk(0, b"a\n", &[])).remove(0);
        let letter = DeadLetter { document, reason: "no room".into(), time: UnixNanos(7) };
        assert_eq!(DeadLetter::decode(&stored(letter.encode())).unwrap(), letter);
        let mark = Redrive { operation: "a1".into(), partition: 3, offset: 12 };
        let again = stored(letter.redrive(&mark));
        assert_eq!(Redrive::of(&Found::of(&again)), Some(mark));
        assert_eq!(again.timestamp, UnixNanos(1), "the time of its arrival");
        assert!(matches!(decode(&again).unwrap(), Content::Event(event) if event == letter.document));
        assert_eq!(Redrive::of(&Found::of(&stored(letter.encode()))), None);
    }
}
