//! Facets: the most frequent values of a field, and how the counts of several parts of an index become one list, in
//! bounded memory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;

use logmesh_types::TopicName;

use crate::query::field::{self, ID, Kind};
use crate::{FieldTypes, IndexError};

/// The most values of one list.
pub const MAX_FACETS: usize = 1_000;
/// The values of one part of an index (a segment, a shard) that are kept: its most frequent ones.
pub const PART_VALUES: usize = 10_000;

/// The values that [`Counts`] holds at a time, and their bytes.
const MAX_COUNTS: usize = 100_000;
const MAX_COUNTS_BYTES: usize = 64 << 20;
/// From here on, and below its inverse, a number is written with an exponent.
const EXPONENT_FROM: f64 = 1e16;

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facet {
    /// Its text; a query `field:"value"` finds it.
    pub value: String,
    /// How many documents have it.
    pub count: u64,
}

/// The most frequent values of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facets {
    /// The values, by falling count, then by text.
    pub values: Vec<Facet>,
    /// The counts of all values that aren't listed, added up.
    pub others: u64,
    /// 0: the list is exact. Otherwise a count may be too low by this much, and a value that isn't listed may have as
    /// many documents.
    pub error_bound: u64,
}

/// Refuses a field that has no values to be counted. `declared` are the types of the topics that are asked.
///
/// # Errors
/// [`IndexError::NotCountable`]
pub fn check<'a>(
    field: &str,
    declared: impl IntoIterator<Item = (&'a TopicName, &'a FieldTypes)>,
) -> Result<(), IndexError> {
    let refuse = |reason: String| Err(IndexError::NotCountable { reason });
    if field == ID {
        return refuse(format!("each document has its own {field}: count the documents instead"));
    }
    match field::fixed_kind(field) {
        Some(Kind::Text) => return refuse(format!("{field} holds words, not values: search for a word, and count")),
        Some(Kind::Date) => return refuse(format!("{field} holds times: ask for a histogram")),
        _ => {}
    }
    match declared.into_iter().find(|(_, types)| field::kind(field, types) == Kind::Date) {
        Some((topic, _)) => refuse(format!("{field} holds times in topic {topic}: choose other topics")),
        None => Ok(()),
    }
}

/// The text that a value of a field of this kind is listed by, from its text as a keyword: one text for one number.
pub fn value_text(kind: Kind, text: &str) -> Cow<'_, str> {
    let number = if kind == Kind::Double { text.parse().ok() } else { None };
    match number.filter(|number: &f64| number.is_finite()) {
        Some(number) => number_text(number).into(),
        None => text.into(),
    }
}

fn number_text(number: f64) -> String {
    let size = number.abs();
    match size == 0.0 || (1.0 / EXPONENT_FROM..EXPONENT_FROM).contains(&size) {
        true => number.to_string(),
        false => format!("{number:e}"),
    }
}

/// What [`Counts`] counts.
pub trait Key: Ord + Hash {
    /// Its size, in bytes.
    fn bytes(&self) -> usize;
}

impl Key for String {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Key for i64 {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// Counts that are added up in bounded memory: where there are too many keys, the rarer half is dropped.
#[derive(Debug)]
pub struct Counts<K> {
    held: HashMap<K, u64>,
    bytes: usize,
    total: u64,
    /// A count may be too low by this much.
    error: u64,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { held: HashMap::new(), bytes: 0, total: 0, error: 0 }
    }
}

impl<K: Key> Counts<K> {
    /// Adds to the count of a key.
    pub fn add(&mut self, key: K, count: u64) {
        self.total += count;
        let bytes = key.bytes();
        match self.held.get_mut(&key) {
            Some(held) => *held += count,
            None => {
                self.held.insert(key, count);
                self.bytes += bytes;
            }
        }
        while self.held.len() > MAX_COUNTS || (self.bytes > MAX_COUNTS_BYTES && self.held.len() > 1) {
            self.drop_half();
        }
    }

    fn drop_half(&mut self) {
        let mut sorted = by_count(std::mem::take(&mut self.held));
        let dropped = sorted.split_off(sorted.len().div_ceil(2));
        self.error += dropped.first().map_or(0, |(_, count)| *count);
        self.bytes = sorted.iter().map(|(key, _)| key.bytes()).sum();
        self.held = sorted.into_iter().collect();
    }

    /// What was counted, as a part of an index.
    pub fn into_part(self, text: impl Fn(K) -> String) -> FacetPart {
        let left_out = self.total - self.held.values().sum::<u64>();
        let values = self.held.into_iter().map(|(key, count)| (text(key), count)).collect();
        FacetPart { values, left_out, error: self.error }
    }
}

/// By falling count, then by key.
fn by_count<K: Ord>(counts: HashMap<K, u64>) -> Vec<(K, u64)> {
    let mut sorted: Vec<(K, u64)> = counts.into_iter().collect();
    sorted.sort_unstable_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
    sorted
}

/// What one part of an index counted. A value of a document is counted in one part only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FacetPart {
    /// Values with their counts; none that was left out has a greater one.
    pub values: Vec<(String, u64)>,
    /// The counts of the values that were left out, added up.
    pub left_out: u64,
    /// A count may be too low by this much.
    pub error: u64,
}

impl FacetPart {
    /// What a value that isn't listed may have at most.
    fn unlisted(&self) -> u64 {
        let least = self.values.iter().map(|(_, count)| *count).min().unwrap_or(self.left_out);
        if self.left_out == 0 { 0 } else { least + self.error }
    }
}

/// Adds up the parts of an index.
#[derive(Debug, Default)]
pub struct FacetSum {
    counts: Counts<String>,
    parts: usize,
    left_out: u64,
    /// By how much counts may be too low, of a value that each part lists.
    listed_error: u64,
    /// The same, of a value that some parts don't list.
    unlisted_error: u64,
}

impl FacetSum {
    /// Adds a part.
    pub fn add(&mut self, part: FacetPart) {
        if part.values.is_empty() && part.left_out == 0 {
            return;
        }
        self.parts += 1;
        self.left_out += part.left_out;
        self.listed_error += part.error;
        self.unlisted_error += part.unlisted().max(part.error);
        for (value, count) in part.values {
            self.counts.add(value, count);
        }
    }

    /// The list of at most so many values, 1 to [`MAX_FACETS`].
    pub fn finish(self, limit: usize) -> Facets {
        // What the only part lists it has counted.
        let error = if self.parts > 1 { self.unlisted_error } else { self.listed_error };
        let error_bound = error + self.counts.error;
        let total = self.left_out + self.counts.total;
        let mut values = by_count(self.counts.held);
        values.truncate(limit.clamp(1, MAX_FACETS));
        let others = total - values.iter().map(|(_, count)| *count).sum::<u64>();
        let values = values.into_iter().map(|(value, count)| Facet { value, count }).collect();
        Facets { values, others, error_bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FieldType;

    fn part(values: &[(&str, u64)], left_out: u64) -> FacetPart {
        let values = values.iter().map(|(value, count)| ((*value).to_owned(), *count)).collect();
        FacetPart { values, left_out, error: 0 }
    }

    fn listed(facets: &Facets) -> Vec<(&str, u64)> {
        facets.values.iter().map(|facet| (facet.value.as_str(), facet.count)).collect()
    }

    #[test]
    fn parts_are_added_up() {
        let mut sum = FacetSum::default();
        sum.add(part(&[("a", 2), ("c", 5), ("b", 2)], 0));
        sum.add(part(&[], 0));
        let facets = sum.finish(2);
        assert_eq!((listed(&facets), facets.others, facets.error_bound), (vec![("c", 5), ("a", 2)], 2, 0));
        assert_eq!(FacetSum::default().finish(5), Facets::default());
    }

    #[test]
    fn what_a_part_left_out_bounds_the_error() {
        let mut sum = FacetSum::default();
        sum.add(part(&[("a", 9), ("b", 4)], 30));
        let facets = FacetSum::finish(sum, 10);
        assert_eq!((facets.others, facets.error_bound), (30, 0), "one part has counted all that it lists");

        let mut sum = FacetSum::default();
        sum.add(part(&[("a", 9), ("b", 4)], 30));
        sum.add(part(&[("c", 3)], 0));
        sum.add(part(&[("a", 8), ("d", 7)], 1));
        let facets = sum.finish(1);
        assert_eq!((listed(&facets), facets.others, facets.error_bound), (vec![("a", 17)], 45, 11));
    }

    #[test]
    fn counting_takes_bounded_memory() {
        let mut counts = Counts::default();
        for number in 0..250_000_i64 {
            counts.add(number, 1);
            counts.add(-1, 1);
        }
        assert!(counts.held.len() <= MAX_COUNTS);
        let part = counts.into_part(|number| number.to_string());
        assert!(part.error > 0 && part.error < 10, "{}", part.error);
        assert!(part.values.contains(&("-1".to_owned(), 250_000)));
        assert_eq!(part.values.iter().map(|(_, count)| count).sum::<u64>() + part.left_out, 500_000);

        let mut counts = Counts::default();
        for number in 0..100 {
            counts.add(format!("{number}{}", "x".repeat(1 << 20)), 1);
        }
        assert!(counts.bytes <= MAX_COUNTS_BYTES && !counts.held.is_empty());
    }

    #[test]
    fn a_number_has_one_text() {
        for (text, listed) in [
            ("1", "1"),
            ("1.0", "1"),
            ("1e0", "1"),
            ("1.50", "1.5"),
            ("-3.25", "-3.25"),
            ("0.0", "0"),
            ("1e300", "1e300"),
            ("1e-20", "1e-20"),
            ("9007199254740993", "9007199254740992"),
            ("inf", "inf"),
            ("many", "many"),
        ] {
            assert_eq!(value_text(Kind::Double, text), listed);
            assert_eq!(value_text(Kind::Long, text), text);
        }
    }

    #[test]
    fn a_field_without_values_is_refused_with_what_to_do() {
        let (logs, other) = ("logs".parse().unwrap(), "other".parse().unwrap());
        let when: FieldTypes = [("when".to_owned(), FieldType::Date)].into();
        let none = FieldTypes::new();
        let reason = |field: &str| match check(field, [(&other, &none), (&logs, &when)]) {
            Err(IndexError::NotCountable { reason }) => reason,
            other => panic!("{field}: {other:?}"),
        };
        assert!(reason("message").contains("search"));
        assert!(reason("@timestamp").contains("histogram"));
        assert!(reason("_id").contains("count"));
        assert!(reason("attributes.when").contains("topic logs"));
        check("attributes.when", [(&other, &none)]).unwrap();
        check("_topic", []).unwrap();
    }
}
