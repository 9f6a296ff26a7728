//! Sets of bytes of a stream, as ranges.

use logmesh_types::ByteRange;

/// A set of bytes: disjoint ranges that don't touch, by start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<ByteRange>);

impl Ranges {
    /// Adds a range.
    pub(super) fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        let joined = self.0[first..last]
            .iter()
            .fold(range, |joined, other| ByteRange::new(joined.start.min(other.start), joined.end.max(other.end)));
        self.0.splice(first..last, [joined]);
    }

    /// What is here and not in the other.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for range in &self.0 {
            let mut start = range.start;
            let first = other.0.partition_point(|cut| cut.end <= start);
            for cut in other.0[first..].iter().take_while(|cut| cut.start < range.end) {
                left.push(ByteRange::new(start, cut.start));
                start = cut.end;
            }
            left.push(ByteRange::new(start, range.end));
        }
        left.retain(|range| !range.is_empty());
        Self(left)
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// How many bytes there are.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(ByteRange::len).sum()
    }

    /// The ranges.
    pub(super) fn as_slice(&self) -> &[ByteRange] {
        &self.0
    }

    /// One range from the first byte to the last; `None` if there is none.
    pub(super) fn bounds(&self) -> Option<ByteRange> {
        Some(ByteRange::new(self.0.first()?.start, self.0.last()?.end))
    }
}

impl FromIterator<ByteRange> for Ranges {
    fn from_iter<I: IntoIterator<Item = ByteRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0u64..50, 0u64..9), 0..12)
    }

    fn ranges(parts: &[(u64, u64)]) -> Ranges {
        parts.iter().map(|(start, len)| ByteRange::new(*start, start + len)).collect()
    }

    fn bytes(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.as_slice().iter().flat_map(|range| range.start..range.end).collect()
    }

    proptest! {
        #[test]
        fn they_are_sets_of_bytes(a in set(), b in set()) {
            let (a, b) = (ranges(&a), ranges(&b));
            let left = a.without(&b);
            prop_assert_eq!(bytes(&left), &bytes(&a) - &bytes(&b));
            prop_assert_eq!(bytes(&a.and(&b)), &bytes(&a) & &bytes(&b));
            prop_assert_eq!(left.bytes(), bytes(&left).len() as u64);
            let both: Ranges = a.as_slice().iter().chain(b.as_slice()).copied().collect();
            prop_assert_eq!(bytes(&both), &bytes(&a) | &bytes(&b));
            for set in [&left, &both] {
                prop_assert!(set.as_slice().windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
