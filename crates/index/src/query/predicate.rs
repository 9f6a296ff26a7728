//! A query with its literals read: what an index translates. Here, once for all of them, is decided by each field's
//! kind what a text in the query stands for.

use std::ops::Bound;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use logmesh_types::UnixNanos;

use super::field::{self, Kind};
use super::pattern::{Glyph, Pattern};
use super::text::{is_word_char, lower, tokenize};
use super::{FieldTest, Node, Query, Test};
use crate::FieldTypes;

/// A condition on a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// Every document.
    All,
    /// No document: the value can't be one of the field's.
    Nothing,
    /// All of these.
    And(Vec<Predicate>),
    /// Any of these.
    Or(Vec<Predicate>),
    /// Not this.
    Not(Box<Predicate>),
    /// The field, or a field below it (`field.…`), has a value.
    Exists(String),
    /// `message` has words that match these, side by side. Never empty.
    Words(Vec<WordTest>),
    /// A keyword field; in [`field::FLATTENED`] objects, any value below.
    Keyword {
        /// Its name.
        field: String,
        /// What a value of it must be.
        test: KeywordTest,
    },
    /// A field of numbers between two integers, both included.
    Long {
        /// Its name.
        field: String,
        /// The least.
        from: i64,
        /// The greatest; less than `from` if no number matches.
        to: i64,
    },
    /// A field of floating-point numbers.
    Double {
        /// Its name.
        field: String,
        /// Where the values begin.
        low: Bound<f64>,
        /// Where they end.
        high: Bound<f64>,
    },
    /// A field of times, in nanoseconds since the Unix epoch.
    Date {
        /// Its name.
        field: String,
        /// At or after this.
        from: Option<i64>,
        /// Before this.
        to: Option<i64>,
    },
}

/// What one word must be; lower-cased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WordTest {
    /// This word.
    Is(String),
    /// A word that the pattern matches.
    Like(Pattern),
}

/// What a keyword must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeywordTest {
    /// This text.
    Is(String),
    /// A text that the pattern matches.
    Like(Pattern),
    /// A text in this range, by bytes. At least one end is bounded.
    Range {
        /// Where it begins.
        low: Bound<String>,
        /// Where it ends.
        high: Bound<String>,
    },
}

impl Query {
    /// The query as a condition on the documents of a topic with these declared types.
    pub fn resolve(&self, types: &FieldTypes) -> Predicate {
        resolve(self.root(), types, self.now())
    }
}

fn resolve(node: &Node, types: &FieldTypes, now: UnixNanos) -> Predicate {
    let all = |nodes: &[Node]| nodes.iter().map(|node| resolve(node, types, now)).collect();
    match node {
        Node::All => Predicate::All,
        Node::And(nodes) => Predicate::And(all(nodes)),
        Node::Or(nodes) => Predicate::Or(all(nodes)),
        Node::Not(node) => Predicate::Not(Box::new(resolve(node, types, now))),
        Node::Field(FieldTest { field, test: Test::Exists }) => Predicate::Exists(field.clone()),
        Node::Field(FieldTest { field, test }) => {
            let kind = field::kind(field, types);
            of_kind(kind, field, test, now).unwrap_or(Predicate::Nothing)
        }
    }
}

/// The condition that a test puts on a field of this kind; `None` if no value of the kind can ever pass it.
pub(super) fn of_kind(kind: Kind, field: &str, test: &Test, now: UnixNanos) -> Option<Predicate> {
    match kind {
        Kind::Text => words(test).map(Predicate::Words),
        Kind::Keyword => keyword(field, test),
        Kind::Boolean => match test {
            Test::Is(text) if text == "true" || text == "false" => keyword(field, test),
            _ => None,
        },
        Kind::Long => long(field, test),
        Kind::Double => double(field, test),
        Kind::Date => date(field, test, now),
    }
}

fn keyword(field: &str, test: &Test) -> Option<Predicate> {
    let test = match test {
        Test::Exists => return None,
        Test::Is(text) => KeywordTest::Is(text.clone()),
        Test::Like(pattern) => KeywordTest::Like(pattern.clone()),
        Test::Range { low, high } => KeywordTest::Range { low: low.clone(), high: high.clone() },
    };
    Some(Predicate::Keyword { field: field.to_owned(), test })
}

/// The words that a text or pattern asks for; `None` if there are none.
fn words(test: &Test) -> Option<Vec<WordTest>> {
    let words: Vec<WordTest> = match test {
        Test::Is(text) => tokenize(text).map(WordTest::Is).collect(),
        Test::Like(pattern) => pattern_words(pattern),
        Test::Exists | Test::Range { .. } => return None,
    };
    (!words.is_empty()).then_some(words)
}

/// Cuts a pattern where a text would be cut. A `*` by itself at either end asks for nothing: `/var/log/*` is the words
/// `var log`, whatever follows.
fn pattern_words(pattern: &Pattern) -> Vec<WordTest> {
    let pieces = pattern.glyphs().split(|glyph| matches!(glyph, Glyph::Char(c) if !is_word_char(*c)));
    let pieces: Vec<Pattern> = pieces.filter(|piece| !piece.is_empty()).map(lower_case).collect();
    let Some(first) = pieces.iter().position(|piece| !piece.is_any()) else { return Vec::new() };
    let last = pieces.iter().rposition(|piece| !piece.is_any()).unwrap_or(first);
    let pieces = pieces.into_iter().take(last + 1).skip(first);
    pieces
        .flat_map(|piece| match piece.literal() {
            Some(text) => tokenize(&text).map(WordTest::Is).collect(),
            None => vec![WordTest::Like(piece)],
        })
        .collect()
}

fn lower_case(piece: &[Glyph]) -> Pattern {
    Pattern::new(piece.iter().map(|glyph| match glyph {
        Glyph::Char(c) => Glyph::Char(lower(*c)),
        other => *other,
    }))
}

fn long(field: &str, test: &Test) -> Option<Predicate> {
    let (from, to) = match test {
        Test::Is(text) => {
            let number: i64 = text.parse().ok()?;
            (number, number)
        }
        Test::Range { low, high } => (long_bound(low, i64::MIN, 1)?, long_bound(high, i64::MAX, -1)?),
        Test::Exists | Test::Like(_) => return None,
    };
    Some(Predicate::Long { field: field.to_owned(), from, to })
}

/// The integer that a bound includes. `inwards` is the step towards the range's inside.
fn long_bound(bound: &Bound<String>, unbounded: i64, inwards: i64) -> Option<i64> {
    match bound {
        Bound::Unbounded => Some(unbounded),
        Bound::Included(text) => match text.parse::<i64>() {
            Ok(number) => Some(number),
            Err(_) => finite(text).map(|number| if inwards > 0 { number.ceil() } else { number.floor() } as i64),
        },
        Bound::Excluded(text) => match text.parse::<i64>() {
            Ok(number) => Some(number.saturating_add(inwards)),
            // The next integer inside of 1.5 is 2, and so it is of an excluded 1.0.
            Err(_) => finite(text)
                .map(|number| if inwards > 0 { number.floor() } else { number.ceil() } as i64)
                .map(|number| number.saturating_add(inwards)),
        },
    }
}

fn finite(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn double(field: &str, test: &Test) -> Option<Predicate> {
    let bound = |bound: &Bound<String>| match bound {
        Bound::Unbounded => Some(Bound::Unbounded),
        Bound::Included(text) => finite(text).map(Bound::Included),
        Bound::Excluded(text) => finite(text).map(Bound::Excluded),
    };
    let (low, high) = match test {
        Test::Is(text) => {
            let number = finite(text)?;
            (Bound::Included(number), Bound::Included(number))
        }
        Test::Range { low, high } => (bound(low)?, bound(high)?),
        Test::Exists | Test::Like(_) => return None,
    };
    Some(Predicate::Double { field: field.to_owned(), low, high })
}

fn date(field: &str, test: &Test, now: UnixNanos) -> Option<Predicate> {
    let (from, to) = match test {
        Test::Is(text) => {
            let (start, end) = time_span(text, now)?;
            (Some(start), Some(end))
        }
        Test::Range { low, high } => {
            let from = match low {
                Bound::Unbounded => None,
                Bound::Included(text) => Some(time_span(text, now)?.0),
                Bound::Excluded(text) => Some(time_span(text, now)?.1),
            };
            let to = match high {
                Bound::Unbounded => None,
                Bound::Included(text) => Some(time_span(text, now)?.1),
                Bound::Excluded(text) => Some(time_span(text, now)?.0),
            };
            (from, to)
        }
        Test::Exists | Test::Like(_) => return None,
    };
    Some(Predicate::Date { field: field.to_owned(), from, to })
}

/// The span `[start, end)` that a text names: a whole UTC day for `2026-01-31`, else one nanosecond.
fn time_span(text: &str, now: UnixNanos) -> Option<(i64, i64)> {
    let nanos = |date: Date| {
        let start = date.to_zoned(TimeZone::UTC).ok()?.timestamp();
        i64::try_from(start.as_nanosecond()).ok()
    };
    if text.len() == "2026-01-31".len() {
        let date: Date = text.parse().ok()?;
        return Some((nanos(date)?, nanos(date.tomorrow().ok()?)?));
    }
    let at = UnixNanos::parse_at(text, now).ok()?.0;
    Some((at, at.saturating_add(1)))
}
