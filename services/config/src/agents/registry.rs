//! The agents that this process knows: those that are connected here, those that were, and those that the store keeps.
//!
//! All of it under one lock, which is held for short and never over an await.

mod elsewhere;
mod known;
mod saved;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logmesh_grpc::{already_exists, not_found, resource_exhausted};
use logmesh_proto::fleet::v1 as message;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_rules::{Labels, Selector};
use logmesh_store::Revision;
use logmesh_types::{AgentId, UnixNanos, metric};
use metrics::{counter, gauge};
use tokio::sync::{Notify, watch};
use tonic::Status;

use super::mailbox::{Ended, Mailbox};
use super::report;
use super::stored::seen_step;
use super::wanted::Step;
use crate::rules::LiveRule;
use crate::settings::Settings;
use elsewhere::Elsewhere;
use known::Known;

pub(crate) use elsewhere::Told;
pub(crate) use known::as_seen;
pub(crate) use saved::Unsaved;

/// How an agent introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) id: AgentId,
    pub(crate) session: String,
    pub(crate) labels: Labels,
    pub(crate) version: String,
}

/// The known agents. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    /// This server's id among the config services.
    server: Arc<str>,
    steps: watch::Receiver<Arc<Step>>,
    max_agents: usize,
    max_streams: usize,
    /// Woken when the store lacks something of an agent.
    unsaved: Arc<Notify>,
    /// Counts what other servers want to know: which agents are connected here.
    sessions: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct State {
    agents: BTreeMap<AgentId, Known>,
    /// Agents that are or were connected here.
    here: usize,
    /// Agents with a stream.
    online: usize,
    /// Streams of all agents' reports.
    streams: usize,
    /// Counts the connections.
    connections: u64,
    /// Whether the store's agents were read.
    loaded: bool,
    /// The revision as of which they were read last.
    kept: Revision,
    /// Agents of which the store may lack something.
    unsaved: BTreeSet<AgentId>,
    /// How old an agent's time in the store may be while it's connected.
    seen_step: Duration,
    /// Who is connected to other servers, by the server's id.
    elsewhere: BTreeMap<String, HashMap<AgentId, Elsewhere>>,
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
    /// The agent's labels when it connected; later ones come by the mailbox.
    pub(crate) labels: Arc<Labels>,
}

impl Registry {
    pub(crate) fn new(settings: &Settings, steps: watch::Receiver<Arc<Step>>) -> Self {
        let server = settings.server.as_ref().map_or("", |server| server.endpoint().id.as_str());
        let state = State { seen_step: seen_step(settings.agent_retention.0), ..State::default() };
        Self {
            state: Arc::new(Mutex::new(state)),
            server: server.into(),
            steps,
            max_agents: settings.max_agents,
            max_streams: settings.max_streams,
            unsaved: Arc::default(),
            sessions: Arc::new(watch::channel(0).0),
        }
    }

    /// Enters an agent. Refused while another process with the same id is connected, here or to another server that is
    /// heard; the same session takes over.
    pub(crate) fn connect(&self, introduction: Introduction) -> Result<Connected, Status> {
        let mut state = self.state();
        let id = introduction.id.clone();
        let connected = state.agents.get(&id).and_then(|known| known.here.as_ref()).and_then(|here| {
            let connection = here.connection.as_ref()?;
            Some((connection, &here.introduction))
        });
        match connected {
            Some((_, first)) if first.session != introduction.session => return Err(doubled(&id, first.host(), "")),
            Some((connection, _)) => connection.mailbox.end(Ended::Superseded),
            None => state.check_elsewhere(&introduction)?,
        }
        state.make_room(&id, self.max_agents)?;
        let connected = state.enter(introduction);
        let labels = state.agents.get(&id).map(|known| known.labels.clone()).unwrap_or_default();
        if state.unsaved.contains(&id) {
            self.unsaved.notify_one();
        }
        drop(state);
        self.sessions.send_modify(|count| *count += 1);
        let Connection { number, mailbox } = connected;
        Ok(Connected { registry: self.clone(), id, number, mailbox, labels })
    }

    /// Leaves a message to be told once to a connected agent.
    pub(crate) fn tell(&self, id: &AgentId, message: Update) -> Result<(), Status> {
        let connection = self.state().agents.get(id).and_then(|known| known.connection().cloned());
        let away = || not_found("AGENT_NOT_CONNECTED", format!("agent {id} is not connected here"));
        connection.ok_or_else(away)?.mailbox.leave(message).map_err(|_| {
            resource_exhausted("AGENT_BUSY", format!("too many messages wait for agent {id}, which takes none"))
        })
    }

    /// Takes a report in; answers whether a full one is wanted next.
    pub(crate) fn report(&self, mut report: message::ReportStatusRequest) -> Result<bool, Status> {
        report::check(&mut report)?;
        let mut state = self.state();
        let State { agents, streams, .. } = &mut *state;
        let id = report.agent_id.parse::<AgentId>().ok();
        let here = id.and_then(|id| agents.get_mut(&id)).and_then(|known| known.here.as_mut());
        let here = here.filter(|here| here.connection.is_some() && here.introduction.session == report.session);
        let here = here.ok_or_else(|| {
            not_found(
                "NO_SESSION",
                format!("agent {:?} has no stream of this session; open WatchConfig", report.agent_id),
            )
        })?;
        let others = *streams - here.reported.streams.len();
        if others + here.reported.streams_with(&report) > self.max_streams {
            let message = format!("reports tell of {} streams already, which is the limit", self.max_streams);
            return Err(resource_exhausted("TOO_MANY_STREAMS", message));
        }
        let first = report.full && !here.reported.has_full;
        here.note_applied(&report.nonce, report.revision);
        here.reported.apply(report);
        here.last_seen = UnixNanos::now();
        *streams = others + here.reported.streams.len();
        let want_full = !here.reported.has_full;
        drop(state);
        if first {
            self.sessions.send_modify(|count| *count += 1);
        }
        Ok(want_full)
    }

    /// Forgets what the agent said of rules that it has no longer.
    pub(crate) fn forget_rules(&self, id: &AgentId, names: &[String]) {
        if names.is_empty() {
            return;
        }
        if let Some(here) = self.state().agents.get_mut(id).and_then(|known| known.here.as_mut()) {
            here.reported.rules.retain(|name, _| !names.contains(name));
        }
    }

    /// The agents that a selector is for, by id, and whether they're connected here.
    pub(crate) fn selected(&self, selector: &Selector) -> Vec<(AgentId, bool)> {
        let state = self.state();
        let meant = state.agents.iter().filter(|(_, known)| selector.matches(&known.labels));
        meant.map(|(id, known)| (id.clone(), known.connection().is_some())).collect()
    }

    /// One agent as it's shown; with `only_here` none that was never connected to this server.
    pub(crate) fn agent(&self, id: &AgentId, only_here: bool) -> Option<message::Agent> {
        let step = self.step();
        let state = self.state();
        let known = state.agents.get(id).filter(|known| !only_here || known.here.is_some())?;
        Some(known.show(id, &self.server, &step))
    }

    /// Calls `visit` with an iterator over the agents after the one named, by id; with `only_here` without those that were
    /// never connected to this server.
    pub(crate) fn agents<T>(
        &self,
        after: &str,
        only_here: bool,
        visit: impl FnOnce(&mut dyn Iterator<Item = message::Agent>) -> T,
    ) -> T {
        let step = self.step();
        let state = self.state();
        let wanted = state.behind(after).filter(|(_, known)| !only_here || known.here.is_some());
        visit(&mut wanted.map(|(id, known)| known.show(id, &self.server, &step)))
    }

    /// The same for what became of one rule on the agents that it is for.
    pub(crate) fn statuses<T>(
        &self,
        rule: &LiveRule,
        after: &str,
        only_here: bool,
        visit: impl FnOnce(&mut dyn Iterator<Item = message::AgentRuleStatus>) -> T,
    ) -> T {
        let state = self.state();
        let wanted = state.behind(after).filter(|(_, known)| !only_here || known.here.is_some());
        let meant = wanted.filter(|(_, known)| rule.rule.selector.matches(&known.labels));
        visit(&mut meant.map(|(id, known)| known.rule_status(id, &rule.message, &self.server)))
    }

    /// Calls `visit` with an iterator over all streams, by agent and id: the agent, whether it's connected, the stream.
    pub(crate) fn streams<T>(
        &self,
        visit: impl FnOnce(&mut dyn Iterator<Item = (&AgentId, bool, &message::StreamStatus)>) -> T,
    ) -> T {
        let state = self.state();
        let here = state.agents.iter().filter_map(|(id, known)| Some((id, known.here.as_ref()?)));
        visit(&mut here.flat_map(|(id, here)| {
            here.reported.streams.values().map(move |status| (id, here.connection.is_some(), status))
        }))
    }

    /// The rules as streams have them now, to be followed.
    pub(crate) fn steps(&self) -> watch::Receiver<Arc<Step>> {
        self.steps.clone()
    }

    fn step(&self) -> Arc<Step> {
        self.steps.borrow().clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// The name of its message of this number, the first being 1.
    pub(crate) fn nonce(&self, message: u64) -> String {
        format!("{}{message}", known::nonce_prefix(self.number))
    }
}

impl State {
    /// The agents after the one named, by id.
    fn behind<'a>(&'a self, after: &'a str) -> impl Iterator<Item = (&'a AgentId, &'a Known)> {
        self.agents.iter().filter(move |(id, _)| id.as_str() > after)
    }

    /// Forgets what is known of the agent that was gone longest if there's no room for a further one.
    fn make_room(&mut self, id: &AgentId, max_agents: usize) -> Result<(), Status> {
        if self.here < max_agents || self.agents.get(id).is_some_and(|known| known.here.is_some()) {
            return Ok(());
        }
        let here = self.agents.iter().filter_map(|(id, known)| Some((id, known.here.as_ref()?)));
        let oldest = here.filter(|(_, here)| here.connection.is_none()).min_by_key(|(_, here)| here.last_seen);
        let oldest = oldest.map(|(id, _)| id.clone()).ok_or_else(|| {
            resource_exhausted("TOO_MANY_AGENTS", format!("{max_agents} agents are connected, which is the limit"))
        })?;
        self.leave(&oldest);
        Ok(())
    }

    /// Forgets what this server knows of an agent; what the store keeps stays.
    fn leave(&mut self, id: &AgentId) {
        let Some(known) = self.agents.get_mut(id) else { return };
        if let Some(here) = known.here.take() {
            self.here -= 1;
            self.streams -= here.reported.streams.len();
        }
        if known.stored.is_none() {
            self.agents.remove(id);
        }
        self.unsaved.remove(id);
    }

    fn enter(&mut self, introduction: Introduction) -> Connection {
        self.connections += 1;
        let connection = Connection { number: self.connections, mailbox: Arc::default() };
        let id = introduction.id.clone();
        let known = self.agents.entry(id.clone()).or_default();
        if known.is_unsaved(&introduction, self.seen_step) {
            self.unsaved.insert(id);
        }
        let (here, was) = known.enter(introduction, connection.clone());
        self.here += usize::from(!here);
        self.online += usize::from(!was);
        gauge!(metric::CONFIG_AGENTS_ONLINE).set(self.online as f64);
        connection
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.registry.state();
        let known = state.agents.get_mut(&self.id);
        if let Some(known) = known.filter(|known| known.connection().is_some_and(|one| one.number == self.number)) {
            known.exit();
            state.give_way(&self.id);
            state.online -= 1;
            gauge!(metric::CONFIG_AGENTS_ONLINE).set(state.online as f64);
            drop(state);
            self.registry.sessions.send_modify(|count| *count += 1);
        }
    }
}

impl Introduction {
    fn host(&self) -> &str {
        self.labels.get("host").map_or("an unnamed host", String::as_str)
    }
}

/// Why the younger of two processes with one id is refused.
fn doubled(id: &AgentId, host: &str, server: &str) -> Status {
    counter!(metric::CONFIG_AGENTS_REFUSED).increment(1);
    let place = if server.is_empty() { format!("from {host}") } else { format!("to config service {server}") };
    let message = format!(
        "agent {id} is connected already, {place}; two processes must not share an id: stop one, or give it another id"
    );
    already_exists("AGENT_CONNECTED", message)
}

#[cfg(test)]
mod tests;
