//! Compares the documents of a stream, which come by start, with the bytes that they should hold. Memory doesn't grow
//! with the stream.

use logmesh_index::EventSpan;
use logmesh_proto::audit::v1::{Finding, FindingCause};
use logmesh_types::{ByteRange, Ranges};

/// The most findings of a kind that are listed for a stream.
const MAX_FINDINGS: usize = 100;

/// The most ranges of a stream that one repair mends: 160 KB. What lies beyond is found by the next one.
const MAX_RANGES: usize = 10_000;

/// Ranges where something is wrong, by start; neighbours are put together.
#[derive(Debug, Default)]
pub(super) struct Findings {
    listed: Vec<Finding>,
    ranges: Ranges,
}

impl Findings {
    /// Adds a finding that begins at or after the last one's start.
    pub(super) fn add(&mut self, range: ByteRange, cause: FindingCause, detail: impl FnOnce() -> String) {
        if range.is_empty() {
            return;
        }
        self.ranges.insert_within(range, MAX_RANGES);
        if let Some(last) = self.listed.last_mut()
            && last.end_offset >= range.start
        {
            last.end_offset = last.end_offset.max(range.end);
        } else if self.listed.len() < MAX_FINDINGS {
            let (start_offset, end_offset, cause) = (range.start, range.end, cause.into());
            self.listed.push(Finding { start_offset, end_offset, detail: detail(), cause, ..Finding::default() });
        }
    }

    /// The ranges, also of findings that aren't listed any more.
    pub(super) fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// The findings of both, by start.
    pub(super) fn merge(self, other: Self) -> Vec<Finding> {
        self.with(other.listed)
    }

    /// These findings and others that come in any order, by start.
    pub(super) fn with(self, others: Vec<Finding>) -> Vec<Finding> {
        let mut all = self.listed;
        all.extend(others);
        all.sort_by_key(|finding| (finding.start_offset, finding.end_offset));
        all.truncate(MAX_FINDINGS);
        all
    }
}

/// The comparison, under way.
#[derive(Debug)]
pub(super) struct Coverage<'a> {
    /// What documents should hold, and hasn't been passed yet.
    expected: &'a [ByteRange],
    /// The end of what the documents so far hold, and the document that ends there.
    covered: Option<EventSpan>,
    /// Documents that begin before the end of what should be there.
    pub(super) documents: u64,
    end: u64,
    pub(super) gaps: Findings,
    pub(super) doubles: Findings,
}

impl<'a> Coverage<'a> {
    /// Begins to compare with what should be there.
    pub(super) fn new(expected: &'a Ranges) -> Self {
        Self {
            expected: expected.as_slice(),
            covered: None,
            documents: 0,
            end: expected.bounds().map_or(u64::MAX, |bounds| bounds.end),
            gaps: Findings::default(),
            doubles: Findings::default(),
        }
    }

    /// The comparison of a stream that is known to be as it should be.
    pub(super) fn whole(documents: u64) -> Self {
        Self {
            expected: &[],
            covered: None,
            documents,
            end: 0,
            gaps: Findings::default(),
            doubles: Findings::default(),
        }
    }

    /// Takes the next document.
    pub(super) fn add(&mut self, span: EventSpan) {
        self.documents += u64::from(span.range.start < self.end);
        let covered = self.covered.map_or(0, |before| before.range.end);
        if let Some(before) = self.covered
            && span.range.start < covered
        {
            let twice = ByteRange::new(span.range.start, span.range.end.min(covered));
            let same = before.id.is_some() && before.id == span.id;
            let cause = if same { FindingCause::SameDocument } else { FindingCause::Overlap };
            self.doubles.add(twice, cause, || explain_double(&before, &span));
        }
        self.gap(covered, span.range.start);
        if span.range.end > covered || self.covered.is_none() {
            self.covered = Some(span);
        }
    }

    /// Looks at what lies beyond the last document.
    pub(super) fn finish(&mut self) {
        self.gap(self.covered.map_or(0, |before| before.range.end), u64::MAX);
    }

    /// Notes what of `[from, to)` should be there, since no document holds it.
    fn gap(&mut self, from: u64, to: u64) {
        while let Some(expected) = self.expected.first()
            && expected.start < to
        {
            let missing = ByteRange::new(expected.start.max(from), expected.end.min(to));
            let detail = || "booked as indexed, and no document holds it".to_owned();
            self.gaps.add(missing, FindingCause::NotIndexed, detail);
            if expected.end > to {
                break;
            }
            self.expected = &self.expected[1..];
        }
    }
}

fn explain_double(before: &EventSpan, span: &EventSpan) -> String {
    let name = |span: &EventSpan| span.id.map_or_else(|| "of a foreign id".to_owned(), |id| id.to_string());
    if before.id.is_some() && before.id == span.id {
        return format!("document {} is in the index more than once", name(span));
    }
    format!("documents {} {} and {} {} claim the same bytes", name(before), before.range, name(span), span.range)
}

#[cfg(test)]
mod tests {
    use logmesh_types::DocId;
    use proptest::prelude::*;

    use super::*;

    fn span(start: u64, end: u64, id: u8) -> EventSpan {
        EventSpan { range: ByteRange::new(start, end), id: (id < 255).then(|| DocId::from_bytes([id; 16])) }
    }

    type Places = Vec<(u64, u64)>;

    fn places(findings: &Findings) -> Places {
        findings.listed.iter().map(|finding| (finding.start_offset, finding.end_offset)).collect()
    }

    fn compare(expected: &[(u64, u64)], spans: &[EventSpan]) -> (Places, Places) {
        let expected = expected.iter().map(|(start, end)| ByteRange::new(*start, *end)).collect();
        let mut coverage = Coverage::new(&expected);
        spans.iter().for_each(|span| coverage.add(*span));
        coverage.finish();
        (places(&coverage.gaps), places(&coverage.doubles))
    }

    #[test]
    fn every_byte_once_is_clean() {
        assert_eq!(compare(&[(0, 20)], &[span(0, 5, 1), span(5, 20, 2)]), (vec![], vec![]));
        assert_eq!(compare(&[], &[]), (vec![], vec![]));
        assert_eq!(
            compare(&[(10, 20)], &[span(0, 5, 1), span(10, 25, 2)]),
            (vec![], vec![]),
            "more than booked is fine"
        );
    }

    #[test]
    fn what_is_missing_is_named_by_its_range() {
        assert_eq!(compare(&[(0, 20)], &[span(0, 5, 1), span(9, 15, 2)]).0, [(5, 9), (15, 20)]);
        assert_eq!(compare(&[(3, 5), (8, 9)], &[]).0, [(3, 5), (8, 9)]);
    }

    #[test]
    fn what_is_there_twice_is_named_by_its_range() {
        let spans = [span(0, 5, 1), span(0, 5, 1), span(5, 9, 2), span(7, 20, 3)];
        assert_eq!(compare(&[(0, 20)], &spans), (vec![], vec![(0, 5), (7, 9)]));
        let mut coverage_of_a_long_one = [span(0, 20, 1), span(3, 5, 2), span(8, 9, 3)].to_vec();
        coverage_of_a_long_one.push(span(20, 21, 4));
        assert_eq!(compare(&[(0, 21)], &coverage_of_a_long_one), (vec![], vec![(3, 5), (8, 9)]));
    }

    #[test]
    fn documents_of_foreign_ids_are_none_and_the_same() {
        let nothing = Ranges::default();
        let mut coverage = Coverage::new(&nothing);
        [span(0, 5, 255), span(0, 5, 255), span(0, 5, 1)].into_iter().for_each(|span| coverage.add(span));
        let one = &coverage.doubles.listed[0];
        assert_eq!(one.cause(), FindingCause::Overlap);
        assert_eq!(one.detail, "documents of a foreign id [0, 5) and of a foreign id [0, 5) claim the same bytes");
    }

    #[test]
    fn findings_are_bounded() {
        let expected: Vec<(u64, u64)> = (0..500).map(|at| (at * 10, at * 10 + 5)).collect();
        assert_eq!(compare(&expected, &[]).0.len(), MAX_FINDINGS);
    }

    proptest! {
        /// Against counting documents byte by byte.
        #[test]
        fn it_agrees_with_counting_bytes(
            expected in prop::collection::vec((0u64..60, 1u64..9), 0..8),
            mut spans in prop::collection::vec((0u64..60, 1u64..9), 0..16),
        ) {
            spans.sort_unstable();
            let mut counts = [0u32; 80];
            let mut wanted = [false; 80];
            spans.iter().for_each(|(at, len)| (*at..at + len).for_each(|byte| counts[byte as usize] += 1));
            expected.iter().for_each(|(at, len)| (*at..at + len).for_each(|byte| wanted[byte as usize] = true));
            let spans: Vec<EventSpan> = spans.iter().map(|(at, len)| span(*at, at + len, 0)).collect();
            let set: Ranges = expected.iter().map(|(at, len)| ByteRange::new(*at, at + len)).collect();
            let set: Vec<(u64, u64)> = set.as_slice().iter().map(|range| (range.start, range.end)).collect();
            let (gaps, doubles) = compare(&set, &spans);
            let within = |places: &[(u64, u64)], byte: u64| places.iter().any(|(start, end)| (*start..*end).contains(&byte));
            for byte in 0..80 {
                prop_assert_eq!(within(&gaps, byte), wanted[byte as usize] && counts[byte as usize] == 0, "gap at {}", byte);
                prop_assert_eq!(within(&doubles, byte), counts[byte as usize] > 1, "double at {}", byte);
            }
        }
    }
}
