//! Ids that are derived, never drawn: the same bytes of the same file find the same ids again after any loss of state.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use crate::name::{NameError, check_name};

/// The id of an agent: chosen by its owner or derived from the machine id. 1 to 64 of `[a-z0-9._-]`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

impl AgentId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_name("agent id", text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for AgentId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> String {
        id.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An id's text is not what [`StreamId`] or [`DocId`] prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

/// The id of a stream: one generation of one file on one host. Printed as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId([u8; 16]);

impl StreamId {
    /// Derives the id: BLAKE3-128 of (agent id, inode, birth time in ns, epoch), each length-prefixed or of fixed size.
    ///
    /// `birth_nanos` is the file's birth time from `statx`; where the file system keeps none the caller passes a value
    /// that it minted once and stored. `epoch` counts the truncations of the file that were seen.
    pub fn derive(agent: &AgentId, inode: u64, birth_nanos: i128, epoch: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(agent.as_str().len() as u64).to_le_bytes());
        hasher.update(agent.as_str().as_bytes());
        hasher.update(&inode.to_le_bytes());
        hasher.update(&birth_nanos.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        Self(first_half(&hasher.finalize()))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StreamId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError { text: text.to_owned(), expected: "a stream id of 32 lower-case hex digits" })
    }
}

impl serde::Serialize for StreamId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for StreamId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Bytes of what an event's id is made of, without the event; and of what is hashed in one piece, which is what BLAKE3 takes at once.
const EVENT_FIELDS: usize = 48;
const AT_ONCE: usize = 1_024;

/// The id of a document, declared by position and guarded by content. Printed as 22 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocId([u8; 16]);

impl DocId {
    /// The id of an event of a file: BLAKE3-128 of (stream id, start offset, event bytes), fields length-prefixed.
    ///
    /// `event` is the whole event, terminator included.
    pub fn of_event(stream: &StreamId, start: u64, event: &[u8]) -> Self {
        let mut fields = [0; EVENT_FIELDS];
        fields[..8].copy_from_slice(&16u64.to_le_bytes());
        fields[8..24].copy_from_slice(stream.as_bytes());
        fields[24..32].copy_from_slice(&8u64.to_le_bytes());
        fields[32..40].copy_from_slice(&start.to_le_bytes());
        fields[40..].copy_from_slice(&(event.len() as u64).to_le_bytes());
        let mut whole = [0; AT_ONCE];
        if let Some(whole) = whole.get_mut(..EVENT_FIELDS + event.len()) {
            // Millions of lines are short: in one piece they are hashed in two thirds of the time.
            whole[..EVENT_FIELDS].copy_from_slice(&fields);
            whole[EVENT_FIELDS..].copy_from_slice(event);
            return Self(first_half(&blake3::hash(whole)));
        }
        Self(first_half(&blake3::Hasher::new().update(&fields).update(event).finalize()))
    }

    /// The id of an event that a client wrote under an id of its own choice, unique in a topic.
    pub fn of_client_event(topic: &str, event_id: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"logmesh client event v1");
        for field in [topic, event_id] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        Self(first_half(&hasher.finalize()))
    }

    /// The id of an event that came without any: its position on the bus. `index` is its place within the record.
    pub fn of_position(topic: &str, partition: u32, offset: u64, index: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"logmesh bus position v1");
        hasher.update(&(topic.len() as u64).to_le_bytes());
        hasher.update(topic.as_bytes());
        hasher.update(&partition.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher.update(&index.to_le_bytes());
        Self(first_half(&hasher.finalize()))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// What it is printed as: ASCII.
    pub fn to_text(&self) -> [u8; 22] {
        let mut text = [0; 22];
        BASE64URL_NOPAD.encode_mut(&self.0, &mut text);
        text
    }
}

impl fmt::Display for DocId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.to_text()).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for DocId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DocId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| IdError { text: text.to_owned(), expected: "a document id of 22 base64url characters" })
    }
}

fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(agent: &str, inode: u64, birth: i128, epoch: u32) -> StreamId {
        StreamId::derive(&agent.parse().unwrap(), inode, birth, epoch)
    }

    #[test]
    fn every_part_of_a_stream_id_counts() {
        let id = stream("web-1", 7, 1_000, 0);
        assert_eq!(id, stream("web-1", 7, 1_000, 0));
        for other in [
            stream("web-2", 7, 1_000, 0),
            stream("web-1", 8, 1_000, 0),
            stream("web-1", 7, 1_001, 0),
            stream("web-1", 7, 1_000, 1),
        ] {
            assert_ne!(id, other);
        }
    }

    /// Ids live in indices for years: a change of the derivation would double every line that is sent again.
    #[test]
    fn ids_never_change() {
        let id = stream("web-1", 7, 1_000, 0);
        assert_eq!(id.to_string(), "217a55e0e277d86e24b960c80282a1c5");
        assert_eq!(DocId::of_event(&id, 12, b"hello\n").to_string(), "7FnC3KmojTedSF98vLOGQg");
    }

    /// In one piece or in several: it's the same hash, on both sides of the bound.
    #[test]
    fn an_event_s_id_is_the_hash_of_its_fields() {
        let id = stream("web-1", 7, 1_000, 0);
        for len in [0, 1, AT_ONCE - EVENT_FIELDS - 1, AT_ONCE - EVENT_FIELDS, AT_ONCE - EVENT_FIELDS + 1, 5_000] {
            let event = vec![b'x'; len];
            let lengths = [16, 8, len as u64].map(u64::to_le_bytes);
            let fields = [&lengths[0][..], id.as_bytes(), &lengths[1], &77_u64.to_le_bytes(), &lengths[2], &event];
            assert_eq!(
                DocId::of_event(&id, 77, &event).as_bytes()[..],
                blake3::hash(&fields.concat()).as_bytes()[..16]
            );
        }
    }

    #[test]
    fn texts_round_trip() {
        let id = stream("web-1", 7, 1_000, 0);
        assert_eq!(id.to_string().parse::<StreamId>().unwrap(), id);
        let doc = DocId::of_event(&id, 12, b"hello\n");
        assert_eq!(doc.to_string().parse::<DocId>().unwrap(), doc);
        assert!("D71AC1".parse::<StreamId>().is_err());
        assert!("Web 1".parse::<AgentId>().is_err());
    }

    #[test]
    fn a_document_id_depends_on_place_and_bytes() {
        let id = stream("web-1", 7, 1_000, 0);
        assert_ne!(DocId::of_event(&id, 0, b"a\n"), DocId::of_event(&id, 2, b"a\n"));
        assert_ne!(DocId::of_event(&id, 0, b"a\n"), DocId::of_event(&id, 0, b"b\n"));
        assert_ne!(DocId::of_client_event("a", "bc"), DocId::of_client_event("ab", "c"));
    }
}
