//! Patterns that Elasticsearch refuses: it makes a table of each, and that of `*a??????????????` has a row for every set of
//! places that an `a` can stand at. For keywords the values that there are get looked at here instead, and the pattern
//! becomes those that it matches.

use std::collections::BTreeSet;

use logmesh_index::query::field::{self, Kind};
use logmesh_index::query::{Glyph, KeywordTest, Pattern, Predicate};
use logmesh_index::{FieldTypes, IndexError};
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use crate::Inner;
use crate::client::Body;
use crate::form::value_term;
use crate::template::{ANY_LABEL, LABELS, Place, VALUES, place};

/// `?` after a `*`, beyond which a pattern counts as complex: the table doubles with each.
const ONES: usize = 6;
/// Values of a field that are looked at, by parts.
const PARTS: usize = 20;
const PART: usize = 10_000;
/// Values that a pattern may stand for: each is a condition of the query, of which the server bounds the number.
const VALUES_MATCHED: usize = 1_000;

#[derive(Deserialize)]
struct Terms {
    terms: Vec<String>,
    complete: bool,
}

impl Inner {
    /// The predicate without complex patterns of keywords.
    pub(crate) async fn simplify(
        &self,
        predicate: Predicate,
        types: &FieldTypes,
        indices: &str,
    ) -> Result<Predicate, IndexError> {
        let mut patterns = Vec::new();
        find(&predicate, &mut patterns);
        let mut simple = predicate;
        for (name, pattern) in patterns {
            let values = self.values_like(&name, &pattern, types, indices).await?;
            let values = values
                .into_iter()
                .map(|value| Predicate::Keyword { field: name.clone(), test: KeywordTest::Is(value) });
            let any = Predicate::Or(values.collect());
            let complex = Predicate::Keyword { field: name, test: KeywordTest::Like(pattern) };
            simple = replace(simple, &complex, &any);
        }
        Ok(simple)
    }

    async fn values_like(
        &self,
        name: &str,
        pattern: &Pattern,
        types: &FieldTypes,
        indices: &str,
    ) -> Result<BTreeSet<String>, IndexError> {
        let own = match place(name, types) {
            Place::Field(Kind::Keyword) | Place::Label => Some(name),
            Place::Derived if name == LABELS => Some(ANY_LABEL),
            _ => None,
        };
        let mut found = BTreeSet::new();
        for (field, prefix) in own.map(|own| (own, String::new())).into_iter().chain([(VALUES, value_term(name, ""))]) {
            let mut after: Option<String> = None;
            for part in 0.. {
                let terms = self.terms(indices, field, &prefix, after.as_deref()).await?;
                let last = terms.len() < PART;
                after = terms.last().cloned();
                let values = terms.iter().filter_map(|term| term.strip_prefix(&prefix));
                found.extend(values.filter(|value| pattern.matches(value)).map(str::to_owned));
                if last {
                    break;
                }
                if part == PARTS || found.len() > VALUES_MATCHED {
                    return Err(too_complex(name));
                }
            }
        }
        if found.len() > VALUES_MATCHED { Err(too_complex(name)) } else { Ok(found) }
    }

    async fn terms(
        &self,
        indices: &str,
        field: &str,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<String>, IndexError> {
        let mut body = json!({ "field": field, "string": prefix, "size": PART, "timeout": "10s" });
        if let Some(after) = after {
            body["search_after"] = after.into();
        }
        let path = format!("{indices}/_terms_enum");
        let answer = self.client.call(Method::POST, &path, Body::Json(body)).await?;
        let terms: Terms = answer.json()?;
        // Not complete because there are more is no fault; for lack of time it is.
        if terms.complete || terms.terms.len() >= PART { Ok(terms.terms) } else { Err(too_complex(field)) }
    }
}

fn too_complex(field: &str) -> IndexError {
    let reason = format!("the pattern for {field} is too complex for Elasticsearch: write fewer ? after a *");
    IndexError::Unsupported { reason }
}

/// True if the predicate has a pattern to be taken out by [`Inner::simplify`].
pub(crate) fn is_complex(predicate: &Predicate) -> bool {
    let mut patterns = Vec::new();
    find(predicate, &mut patterns);
    !patterns.is_empty()
}

fn is_complex_pattern(pattern: &Pattern) -> bool {
    let after = pattern.glyphs().iter().skip_while(|glyph| **glyph != Glyph::Many);
    after.filter(|glyph| **glyph == Glyph::One).count() > ONES
}

/// The complex patterns of a predicate.
fn find(predicate: &Predicate, into: &mut Vec<(String, Pattern)>) {
    match predicate {
        Predicate::And(all) | Predicate::Or(all) => all.iter().for_each(|one| find(one, into)),
        Predicate::Not(not) => find(not, into),
        Predicate::Keyword { field, test: KeywordTest::Like(pattern) }
            if field != field::ID && is_complex_pattern(pattern) =>
        {
            into.push((field.clone(), pattern.clone()));
        }
        _ => {}
    }
}

fn replace(predicate: Predicate, what: &Predicate, by: &Predicate) -> Predicate {
    let all = |nodes: Vec<Predicate>| nodes.into_iter().map(|node| replace(node, what, by)).collect();
    match predicate {
        found if found == *what => by.clone(),
        Predicate::And(nodes) => Predicate::And(all(nodes)),
        Predicate::Or(nodes) => Predicate::Or(all(nodes)),
        Predicate::Not(node) => Predicate::Not(Box::new(replace(*node, what, by))),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::query::Query;

    use super::*;

    #[test]
    fn only_question_marks_after_a_star_make_a_pattern_complex() {
        let complex = |text: &str| {
            let mut found = Vec::new();
            find(&Query::parse(text).unwrap().resolve(&FieldTypes::new()), &mut found);
            found.len()
        };
        assert_eq!(complex("host.name:??????????????????* host.name:*a* NOT host.name:*a?b?c"), 0);
        assert_eq!(complex("host.name:*a??????? OR NOT labels.x:a*???????"), 2);
    }
}
