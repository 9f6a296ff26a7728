//! The times of a record's events on their way to the bus. They lie beside the value, in one header that both formats share:
//! no document, id or book depends on them.

use std::borrow::Cow;

use bytes::Bytes;
use logmesh_bus::NewRecord;
use logmesh_proto::ingest::v1::Chunk;
use logmesh_proto::time::unix_nanos;
use logmesh_types::UnixNanos;

pub use logmesh_types::header::TIMES;

/// When events were where. Each by the clock of the machine that says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Written to their file, at the latest.
    pub written: Option<UnixNanos>,
    /// Read from it by the agent.
    pub read: Option<UnixNanos>,
    /// Received by the gateway.
    pub received: Option<UnixNanos>,
}

impl Times {
    /// Those of a chunk that a gateway received.
    pub fn of_chunk(chunk: &Chunk, received: UnixNanos) -> Self {
        let written = chunk.written_time.as_ref().map(unix_nanos);
        Self { written, read: chunk.read_time.as_ref().map(unix_nanos), received: Some(received) }
    }

    /// Those of an event that a client wrote.
    pub fn of_event(received: UnixNanos) -> Self {
        Self { received: Some(received), ..Self::default() }
    }

    /// Puts them on a record that goes to the bus.
    pub fn stamp(&self, record: &mut NewRecord) {
        record.headers.push(self.header());
    }

    /// The header that says them.
    pub(crate) fn header(&self) -> (Cow<'static, str>, Bytes) {
        let part = |time: Option<UnixNanos>| time.map_or_else(String::new, |time| time.0.to_string());
        let text = format!("{}/{}/{}", part(self.written), part(self.read), part(self.received));
        (TIMES.into(), text.into())
    }

    /// Those that the header [`TIMES`] holds; what is missing or can't be read isn't known.
    pub fn read(header: &[u8]) -> Self {
        let text = std::str::from_utf8(header).unwrap_or_default();
        let mut parts = text.split('/').map(|part| part.parse().ok().map(UnixNanos));
        let mut next = || parts.next().flatten();
        Self { written: next(), read: next(), received: next() }
    }
}

#[cfg(test)]
mod tests {
    use logmesh_bus::{Offset, Record, Records};

    use super::*;
    use crate::chunk::tests::chunk;
    use crate::{Format, codec, document};

    fn stored(record: NewRecord) -> Record {
        let NewRecord { key, value, headers, .. } = record;
        Record { offset: Offset(0), timestamp: UnixNanos(0), key, value, headers }
    }

    #[test]
    fn both_formats_carry_the_same_times_and_the_same_documents() {
        let mut lines = chunk(0, b"one\ntwo\n", &[]);
        let plain = document::of_chunk(&lines);
        lines.written_time = Some(prost_types::Timestamp { seconds: 1_769_860_799, nanos: 7 });
        let times = Times::of_chunk(&lines, UnixNanos(1_769_860_801_000_000_000));
        assert_eq!(document::of_chunk(&lines), plain, "the times are no part of a document");
        let records = [Format::Chunks, Format::Events]
            .into_iter()
            .flat_map(|format| codec::records(&lines, format, &times))
            .flat_map(Records::split);
        let topic = "logs".parse().unwrap();
        let mut read = Vec::new();
        for record in records.map(stored) {
            assert_eq!(Times::read(record.header(TIMES).unwrap()), times);
            read.extend(codec::documents(&topic, 0, &record).unwrap());
        }
        assert_eq!(read, [&plain[..], &plain[..]].concat());
        assert_eq!(
            (times.written, times.read),
            (Some(UnixNanos(1_769_860_799_000_000_007)), Some(UnixNanos(1_769_860_800_000_000_005)))
        );
    }

    #[test]
    fn what_is_missing_or_strange_is_not_known() {
        for (text, expected) in [
            ("//5", Times::of_event(UnixNanos(5))),
            ("", Times::default()),
            ("a/b/c/d", Times::default()),
            ("1/99999999999999999999/3", Times { written: Some(UnixNanos(1)), ..Times::of_event(UnixNanos(3)) }),
        ] {
            assert_eq!(Times::read(text.as_bytes()), expected, "{text:?}");
        }
    }
}
