//! `WatchAgents`: all agents, then each that changed.
//!
//! It looks at the whole list once a second and tells what is new in it, whichever server that came from. So a caller
//! that was slow finds the newest state, and an agent that moves is never told twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hasher};

use futures::StreamExt;
use logmesh_proto::fleet::v1::{Agent, WatchAgentsResponse};
use logmesh_rules::Selector;
use logmesh_runtime::CancellationToken;
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::merged::Fleet;
use crate::error::stopping;
use crate::limits::{AGENTS_LOOK, MAX_PAGE, MAX_PAGE_BYTES};
use crate::push::Stream;

struct Watch {
    fleet: Fleet,
    filter: Option<Selector>,
    /// What was told of each agent.
    told: BTreeMap<String, u64>,
    unreachable: Vec<String>,
    waiting: VecDeque<WatchAgentsResponse>,
    /// When it's looked again.
    next: Instant,
    first: bool,
    token: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// The stream of one watcher.
pub(crate) fn watch(
    fleet: Fleet,
    filter: Option<Selector>,
    permit: OwnedSemaphorePermit,
    token: CancellationToken,
) -> Stream<WatchAgentsResponse> {
    let watch = Watch {
        fleet,
        filter,
        told: BTreeMap::new(),
        unreachable: Vec::new(),
        waiting: VecDeque::new(),
        next: Instant::now(),
        first: true,
        token,
        _permit: permit,
    };
    let stream = futures::stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.message().await {
            Some(message) => Some((Ok(message), Some(watch))),
            None => Some((Err(stopping()), None)),
        }
    });
    stream.boxed()
}

impl Watch {
    /// What is to be told next; `None` when the process stops.
    async fn message(&mut self) -> Option<WatchAgentsResponse> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Some(message);
            }
            tokio::select! {
                () = self.token.cancelled() => return None,
                () = tokio::time::sleep_until(self.next) => {}
            }
            let began = Instant::now();
            self.look().await;
            // Where it takes long, it's done more rarely: at most a fifth of the time.
            self.next = began + AGENTS_LOOK.max(began.elapsed() * 5);
        }
    }

    /// Looks at all agents, and leaves what is new in the waiting messages.
    async fn look(&mut self) {
        let (mut now, mut changed, mut lost) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut after = String::new();
        loop {
            let page = self.fleet.agents(after, MAX_PAGE, self.filter.as_ref(), &mut lost).await;
            for agent in page.items {
                let state = state_of(&agent);
                if self.told.get(&agent.id) != Some(&state) {
                    changed.push(agent.clone());
                }
                now.insert(agent.id, state);
            }
            after = page.next_page_token;
            if after.is_empty() {
                break;
            }
        }
        if !lost.is_empty() {
            // Who isn't heard of may be connected to a server that didn't answer.
            let kept = self.told.iter().filter(|(id, _)| !now.contains_key(*id));
            let kept: Vec<(String, u64)> = kept.map(|(id, state)| (id.clone(), *state)).collect();
            now.extend(kept);
        }
        let removed = self.told.keys().filter(|id| !now.contains_key(*id)).cloned().collect();
        self.told = now;
        self.leave(changed, removed, lost.into_iter().collect());
    }

    /// Puts what is new into messages of a bounded size; none if nothing is.
    fn leave(&mut self, changed: Vec<Agent>, removed: Vec<String>, unreachable: Vec<String>) {
        let nothing = changed.is_empty() && removed.is_empty() && unreachable == self.unreachable;
        if nothing && !std::mem::take(&mut self.first) {
            return;
        }
        self.first = false;
        self.unreachable.clone_from(&unreachable);
        let (mut part, mut bytes) = (WatchAgentsResponse::default(), 0);
        for agent in changed {
            bytes += agent.encoded_len();
            if bytes > MAX_PAGE_BYTES && !part.agents.is_empty() {
                bytes = agent.encoded_len();
                self.waiting.push_back(std::mem::take(&mut part));
            }
            part.agents.push(agent);
        }
        let last = WatchAgentsResponse { removed, unreachable_servers: unreachable, complete: true, ..part };
        self.waiting.push_back(last);
    }
}

/// A number for all that is shown of an agent but for the time when it was last heard of.
fn state_of(agent: &Agent) -> u64 {
    let shown = Agent { last_seen_time: None, ..agent.clone() };
    let mut hasher = DefaultHasher::new();
    hasher.write(&shown.encode_to_vec());
    hasher.finish()
}
