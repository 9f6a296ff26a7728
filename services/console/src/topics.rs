//! Which topics there are: those that hold documents, those on the bus, and those of rules.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logmesh_bus::Bus;
use logmesh_grpc::{Upstream, missing_topics, no_topic, refuse_topics, topics_of_rules};
use logmesh_index::IndexReader;
use logmesh_index::query::{FieldTest, Glyph, Node, Pattern, Query, Test, field};
use logmesh_types::TopicName;
use tokio::time::timeout;
use tonic::Status;

/// How long index, bus and config together may take to say which topics there are: no search waits longer for a better word.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most patterns of a query of which it's said that no topic is so.
const MAX_TOLD: usize = 16;

/// Who knows of topics.
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    index: Arc<dyn IndexReader>,
    bus: Arc<dyn Bus>,
    config: Upstream,
    /// Those that were there when somebody looked last: to list them asks every shard of an index that's large.
    known: Arc<Mutex<BTreeSet<TopicName>>>,
}

impl Topics {
    pub(crate) fn new(index: Arc<dyn IndexReader>, bus: Arc<dyn Bus>, config: Upstream) -> Self {
        Self { index, bus, config, known: Arc::default() }
    }

    /// Refuses topics that there aren't; see [`Topics::missing`].
    pub(crate) async fn check(&self, wanted: &[TopicName], query: &Query) -> Result<(), Status> {
        refuse_topics(&self.missing(wanted, query).await)
    }

    /// Says of each topic that there isn't that it is none, and of what the query demands of `_topic` that no topic is so. A topic
    /// that is only a rule's so far is one; and so is every name while somebody who knows of topics is away.
    pub(crate) async fn missing(&self, wanted: &[TopicName], query: &Query) -> Vec<String> {
        let demands = demands(query.root());
        let are_known = |known: &BTreeSet<TopicName>| {
            wanted.iter().all(|topic| known.contains(topic)) && demands.iter().all(|demand| is_met(demand, known))
        };
        if are_known(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Vec::new();
        }
        timeout(PATIENCE, self.look(wanted, demands)).await.ok().flatten().unwrap_or_default()
    }

    /// `None`: it can't be said.
    async fn look(&self, wanted: &[TopicName], mut demands: Vec<Demand>) -> Option<Vec<String>> {
        let mut there: BTreeSet<TopicName> = self.index.topics().await.ok()?.into_iter().collect();
        let specs = self.bus.topics().await.ok()?;
        there.extend(specs.into_iter().map(|spec| spec.name).filter(|name| !name.is_internal()));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&there);
        let mut missing = missing_topics(wanted, &there, &self.config).await;
        demands.retain(|demand| !is_met(demand, &there));
        if !demands.is_empty()
            && let Ok(of_rules) = topics_of_rules(&self.config).await
        {
            demands.retain(|demand| !is_met(demand, &of_rules));
            let patterns = demands.iter().flatten().take(MAX_TOLD);
            missing.extend(patterns.map(|pattern| no_topic(&written(pattern), &there)));
        }
        Some(missing)
    }
}

/// What a query demands of a document's topic: one of these.
type Demand = Vec<Pattern>;

/// What the topic of every document must be that the query finds. What stands under a NOT, or beside something else in an OR,
/// demands nothing.
fn demands(node: &Node) -> Vec<Demand> {
    match node {
        Node::And(all) => all.iter().flat_map(demands).collect(),
        Node::Or(any) => any.iter().map(of_topic).collect::<Option<Demand>>().into_iter().collect(),
        one => of_topic(one).map(|pattern| vec![pattern]).into_iter().collect(),
    }
}

/// The names that a test of `_topic` lets pass; `None` if it's another test.
fn of_topic(node: &Node) -> Option<Pattern> {
    match node {
        Node::Field(FieldTest { field, test }) if field == field::TOPIC => match test {
            Test::Is(text) => Some(Pattern::new(text.chars().map(Glyph::Char))),
            Test::Like(pattern) => Some(pattern.clone()),
            Test::Exists | Test::Range { .. } => None,
        },
        _ => None,
    }
}

fn is_met(demand: &Demand, topics: &BTreeSet<TopicName>) -> bool {
    topics.iter().any(|topic| demand.iter().any(|pattern| pattern.matches(topic.as_str())))
}

/// The pattern without the backslashes that a query needs.
fn written(pattern: &Pattern) -> String {
    let sign = |glyph: &Glyph| match glyph {
        Glyph::Char(c) => *c,
        Glyph::One => '?',
        Glyph::Many => '*',
    };
    pattern.glyphs().iter().map(sign).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_demands_what_all_that_it_finds_must_have() {
        let demanded = |text: &str| -> Vec<String> {
            let demands = demands(Query::parse(text).unwrap().root());
            demands.iter().map(|demand| demand.iter().map(written).collect::<Vec<_>>().join("|")).collect()
        };
        for (query, expected) in [
            ("_topic:ngnix", &["ngnix"][..]),
            ("error _topic:web-?* _topic:\"UPPER\"", &["web-?*", "UPPER"]),
            ("_topic:(ngin* OR logs) error", &["ngin*|logs"]),
            ("_topic:ngin* OR error", &[]),
            ("NOT _topic:ngin*", &[]),
            ("_topic:* _topic:>a host.name:web", &[]),
        ] {
            assert_eq!(demanded(query), expected, "{query}");
        }
    }
}
