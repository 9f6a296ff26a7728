//! Evaluates a query on one document: for the live tail, and what every index is tested against.

use std::ops::Bound;

use serde_json::{Map, Value};

use super::Query;
use super::field::{self, MESSAGE};
use super::predicate::{KeywordTest, Predicate, WordTest};
use super::text::tokenize;
use crate::FieldTypes;

/// True if the document is one that the query finds. `types` are those of the document's topic. To test many documents,
/// [`Query::resolve`] once and use [`Predicate::matches`].
///
/// `_id` and `_topic` are looked up in the document like any field: a caller that wants them found adds them.
pub fn matches(query: &Query, types: &FieldTypes, document: &Map<String, Value>) -> bool {
    query.resolve(types).matches(document)
}

impl Predicate {
    /// True if the document meets the condition.
    pub fn matches(&self, document: &Map<String, Value>) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::And(all) => all.iter().all(|one| one.matches(document)),
            Self::Or(any) => any.iter().any(|one| one.matches(document)),
            Self::Not(not) => !not.matches(document),
            Self::Exists(name) => any_leaf(document, |path, _| path == name || field::is_below(path, name)),
            Self::Words(words) => any_leaf(document, |path, value| path == MESSAGE && has_words(value, words)),
            Self::Keyword { field, test } => any_leaf(document, |path, value| {
                let named = path == field || field::flattened_root(path) == Some(field);
                named && field::keyword_text(value).is_some_and(|text| test.matches(&text))
            }),
            Self::Long { field, from, to } => {
                any_leaf(document, |path, value| path == field && in_longs(value, *from, *to))
            }
            Self::Double { field, low, high } => any_leaf(document, |path, value| {
                path == field && value.as_f64().is_some_and(|number| in_bounds(&number, low, high))
            }),
            Self::Date { field, from, to } => any_leaf(document, |path, value| {
                path == field
                    && field::document_time(value)
                        .is_some_and(|time| from.is_none_or(|from| time >= from) && to.is_none_or(|to| time < to))
            }),
        }
    }
}

impl KeywordTest {
    /// True if this text passes.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Is(wanted) => wanted == text,
            Self::Like(pattern) => pattern.matches(text),
            Self::Range { low, high } => in_bounds(text.as_bytes(), &as_bytes(low), &as_bytes(high)),
        }
    }
}

fn as_bytes(bound: &Bound<String>) -> Bound<&[u8]> {
    bound.as_ref().map(|text| text.as_bytes())
}

fn in_bounds<T: PartialOrd + ?Sized, B: std::borrow::Borrow<T>>(value: &T, low: &Bound<B>, high: &Bound<B>) -> bool {
    let above = match low {
        Bound::Unbounded => true,
        Bound::Included(low) => value >= low.borrow(),
        Bound::Excluded(low) => value > low.borrow(),
    };
    let below = match high {
        Bound::Unbounded => true,
        Bound::Included(high) => value <= high.borrow(),
        Bound::Excluded(high) => value < high.borrow(),
    };
    above && below
}

fn any_leaf(document: &Map<String, Value>, mut test: impl FnMut(&str, &Value) -> bool) -> bool {
    let mut found = false;
    field::for_each_leaf(document, &mut |path, value| found = found || test(path, value));
    found
}

fn in_longs(value: &Value, from: i64, to: i64) -> bool {
    match value.as_i64() {
        Some(number) => from <= number && number <= to,
        None => value.as_f64().is_some_and(|number| from as f64 <= number && number <= to as f64),
    }
}

/// True if the words stand side by side in the text.
fn has_words(value: &Value, words: &[WordTest]) -> bool {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let tokens: Vec<String> = tokenize(&text).collect();
    tokens.windows(words.len()).any(|window| {
        window.iter().zip(words).all(|(token, word)| match word {
            WordTest::Is(wanted) => wanted == token,
            WordTest::Like(pattern) => pattern.matches(token),
        })
    })
}
