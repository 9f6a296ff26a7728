//! The fleet as all config services together know it.

use std::collections::BTreeSet;
use std::sync::Arc;

use logmesh_grpc::unavailable;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{
    Agent, AgentStream, GetAgentRequest, ListAgentsRequest, ListStreamsRequest, StreamStatus,
};
use logmesh_proto::time::unix_nanos;
use logmesh_rules::Selector;
use logmesh_store::{ConfigStore, Revision};
use logmesh_types::{AgentId, UnixNanos};
use tonic::{Code, Status};

use super::keeper::Kept;
use super::registry::Registry;
use crate::limits::{PEER_TIMEOUT, REVISION_WAIT};
use crate::paging::page;
use crate::peers::{Answers, Listed, Page, Part, Peers};

/// What this server knows, and whom to ask for the rest.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) store: Arc<dyn ConfigStore>,
    pub(crate) registry: Registry,
    pub(crate) peers: Peers,
    /// How far what the store keeps of agents was taken in.
    pub(crate) kept: Kept,
}

impl Listed for Agent {
    type Key = String;

    fn key(&self) -> String {
        self.id.clone()
    }

    fn token(&self) -> String {
        self.id.clone()
    }

    /// Where it is connected they know it best; else where it was seen last.
    fn beats(&self, other: &Self) -> bool {
        (self.online, seen(self)) > (other.online, seen(other))
    }
}

fn seen(agent: &Agent) -> Option<UnixNanos> {
    agent.last_seen_time.as_ref().map(unix_nanos)
}

impl Listed for AgentStream {
    type Key = (String, String);

    fn key(&self) -> (String, String) {
        (self.agent_id.clone(), stream_id(self).to_owned())
    }

    /// Ids hold no slash.
    fn token(&self) -> String {
        format!("{}/{}", self.agent_id, stream_id(self))
    }

    fn beats(&self, other: &Self) -> bool {
        let acked = |stream: &Self| stream.status.as_ref().map(|status| status.acked_offset);
        (self.agent_online, acked(self)) > (other.agent_online, acked(other))
    }
}

fn stream_id(stream: &AgentStream) -> &str {
    stream.status.as_ref().map_or("", |status| status.stream_id.as_str())
}

impl Fleet {
    /// Waits until rules and agents were read from the store: before, an agent would be shown without the rules that are meant
    /// for it, and one that isn't connected not at all.
    pub(crate) async fn loaded(&self) -> Result<(), Status> {
        let mut steps = self.registry.steps();
        let loaded = async {
            self.kept.wait(Revision(1)).await;
            steps.wait_for(|step| step.set.is_loaded()).await.is_ok()
        };
        match tokio::time::timeout(REVISION_WAIT, loaded).await {
            Ok(true) => Ok(()),
            _ => Err(unavailable(
                "FLEET_NOT_READ",
                "rules and agents weren't read from the store yet; try again, and see `logmesh status`",
            )),
        }
    }

    /// A page of the agents behind the one named that the filter selects. Servers in `lost` aren't asked; who doesn't answer
    /// comes to them.
    pub(crate) async fn agents(
        &self,
        after: String,
        size: usize,
        filter: Option<&Selector>,
        lost: &mut BTreeSet<String>,
    ) -> Page<Agent> {
        let own = |after: &str, size| self.own_agents(after, size, false);
        let ask = |channel, page_token, page_size| async move {
            let request = ListAgentsRequest { page_size, page_token, this_server_only: true, ..Default::default() };
            let list = FleetServiceClient::new(channel).list_agents(request).await?.into_inner();
            Ok(Part { items: list.agents, next_page_token: list.next_page_token })
        };
        let selects = filter.map(|filter| move |agent: &Agent| super::filter::selects(filter, agent));
        let keep = selects.as_ref().map(|selects| selects as &(dyn Fn(&Agent) -> bool + Send + Sync));
        self.peers.page(after, size, own, ask, keep, lost).await
    }

    /// This server's part of it; with `only_here` none that was never connected to it.
    pub(crate) fn own_agents(&self, after: &str, size: usize, only_here: bool) -> Part<Agent> {
        let shown = |agents: &mut dyn Iterator<Item = Agent>| page(agents.map(|one| (one.token(), one)), size);
        let (items, next_page_token) = self.registry.agents(after, only_here, shown);
        Part { items, next_page_token }
    }

    /// One agent, as the server knows it that knows it best, and who didn't answer. The others aren't asked for an agent
    /// that is connected here.
    pub(crate) async fn agent(&self, id: &AgentId) -> (Option<Agent>, Vec<String>) {
        let own = self.registry.agent(id, false);
        if own.as_ref().is_some_and(|agent| agent.online) {
            return (own, Vec::new());
        }
        let request = GetAgentRequest { id: id.to_string(), this_server_only: true };
        let Answers { answers, unreachable } = self
            .peers
            .ask(PEER_TIMEOUT, |channel| {
                let request = request.clone();
                async move {
                    match FleetServiceClient::new(channel).get_agent(request).await {
                        Ok(agent) => Ok(Some(agent.into_inner())),
                        Err(status) if status.code() == Code::NotFound => Ok(None),
                        Err(status) => Err(status),
                    }
                }
            })
            .await;
        let known = answers.into_iter().filter_map(|(_, agent)| agent).chain(own);
        (known.reduce(|best, agent| if agent.beats(&best) { agent } else { best }), unreachable)
    }

    /// A page of the streams that are wanted.
    pub(crate) async fn streams(&self, wanted: &ListStreamsRequest, size: usize) -> Page<AgentStream> {
        let own = |after: &str, size| self.own_streams(wanted, after, size);
        let ask = |channel, page_token, page_size| {
            let request = ListStreamsRequest { page_size, page_token, this_server_only: true, ..wanted.clone() };
            async move {
                let list = FleetServiceClient::new(channel).list_streams(request).await?.into_inner();
                Ok(Part { items: list.streams, next_page_token: list.next_page_token })
            }
        };
        self.peers.page(wanted.page_token.clone(), size, own, ask, None, &mut BTreeSet::new()).await
    }

    /// This server's part of it.
    pub(crate) fn own_streams(&self, wanted: &ListStreamsRequest, after: &str, size: usize) -> Part<AgentStream> {
        // Pairs are compared, not texts: a slash sorts behind a hyphen.
        let after = after.split_once('/').unwrap_or_default();
        let wanted = |(agent, _, status): &(&AgentId, bool, &StreamStatus)| {
            (wanted.agent_id.is_empty() || agent.as_str() == wanted.agent_id)
                && (wanted.topic.is_empty() || status.topic == wanted.topic)
                && (agent.as_str(), status.stream_id.as_str()) > after
        };
        let shown = |(agent, agent_online, status): (&AgentId, bool, &StreamStatus)| {
            let stream = AgentStream { agent_id: agent.to_string(), agent_online, status: Some(status.clone()) };
            (stream.token(), stream)
        };
        let (items, next_page_token) = self.registry.streams(|streams| page(streams.filter(wanted).map(shown), size));
        Part { items, next_page_token }
    }
}

/// An error for an answer that can't be given without those who didn't answer.
pub(crate) fn incomplete(what: &str, unreachable: &[String]) -> Status {
    let servers: BTreeSet<&String> = unreachable.iter().collect();
    let servers: Vec<&str> = servers.into_iter().map(String::as_str).collect();
    let message = format!("{what}, and these config services did not answer: {}", servers.join(", "));
    logmesh_grpc::unavailable("SERVERS_UNREACHABLE", message)
}
