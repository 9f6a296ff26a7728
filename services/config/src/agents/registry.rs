//! The agents that this process knows: connected ones, and those that were here since it started.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logmesh_grpc::{already_exists, not_found, resource_exhausted};
use logmesh_proto::fleet::v1 as message;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::time::timestamp;
use logmesh_rules::{Labels, Selector};
use logmesh_types::{AgentId, UnixNanos};
use metrics::{counter, gauge};
use tonic::Status;

use super::mailbox::{Ended, Mailbox};
use super::report::{self, Reported};
use crate::settings::Settings;

/// How an agent introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) id: AgentId,
    pub(crate) session: String,
    pub(crate) labels: Labels,
    pub(crate) version: String,
}

/// The known agents. Clones share them. No lock is held over an await.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    /// This server's id among the config services.
    server: Arc<str>,
    max_agents: usize,
    max_streams: usize,
}

#[derive(Debug, Default)]
struct State {
    agents: BTreeMap<AgentId, Known>,
    /// Streams of all agents' reports.
    streams: usize,
    /// Agents with a stream.
    online: usize,
    /// Counts the connections.
    connections: u64,
}

#[derive(Debug)]
struct Known {
    introduction: Introduction,
    /// Its stream, as long as it is connected.
    connection: Option<Connection>,
    connect_time: UnixNanos,
    last_seen: UnixNanos,
    reported: Reported,
    /// The revision that it has applied, as it says.
    config_revision: i64,
}

#[derive(Clone, Debug)]
struct Connection {
    number: u64,
    mailbox: Arc<Mailbox>,
}

/// A place in the registry as a connected agent; given up when dropped.
#[derive(Debug)]
pub(crate) struct Connected {
    registry: Registry,
    id: AgentId,
    number: u64,
    /// What others have to say to its stream.
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Registry {
    pub(crate) fn new(settings: &Settings) -> Self {
        let server = settings.server.as_ref().map_or("", |server| server.endpoint().id.as_str());
        Self {
            state: Arc::default(),
            server: server.into(),
            max_agents: settings.max_agents,
            max_streams: settings.max_streams,
        }
    }

    /// Enters an agent. Refused while another process with the same id is connected; the same session takes over.
    pub(crate) fn connect(&self, introduction: Introduction) -> Result<Connected, Status> {
        let mut state = self.state();
        let id = introduction.id.clone();
        if let Some(known) = state.agents.get(&id)
            && let Some(connection) = &known.connection
        {
            if known.introduction.session != introduction.session {
                counter!("logmesh_config_agents_refused_total").increment(1);
                return Err(doubled(&known.introduction));
            }
            connection.mailbox.end(Ended::Superseded);
        }
        state.make_room(&id, self.max_agents)?;
        let connected = state.enter(introduction);
        Ok(Connected { registry: self.clone(), id, number: connected.number, mailbox: connected.mailbox })
    }

    /// Leaves a message to be told once to a connected agent.
    pub(crate) fn tell(&self, id: &AgentId, message: Update) -> Result<(), Status> {
        let connection = self.state().agents.get(id).and_then(|known| known.connection.clone());
        let away = || not_found("AGENT_NOT_CONNECTED", format!("agent {id} is not connected here"));
        let mailbox = connection.ok_or_else(away)?.mailbox;
        mailbox.leave(message).map_err(|_| {
            resource_exhausted("AGENT_BUSY", format!("too many messages wait for agent {id}, which takes none"))
        })
    }

    /// Takes a report in; answers whether a full one is wanted next.
    pub(crate) fn report(&self, mut report: message::ReportStatusRequest) -> Result<bool, Status> {
        report::check(&mut report)?;
        let mut state = self.state();
        let State { agents, streams, .. } = &mut *state;
        let known = report.agent_id.parse().ok().and_then(|id: AgentId| agents.get_mut(&id));
        let known = known.filter(|known| known.connection.is_some() && known.introduction.session == report.session);
        let known = known.ok_or_else(|| {
            not_found(
                "NO_SESSION",
                format!("agent {:?} has no stream of this session; open WatchConfig", report.agent_id),
            )
        })?;
        let others = *streams - known.reported.streams.len();
        if others + known.reported.streams_with(&report) > self.max_streams {
            let message = format!("reports tell of {} streams already, which is the limit", self.max_streams);
            return Err(resource_exhausted("TOO_MANY_STREAMS", message));
        }
        let number = known.connection.as_ref().map_or(0, |connection| connection.number);
        if report.nonce.starts_with(&nonce_prefix(number)) {
            known.config_revision = report.revision;
        }
        known.reported.apply(report);
        known.last_seen = UnixNanos::now();
        *streams = others + known.reported.streams.len();
        Ok(!known.reported.has_full)
    }

    /// Forgets what the agent said of rules that it has no longer.
    pub(crate) fn forget_rules(&self, id: &AgentId, names: &[String]) {
        if let Some(known) = self.state().agents.get_mut(id) {
            known.reported.rules.retain(|name, _| !names.contains(name));
        }
    }

    /// The agents that a selector is for, by id, and whether they're connected here.
    pub(crate) fn selected(&self, selector: &Selector) -> Vec<(AgentId, bool)> {
        let state = self.state();
        let meant = state.agents.iter().filter(|(_, known)| selector.matches(&known.introduction.labels));
        meant.map(|(id, known)| (id.clone(), known.connection.is_some())).collect()
    }

    /// One agent as it's shown.
    pub(crate) fn agent(&self, id: &AgentId) -> Option<message::Agent> {
        self.state().agents.get(id).map(|known| known.show(&self.server))
    }

    /// Calls `visit` with an iterator over all agents after the one named, by id.
    pub(crate) fn agents<T>(
        &self,
        after: &str,
        visit: impl FnOnce(&mut dyn Iterator<Item = message::Agent>) -> T,
    ) -> T {
        let state = self.state();
        let behind = state.agents.iter().filter(|(id, _)| id.as_str() > after);
        visit(&mut behind.map(|(_, known)| known.show(&self.server)))
    }

    /// Calls `visit` with an iterator over all streams, by agent and id: the agent, whether it's connected, the stream.
    pub(crate) fn streams<T>(
        &self,
        visit: impl FnOnce(&mut dyn Iterator<Item = (&AgentId, bool, &message::StreamStatus)>) -> T,
    ) -> T {
        let state = self.state();
        visit(&mut state.agents.iter().flat_map(|(id, known)| {
            known.reported.streams.values().map(move |status| (id, known.connection.is_some(), status))
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// The name of its message of this number, the first being 1.
    pub(crate) fn nonce(&self, message: u64) -> String {
        format!("{}{message}", nonce_prefix(self.number))
    }
}

/// What the nonces of a connection begin with.
fn nonce_prefix(connection: u64) -> String {
    format!("{connection:x}-")
}

impl State {
    /// Forgets the agent that was gone longest if there's no room for a further one.
    fn make_room(&mut self, id: &AgentId, max_agents: usize) -> Result<(), Status> {
        if self.agents.contains_key(id) || self.agents.len() < max_agents {
            return Ok(());
        }
        let offline = self.agents.iter().filter(|(_, known)| known.connection.is_none());
        let oldest = offline.min_by_key(|(_, known)| known.last_seen).map(|(id, _)| id.clone());
        let oldest = oldest.ok_or_else(|| {
            resource_exhausted("TOO_MANY_AGENTS", format!("{max_agents} agents are connected, which is the limit"))
        })?;
        if let Some(forgotten) = self.agents.remove(&oldest) {
            self.streams -= forgotten.reported.streams.len();
        }
        Ok(())
    }

    fn enter(&mut self, introduction: Introduction) -> Connection {
        self.connections += 1;
        let connection = Connection { number: self.connections, mailbox: Arc::default() };
        let now = UnixNanos::now();
        let known = self.agents.entry(introduction.id.clone()).or_insert_with(|| Known {
            introduction: introduction.clone(),
            connection: None,
            connect_time: now,
            last_seen: now,
            reported: Reported::default(),
            config_revision: 0,
        });
        // What an earlier process reported is shown until this one's first report, which is to be a full one.
        known.reported.has_full &= known.introduction.session == introduction.session;
        self.online += usize::from(known.connection.replace(connection.clone()).is_none());
        (known.introduction, known.connect_time, known.last_seen) = (introduction, now, now);
        gauge!("logmesh_config_agents_online").set(self.online as f64);
        connection
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        if let Some(known) = state.agents.get_mut(&self.id)
            && known.connection.as_ref().is_some_and(|connection| connection.number == self.number)
        {
            known.connection = None;
            known.last_seen = UnixNanos::now();
            state.online -= 1;
            gauge!("logmesh_config_agents_online").set(state.online as f64);
        }
    }
}

impl Known {
    fn show(&self, server: &str) -> message::Agent {
        message::Agent {
            id: self.introduction.id.to_string(),
            labels: self.introduction.labels.clone(),
            version: self.introduction.version.clone(),
            online: self.connection.is_some(),
            connect_time: Some(timestamp(self.connect_time)),
            last_seen_time: Some(timestamp(self.last_seen)),
            rules: self.reported.rules.values().cloned().collect(),
            stream_count: u32::try_from(self.reported.streams.len()).unwrap_or(u32::MAX),
            lag_bytes: self.reported.lag_bytes(),
            config_revision: self.config_revision,
            server: server.to_owned(),
            unreachable_servers: Vec::new(),
        }
    }
}

fn doubled(first: &Introduction) -> Status {
    let host = first.labels.get("host").map(String::as_str).unwrap_or("an unnamed host");
    let message = format!(
        "agent {} is connected already, from {host}; two processes must not share an id: stop one, or give it another id",
        first.id
    );
    already_exists("AGENT_CONNECTED", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(max_agents: usize, max_streams: usize) -> Registry {
        Registry::new(&Settings { max_agents, max_streams, ..Settings::default() })
    }

    fn introduction(id: &str, session: &str) -> Introduction {
        let session = session.to_owned();
        Introduction { id: id.parse().unwrap(), session, labels: Labels::new(), version: String::new() }
    }

    fn report(id: &str, session: &str, streams: std::ops::Range<u8>) -> message::ReportStatusRequest {
        let streams = streams.map(|n| message::StreamStatus { stream_id: format!("{n:032x}"), ..Default::default() });
        message::ReportStatusRequest {
            agent_id: id.into(),
            session: session.into(),
            full: true,
            streams: streams.collect(),
            ..Default::default()
        }
    }

    fn online(registry: &Registry, id: &str) -> Option<bool> {
        registry.agent(&id.parse().unwrap()).map(|agent| agent.online)
    }

    #[test]
    fn one_process_to_an_id_and_the_same_session_takes_over() {
        let registry = registry(10, 10);
        let first = registry.connect(introduction("a", "1")).unwrap();
        let refused = registry.connect(introduction("a", "2")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::AlreadyExists);
        let second = registry.connect(introduction("a", "1")).unwrap();
        assert!(matches!(first.mailbox.ended(), Some(Ended::Superseded)));
        assert!(second.mailbox.ended().is_none());
        drop(first);
        assert_eq!(online(&registry, "a"), Some(true), "the older stream's end changes nothing");
        drop(second);
        assert_eq!(online(&registry, "a"), Some(false));
        registry.connect(introduction("a", "2")).unwrap();
    }

    #[test]
    fn the_agent_that_was_gone_longest_makes_room() {
        let registry = registry(2, 10);
        drop(registry.connect(introduction("a", "1")).unwrap());
        drop(registry.connect(introduction("b", "1")).unwrap());
        let c = registry.connect(introduction("c", "1")).unwrap();
        assert_eq!((online(&registry, "a"), online(&registry, "b")), (None, Some(false)));
        let d = registry.connect(introduction("d", "1")).unwrap();
        let full = registry.connect(introduction("e", "1")).unwrap_err();
        assert_eq!(full.code(), tonic::Code::ResourceExhausted);
        drop((c, d));
    }

    #[test]
    fn reports_are_of_the_connected_session_and_bounded() {
        let registry = registry(10, 5);
        let unknown = registry.report(report("a", "1", 0..1)).unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        let _a = registry.connect(introduction("a", "1")).unwrap();
        assert_eq!(registry.report(report("a", "2", 0..1)).unwrap_err().code(), tonic::Code::NotFound);
        let partial = message::ReportStatusRequest { full: false, ..report("a", "1", 0..1) };
        assert!(registry.report(partial).unwrap(), "a full report is wanted");
        assert!(!registry.report(report("a", "1", 0..3)).unwrap());
        let _b = registry.connect(introduction("b", "1")).unwrap();
        assert_eq!(registry.report(report("b", "1", 0..3)).unwrap_err().code(), tonic::Code::ResourceExhausted);
        registry.report(report("b", "1", 0..2)).unwrap();
        registry.report(report("a", "1", 3..6)).unwrap();
        assert_eq!(registry.streams(|streams| streams.count()), 5);
    }
}
