//! A chunk: the raw bytes of a range of a stream, and how they are cut into events.

use logmesh_proto::ingest::v1::{Chunk, DataFormat, Source};
use logmesh_proto::time::{timestamp, unix_nanos};
use logmesh_text::Charset;
use logmesh_types::limits::{MAX_CHUNK_BYTES, MAX_CHUNK_EVENTS, MAX_EVENT_BYTES, MAX_PATH_BYTES};
use logmesh_types::{ByteRange, RuleName, StreamId, TopicName, UnixNanos};
use prost::Message;

use crate::document;

/// The most bytes that a chunk's source may take, on the wire and, with all that its events have in common, as JSON. Every
/// document of the chunk gets a copy: 16,384 of them are 128 MiB at most, beside what the lines themselves become. There is
/// room for the longest path, 16 addresses, and the labels that an agent may have.
const MAX_SOURCE_BYTES: usize = 8 << 10;
/// The longest text of a source but its path, in bytes.
const MAX_SOURCE_TEXT_BYTES: usize = 1 << 10;
/// The most addresses and labels of a source; agents keep to the same.
const MAX_SOURCE_ADDRESSES: usize = 16;
const MAX_SOURCE_LABELS: usize = 64;
/// The longest label of an encoding, in bytes; white space around one counts.
const MAX_LABEL_BYTES: usize = 32;

/// The earliest read time that is kept, 2000-01-01; the latest is a day after the arrival.
const EARLIEST: i64 = 946_684_800_000_000_000;
const DAY: i64 = 86_400_000_000_000;

/// One event of a chunk, borrowed from its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSlice<'a> {
    /// Where it lies in the stream.
    pub range: ByteRange,
    /// Its bytes, terminator included; of a line that was cut only those that were kept.
    pub bytes: &'a [u8],
    /// True if it continues the event before it.
    pub continuation: bool,
}

/// A chunk that can't be taken. Nothing of it may be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ChunkError {
    /// A stable name such as `BAD_CHECKSUM`.
    pub reason: &'static str,
    /// What is wrong, in words.
    pub detail: String,
}

fn refuse(reason: &'static str, detail: String) -> Result<(), ChunkError> {
    Err(ChunkError { reason, detail })
}

/// Checks everything that later steps take for granted: names, sizes, offsets, lengths and the checksum.
///
/// # Errors
/// The first fault found. A chunk that passes can be cut by [`events`] and encoded.
pub fn check(chunk: &Chunk) -> Result<(), ChunkError> {
    let named = |error: &dyn std::fmt::Display| refuse("BAD_NAME", error.to_string());
    if let Err(error) = chunk.stream_id.parse::<StreamId>() {
        return named(&error);
    }
    match chunk.topic.parse::<TopicName>() {
        Err(error) => return named(&error),
        Ok(topic) if topic.is_internal() => {
            return refuse("BAD_NAME", format!("topic {topic} belongs to logmesh itself"));
        }
        Ok(_) => {}
    }
    if let Err(error) = chunk.rule.parse::<RuleName>() {
        return named(&error);
    }
    let Some(source) = &chunk.source else {
        return refuse("NO_SOURCE", "the chunk doesn't say where it comes from".to_owned());
    };
    if let Err(error) = source.agent_id.parse::<logmesh_types::AgentId>() {
        return named(&error);
    }
    check_source(chunk, source)?;
    if chunk.read_time.is_none() {
        return refuse("NO_READ_TIME", "the chunk doesn't say when it was read".to_owned());
    }
    let size = chunk.data.len();
    if size == 0 || size > MAX_CHUNK_BYTES {
        return refuse("BAD_SIZE", format!("a chunk holds 1 to {MAX_CHUNK_BYTES} bytes, this one {size}"));
    }
    let range = ByteRange::new(chunk.start_offset, chunk.end_offset);
    let omitted = chunk.omitted_bytes;
    if (size as u64).checked_add(omitted) != Some(range.len()) {
        let detail = format!("the range {range} is not as long as the {size} bytes of data and {omitted} left out");
        return refuse("BAD_RANGE", detail);
    }
    if crc32c::crc32c(&chunk.data) != chunk.crc32c {
        return refuse("BAD_CHECKSUM", format!("the bytes of {range} do not match their CRC-32C"));
    }
    if !chunk.encoding.is_empty() {
        if chunk.encoding.len() > MAX_LABEL_BYTES {
            return refuse("BAD_ENCODING", format!("the encoding's label is longer than {MAX_LABEL_BYTES} bytes"));
        }
        if Charset::for_label(&chunk.encoding).is_none() {
            return refuse("BAD_ENCODING", format!("{:?} is no encoding that this version can read", chunk.encoding));
        }
    }
    if DataFormat::try_from(chunk.format).is_err() {
        return refuse("BAD_FORMAT", format!("format {} is none that this version can read", chunk.format));
    }
    check_events(chunk)
}

fn check_source(chunk: &Chunk, source: &Source) -> Result<(), ChunkError> {
    let bad = |detail: String| refuse("BAD_SOURCE", detail);
    let path = source.path.len();
    if path > MAX_PATH_BYTES {
        return bad(format!("the path has {path} bytes, at most {MAX_PATH_BYTES} are taken"));
    }
    let (addresses, labels) = (source.host_ips.len(), source.labels.len());
    if addresses > MAX_SOURCE_ADDRESSES || labels > MAX_SOURCE_LABELS {
        let most = format!("at most {MAX_SOURCE_ADDRESSES} and {MAX_SOURCE_LABELS} are taken");
        return bad(format!("the source has {addresses} addresses and {labels} labels, {most}"));
    }
    let texts = [&source.host_name, &source.service].into_iter().chain(&source.host_ips);
    let mut texts = texts.chain(source.labels.iter().flat_map(|(name, value)| [name, value]));
    if texts.any(|text| text.len() > MAX_SOURCE_TEXT_BYTES) {
        return bad(format!("a name, address or label of the source is longer than {MAX_SOURCE_TEXT_BYTES} bytes"));
    }
    let size = source.encoded_len().max(document::common_fields(chunk, UnixNanos(0)).len());
    if size > MAX_SOURCE_BYTES {
        return bad(format!("the source takes {size} bytes of every document, at most {MAX_SOURCE_BYTES} are allowed"));
    }
    Ok(())
}

/// Moves a read time before the year 2000 or more than a day after `arrival` to there; true if it was moved. The read time
/// chooses the slice of the index, and a clock that is wrong must not make one for each day of three centuries.
pub fn clamp_read_time(chunk: &mut Chunk, arrival: UnixNanos) -> bool {
    let Some(time) = chunk.read_time.as_ref().map(unix_nanos) else { return false };
    let latest = arrival.0.saturating_add(DAY).max(EARLIEST);
    let kept = UnixNanos(time.0.clamp(EARLIEST, latest));
    if kept == time {
        return false;
    }
    chunk.read_time = Some(timestamp(kept));
    true
}

fn check_events(chunk: &Chunk) -> Result<(), ChunkError> {
    let lengths = &chunk.event_lengths;
    let count = if lengths.is_empty() { memchr::memchr_iter(b'\n', &chunk.data).count() } else { lengths.len() };
    if count > MAX_CHUNK_EVENTS {
        return refuse("TOO_MANY_EVENTS", format!("a chunk holds at most {MAX_CHUNK_EVENTS} events, this one {count}"));
    }
    if chunk.omitted_bytes > 0 && lengths.len() != 1 {
        return refuse("BAD_LENGTHS", format!("{} events of which bytes were left out; one may be", lengths.len()));
    }
    if lengths.is_empty() {
        if chunk.data.last() != Some(&b'\n') {
            return refuse("BAD_LENGTHS", "a chunk without event lengths has to end in a line feed".to_owned());
        }
    } else {
        let sum: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        if sum != chunk.data.len() as u64 || lengths.contains(&0) {
            let size = chunk.data.len();
            return refuse("BAD_LENGTHS", format!("the event lengths add up to {sum}, not to {size}, or one is 0"));
        }
    }
    if let Some(event) = events(chunk).find(|event| event.bytes.len() > MAX_EVENT_BYTES) {
        return refuse("EVENT_TOO_LONG", format!("the event {} is longer than {MAX_EVENT_BYTES} bytes", event.range));
    }
    let continuations = &chunk.continuations;
    if continuations.last().is_some_and(|last| *last as usize >= count) || !continuations.is_sorted_by(|a, b| a < b) {
        return refuse("BAD_CONTINUATIONS", "a continuation names no event, or they don't rise".to_owned());
    }
    Ok(())
}

/// The events of a chunk that [`check`] let through, in order.
pub fn events(chunk: &Chunk) -> impl Iterator<Item = EventSlice<'_>> {
    let data: &[u8] = &chunk.data;
    let mut at = 0;
    let mut index = 0u32;
    let mut continuations = chunk.continuations.iter().peekable();
    std::iter::from_fn(move || {
        let rest = data.get(at..).filter(|rest| !rest.is_empty())?;
        let length = if chunk.event_lengths.is_empty() {
            memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1)
        } else {
            *chunk.event_lengths.get(index as usize)? as usize
        };
        let bytes = rest.get(..length)?;
        let start = chunk.start_offset + at as u64;
        let end = if chunk.omitted_bytes > 0 { chunk.end_offset } else { start + length as u64 };
        let continuation = continuations.next_if_eq(&&index).is_some();
        at += length;
        index += 1;
        Some(EventSlice { range: ByteRange::new(start, end), bytes, continuation })
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;

    use super::*;

    /// A chunk of this text at this offset.
    pub(crate) fn chunk(start: u64, data: &[u8], lengths: &[u32]) -> Chunk {
        Chunk {
            stream_id: "217a55e0e277d86e24b960c80282a1c5".to_owned(),
            topic: "logs".to_owned(),
            rule: "rules/collect".to_owned(),
            rule_revision: 3,
            start_offset: start,
            end_offset: start.wrapping_add(data.len() as u64),
            data: Bytes::copy_from_slice(data),
            event_lengths: lengths.to_vec(),
            crc32c: crc32c::crc32c(data),
            read_time: Some(prost_types::Timestamp { seconds: 1_769_860_800, nanos: 5 }),
            source: Some(Source {
                agent_id: "web-1".to_owned(),
                host_name: "web-1.example".to_owned(),
                host_ips: vec!["192.0.2.1".to_owned()],
                path: "/var/log/app.log".to_owned(),
                service: "app".to_owned(),
                labels: [("env".to_owned(), "prod".to_owned())].into(),
            }),
            continuations: vec![],
            encoding: String::new(),
            format: 0,
            omitted_bytes: 0,
            repeated: false,
            written_time: None,
        }
    }

    fn texts(chunk: &Chunk) -> Vec<&[u8]> {
        events(chunk).map(|event| event.bytes).collect()
    }

    #[test]
    fn lines_are_events_and_an_empty_line_is_one_too() {
        let lines = chunk(10, b"a\n\nb\r\n", &[]);
        check(&lines).unwrap();
        assert_eq!(texts(&lines), [b"a\n".as_slice(), b"\n", b"b\r\n"]);
        let ranges: Vec<_> = events(&lines).map(|event| (event.range.start, event.range.end)).collect();
        assert_eq!(ranges, [(10, 12), (12, 13), (13, 16)]);
    }

    #[test]
    fn lengths_cut_where_they_say() {
        let mut joined = chunk(0, b"a\n b\nc", &[5, 1]);
        joined.continuations = vec![1];
        check(&joined).unwrap();
        assert_eq!(texts(&joined), [b"a\n b\n".as_slice(), b"c"]);
        let continued: Vec<_> = events(&joined).map(|event| event.continuation).collect();
        assert_eq!(continued, [false, true]);
    }

    #[test]
    fn each_fault_is_named() {
        let good = chunk(0, b"a\n", &[]);
        let fault = |change: &dyn Fn(&mut Chunk)| {
            let mut bad = good.clone();
            change(&mut bad);
            check(&bad).unwrap_err().reason
        };
        assert_eq!(fault(&|c| c.stream_id = "x".into()), "BAD_NAME");
        assert_eq!(fault(&|c| c.topic = "logs.books".into()), "BAD_NAME");
        assert_eq!(fault(&|c| c.rule = "../x".into()), "BAD_NAME");
        assert_eq!(fault(&|c| c.source = None), "NO_SOURCE");
        assert_eq!(fault(&|c| c.read_time = None), "NO_READ_TIME");
        assert_eq!(fault(&|c| c.end_offset = 9), "BAD_RANGE");
        assert_eq!(fault(&|c| c.crc32c ^= 1), "BAD_CHECKSUM");
        assert_eq!(fault(&|c| c.event_lengths = vec![1]), "BAD_LENGTHS");
        assert_eq!(fault(&|c| c.event_lengths = vec![0, 2]), "BAD_LENGTHS");
        assert_eq!(fault(&|c| c.continuations = vec![7]), "BAD_CONTINUATIONS");
        assert_eq!(fault(&|c| c.continuations = vec![0; 1_000]), "BAD_CONTINUATIONS");
        assert_eq!(fault(&|c| c.encoding = format!("gbk{}", " ".repeat(3 << 20))), "BAD_ENCODING");
        assert_eq!(check(&chunk(0, b"no end", &[])).unwrap_err().reason, "BAD_LENGTHS");
        assert_eq!(check(&chunk(0, b"", &[])).unwrap_err().reason, "BAD_SIZE");
        assert_eq!(check(&chunk(0, &vec![b'\n'; MAX_CHUNK_EVENTS + 1], &[])).unwrap_err().reason, "TOO_MANY_EVENTS");
        assert_eq!(check(&chunk(u64::MAX, b"a\n", &[])).unwrap_err().reason, "BAD_RANGE");
        assert_eq!(fault(&|c| c.encoding = "klingon".into()), "BAD_ENCODING");
        assert_eq!(fault(&|c| c.format = 9), "BAD_FORMAT");
    }

    #[test]
    fn a_line_that_was_cut_is_alone_and_its_range_is_the_whole_line() {
        let mut cut = chunk(10, b"abc", &[3]);
        (cut.end_offset, cut.omitted_bytes) = (20, 7);
        check(&cut).unwrap();
        let found: Vec<_> = events(&cut).map(|event| (event.range, event.bytes)).collect();
        assert_eq!(found, [(ByteRange::new(10, 20), b"abc".as_slice())]);
        let reason = |change: &dyn Fn(&mut Chunk)| {
            let mut bad = cut.clone();
            change(&mut bad);
            check(&bad).unwrap_err().reason
        };
        assert_eq!(reason(&|c| c.omitted_bytes = 6), "BAD_RANGE");
        assert_eq!(reason(&|c| c.omitted_bytes = u64::MAX), "BAD_RANGE");
        assert_eq!(reason(&|c| c.event_lengths = vec![1, 2]), "BAD_LENGTHS");
        assert_eq!(reason(&|c| c.event_lengths = vec![]), "BAD_LENGTHS");
    }

    #[test]
    fn a_source_is_bounded_since_every_document_gets_a_copy() {
        let good = chunk(0, b"a\n", &[]);
        let reason = |change: &dyn Fn(&mut Source)| {
            let mut changed = good.clone();
            change(changed.source.as_mut().unwrap());
            check(&changed).err().map(|error| error.reason)
        };
        let labels = |count: usize, length: usize| {
            (0..count).map(move |n| (format!("label-{n:02}"), "v".repeat(length))).collect()
        };
        let bad = Some("BAD_SOURCE");
        assert_eq!(reason(&|s| s.path = "p".repeat(MAX_PATH_BYTES + 1)), bad);
        assert_eq!(reason(&|s| s.host_ips = vec!["192.0.2.1".into(); 17]), bad);
        assert_eq!(reason(&|s| s.host_name = "h".repeat(1_025)), bad);
        assert_eq!(reason(&|s| s.labels = labels(65, 1)), bad);
        assert_eq!(reason(&|s| s.labels = labels(1, 1_025)), bad);
        assert_eq!(reason(&|s| s.labels = labels(64, 200)), bad);
        // As JSON each of these takes six bytes.
        assert_eq!(reason(&|s| s.path = "\u{1}".repeat(MAX_PATH_BYTES)), bad);
        // All that an agent may say, with the longest path there is.
        let most = |s: &mut Source| {
            s.path = "p".repeat(MAX_PATH_BYTES);
            s.host_name = "h".repeat(64);
            s.host_ips = vec!["2001:0db8:0000:0000:0000:0000:0000:0001".into(); 16];
            s.service = "s".repeat(256);
            s.labels = labels(64, 18);
        };
        assert_eq!(reason(&most), None);
    }

    #[test]
    fn a_read_time_is_kept_within_reason() {
        let arrival = UnixNanos(1_769_860_800_000_000_000);
        let clamped = |seconds: i64| {
            let mut moved = chunk(0, b"a\n", &[]);
            moved.read_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
            let told = clamp_read_time(&mut moved, arrival);
            let kept = moved.read_time.unwrap().seconds;
            assert_eq!(told, kept != seconds);
            kept
        };
        assert_eq!(clamped(i64::MIN), 946_684_800);
        assert_eq!(clamped(0), 946_684_800);
        assert_eq!(clamped(946_684_800), 946_684_800);
        assert_eq!(clamped(1_769_860_800 + 86_400), 1_769_860_800 + 86_400);
        assert_eq!(clamped(1_769_860_800 + 86_401), 1_769_860_800 + 86_400);
        assert_eq!(clamped(i64::MAX), 1_769_860_800 + 86_400);
    }
}
