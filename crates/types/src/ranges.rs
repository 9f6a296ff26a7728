//! Sets of bytes of a stream, as ranges.

use crate::ByteRange;

/// A set of bytes: ranges that are not empty, are disjoint, don't touch, and stand by their start. As JSON, the list of
/// them; a list in any other form is read as the set of its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<ByteRange>")]
pub struct Ranges(Vec<ByteRange>);

impl Ranges {
    /// No byte.
    pub const EMPTY: Self = Self(Vec::new());

    /// Adds a range.
    pub fn insert(&mut self, range: ByteRange) {
        self.insert_within(range, usize::MAX);
    }

    /// Adds a range unless there would be more than `most` ranges then; false if it was left out.
    pub fn insert_within(&mut self, range: ByteRange, most: usize) -> bool {
        if range.is_empty() {
            return true;
        }
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        if first == last && self.0.len() >= most {
            return false;
        }
        let joined = self.0[first..last]
            .iter()
            .fold(range, |joined, other| ByteRange::new(joined.start.min(other.start), joined.end.max(other.end)));
        self.0.splice(first..last, [joined]);
        true
    }

    /// What is here and not in the other.
    pub fn without(&self, other: &Self) -> Self {
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
    pub fn and(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(ByteRange::len).sum()
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[ByteRange] {
        &self.0
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One range from the first byte to the last; `None` if there is none.
    pub fn bounds(&self) -> Option<ByteRange> {
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

impl From<Vec<ByteRange>> for Ranges {
    fn from(ranges: Vec<ByteRange>) -> Self {
        ranges.into_iter().collect()
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

        /// A set that is full takes what touches one of its ranges, and leaves out all else.
        #[test]
        fn a_bound_holds_and_leaves_out_whole_ranges(parts in set(), most in 1usize..5) {
            let mut set = Ranges::default();
            for (start, len) in parts {
                let (range, before) = (ByteRange::new(start, start + len), set.clone());
                let mut all = before.clone();
                all.insert(range);
                let taken = set.insert_within(range, most);
                prop_assert_eq!(&set, if taken { &all } else { &before });
                prop_assert!(set.as_slice().len() <= most);
                prop_assert!(taken || all.as_slice().len() == most + 1);
            }
        }
    }
}
