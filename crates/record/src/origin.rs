//! What a document says of the event that it was made of, read back: the one builder ([`crate::document`]) the other way round.

use data_encoding::BASE64;
use logmesh_types::{ByteRange, Day, DocId, StreamId, UnixNanos};
use serde::Deserialize;

/// Terminators that an event may have had; a document's message is without.
const ENDS: [&[u8]; 3] = [b"\n", b"\r\n", b""];

/// What the first event of a file in UTF-8 may begin with, and its message doesn't.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// The event of a document.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Origin {
    /// Its text.
    pub message: String,
    /// Its bytes, where the text doesn't say all that they say; base64.
    #[serde(rename = "event.original_base64", default)]
    pub original: Option<String>,
    /// Its stream.
    #[serde(rename = "logmesh.stream")]
    pub stream: StreamId,
    /// Where it begins there.
    #[serde(rename = "logmesh.offset")]
    pub offset: u64,
    /// How many bytes of the stream it holds.
    #[serde(rename = "logmesh.length")]
    pub length: u64,
    /// How many of them were left out, of a line that is too long.
    #[serde(rename = "logmesh.omitted", default)]
    pub omitted: u64,
    #[serde(rename = "logmesh.read_time", default)]
    read_time: String,
}

impl Origin {
    /// Reads a document's body; `None` if it isn't of a stream's event, or not as the builder writes it.
    pub fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// The bytes of the stream that it holds.
    pub fn range(&self) -> ByteRange {
        ByteRange::new(self.offset, self.offset.saturating_add(self.length))
    }

    /// The day of the slice that it belongs to; `None` if it doesn't say when it was read.
    pub fn day(&self) -> Option<Day> {
        self.read_time.parse::<UnixNanos>().ok().map(Day::of)
    }

    /// True if this is the id that the event's stream, start and bytes give. False says less: of a container's line, or of one
    /// in another encoding, the bytes can't be told from the document.
    pub fn gives(&self, id: &DocId) -> bool {
        let content = match &self.original {
            None => self.message.as_bytes().to_vec(),
            Some(original) => match BASE64.decode(original.as_bytes()) {
                Ok(bytes) => bytes,
                Err(_) => return false,
            },
        };
        let marks: &[&[u8]] = if self.offset == 0 { &[b"", MARK] } else { &[b""] };
        marks.iter().flat_map(|mark| ENDS.map(|end| [mark, content.as_slice(), end].concat())).any(|bytes| {
            self.length.checked_sub(self.omitted) == Some(bytes.len() as u64)
                && DocId::of_event(&self.stream, self.offset, &bytes) == *id
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::tests::chunk;
    use crate::document::of_chunk;

    #[test]
    fn an_id_is_proved_by_the_document_that_has_it() {
        let mut cut = chunk(9, b"2026 a long line", &[16]);
        (cut.end_offset, cut.omitted_bytes) = (9 + 16 + 700, 700);
        let lines = [
            chunk(40, b"one\ntwo\r\n\nlast", &[]),
            chunk(0, "\u{feff}with a mark\r\nä\n".as_bytes(), &[]),
            chunk(7, b"caf\xe9\n\xff\xfe\r\n", &[]),
            chunk(0, b"two\n  lines\r\n", &[13]),
            cut,
        ];
        for document in lines.iter().flat_map(of_chunk) {
            let origin = Origin::read(&document.body).unwrap();
            let id = document.id.unwrap();
            assert!(origin.gives(&id), "{origin:?}");
            assert_eq!((origin.stream, origin.range()), document.stream.unwrap());
            assert_eq!(origin.day(), Some(document.date));
            for other in [
                Origin { message: "other".into(), original: None, ..origin.clone() },
                Origin { offset: origin.offset + 1, ..origin.clone() },
                Origin { length: origin.length + 1, ..origin.clone() },
                Origin { stream: StreamId::from_bytes([9; 16]), ..origin.clone() },
            ] {
                assert!(!other.gives(&id), "{other:?}");
            }
        }
    }

    #[test]
    fn what_the_builder_did_not_write_is_no_origin() {
        for body in ["", "[]", "{}", r#"{"message":"a"}"#, r#"{"message":"a","logmesh":{"stream":"b"}}"#] {
            assert_eq!(Origin::read(body.as_bytes()), None, "{body}");
        }
        let body = of_chunk(&chunk(0, b"a\n", &[])).remove(0).body;
        let again = String::from_utf8(body.to_vec()).unwrap().replacen('{', "{\"message\":\"b\",", 1);
        assert_eq!(Origin::read(again.as_bytes()), None, "it has two messages");
    }
}
