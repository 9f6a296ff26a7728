//! The words that every other crate shares: names, ids, byte positions, units and limits.
//!
//! Nothing here does I/O or knows of a service. A value of one of these types is valid by construction, so that a
//! check is made once, at the edge where text comes in.

pub mod at_work;
pub mod day;
pub mod header;
pub mod id;
pub mod limits;
pub mod metric;
pub mod name;
pub mod ranges;
pub mod time;
pub mod unit;

pub use day::{Day, DayError};
pub use id::{AgentId, DocId, StreamId};
pub use name::{NameError, RuleName, TopicName};
pub use ranges::Ranges;
pub use time::UnixNanos;
pub use unit::{ByteSize, Span};

/// A half-open range of bytes `[start, end)` of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// The range from `start` up to but not including `end`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// Its length in bytes; a reversed range counts as empty.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True if it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

impl std::fmt::Display for ByteRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}
