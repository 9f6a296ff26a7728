//! What leaves the tailer.

use std::sync::Arc;

use bytes::Bytes;
use logmesh_text::Charset;
use logmesh_types::{ByteRange, RuleName, StreamId, TopicName, UnixNanos};

/// Consecutive events of one stream: a range of the file's bytes in one buffer. Cloning shares the buffer.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The stream.
    pub stream: StreamId,
    /// The range of the stream that the events are.
    pub range: ByteRange,
    /// The bytes, at most `limits::MAX_CHUNK_BYTES`. Shorter than the range: it is one event, a line too long of which only
    /// the start is kept.
    pub data: Bytes,
    /// The events' lengths in `data`, none of them 0; `None`: each event is one line that ends in LF.
    pub lengths: Option<Arc<[u32]>>,
    /// How many events, at most `limits::MAX_CHUNK_EVENTS`.
    pub events: u32,
    /// Which events continue the one before, in order: a long one was split, or flushed before its end.
    pub continuations: Arc<[u32]>,
    /// CRC-32C of `data`.
    pub crc32c: u32,
    /// In which encoding `data` is.
    pub charset: Charset,
    /// The lines are what a container runtime wrote.
    pub container: bool,
    /// When it was read. A chunk that is sent again keeps it.
    pub read_time: UnixNanos,
    /// When it was written, at the latest; `None` if that isn't known, as for what lay there before it was collected.
    pub written_time: Option<UnixNanos>,
    /// The rule and the file.
    pub source: Arc<Source>,
    /// It was acked before, and is read once more: see [`crate::Again`].
    pub again: bool,
}

impl Chunk {
    /// How many bytes of the range aren't in `data`.
    pub fn omitted(&self) -> u64 {
        self.range.len() - self.data.len() as u64
    }
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
