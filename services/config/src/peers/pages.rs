//! One page of a list that several servers hold parts of.
//!
//! Each server gives its part of the page, in the list's order. A part that ended before its server's list did says
//! nothing of what comes behind its last entry, so that the merged page ends there too, whatever others gave: nothing is
//! left out, and the next page begins at the right place. An entry that several give (an agent that moved) is shown once,
//! as the one knows it that knows it best; a filter is applied after that, or it would find what is no longer so.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use prost::Message;
use tonic::Status;
use tonic::transport::Channel;

use super::Peers;
use crate::limits::{MAX_PAGE, PEER_TIMEOUT};
use crate::paging::page;

/// An entry of such a list.
pub(crate) trait Listed: Message {
    /// What the list is ordered by.
    type Key: Ord;
    /// Its place in the list.
    fn key(&self) -> Self::Key;
    /// The page token that leads to what is behind it.
    fn token(&self) -> String;
    /// True if it says more of the same thing than what another server gave.
    fn beats(&self, other: &Self) -> bool;
}

/// A server's part of a page, or a page.
#[derive(Debug)]
pub(crate) struct Part<T> {
    pub(crate) items: Vec<T>,
    /// Empty if there is nothing behind it.
    pub(crate) next_page_token: String,
}

/// A page put together from all servers.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next_page_token: String,
    /// Servers whose part is missing, by id.
    pub(crate) unreachable: Vec<String>,
}

impl<T> From<Part<T>> for Page<T> {
    fn from(part: Part<T>) -> Self {
        Self { items: part.items, next_page_token: part.next_page_token, unreachable: Vec::new() }
    }
}

impl Peers {
    /// The page of `size` entries behind `after` that `keep` keeps: from `own` and from the other servers, each asked by
    /// `ask`. Both are given a page token and a size. A server that is `lost`, since it didn't answer, isn't asked again: who
    /// reads all pages passes it on, or each page would wait for such a server.
    pub(crate) async fn page<T, F>(
        &self,
        after: String,
        size: usize,
        own: impl Fn(&str, usize) -> Part<T>,
        ask: impl Fn(Channel, String, i32) -> F,
        keep: Option<&(dyn Fn(&T) -> bool + Send + Sync)>,
        lost: &mut BTreeSet<String>,
    ) -> Page<T>
    where
        T: Listed,
        F: Future<Output = Result<Part<T>, Status>>,
    {
        // With a filter most entries may be left out: larger parts, fewer rounds.
        let part = if keep.is_some() { MAX_PAGE } else { size };
        let (mut found, mut behind) = (Vec::new(), after);
        loop {
            let others = self.ask_but(lost, PEER_TIMEOUT, |channel| ask(channel, behind.clone(), part as i32));
            let answers = others.await;
            lost.extend(answers.unreachable);
            let parts = answers.answers.into_iter().map(|(_, part)| part).chain([own(&behind, part)]);
            let merged = merge(parts.collect());
            behind = merged.next_page_token;
            found.extend(merged.items.into_iter().filter(|item| keep.is_none_or(|keep| keep(item))));
            if behind.is_empty() || found.len() >= size {
                break;
            }
        }
        let (items, cut) = page(found.into_iter().map(|item| (item.token(), item)), size);
        let next_page_token = if cut.is_empty() { behind } else { cut };
        Page { items, next_page_token, unreachable: lost.iter().cloned().collect() }
    }
}

/// Puts parts together up to where the first of them ended early.
pub(crate) fn merge<T: Listed>(parts: Vec<Part<T>>) -> Part<T> {
    let ended = |part: &&Part<T>| !part.next_page_token.is_empty();
    let end = parts.iter().filter(ended).filter_map(|part| part.items.last().map(Listed::key)).min();
    let mut merged: BTreeMap<T::Key, T> = BTreeMap::new();
    for item in parts.into_iter().flat_map(|part| part.items) {
        let key = item.key();
        let behind = end.as_ref().is_some_and(|end| key > *end);
        if !behind && merged.get(&key).is_none_or(|known| item.beats(known)) {
            merged.insert(key, item);
        }
    }
    let next_page_token = if end.is_some() { merged.values().next_back().map(Listed::token) } else { None };
    Part { items: merged.into_values().collect(), next_page_token: next_page_token.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use logmesh_proto::discovery::v1::Endpoint;
    use logmesh_proto::fleet::v1::Agent;
    use proptest::prelude::*;
    use tokio::sync::watch;

    use super::*;
    use crate::discovery::Endpoints;
    use crate::peers::KIND;

    /// A server's part of the page behind a token: at most `size` of its agents.
    fn part(ids: &[(u8, bool)], after: &str, size: usize) -> Part<Agent> {
        let agent =
            |(number, online): &(u8, bool)| Agent { id: format!("{number:03}"), online: *online, ..Agent::default() };
        let agents: BTreeMap<String, Agent> = ids.iter().map(agent).map(|agent| (agent.id.clone(), agent)).collect();
        let all = agents.into_iter().filter(|(id, _)| id.as_str() > after);
        let (items, next_page_token) = page(all, size);
        Part { items, next_page_token }
    }

    #[tokio::test]
    async fn a_server_that_did_not_answer_is_not_asked_again_for_the_next_page() {
        let endpoint = |id: &str| Endpoint { kind: KIND.into(), id: id.into(), address: format!("{id}:1") };
        let all = [("config/own", endpoint("own")), ("config/hangs", endpoint("hangs"))];
        let all = all.into_iter().map(|(key, endpoint)| (key.to_owned(), endpoint)).collect();
        let endpoints = watch::channel(Arc::new(Endpoints { all, ..Endpoints::default() })).1;
        let peers = Peers::new(Some(endpoint("own")), endpoints);
        let (asked, mut lost) = (AtomicU32::new(0), BTreeSet::new());
        let own = |after: &str, size| part(&[(1, true), (2, true), (3, true)], after, size);
        let mut behind = String::new();
        for page in 1..=3 {
            let ask = |_, _, _| {
                asked.fetch_add(1, Ordering::Relaxed);
                async { Err(Status::deadline_exceeded("no answer came in time")) }
            };
            let found = peers.page(behind, 1, own, ask, None, &mut lost).await;
            assert_eq!(
                (found.items[0].id.as_str(), found.unreachable),
                (&*format!("{page:03}"), vec!["hangs".to_owned()])
            );
            behind = found.next_page_token;
        }
        assert_eq!((asked.into_inner(), behind.as_str()), (1, ""));
    }

    proptest! {
        /// However agents lie on servers and however large their parts are, pages show each once, in order, and as
        /// online if one server has it online.
        #[test]
        fn pages_of_several_servers_lose_and_repeat_nothing(
            servers in prop::collection::vec(prop::collection::vec((0u8..60, any::<bool>()), 0..40), 1..4),
            sizes in prop::collection::vec(1usize..9, 4),
        ) {
            let mut expected: BTreeMap<String, bool> = BTreeMap::new();
            for server in &servers {
                for agent in part(server, "", 100).items {
                    *expected.entry(agent.id).or_default() |= agent.online;
                }
            }
            let (mut seen, mut after) = (Vec::new(), String::new());
            loop {
                let parts = servers.iter().zip(&sizes).map(|(server, size)| part(server, &after, *size)).collect();
                let merged = merge(parts);
                seen.extend(merged.items.into_iter().map(|agent| (agent.id, agent.online)));
                if merged.next_page_token.is_empty() {
                    break;
                }
                prop_assert!(merged.next_page_token > after, "each page leads on");
                after = merged.next_page_token;
            }
            prop_assert_eq!(seen, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
