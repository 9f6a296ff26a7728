//! Agents with one id on two config services: the younger process is refused, without a write to the store.
//!
//! Each server tells the others which agents are connected to it, with the session and the time at which each connected
//! (`WatchSessions`). Who connects is refused at once if another server is known to have the id with another session. That
//! leaves a race: two processes connect to two servers before these have heard of each other, or while they can't hear each
//! other. Both are let in, since agents are served whatever happens between servers. As soon as the two servers hear of
//! each other's, both compare the same two pairs of connect time and server id, and so both come to the same answer: the lesser stays,
//! the other's stream is ended with the same error. The clocks of two servers may differ; then the wrong one of two that
//! connected within that difference is refused, but always exactly one.
//!
//! A server that isn't heard any more has no say: its agents are about to connect elsewhere, new processes among them.
//! The same session on two servers is one process that moved. Its older stream, which may be half-open, is ended as soon as
//! its server hears of the younger one, so that only one of them shows the agent as its own.

use std::collections::{BTreeMap, HashMap};

use logmesh_proto::fleet::v1::{AgentSession, WatchSessionsResponse};
use logmesh_proto::time::{timestamp, unix_nanos};
use logmesh_types::{AgentId, UnixNanos};
use tokio::sync::watch;
use tonic::Status;

use super::{Ended, Introduction, Registry, State, doubled};
use crate::limits::MAX_SESSIONS_TOLD;

/// An agent's connection to another server.
#[derive(Debug)]
pub(super) struct Elsewhere {
    session: String,
    connect_time: UnixNanos,
    /// Whether a full report came on it.
    reported: bool,
}

/// What another server was told: the connection's number, and whether a full report came on it.
pub(crate) type Told = BTreeMap<AgentId, (u64, bool)>;

impl Registry {
    /// Changes when [`news`](Self::news) may have some.
    pub(crate) fn sessions(&self) -> watch::Receiver<u64> {
        self.sessions.subscribe()
    }

    /// What is new since `told`, which is brought up to date, in messages of a bounded size.
    pub(crate) fn news(&self, told: &mut Told) -> Vec<WatchSessionsResponse> {
        let state = self.state();
        let online = |id: &AgentId| state.agents.get(id).is_some_and(|known| known.connection().is_some());
        let gone: Vec<AgentId> = told.keys().filter(|id| !online(id)).cloned().collect();
        told.retain(|id, _| online(id));
        let mut connected = Vec::new();
        for (id, known) in &state.agents {
            let Some(here) = known.here.as_ref() else { continue };
            let Some(connection) = &here.connection else { continue };
            let now = (connection.number, here.reported.has_full);
            if told.get(id) != Some(&now) {
                told.insert(id.clone(), now);
                connected.push(AgentSession {
                    agent_id: id.to_string(),
                    session: here.introduction.session.clone(),
                    connect_time: Some(timestamp(here.connect_time)),
                    reported: here.reported.has_full,
                });
            }
        }
        drop(state);
        let gone: Vec<String> = gone.into_iter().map(Into::into).collect();
        let parts = connected.chunks(MAX_SESSIONS_TOLD);
        let parts = parts.map(|part| WatchSessionsResponse { connected: part.to_vec(), ..Default::default() });
        let gone = gone.chunks(MAX_SESSIONS_TOLD);
        gone.map(|part| WatchSessionsResponse { disconnected: part.to_vec(), ..Default::default() })
            .chain(parts)
            .collect()
    }

    /// Takes in what another server says.
    pub(crate) fn hear(&self, server: &str, news: WatchSessionsResponse) {
        let mut guard = self.state();
        let state = &mut *guard;
        if news.snapshot {
            state.elsewhere.insert(server.to_owned(), HashMap::new());
        }
        let theirs = state.elsewhere.entry(server.to_owned()).or_default();
        news.disconnected.iter().filter_map(|id| id.parse().ok()).for_each(|id: AgentId| drop(theirs.remove(&id)));
        for one in news.connected {
            let Ok(id) = one.agent_id.parse::<AgentId>() else { continue };
            let connect_time = one.connect_time.as_ref().map(unix_nanos).unwrap_or(UnixNanos(i64::MAX));
            let other = Elsewhere { session: one.session, connect_time, reported: one.reported };
            compare(&self.server, &mut state.agents, &id, &other, server);
            if other.reported {
                state.streams -= forget_report(&mut state.agents, &id);
            }
            theirs.insert(id, other);
        }
    }

    /// Forgets what a server said: it isn't heard any more.
    pub(crate) fn unhear(&self, server: &str) {
        self.state().elsewhere.remove(server);
    }
}

/// Ends the stream of an agent that is younger than the other of its id, or older than the other of the same process.
fn compare(
    server: &str,
    agents: &mut BTreeMap<AgentId, super::Known>,
    id: &AgentId,
    other: &Elsewhere,
    others_server: &str,
) {
    let Some(here) = agents.get(id).and_then(|known| known.here.as_ref()) else { return };
    let Some(connection) = &here.connection else { return };
    let is_younger = (here.connect_time, server) > (other.connect_time, others_server);
    match (here.introduction.session == other.session, is_younger) {
        (false, true) => connection.mailbox.end(Ended::Refused(doubled(id, "", others_server))),
        (true, false) => connection.mailbox.end(Ended::Superseded),
        _ => {}
    }
}

/// An agent that is known elsewhere, and not connected here, is no longer known here by what it said once. Answers how
/// many streams that were.
fn forget_report(agents: &mut BTreeMap<AgentId, super::Known>, id: &AgentId) -> usize {
    let here = agents.get_mut(id).and_then(|known| known.here.as_mut());
    let away = here.filter(|here| here.connection.is_none());
    away.map_or(0, |here| std::mem::take(&mut here.reported).streams.len())
}

impl State {
    /// Forgets what an agent that has left said here if it said all to another server meanwhile.
    pub(super) fn give_way(&mut self, id: &AgentId) {
        if self.elsewhere.values().any(|agents| agents.get(id).is_some_and(|other| other.reported)) {
            self.streams -= forget_report(&mut self.agents, id);
        }
    }

    /// Refuses an agent that is connected to another server with another session.
    pub(super) fn check_elsewhere(&self, introduction: &Introduction) -> Result<(), Status> {
        for (server, agents) in &self.elsewhere {
            let other = agents.get(&introduction.id).filter(|other| other.session != introduction.session);
            if other.is_some() {
                return Err(doubled(&introduction.id, "", server));
            }
        }
        Ok(())
    }
}
