//! Which indices a selection asks, and for what: topics with other declared fields are asked in another way.

use logmesh_index::query::Predicate;
use logmesh_index::query::field::{TIMESTAMP, TOPIC};
use logmesh_index::{FieldTypes, IndexError, Selection};
use logmesh_types::TopicName;
use serde_json::{Value, json};

use crate::Inner;
use crate::translate::{any_of, date, query};

/// The most topics that are named in a URL. With more, all are asked, and a filter names them.
const NAMED: usize = 30;

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
        let no_types = FieldTypes::new();
        let mut groups: Vec<Group> = Vec::new();
        for topic in &asked {
            let types = catalog.get(topic).unwrap_or(&no_types);
            let predicate = of_topic(selection.query.resolve(types), topic);
            if predicate == Predicate::Nothing {
                continue;
            }
            // The fields make a difference of their own to `attributes:*` only, but that is enough.
            match groups.iter_mut().find(|group| group.predicate == predicate && group.types == *types) {
                Some(group) => group.topics.push((*topic).clone()),
                None => groups.push(Group { predicate, types: types.clone(), topics: vec![(*topic).clone()] }),
            }
        }
        let topics: usize = groups.iter().map(|group| group.topics.len()).sum();
        if topics == 0 {
            return Ok(None);
        }
        let all = selection.topics.is_empty() && topics == asked.len();
        let indices = match all || topics > NAMED {
            true => self.names.all_indices(),
            false => {
                let topics = groups.iter().flat_map(|group| &group.topics);
                topics.map(|topic| self.names.indices(topic)).collect::<Vec<_>>().join(",")
            }
        };
        for group in &mut groups {
            let predicate = std::mem::replace(&mut group.predicate, Predicate::All);
            group.predicate = self.simplify(predicate, &group.types, &indices).await?;
        }
        let apart = groups.len() > 1 || (topics > NAMED && !all);
        let asked: Vec<Value> = groups.iter().map(|group| self.group(group, apart)).collect::<Result<_, _>>()?;
        let mut filter = vec![any_of(asked)];
        if selection.from.is_some() || selection.to.is_some() {
            filter.push(date(TIMESTAMP, selection.from.map(|time| time.0), selection.to.map(|time| time.0)));
        }
        Ok(Some(Scope { indices, query: json!({ "bool": { "filter": filter } }) }))
    }

    fn group(&self, group: &Group, apart: bool) -> Result<Value, IndexError> {
        let asked = query(&group.predicate, &group.types)?;
        if !apart {
            return Ok(asked);
        }
        let of = |topic: &TopicName| json!({ "prefix": { "_index": self.names.of_topic(topic) } });
        Ok(json!({ "bool": { "filter": [any_of(group.topics.iter().map(of).collect()), asked] } }))
    }
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
