//! What the documents of a stream come to in one slice, so that an audit need not list them.
//!
//! Within a slice an id is there once. So the same document twice lies in two slices, and then their parts of the stream overlap;
//! and where each slice holds as many bytes as its part of the stream should have, none is missing. But for a missing event, and
//! in the same slice *different* documents, of other bytes, that are as long in all: they give away themselves by the squares of
//! their places. Those of a slice of many gigabytes are compared as exactly as floating point allows; what a foreign document moves
//! by less goes unseen here, and [`IndexReader::spans`](crate::IndexReader::spans) shows it.

use logmesh_types::{ByteRange, Ranges};

/// The documents of a stream in one slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamSum {
    /// The least start of a document.
    pub first: u64,
    /// The greatest start of a document.
    pub last: u64,
    /// Documents.
    pub documents: u64,
    /// Their lengths added up.
    pub bytes: u64,
    /// The squares of their ends less those of their starts, added up: of bytes without a hole the same however they are cut into
    /// documents. As exact as an `f64`.
    pub squares: u128,
}

/// Of two sums of squares, how much may differ: some hundred times what comes of adding up in floating point.
const EXACT_BITS: u32 = 44;

impl StreamSum {
    /// Counts a document that holds these bytes.
    pub fn add(&mut self, range: ByteRange) {
        self.first = if self.documents == 0 { range.start } else { self.first.min(range.start) };
        self.last = self.last.max(range.start);
        self.documents += 1;
        self.bytes = self.bytes.saturating_add(range.len());
        self.squares = self.squares.saturating_add(squares(range));
    }
}

fn squares(range: ByteRange) -> u128 {
    u128::from(range.len()).saturating_mul(u128::from(range.start) + u128::from(range.end))
}

/// True if the documents hold each of these bytes once, and no other, as far as sums can tell.
pub fn hold(sums: &[StreamSum], bytes: &Ranges) -> bool {
    let mut sums = sums.to_vec();
    sums.sort_unstable();
    let starts = sums.iter().map(|sum| sum.first);
    // Each slice answers for what lies between its first document and the next slice's.
    let ends = starts.clone().skip(1).chain([u64::MAX]);
    let before = starts.clone().next().unwrap_or(u64::MAX);
    within(bytes, 0, before).is_empty()
        && sums.iter().zip(ends).all(|(sum, end)| {
            let bytes = within(bytes, sum.first, end);
            let squares = bytes.as_slice().iter().map(|range| squares(*range)).fold(0, u128::saturating_add);
            sum.last < end && sum.bytes == bytes.bytes() && sum.squares.abs_diff(squares) <= squares >> EXACT_BITS
        })
}

/// Those of the bytes that lie in `[start, end)`.
fn within(bytes: &Ranges, start: u64, end: u64) -> Ranges {
    let part: Ranges = [ByteRange::new(start, end)].into_iter().collect();
    bytes.and(&part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(documents: &[ByteRange]) -> StreamSum {
        let mut sum = StreamSum::default();
        documents.iter().for_each(|range| sum.add(*range));
        sum
    }

    proptest! {
        /// However a stream is cut into documents and days, they hold it. With one left out, or one of another day twice, or both,
        /// they don't.
        #[test]
        fn only_each_byte_once_comes_to_the_sum(
            days in prop::collection::vec(prop::collection::vec(1u64..200, 1..20), 1..5),
            start in 0u64..(1 << 40),
            hole in 0u64..3,
            (lost, twice, to) in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let (mut at, mut bytes) = (start, Ranges::default());
            let mut documents: Vec<Vec<ByteRange>> = Vec::new();
            for lengths in &days {
                at += hole;
                documents.push(Vec::new());
                for length in lengths {
                    let range = ByteRange::new(at, at + length);
                    bytes.insert(range);
                    documents.last_mut().unwrap().push(range);
                    at = range.end;
                }
            }
            let sums = |documents: &[Vec<ByteRange>]| {
                documents.iter().filter(|day| !day.is_empty()).map(|day| sum(day)).rev().collect::<Vec<_>>()
            };
            prop_assert!(hold(&sums(&documents), &bytes));
            let from = twice.index(documents.len());
            let doubled = documents[from][twice.index(documents[from].len())];
            // Not on its own day: an id is there once.
            let other = (from + 1 + to.index(documents.len())) % documents.len();
            let mut more = documents.clone();
            if other != from {
                more[other].push(doubled);
                prop_assert!(!hold(&sums(&more), &bytes), "{doubled} is there twice");
            }
            let day = lost.index(documents.len());
            let place = lost.index(documents[day].len());
            let gone = documents[day].remove(place);
            prop_assert!(!hold(&sums(&documents), &bytes), "{gone} is missing");
            if other != from && gone != doubled {
                documents[other].push(doubled);
                prop_assert!(!hold(&sums(&documents), &bytes), "{gone} is missing and {doubled} is there twice");
            }
        }
    }

    proptest! {
        /// One is missing, and another of its length claims bytes that others hold: the lengths are right.
        #[test]
        fn a_document_in_another_ones_place_is_seen(
            lengths in prop::collection::vec(1u64..200, 3..20),
            start in 0u64..(1 << 20),
            (gone, at) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let mut documents = Vec::new();
            for length in &lengths {
                let start = documents.last().map_or(start, |before: &ByteRange| before.end);
                documents.push(ByteRange::new(start, start + length));
            }
            let bytes: Ranges = documents.iter().copied().collect();
            let inner = 1 + gone.index(documents.len() - 2);
            let room = documents[documents.len() - 1].start - start;
            let (gone, moved) = (documents[inner], start + at.index(room as usize) as u64);
            documents[inner] = ByteRange::new(moved, moved + gone.len());
            prop_assert_eq!(hold(&[sum(&documents)], &bytes), moved == gone.start);
        }
    }

    /// As exact as that is in floating point, and no more is asked.
    #[test]
    fn a_slice_of_terabytes_need_not_be_exact() {
        let range = ByteRange::new(1 << 43, 1 << 44);
        let exact = sum(&[range]);
        let (near, off) = ((exact.squares as f64 * (1.0 + 1e-15)) as u128, exact.squares + (1 << 46));
        for (squares, holds) in [(exact.squares, true), (near, true), (off, false)] {
            assert_eq!(hold(&[StreamSum { squares, ..exact }], &[range].into_iter().collect()), holds, "{squares}");
        }
    }

    #[test]
    fn nothing_holds_nothing() {
        assert!(hold(&[], &Ranges::default()));
        assert!(!hold(&[], &[ByteRange::new(0, 1)].into_iter().collect()));
        assert!(!hold(&[sum(&[ByteRange::new(0, 1)])], &Ranges::default()));
    }
}
