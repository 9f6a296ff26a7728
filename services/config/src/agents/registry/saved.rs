//! Agents between this process and the store: what others wrote is taken in, what is new here is handed out to be written.

use std::sync::Arc;

use logmesh_store::{PrefixState, Revision, Versioned};
use logmesh_types::{AgentId, UnixNanos};
use tracing::warn;

use super::{Registry, State};
use crate::agents::stored::StoredAgent;
use crate::keys;
use crate::limits::MAX_KNOWN_AGENTS;

/// An agent whose record is to be written.
#[derive(Debug)]
pub(crate) struct Unsaved {
    pub(crate) id: AgentId,
    pub(crate) record: Arc<StoredAgent>,
    /// The revision that wrote its present record; `None`: there is none.
    pub(crate) former: Option<Revision>,
}

impl Registry {
    /// Takes in all that the store keeps of agents. Who is no longer there was forgotten, unless it's connected.
    pub(crate) fn keep_all(&self, kept: &PrefixState) {
        let mut guard = self.state();
        let state = &mut *guard;
        let gone: Vec<AgentId> = (state.agents.iter())
            .filter(|(id, known)| {
                let written = known.stored.as_ref().is_some_and(|(_, written)| *written <= kept.revision);
                written && !kept.entries.contains_key(&keys::agent(id))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            state.keep(&id, None);
        }
        for (key, held) in kept.entries.iter().take(MAX_KNOWN_AGENTS) {
            let Some(id) = keys::agent_of(key) else { continue };
            state.take_in(&id, held);
        }
        state.kept = state.kept.max(kept.revision);
        if !std::mem::replace(&mut state.loaded, true) || !state.unsaved.is_empty() {
            self.unsaved.notify_one();
        }
    }

    /// Takes in what the store keeps of one agent.
    pub(crate) fn keep_one(&self, id: &AgentId, held: Option<&Versioned>) {
        let mut state = self.state();
        match held {
            Some(held) => state.take_in(id, held),
            None => state.keep(id, None),
        }
    }

    /// Forgets an agent that the store no longer keeps, unless it's connected.
    pub(crate) fn forget(&self, id: &AgentId) {
        self.state().keep(id, None);
    }

    /// Resolves when the store may lack something.
    pub(crate) async fn unsaved(&self) {
        self.unsaved.notified().await;
    }

    /// The first agents of which the store lacks something, at most so many; none until the store was read.
    pub(crate) fn take_unsaved(&self, most: usize) -> Vec<Unsaved> {
        let mut guard = self.state();
        let state = &mut *guard;
        if !state.loaded {
            return Vec::new();
        }
        let (mut batch, now, step) = (Vec::new(), UnixNanos::now(), state.seen_step);
        let (agents, unsaved) = (&state.agents, &mut state.unsaved);
        unsaved.retain(|id| {
            if batch.len() == most {
                return true;
            }
            let known = agents.get(id);
            let here = known.and_then(|known| Some((known, &known.here.as_ref()?.introduction)));
            let Some((known, introduction)) = here.filter(|(known, here)| known.is_unsaved(here, step)) else {
                return false;
            };
            let former = known.stored.as_ref();
            let record = StoredAgent::new(former.map(|(stored, _)| &**stored), introduction, now);
            let former = former.map(|(_, written)| *written);
            batch.push(Unsaved { id: id.clone(), record: Arc::new(record), former });
            true
        });
        batch
    }

    /// Notes that these were written. Where the store was read as of that revision or a later one meanwhile, only what it
    /// still has so counts: others may have changed or forgotten the rest since.
    pub(crate) fn saved(&self, batch: Vec<Unsaved>, revision: Revision) {
        let mut state = self.state();
        for one in batch {
            let written = state.written(&one.id);
            if written == Some(revision) || (written < Some(revision) && state.kept < revision) {
                state.unsaved.remove(&one.id);
                state.keep(&one.id, Some((one.record, revision)));
            }
        }
    }

    /// Looks for agents whose time in the store has become old.
    pub(crate) fn look_for_old(&self) {
        let mut guard = self.state();
        let state = &mut *guard;
        let step = state.seen_step;
        let online = state.agents.iter().filter(|(_, known)| known.connection().is_some());
        let old = online
            .filter(|(_, known)| known.here.as_ref().is_some_and(|here| known.is_unsaved(&here.introduction, step)));
        state.unsaved.extend(old.map(|(id, _)| id.clone()));
        self.unsaved.notify_one();
    }
}

impl State {
    /// The revision that wrote what is known of the store's record.
    fn written(&self, id: &AgentId) -> Option<Revision> {
        self.agents.get(id)?.stored.as_ref().map(|(_, written)| *written)
    }

    /// Takes in a record as it was read, unless as new a one is known.
    fn take_in(&mut self, id: &AgentId, held: &Versioned) {
        if self.written(id) >= Some(held.mod_revision) {
            return;
        }
        let record = serde_json::from_slice::<StoredAgent>(&held.value).unwrap_or_else(|error| {
            warn!(agent = %id, %error, "what the store keeps of an agent can't be read");
            StoredAgent::default()
        });
        self.keep(id, Some((Arc::new(record), held.mod_revision)));
    }

    fn keep(&mut self, id: &AgentId, record: Option<(Arc<StoredAgent>, Revision)>) {
        let (forgotten, step) = (record.is_none(), self.seen_step);
        let known = match self.agents.get_mut(id) {
            Some(known) => known,
            None if forgotten => return,
            None => self.agents.entry(id.clone()).or_default(),
        };
        known.keep(record);
        let here = known.here.as_ref();
        let unsaved = here.is_some_and(|here| here.connection.is_some() && known.is_unsaved(&here.introduction, step));
        let online = known.connection().is_some();
        if forgotten && !online {
            self.leave(id);
        } else if unsaved {
            self.unsaved.insert(id.clone());
        }
    }
}
