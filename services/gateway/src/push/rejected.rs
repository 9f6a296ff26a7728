//! Chunks that were refused, and what comes after them.
//!
//! An ack speaks for everything before it, so nothing after a rejected chunk may be acked until that one is there.

use std::collections::HashMap;
use std::ops::Range;

use logmesh_proto::ingest::v1::Reject;

/// The most streams of files that one Push stream may have rejected chunks of.
pub(super) const MAX_REJECTED: usize = 10_000;

/// Why a chunk is refused.
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
}

impl Refusal {
    /// What tells the agent.
    pub(crate) fn of(self, stream_id: &str, range: Range<u64>) -> Reject {
        Reject {
            stream_id: stream_id.to_owned(),
            start_offset: range.start,
            end_offset: range.end,
            reason: self.reason.to_owned(),
            detail: self.detail,
        }
    }
}

/// Where in each stream the first chunk lies that was rejected and hasn't come again.
#[derive(Debug, Default)]
pub(super) struct Rejected {
    starts: HashMap<String, u64>,
}

impl Rejected {
    /// Why a chunk at this place can't be taken yet, if it can't.
    pub(super) fn refusal(&self, stream_id: &str, start: u64) -> Option<Refusal> {
        let first = self.starts.get(stream_id).filter(|first| start > **first)?;
        let detail = format!("the chunk at offset {first} of this stream was rejected; send that one first");
        Some(Refusal { reason: "AFTER_REJECTED", detail })
    }

    /// Notes a rejected chunk; `false` if there are too many streams of them.
    pub(super) fn note(&mut self, stream_id: &str, start: u64) -> bool {
        if self.starts.len() >= MAX_REJECTED && !self.starts.contains_key(stream_id) {
            return false;
        }
        let first = self.starts.entry(stream_id.to_owned()).or_insert(start);
        *first = start.min(*first);
        true
    }

    /// The stream goes on.
    pub(super) fn forget(&mut self, stream_id: &str) {
        self.starts.remove(stream_id);
    }
}
