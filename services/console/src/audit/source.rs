//! What an agent says was gone before it could collect it, held against what arrived.

use logmesh_proto::audit::v1::{Finding, FindingCause};
use logmesh_proto::fleet::v1::{LossCause, LostRange, StreamStatus};
use logmesh_types::{ByteRange, Ranges};

/// What of a stream is on the bus or done, in any topic.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) ranges: Ranges,
    /// Too much waits to know all of it.
    pub(super) more_waits: bool,
}

/// The ranges that the agent says were lost.
pub(super) fn ranges(status: &StreamStatus) -> Ranges {
    status.lost_ranges.iter().map(range_of).collect()
}

/// What was lost at the source, and where that is known, where.
///
/// An agent that was killed has forgotten the last acks: what it takes for lost may have arrived. Only of bytes that were
/// cut off an unread end that can't be, and other bytes may lie in their place.
pub(super) fn lost(status: &StreamStatus, arrived: &Arrived) -> Vec<Finding> {
    let mut findings = Vec::new();
    for one in &status.lost_ranges {
        let whole: Ranges = [range_of(one)].into_iter().collect();
        let left = match one.cause() {
            LossCause::CutShort => whole,
            _ if arrived.more_waits => continue,
            _ => whole.without(&arrived.ranges),
        };
        findings.extend(left.as_slice().iter().map(|range| Finding {
            start_offset: range.start,
            end_offset: range.end,
            detail: format!("lost at the source: {}", explain(one.cause())),
            lost_at_source: true,
            cause: FindingCause::LostAtSource.into(),
            ..Finding::default()
        }));
    }
    let told: u64 = status.lost_ranges.iter().map(|one| range_of(one).len()).sum();
    let rest = status.lost_bytes.saturating_sub(told);
    if rest > 0 {
        findings.push(Finding {
            start_offset: status.read_offset,
            end_offset: status.read_offset,
            detail: format!(
                "lost at the source: {rest} bytes were gone before they could be read, their places weren't kept"
            ),
            lost_at_source: true,
            cause: FindingCause::LostAtSource.into(),
            ..Finding::default()
        });
    }
    findings
}

/// Whatever an agent says, a range ends behind its start.
fn range_of(one: &LostRange) -> ByteRange {
    ByteRange::new(one.start_offset, one.end_offset.max(one.start_offset))
}

fn explain(cause: LossCause) -> &'static str {
    match cause {
        LossCause::Truncated => "the file was truncated or written anew before they were read",
        LossCause::CutShort => "the file was cut short before they were read",
        LossCause::Gone => "the file was gone before they were read",
        LossCause::Unacked => "the file was truncated, and the agent ended before they were acked",
        LossCause::Unspecified => "they were gone before they could be read",
    }
}
