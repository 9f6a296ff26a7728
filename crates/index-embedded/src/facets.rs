//! Counts the values of a field. Blocking: called from blocking tasks only.
//!
//! A keyword's values are one stretch of each segment's term dictionary, and each value has the list of its documents:
//! those are counted that the selection holds, and that aren't deleted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use logmesh_index::facets::{Counts, FacetPart, FacetSum, PART_VALUES, check, value_text};
use logmesh_index::query::field::{self, Kind, TOPIC};
use logmesh_index::{Facets, IndexError, Selection};
use tantivy::columnar::Column;
use tantivy::postings::TermInfo;
use tantivy::query::Weight;
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{BitSet, DocSet, InvertedIndexReader, SegmentReader, TERMINATED, TantivyError};

use crate::catalog::Catalog;
use crate::live::each_live;
use crate::schema::value_term;
use crate::search::Part;

/// The bytes of the values of one segment that are kept.
const MAX_PART_BYTES: usize = 16 << 20;

impl Catalog {
    pub(crate) fn facets(&self, selection: &Selection, field: &str, limit: usize) -> Result<Facets, IndexError> {
        check(field, &self.types_of(&selection.topics))?;
        let mut sum = FacetSum::default();
        for part in self.parts(selection)? {
            let kind = field::kind(field, &self.types(&part.slice.topic));
            self.for_each_segment(&part, selection, &mut |_, weight, segment| {
                sum.add(of_segment(&part, field, kind, weight, segment)?);
                Ok(())
            })?;
        }
        Ok(sum.finish(limit))
    }
}

fn of_segment(
    part: &Part,
    name: &str,
    kind: Kind,
    weight: &dyn Weight,
    segment: &SegmentReader,
) -> tantivy::Result<FacetPart> {
    if name == TOPIC {
        let count = u64::from(weight.count(segment)?);
        let values = if count > 0 { vec![(part.slice.topic.to_string(), count)] } else { Vec::new() };
        return Ok(FacetPart { values, ..FacetPart::default() });
    }
    match part.fields.column(name) {
        Some(column) => of_column(column, weight, segment),
        // What stands before the first NUL of a term is its path.
        None if name.contains('\0') => Ok(FacetPart::default()),
        None => of_terms(part.fields.values, name, kind, weight, segment),
    }
}

/// The integers of a column.
fn of_column(column: Field, weight: &dyn Weight, segment: &SegmentReader) -> tantivy::Result<FacetPart> {
    let numbers: Column<i64> = segment.fast_fields().i64(segment.schema().get_field_name(column))?;
    let mut counts = Counts::default();
    let mut of_document = Vec::new();
    each_live(weight, segment, &mut |docs| {
        for doc in docs {
            of_document.clear();
            of_document.extend(numbers.values_for_doc(*doc));
            of_document.sort_unstable();
            of_document.dedup();
            of_document.iter().for_each(|number| counts.add(*number, 1));
        }
    })?;
    Ok(counts.into_part(|number| number.to_string()))
}

/// The keywords of a path.
fn of_terms(
    values: Field,
    path: &str,
    kind: Kind,
    weight: &dyn Weight,
    segment: &SegmentReader,
) -> tantivy::Result<FacetPart> {
    let docs = Docs::of(weight, segment)?;
    if docs.count == 0 {
        return Ok(FacetPart::default());
    }
    let index = segment.inverted_index(values)?;
    let prefix = value_term(path, "");
    // `path NUL` ends where `path SOH` begins.
    let mut terms = index.terms().range().ge(&prefix).lt(format!("{path}\u{1}")).into_stream()?;
    let (mut top, mut numbers) = (Top::default(), Counts::default());
    while let Some((term, info)) = terms.next() {
        let count = docs.count_in(&index, info)?;
        let value = term.get(prefix.len()..).and_then(|value| str::from_utf8(value).ok());
        let value = value.ok_or_else(|| TantivyError::InternalError(format!("a value of {path} is no text")))?;
        match kind {
            // Several terms may be one number.
            Kind::Double if count > 0 => numbers.add(value_text(kind, value).into_owned(), count),
            _ => top.offer(value, count),
        }
    }
    Ok(if kind == Kind::Double { numbers.into_part(|value| value) } else { top.into_part() })
}

/// The documents of a segment that a selection holds.
struct Docs {
    set: BitSet,
    count: u32,
    /// Every document of the segment, and none is deleted: the lists' lengths are the counts.
    all: bool,
}

impl Docs {
    fn of(weight: &dyn Weight, segment: &SegmentReader) -> tantivy::Result<Self> {
        let mut docs = Self { set: BitSet::with_max_value(segment.max_doc()), count: 0, all: false };
        each_live(weight, segment, &mut |found| {
            for doc in found {
                docs.set.insert(*doc);
            }
        })?;
        docs.count = docs.set.len() as u32;
        docs.all = docs.count == segment.max_doc();
        Ok(docs)
    }

    /// How many of them have the term.
    fn count_in(&self, index: &InvertedIndexReader, term: &TermInfo) -> tantivy::Result<u64> {
        if self.all {
            return Ok(u64::from(term.doc_freq));
        }
        let mut postings = index.read_postings_from_terminfo(term, IndexRecordOption::Basic)?;
        let mut count = 0;
        let mut doc = postings.doc();
        while doc != TERMINATED {
            count += u64::from(self.set.contains(doc));
            doc = postings.advance();
        }
        Ok(count)
    }
}

/// The most frequent of values that come once each, at most [`PART_VALUES`] and [`MAX_PART_BYTES`].
#[derive(Default)]
struct Top {
    /// The rarest on top, of those the last by text.
    kept: BinaryHeap<Reverse<(u64, Reverse<String>)>>,
    bytes: usize,
    total: u64,
    /// The greatest count that was dropped for want of room: what comes as seldom is dropped too, short as it may be, so
    /// that nothing left out has a greater count than what is kept.
    dropped: u64,
}

impl Top {
    fn offer(&mut self, value: &str, count: u64) {
        self.total += count;
        let rarest = self.kept.peek().map_or(0, |Reverse((count, _))| *count);
        // They come in the order of their texts: of those of one count the first are kept.
        if count <= self.dropped || (self.kept.len() == PART_VALUES && count <= rarest) {
            return;
        }
        self.bytes += value.len();
        self.kept.push(Reverse((count, Reverse(value.to_owned()))));
        while self.kept.len() > PART_VALUES || (self.bytes > MAX_PART_BYTES && self.kept.len() > 1) {
            let Some(Reverse((count, Reverse(value)))) = self.kept.pop() else { break };
            self.bytes -= value.len();
            self.dropped = self.dropped.max(count);
        }
    }

    fn into_part(self) -> FacetPart {
        let values = self.kept.into_iter().map(|Reverse((count, Reverse(value)))| (value, count));
        let values: Vec<(String, u64)> = values.collect();
        let left_out = self.total - values.iter().map(|(_, count)| *count).sum::<u64>();
        FacetPart { values, left_out, error: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_values_of_a_segment_are_kept() {
        let mut top = Top::default();
        for number in 0..PART_VALUES as u64 + 500 {
            top.offer(&format!("{number:05}"), 1 + u64::from(number % 100 == 0));
        }
        let part = top.into_part();
        assert_eq!((part.values.len(), part.left_out), (PART_VALUES, 500));
        assert!(part.values.contains(&("10400".to_owned(), 2)) && part.values.contains(&("00001".to_owned(), 1)));
        assert!(!part.values.iter().any(|(value, _)| value == "10499"));
    }

    #[test]
    fn long_values_are_bounded_by_their_bytes() {
        let mut top = Top::default();
        for number in 0..100 {
            top.offer(&format!("{number:05}{}", "x".repeat(1 << 20)), 1);
        }
        assert!(top.bytes <= MAX_PART_BYTES && top.kept.len() == 15, "{}", top.kept.len());
        top.offer("seldom and short", 1);
        assert_eq!(top.into_part().left_out, 86, "what was dropped comes as often");
        let mut top = Top::default();
        top.offer(&"x".repeat(2 * MAX_PART_BYTES), 1);
        assert_eq!(top.into_part().values.len(), 1, "one is kept whatever its size");
    }
}
