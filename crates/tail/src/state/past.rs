//! How the bytes before the checkpoint were cut: kept so that they can be read again and become the same events.
//!
//! Framing is a function of bytes, of the rule's revision, and of the cuts that time made. The bytes lie in the file; of the
//! others as much is kept as the bounds allow, the newest. What lies before [`Past::from`] can't be cut as it was, any more.

use super::{Assignment, Guard, Record};

/// Former assignments of a file that are kept, and cuts before the checkpoint: with them a record stays at some kilobytes.
const MAX_SPANS: usize = 16;
const MAX_CUTS: usize = 64;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Past {
    /// From here on all is known.
    pub from: u64,
    /// Former assignments, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spans: Vec<Span>,
    /// Offsets up to the checkpoint where time ended an event, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cuts: Vec<u64>,
}

/// An assignment, and the offset up to which it held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Span {
    until: u64,
    #[serde(flatten)]
    assignment: Assignment,
}

impl Past {
    /// All is known from this offset on.
    pub(crate) fn since(from: u64) -> Self {
        Self { from, ..Self::default() }
    }

    fn end_span(&mut self, until: u64, assignment: Assignment) {
        if self.spans.last().map_or(self.from, |last| last.until) < until {
            self.spans.push(Span { until, assignment });
        }
        if self.spans.len() > MAX_SPANS {
            self.from = self.from.max(self.spans.remove(0).until);
        }
    }

    fn note_cuts(&mut self, cuts: impl IntoIterator<Item = u64>) {
        self.cuts.extend(cuts);
        let beyond = self.cuts.len().saturating_sub(MAX_CUTS);
        if let Some(last) = self.cuts.drain(..beyond).next_back() {
            self.from = self.from.max(last);
        }
    }

    /// Cuts before the checkpoint that are known.
    pub(crate) fn cuts(&self) -> &[u64] {
        &self.cuts
    }

    /// Under which assignment the byte at this offset was read, and up to where that held; `None`: under the present one.
    pub(crate) fn assignment_at(&self, offset: u64) -> Option<(&Assignment, u64)> {
        let span = self.spans.iter().find(|span| offset < span.until)?;
        Some((&span.assignment, span.until))
    }

    /// True if an event begins here, whatever the bytes say.
    pub(crate) fn is_boundary(&self, offset: u64) -> bool {
        offset == self.from || self.cuts.contains(&offset) || self.spans.iter().any(|span| span.until == offset)
    }
}

impl Record {
    /// What is known of the bytes before the checkpoint. A record of an earlier version knows nothing of them.
    pub(crate) fn past(&mut self) -> &mut Past {
        let acked = self.acked;
        self.past.get_or_insert_with(|| Past::since(acked))
    }

    /// All up to `offset` is durable at the centre.
    pub(crate) fn advance(&mut self, offset: u64, guard: Guard) {
        let passed = self.cuts.iter().take_while(|cut| **cut <= offset).count();
        let passed: Vec<u64> = self.cuts.drain(..passed).collect();
        self.past().note_cuts(passed);
        (self.acked, self.guard) = (offset, guard);
    }

    /// From `offset` on the file is read under another assignment.
    pub(crate) fn reassign(&mut self, offset: u64, assignment: Assignment) {
        let before = std::mem::replace(&mut self.assignment, assignment);
        self.past().end_span(offset, before);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn the_newest_is_kept_and_from_where_is_said() {
        let mut record = record(1);
        (record.acked, record.cuts, record.past) = (0, (1..=100).collect(), None);
        record.advance(99, Guard::of(b""));
        assert_eq!(record.cuts, [100]);
        assert_eq!(record.past().cuts(), (36..=99).collect::<Vec<_>>());
        assert_eq!(record.past().from, 35);
        assert!(record.past().is_boundary(36) && !record.past().is_boundary(34));
        for revision in 0..20 {
            let next = Assignment { revision, ..record.assignment.clone() };
            record.reassign(100 + 10 * revision as u64, next);
        }
        let past = record.past();
        assert_eq!(past.from, 130);
        assert_eq!(past.assignment_at(130).map(|(one, until)| (one.revision, until)), Some((3, 140)));
        assert_eq!(past.assignment_at(289).map(|(one, until)| (one.revision, until)), Some((18, 290)));
        assert_eq!(past.assignment_at(290), None);
        // Nothing was read under it.
        record.reassign(290, Assignment { revision: 30, ..record.assignment.clone() });
        assert_eq!(record.past().assignment_at(290), None);
    }

    #[test]
    fn a_record_of_an_earlier_version_knows_nothing_of_what_is_acked() {
        let mut record = Record { past: None, acked: 9, ..record(1) };
        assert_eq!(*record.past(), Past::since(9));
    }
}
