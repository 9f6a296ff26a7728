//! Which streams there are, by topic and id, a page at a time: those that agents report and those that have a book.

use std::collections::{BTreeMap, BTreeSet};

use logmesh_bus::{Bus, TopicPartition};
use logmesh_grpc::Upstream;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{AgentStream, ListStreamsRequest};
use logmesh_record::Book;
use logmesh_types::{StreamId, TopicName};

use super::shelf::Shelf;
use super::{AuditError, ledger};

/// Streams asked of config at a time, the most that it gives.
const FLEET_PAGE: i32 = 1_000;

/// A stream in a topic.
pub(super) type Key = (TopicName, StreamId);

/// A stream to audit.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) topic: TopicName,
    pub(super) stream: StreamId,
    /// What its agent says; `None` if no agent reports it for this topic.
    pub(super) reported: Option<AgentStream>,
}

/// Which streams are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) topic: Option<TopicName>,
    /// Empty: of all agents.
    pub(super) agent: String,
    /// To compare document by document, and not by sums first.
    pub(super) thorough: bool,
}

impl Filter {
    /// Any stream, thoroughly.
    pub(super) fn all_of_it() -> Self {
        Self { thorough: true, ..Self::default() }
    }
}

/// The first `size` streams from a place on. However many there are, no more are kept.
#[derive(Debug)]
pub(super) struct Page {
    from: Option<Key>,
    size: usize,
    found: BTreeMap<Key, Option<AgentStream>>,
    /// The least key that had no room: nothing at or behind it belongs to this page.
    ceiling: Option<Key>,
}

impl Page {
    pub(super) fn new(from: Option<Key>, size: usize) -> Self {
        Self { from, size, found: BTreeMap::new(), ceiling: None }
    }

    fn offer(&mut self, key: Key, reported: Option<AgentStream>) {
        let before = self.from.as_ref().is_some_and(|from| key < *from);
        if before || self.ceiling.as_ref().is_some_and(|ceiling| key >= *ceiling) {
            return;
        }
        let known = self.found.entry(key).or_default();
        if reported.is_some() {
            *known = reported;
        }
        if self.found.len() > self.size {
            self.ceiling = self.found.pop_last().map(|(key, _)| key);
        }
    }

    /// Takes back a stream whose book was removed, unless an agent reports it.
    fn withdraw(&mut self, key: &Key) {
        if self.found.get(key).is_some_and(Option::is_none) {
            self.found.remove(key);
        }
    }

    /// The streams, and where the next page begins if there is one.
    pub(super) fn into_candidates(self) -> (Vec<Candidate>, Option<Key>) {
        let candidate = |((topic, stream), reported)| Candidate { topic, stream, reported };
        (self.found.into_iter().map(candidate).collect(), self.ceiling)
    }
}

/// Fills a page; answers with the config services that didn't answer.
pub(super) async fn collect(
    page: &mut Page,
    filter: &Filter,
    bus: &dyn Bus,
    shelf: &Shelf,
    fleet: FleetServiceClient<Upstream>,
) -> Result<BTreeSet<String>, AuditError> {
    let silent = reported(fleet, filter, |key, stream| page.offer(key, Some(stream))).await?;
    for topic in ledger::topics(bus).await? {
        let behind = page.from.as_ref().is_some_and(|(from, _)| topic.name < *from);
        if behind || filter.topic.as_ref().is_some_and(|wanted| *wanted != topic.name) {
            continue;
        }
        for partition in 0..topic.partitions {
            let at = TopicPartition { topic: topic.name.books(), partition };
            let offer = |stream, book: Option<&Book>| match book {
                Some(book) if filter.agent.is_empty() || book.agent == filter.agent => {
                    page.offer((topic.name.clone(), stream), None);
                }
                Some(_) => {}
                None => page.withdraw(&(topic.name.clone(), stream)),
            };
            shelf.read(bus, &at, offer).await?;
        }
    }
    Ok(silent)
}

/// Hands out the streams that agents report; answers with the config services that didn't answer, whose agents' words are
/// missing or old.
pub(super) async fn reported(
    mut fleet: FleetServiceClient<Upstream>,
    filter: &Filter,
    mut take: impl FnMut(Key, AgentStream),
) -> Result<BTreeSet<String>, AuditError> {
    let topic = filter.topic.as_ref().map(ToString::to_string).unwrap_or_default();
    let (mut page_token, mut silent) = (String::new(), BTreeSet::new());
    loop {
        let agent_id = filter.agent.clone();
        let topic = topic.clone();
        let list = ListStreamsRequest { agent_id, topic, page_size: FLEET_PAGE, page_token, ..Default::default() };
        let page = fleet.list_streams(list).await.map_err(AuditError::Fleet)?.into_inner();
        for stream in page.streams {
            let names = stream.status.as_ref().map(|status| (status.topic.parse(), status.stream_id.parse()));
            if let Some((Ok(topic), Ok(id))) = names {
                take((topic, id), stream);
            }
        }
        silent.extend(page.unreachable_servers);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        (["a", "b"][usize::from(number % 2)].parse().unwrap(), StreamId::from_bytes([number; 16]))
    }

    proptest! {
        /// However streams come in, pages give each that stays exactly once, in order.
        #[test]
        fn pages_lose_and_repeat_nothing(
            offers in prop::collection::vec((0u8..40, any::<bool>()), 0..80),
            size in 1usize..7,
        ) {
            let mut expected = BTreeMap::new();
            for (number, keep) in &offers {
                if *keep { expected.insert(key(*number), ()); } else { expected.remove(&key(*number)); }
            }
            let (mut seen, mut from) = (Vec::new(), None);
            loop {
                let mut page = Page::new(from, size);
                for (number, keep) in &offers {
                    if *keep { page.offer(key(*number), None) } else { page.withdraw(&key(*number)) }
                }
                let (candidates, next) = page.into_candidates();
                prop_assert!(candidates.len() <= size);
                seen.extend(candidates.into_iter().map(|one| (one.topic, one.stream)));
                if next.is_none() {
                    break;
                }
                from = next;
            }
            prop_assert_eq!(seen, expected.into_keys().collect::<Vec<_>>());
        }
    }
}
