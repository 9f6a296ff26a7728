//! Which indices a selection asks, and for what: topics with other declared fields are asked in another way.

use logmesh_index::query::Predicate;
use logmesh_index::query::field::{TIMESTAMP, TOPIC};
use logmesh_index::{FieldTypes, IndexError, Selection};
use logmesh_types::TopicName;
use serde_json::{Value, json};

use crate::Inner;
use crate::catalog::Catalog;
use crate::complex::is_complex;
use crate::translate::{any_of, date, query};

/// The most bytes of indices' names in a URL; Elasticsearch takes 4,096 for all of it. With more, all indices are asked, and
/// a filter names the topics.
pub(crate) const NAMED_BYTES: usize = 2_000;

/// What a selection comes to.
#[derive(Debug)]
pub(crate) struct Scope {
    /// The indices, as they stand in a URL.
    pub(crate) indices: String,
    /// What is asked of them.
    pub(crate) query: Value,
}

/// Topics that are asked the same.
struct Group {
    query: Value,
    predicate: Predicate,
    types: FieldTypes,
    topics: Vec<TopicName>,
}

impl Inner {
    /// `None` if no topic can hold a document of the selection.
    pub(crate) async fn scope(&self, selection: &Selection) -> Result<Option<Scope>, IndexError> {
        let catalog = self.catalog().await?;
        let asked: Vec<&TopicName> = match selection.topics.is_empty() {
            true => catalog.keys().collect(),
            false => selection.topics.iter().filter(|topic| catalog.contains_key(topic)).collect(),
        };
        let mut groups = groups(selection, &asked, &catalog)?;
        let topics: Vec<&TopicName> = groups.iter().flat_map(|group| &group.topics).collect();
        if topics.is_empty() {
            return Ok(None);
        }
        let all = selection.topics.is_empty() && topics.len() == asked.len();
        let named = topics.iter().map(|topic| self.names.indices(topic)).collect::<Vec<_>>().join(",");
        let too_long = named.len() > NAMED_BYTES;
        let indices = if all || too_long { self.names.all_indices() } else { named };
        let apart = groups.len() > 1 || (too_long && !all);
        for group in &mut groups {
            if is_complex(&group.predicate) {
                let simple = self.simplify(group.predicate.clone(), &group.types, &indices).await?;
                group.query = query(&simple, &group.types)?;
            }
        }
        let mut filter = vec![any_of(groups.into_iter().map(|group| self.condition(group, apart)).collect())];
        if selection.from.is_some() || selection.to.is_some() {
            filter.push(date(TIMESTAMP, selection.from.map(|time| time.0), selection.to.map(|time| time.0)));
        }
        Ok(Some(Scope { indices, query: json!({ "bool": { "filter": filter } }) }))
    }

    fn condition(&self, group: Group, apart: bool) -> Value {
        if !apart {
            return group.query;
        }
        let of = |topic: &TopicName| json!({ "prefix": { "_index": self.names.of_topic(topic) } });
        json!({ "bool": { "filter": [any_of(group.topics.iter().map(of).collect()), group.query] } })
    }
}

/// The topics that can hold a document of the selection, by what they are to be asked.
fn groups(selection: &Selection, topics: &[&TopicName], catalog: &Catalog) -> Result<Vec<Group>, IndexError> {
    let mut groups: Vec<Group> = Vec::new();
    for topic in topics {
        let types = catalog.get(*topic).cloned().unwrap_or_default();
        let predicate = of_topic(selection.query.resolve(&types), topic);
        if predicate == Predicate::Nothing {
            continue;
        }
        let query = query(&predicate, &types)?;
        match groups.iter_mut().find(|group| group.query == query) {
            Some(group) => group.topics.push((*topic).clone()),
            None => groups.push(Group { query, predicate, types, topics: vec![(*topic).clone()] }),
        }
    }
    Ok(groups)
}

/// The predicate for documents of this topic: what it says of `_topic` is true or false, and so may be the whole.
fn of_topic(predicate: Predicate, topic: &TopicName) -> Predicate {
    let truth = |holds: bool| if holds { Predicate::All } else { Predicate::Nothing };
    match predicate {
        Predicate::Keyword { field, test } if field == TOPIC => truth(test.matches(topic.as_str())),
        Predicate::Not(not) => match of_topic(*not, topic) {
            Predicate::All => Predicate::Nothing,
            Predicate::Nothing => Predicate::All,
            not => Predicate::Not(Box::new(not)),
        },
        Predicate::And(all) => {
            let all: Vec<Predicate> = all.into_iter().map(|one| of_topic(one, topic)).collect();
            if all.contains(&Predicate::Nothing) { Predicate::Nothing } else { Predicate::And(all) }
        }
        Predicate::Or(any) => {
            let any: Vec<Predicate> = any.into_iter().map(|one| of_topic(one, topic)).collect();
            match () {
                () if any.contains(&Predicate::All) => Predicate::All,
                () if any.iter().all(|one| *one == Predicate::Nothing) => Predicate::Nothing,
                () => Predicate::Or(any),
            }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::query::Query;

    use super::*;

    #[test]
    fn tests_of_the_topic_are_answered_for_each() {
        let topic: TopicName = "logs".parse().unwrap();
        let of = |text: &str| of_topic(Query::parse(text).unwrap().resolve(&FieldTypes::new()), &topic);
        for text in ["_topic:logs", "_topic:lo*", "NOT _topic:x", "_topic:logs OR a", "_topic:>a"] {
            assert_eq!(of(text), Predicate::All, "{text}");
        }
        for text in ["_topic:x", "a _topic:x", "NOT (a OR _topic:logs)", "_topic:x OR _topic:y"] {
            assert_eq!(of(text), Predicate::Nothing, "{text}");
        }
        assert!(matches!(of("a _topic:logs"), Predicate::And(_)));
    }
}
