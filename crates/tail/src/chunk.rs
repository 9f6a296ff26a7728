//! What leaves the tailer.

use std::sync::Arc;

use bytes::Bytes;
use logmesh_types::{ByteRange, RuleName, StreamId, TopicName, UnixNanos};

/// Consecutive events of one stream: a range of the file's bytes in one buffer. Cloning shares the buffer.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The stream.
    pub stream: StreamId,
    /// The range of the stream that `data` is.
    pub range: ByteRange,
    /// The bytes, at most `limits::MAX_CHUNK_BYTES`.
    pub data: Bytes,
    /// The events' lengths, none of them 0; `None`: each event is one line that ends in LF.
    pub lengths: Option<Arc<[u32]>>,
    /// How many events, at most `limits::MAX_CHUNK_EVENTS`.
    pub events: u32,
    /// The first event continues the one before: a long line was split, or flushed before its end.
    pub continuation: bool,
    /// CRC-32C of `data`.
    pub crc32c: u32,
    /// When it was read. A chunk that is sent again keeps it.
    pub read_time: UnixNanos,
    /// The rule and the file.
    pub source: Arc<Source>,
}

/// Where chunks come from and go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's path, as the rule's glob found it.
    pub path: String,
    /// The rule by which the events were cut.
    pub rule: RuleName,
    /// Its revision.
    pub revision: i64,
    /// Where the events go.
    pub topic: TopicName,
    /// `service.name` of the rule.
    pub service: Option<String>,
}
