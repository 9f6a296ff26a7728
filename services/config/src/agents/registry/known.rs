//! What is known of one agent, and how it's shown.

use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::{Agent, AgentRuleStatus, RuleState, RuleStatus};
use logmesh_proto::time::timestamp;
use logmesh_rules::Labels;
use logmesh_store::Revision;
use logmesh_types::{AgentId, UnixNanos};

use super::{Connection, Introduction};
use crate::agents::report::Reported;
use crate::agents::stored::{StoredAgent, merged};
use crate::agents::wanted::{Step, Wanted};

/// What is known of an agent.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What the store keeps, and the revision that wrote it.
    pub(super) stored: Option<(Arc<StoredAgent>, Revision)>,
    /// What this server knows; `None`: it was never connected here, as far as is remembered.
    pub(super) here: Option<Here>,
    /// Its labels, the centre's and the host's.
    pub(super) labels: Arc<Labels>,
}

/// An agent that is or was connected to this server.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) introduction: Introduction,
    /// Its stream, as long as it is connected.
    pub(super) connection: Option<Connection>,
    pub(super) connect_time: UnixNanos,
    pub(super) last_seen: UnixNanos,
    pub(super) reported: Reported,
    /// The revision that it has applied, as it says.
    pub(super) config_revision: i64,
}

/// What the nonces of a connection begin with.
pub(super) fn nonce_prefix(connection: u64) -> String {
    format!("{connection:x}-")
}

impl Here {
    /// Notes what the agent says it has applied, if that was told on this connection.
    pub(super) fn note_applied(&mut self, nonce: &str, revision: i64) {
        let of_this = |one: &Connection| nonce.starts_with(&nonce_prefix(one.number));
        if self.connection.as_ref().is_some_and(of_this) {
            self.config_revision = revision;
        }
    }
}

impl Known {
    pub(super) fn connection(&self) -> Option<&Connection> {
        self.here.as_ref()?.connection.as_ref()
    }

    /// Takes in a stream that begins; answers whether it had been here, and had a stream.
    pub(super) fn enter(&mut self, introduction: Introduction, connection: Connection) -> (bool, bool) {
        let now = UnixNanos::now();
        let former = self.here.take();
        let (was_here, was_online) = (former.is_some(), former.as_ref().is_some_and(|here| here.connection.is_some()));
        let mut reported = Reported::default();
        if let Some(former) = former {
            reported = former.reported;
            // What an earlier process reported is shown until this one's first report, which is to be a full one.
            reported.has_full &= former.introduction.session == introduction.session;
        }
        let connection = Some(connection);
        self.here =
            Some(Here { introduction, connection, connect_time: now, last_seen: now, reported, config_revision: 0 });
        self.merge_labels();
        (was_here, was_online)
    }

    /// Takes in what the store keeps of it now.
    pub(super) fn keep(&mut self, stored: Option<(Arc<StoredAgent>, Revision)>) {
        self.stored = stored;
        self.merge_labels();
    }

    fn merge_labels(&mut self) {
        let nothing = Labels::new();
        let centre = self.stored.as_ref().map_or(&nothing, |(stored, _)| &stored.labels);
        let labels = merged(self.host_labels().unwrap_or(&nothing), centre);
        if labels != *self.labels {
            self.labels = Arc::new(labels);
            if let Some(connection) = self.connection() {
                connection.mailbox.relabel(self.labels.clone());
            }
        }
    }

    /// Takes in that its stream here ended.
    pub(super) fn exit(&mut self) {
        if let Some(here) = &mut self.here {
            here.connection = None;
            here.last_seen = UnixNanos::now();
        }
        self.merge_labels();
    }

    /// How it introduced itself here, if that counts. Of one that is away the store's record does: it may have come back to
    /// another server as something else.
    fn introduced(&self) -> Option<&Introduction> {
        let here = self.here.as_ref().filter(|here| here.connection.is_some() || self.stored.is_none());
        here.map(|here| &here.introduction)
    }

    fn host_labels(&self) -> Option<&Labels> {
        let introduced = self.introduced().map(|introduction| &introduction.labels);
        introduced.or_else(|| self.stored.as_ref().map(|(stored, _)| &stored.host_labels))
    }

    /// Whether the store lacks something of an agent that introduces itself so.
    pub(super) fn is_unsaved(&self, introduction: &Introduction, step: Duration) -> bool {
        !self.stored.as_ref().is_some_and(|(stored, _)| stored.is_of(introduction, UnixNanos::now(), step))
    }

    /// When it was last heard of. One that is connected answers the server's pings: that's now.
    fn last_seen(&self) -> Option<UnixNanos> {
        let stored = || self.stored.as_ref().and_then(|(stored, _)| stored.last_seen());
        match &self.here {
            Some(here) if here.connection.is_some() => Some(UnixNanos::now()),
            Some(here) => Some(here.last_seen),
            None => stored(),
        }
    }

    pub(super) fn show(&self, id: &AgentId, server: &str, step: &Step) -> Agent {
        let here = self.here.as_ref();
        let version = self.introduced().map(|introduction| &introduction.version);
        let version = version.or_else(|| self.stored.as_ref().map(|(stored, _)| &stored.version));
        let wanted = Wanted::of(step, &self.labels);
        Agent {
            id: id.to_string(),
            labels: (*self.labels).clone(),
            host_labels: self.host_labels().cloned().unwrap_or_default(),
            central_labels: self.stored.as_ref().map(|(stored, _)| stored.labels.clone()).unwrap_or_default(),
            version: version.cloned().unwrap_or_default(),
            online: self.connection().is_some(),
            connect_time: here.map(|here| timestamp(here.connect_time)),
            last_seen_time: self.last_seen().map(timestamp),
            rules: wanted.rules().map(|live| self.status(&live.message)).collect(),
            stream_count: here.map_or(0, |here| u32::try_from(here.reported.streams.len()).unwrap_or(u32::MAX)),
            lag_bytes: here.map_or(0, |here| here.reported.lag_bytes()),
            config_revision: here.map_or(0, |here| here.config_revision),
            server: here.map_or_else(String::new, |_| server.to_owned()),
            unreachable_servers: Vec::new(),
        }
    }

    pub(super) fn rule_status(&self, id: &AgentId, rule: &Rule, server: &str) -> AgentRuleStatus {
        AgentRuleStatus {
            agent_id: id.to_string(),
            online: self.connection().is_some(),
            status: Some(self.status(rule)),
            server: self.here.as_ref().map_or_else(String::new, |_| server.to_owned()),
            last_seen_time: self.last_seen().map(timestamp),
        }
    }

    fn status(&self, rule: &Rule) -> RuleStatus {
        let reported = self.here.as_ref().and_then(|here| here.reported.rules.get(&rule.name));
        as_seen(reported.cloned().unwrap_or_default(), rule)
    }
}

/// What became of a rule as the centre sees it: what the agent said of an earlier revision is no answer to the present one.
pub(crate) fn as_seen(mut status: RuleStatus, rule: &Rule) -> RuleStatus {
    status.name.clone_from(&rule.name);
    status.desired_revision = rule.revision;
    if status.attempted_revision != rule.revision {
        status.state = RuleState::Pending.into();
        status.error = None;
    }
    status
}
