//! Predicates in Elasticsearch's query language. Everything is a filter: nothing is scored.

use std::ops::Bound;

use logmesh_index::query::field::{self, ID, Kind, MESSAGE, TIMESTAMP, TOPIC};
use logmesh_index::query::{Glyph, KeywordTest, Pattern, Predicate, WordTest};
use logmesh_index::{FieldTypes, IndexError};
use logmesh_types::UnixNanos;
use serde_json::{Value, json};

use crate::form::{NO_TIME, value_term};
use crate::template::{ANY_LABEL, DATE_FORMAT, EARLY, LABELS, PATHS, Place, VALUES, field_names, place};

/// The query for a predicate on topics with these declared fields. Tests of `_topic` were answered before, by
/// [`crate::scope`].
pub(crate) fn query(predicate: &Predicate, types: &FieldTypes) -> Result<Value, IndexError> {
    Ok(match predicate {
        Predicate::All => json!({ "match_all": {} }),
        Predicate::Nothing => nothing(),
        Predicate::And(all) => {
            let all: Vec<Value> = all.iter().map(|one| query(one, types)).collect::<Result<_, _>>()?;
            json!({ "bool": { "filter": all } })
        }
        Predicate::Or(any) => any_of(any.iter().map(|one| query(one, types)).collect::<Result<_, _>>()?),
        Predicate::Not(not) => match not.as_ref() {
            // Elasticsearch takes 30 levels of nesting.
            Predicate::Not(twice) => query(twice, types)?,
            not => json!({ "bool": { "must_not": [query(not, types)?] } }),
        },
        Predicate::Exists(name) => exists(name, types),
        Predicate::Words(words) => self::words(words),
        Predicate::Keyword { field, test } => keyword(field, test, types)?,
        Predicate::Long { from, to, .. } if from > to => nothing(),
        Predicate::Long { field, from, to } => json!({ "range": { field: { "gte": from, "lte": to } } }),
        Predicate::Double { field, low, high } => range(field, low.as_ref().map(double), high.as_ref().map(double)),
        Predicate::Date { field, from, to } => date(field, *from, *to),
    })
}

/// `@timestamp` or another time in `[from, to)`.
pub(crate) fn date(field: &str, from: Option<i64>, to: Option<i64>) -> Value {
    let mut any = Vec::new();
    if to.is_none_or(|to| to > 0) {
        // A bound before 1970 makes Elasticsearch find nothing at all.
        let mut bounds = json!({ "gte": UnixNanos(from.unwrap_or(0).max(0)).to_string(), "format": DATE_FORMAT });
        if let Some(to) = to {
            bounds["lt"] = UnixNanos(to).to_string().into();
        }
        any.push(json!({ "range": { field: bounds } }));
    }
    if field == TIMESTAMP && from.is_none_or(|from| from < 0) {
        let from = from.unwrap_or(NO_TIME).max(NO_TIME + 1);
        any.push(json!({ "range": { EARLY: { "gte": from, "lt": to.unwrap_or(0).min(0) } } }));
    }
    any_of(any)
}

fn double(number: &f64) -> Value {
    Value::from(*number)
}

fn nothing() -> Value {
    json!({ "match_none": {} })
}

/// Any of these.
pub(crate) fn any_of(mut any: Vec<Value>) -> Value {
    match any.pop() {
        None => nothing(),
        Some(only) if any.is_empty() => only,
        Some(last) => {
            any.push(last);
            json!({ "bool": { "should": any, "minimum_should_match": 1 } })
        }
    }
}

fn exists(name: &str, types: &FieldTypes) -> Value {
    if name == ID || name == TOPIC {
        return json!({ "match_all": {} });
    }
    let mut any = vec![json!({ "term": { PATHS: name } })];
    // What is too long for its field, or isn't of its type, is noted in `_ignored` only.
    let mut has = |field: &str| {
        any.push(json!({ "exists": { "field": field } }));
        any.push(json!({ "term": { "_ignored": field } }));
    };
    for field in field_names(types).filter(|field| field == name || field::is_below(field, name)) {
        has(&field);
    }
    if name == LABELS {
        has(ANY_LABEL);
    } else if field::is_below(name, LABELS) && !name.contains('*') {
        has(name);
        any.push(json!({ "exists": { "field": format!("{name}.*") } }));
        any.push(json!({ "prefix": { "_ignored": format!("{name}.") } }));
    }
    any_of(any)
}

/// Words side by side in the message.
fn words(words: &[WordTest]) -> Value {
    if let [word] = words {
        return match word {
            WordTest::Is(word) => json!({ "term": { MESSAGE: word } }),
            WordTest::Like(pattern) => json!({ "wildcard": { MESSAGE: { "value": wildcard("", pattern) } } }),
        };
    }
    let exact: Option<Vec<&str>> = words
        .iter()
        .map(|word| match word {
            WordTest::Is(word) => Some(word.as_str()),
            WordTest::Like(_) => None,
        })
        .collect();
    match exact {
        // The words are cut already; none has white space.
        Some(words) => json!({ "match_phrase": { MESSAGE: { "query": words.join(" "), "analyzer": "whitespace" } } }),
        None => {
            let clauses: Vec<Value> = words.iter().map(span).collect();
            json!({ "span_near": { "clauses": clauses, "slop": 0, "in_order": true } })
        }
    }
}

fn span(word: &WordTest) -> Value {
    match word {
        WordTest::Is(word) => json!({ "span_term": { MESSAGE: word } }),
        // Any word at all; never the first or last.
        WordTest::Like(pattern) if pattern.is_any() => json!({ "span_gap": { MESSAGE: 1 } }),
        WordTest::Like(pattern) => {
            json!({ "span_multi": { "match": { "wildcard": { MESSAGE: { "value": wildcard("", pattern) } } } } })
        }
    }
}

fn keyword(name: &str, test: &KeywordTest, types: &FieldTypes) -> Result<Value, IndexError> {
    if name == ID {
        return match test {
            KeywordTest::Is(id) => Ok(json!({ "ids": { "values": [id] } })),
            KeywordTest::Like(_) | KeywordTest::Range { .. } => {
                let reason = "Elasticsearch finds _id by its whole value only: write all of it".to_owned();
                Err(IndexError::Unsupported { reason })
            }
        };
    }
    Ok(match place(name, types) {
        Place::Field(Kind::Keyword | Kind::Boolean) if !name.starts_with(field::ATTRIBUTES) => in_field(name, test),
        // A document that was written before the field was declared, or that is wrapped, has terms of ours.
        Place::Field(_) | Place::Label => any_of(vec![in_field(name, test), in_values(name, test)]),
        Place::Derived if name == LABELS => any_of(vec![in_field(ANY_LABEL, test), in_values(name, test)]),
        Place::Derived => in_values(name, test),
    })
}

fn in_field(name: &str, test: &KeywordTest) -> Value {
    match test {
        KeywordTest::Is(value) => json!({ "term": { name: value } }),
        KeywordTest::Like(pattern) => json!({ "wildcard": { name: { "value": wildcard("", pattern) } } }),
        KeywordTest::Range { low, high } => range(name, texts(low), texts(high)),
    }
}

/// The keyword among our own terms.
fn in_values(name: &str, test: &KeywordTest) -> Value {
    let term = |value: &String| Value::from(value_term(name, value));
    match test {
        KeywordTest::Is(value) => json!({ "term": { VALUES: value_term(name, value) } }),
        KeywordTest::Like(pattern) => {
            json!({ "wildcard": { VALUES: { "value": wildcard(&value_term(name, ""), pattern) } } })
        }
        KeywordTest::Range { low, high } => {
            let low = match low.as_ref().map(term) {
                Bound::Unbounded => Bound::Included(Value::from(value_term(name, ""))),
                bounded => bounded,
            };
            let high = match high.as_ref().map(term) {
                // `path NUL` ends where `path SOH` begins.
                Bound::Unbounded => Bound::Excluded(Value::from(format!("{name}\u{1}"))),
                bounded => bounded,
            };
            range(VALUES, low, high)
        }
    }
}

fn texts(bound: &Bound<String>) -> Bound<Value> {
    bound.as_ref().map(|text| Value::from(text.as_str()))
}

fn range(name: &str, low: Bound<Value>, high: Bound<Value>) -> Value {
    let mut bounds = json!({});
    match low {
        Bound::Unbounded => {}
        Bound::Included(low) => bounds["gte"] = low,
        Bound::Excluded(low) => bounds["gt"] = low,
    }
    match high {
        Bound::Unbounded => {}
        Bound::Included(high) => bounds["lte"] = high,
        Bound::Excluded(high) => bounds["lt"] = high,
    }
    json!({ "range": { name: bounds } })
}

/// A literal text and then a pattern, as Elasticsearch writes patterns.
fn wildcard(literal: &str, pattern: &Pattern) -> String {
    let mut out = String::new();
    let literal = literal.chars().map(Glyph::Char);
    for glyph in literal.chain(pattern.glyphs().iter().copied()) {
        match glyph {
            Glyph::Char(c) => {
                if matches!(c, '*' | '?' | '\\') {
                    out.push('\\');
                }
                out.push(c);
            }
            Glyph::One => out.push('?'),
            Glyph::Many => out.push('*'),
        }
    }
    out
}
