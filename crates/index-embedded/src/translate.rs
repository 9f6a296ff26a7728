//! Predicates in tantivy's queries.

use std::ops::Bound;

use logmesh_index::query::field::{self, ATTRIBUTES, ID, TOPIC};
use logmesh_index::query::{Glyph, KeywordTest, Pattern, Predicate, WordTest};
use logmesh_types::TopicName;
use tantivy::Term;
use tantivy::fastfield::FastValue;
use tantivy::query::{
    AllQuery, AutomatonWeight, BooleanQuery, EmptyQuery, EnableScoring, FastFieldRangeQuery, InvertedIndexRangeQuery,
    Occur, PhraseQuery, Query, RegexPhraseQuery, TermQuery, Weight,
};
use tantivy::schema::{Field, IndexRecordOption};

use crate::automaton::PatternAutomaton;
use crate::complement::NotQuery;
use crate::schema::{Fields, value_term};

/// Translates for the slices of one topic.
pub(crate) struct Translator<'a> {
    pub(crate) fields: &'a Fields,
    pub(crate) topic: &'a TopicName,
}

type BoxedQuery = Box<dyn Query>;

impl Translator<'_> {
    pub(crate) fn query(&self, predicate: &Predicate) -> BoxedQuery {
        match predicate {
            Predicate::All => Box::new(AllQuery),
            Predicate::Nothing => Box::new(EmptyQuery),
            Predicate::And(all) => self.join(Occur::Must, all),
            Predicate::Or(any) => self.join(Occur::Should, any),
            Predicate::Not(not) => Box::new(NotQuery(self.query(not))),
            Predicate::Exists(name) if name == ID || name == TOPIC => Box::new(AllQuery),
            Predicate::Exists(name) => term(self.fields.paths, name),
            Predicate::Words(words) => self.words(words),
            Predicate::Keyword { field, test } => self.keyword(field, test),
            Predicate::Long { field, from, to } if from <= to => {
                self.number(field, self.fields.numbers, Bound::Included(*from), Bound::Included(*to))
            }
            Predicate::Long { .. } => Box::new(EmptyQuery),
            Predicate::Double { field, low, high } => self.number(field, self.fields.numbers, *low, *high),
            Predicate::Date { field, from, to } => {
                let from = from.map_or(Bound::Unbounded, Bound::Included);
                let to = to.map_or(Bound::Unbounded, Bound::Excluded);
                self.number(field, self.fields.dates, from, to)
            }
        }
    }

    fn join(&self, occur: Occur, predicates: &[Predicate]) -> BoxedQuery {
        let queries = predicates.iter().map(|predicate| (occur, self.query(predicate))).collect();
        Box::new(BooleanQuery::new(queries))
    }

    fn words(&self, words: &[WordTest]) -> BoxedQuery {
        let field = self.fields.message;
        if let [word] = words {
            return match word {
                WordTest::Is(word) => term(field, word),
                WordTest::Like(pattern) => like(field, "", pattern),
            };
        }
        let exact: Option<Vec<Term>> = words
            .iter()
            .map(|word| match word {
                WordTest::Is(word) => Some(Term::from_field_text(field, word)),
                WordTest::Like(_) => None,
            })
            .collect();
        match exact {
            Some(terms) => Box::new(PhraseQuery::new(terms)),
            None => Box::new(RegexPhraseQuery::new(field, words.iter().map(regex).collect())),
        }
    }

    fn keyword(&self, field: &str, test: &KeywordTest) -> BoxedQuery {
        if field == TOPIC {
            return if test.matches(self.topic.as_str()) { Box::new(AllQuery) } else { Box::new(EmptyQuery) };
        }
        let (column, prefix) = match field {
            ID => (self.fields.id, String::new()),
            _ => (self.fields.values, value_term(field, "")),
        };
        match test {
            KeywordTest::Is(value) => term(column, &format!("{prefix}{value}")),
            KeywordTest::Like(pattern) => like(column, &prefix, pattern),
            KeywordTest::Range { low, high } => {
                let bound = |text: &String| Term::from_field_text(column, &format!("{prefix}{text}"));
                let low = match low.as_ref().map(bound) {
                    Bound::Unbounded => Bound::Included(Term::from_field_text(column, &prefix)),
                    bounded => bounded,
                };
                let high = match high.as_ref().map(bound) {
                    // `path NUL` ends where `path SOH` begins; ids are ASCII.
                    Bound::Unbounded if field == ID => Bound::Excluded(Term::from_field_text(column, "\u{7f}")),
                    Bound::Unbounded => Bound::Excluded(Term::from_field_text(column, &format!("{field}\u{1}"))),
                    bounded => bounded,
                };
                Box::new(InvertedIndexRangeQuery::new(low, high))
            }
        }
    }

    /// A range of a column: a well-known field's own, or that of an attribute in one of the columns by name.
    fn number<T: FastValue>(&self, name: &str, attributes: Field, low: Bound<T>, high: Bound<T>) -> BoxedQuery {
        if let Some(column) = self.fields.column(name) {
            let bound = |value: T| {
                let mut term = Term::from_field_i64(column, 0);
                term.set_bytes(&value.to_u64().to_be_bytes());
                term
            };
            return range(low.map(bound), high.map(bound), term(self.fields.paths, name));
        }
        let Some(attribute) = name.strip_prefix(ATTRIBUTES) else { return Box::new(EmptyQuery) };
        let bound = |value: T| {
            let mut term = Term::from_field_json_path(attributes, attribute, true);
            term.append_type_and_fast_value(value);
            term
        };
        range(low.map(bound), high.map(bound), term(self.fields.paths, name))
    }
}

/// Only what matches `query` and lies in `[from, to)` of the column.
pub(crate) fn within(query: BoxedQuery, column: Field, from: Option<i64>, to: Option<i64>) -> BoxedQuery {
    let bound = |value: i64| Term::from_field_i64(column, value);
    let from = from.map_or(Bound::Unbounded, |from| Bound::Included(bound(from)));
    let to = to.map_or(Bound::Unbounded, |to| Bound::Excluded(bound(to)));
    if from == Bound::Unbounded && to == Bound::Unbounded {
        return query;
    }
    Box::new(BooleanQuery::new(vec![(Occur::Must, query), (Occur::Must, Box::new(FastFieldRangeQuery::new(from, to)))]))
}

/// The documents of a stream.
pub(crate) fn of_stream(fields: &Fields, name: &str, stream: &str) -> BoxedQuery {
    term(fields.values, &value_term(name, stream))
}

fn range(low: Bound<Term>, high: Bound<Term>, any: BoxedQuery) -> BoxedQuery {
    if low == Bound::Unbounded && high == Bound::Unbounded {
        return any;
    }
    Box::new(FastFieldRangeQuery::new(low, high))
}

fn term(field: Field, text: &str) -> BoxedQuery {
    Box::new(TermQuery::new(Term::from_field_text(field, text), IndexRecordOption::Basic))
}

fn like(field: Field, prefix: &str, pattern: &Pattern) -> BoxedQuery {
    Box::new(LikeQuery { field, prefix: prefix.to_owned(), pattern: pattern.clone() })
}

/// A word's pattern as a regular expression of tantivy's. Words hold letters and digits only, so none is special.
fn regex(word: &WordTest) -> String {
    match word {
        WordTest::Is(word) => word.clone(),
        WordTest::Like(pattern) => pattern
            .glyphs()
            .iter()
            .map(|glyph| match glyph {
                Glyph::Char(c) => c.to_string(),
                Glyph::One => ".".to_owned(),
                Glyph::Many => ".*".to_owned(),
            })
            .collect(),
    }
}

/// Finds documents with a term that a pattern matches.
#[derive(Clone, Debug)]
struct LikeQuery {
    field: Field,
    prefix: String,
    pattern: Pattern,
}

impl Query for LikeQuery {
    fn weight(&self, _: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        let automaton = PatternAutomaton::new(&self.prefix, self.pattern.glyphs());
        Ok(Box::new(AutomatonWeight::new(self.field, automaton)))
    }
}

/// True if no document of the topic can match, whatever the slice.
pub(crate) fn rules_out(predicate: &Predicate, topic: &TopicName) -> bool {
    match predicate {
        Predicate::Nothing => true,
        Predicate::And(all) => all.iter().any(|one| rules_out(one, topic)),
        Predicate::Or(any) => any.iter().all(|one| rules_out(one, topic)),
        Predicate::Keyword { field, test } => field == field::TOPIC && !test.matches(topic.as_str()),
        _ => false,
    }
}
