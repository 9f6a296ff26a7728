//! `logmesh.fleet.v1.FleetService`.

use logmesh_grpc::not_found;
use logmesh_proto::fleet::v1::fleet_service_server::FleetService;
use logmesh_proto::fleet::v1::{
    Agent, AgentStream, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, ListStreamsRequest,
    ListStreamsResponse, StreamStatus,
};
use logmesh_types::{AgentId, NameError};
use tonic::{Request, Response, Status};

use super::registry::Registry;
use crate::error::bad_field;
use crate::paging::{page, page_size};

/// The API that shows agents.
#[derive(Clone, Debug)]
pub(crate) struct FleetApi {
    registry: Registry,
}

impl FleetApi {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry }
    }
}

#[tonic::async_trait]
impl FleetService for FleetApi {
    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (agents, next_page_token) = self
            .registry
            .agents(&request.page_token, |agents| page(agents.map(|agent| (agent.id.clone(), agent)), size));
        Ok(Response::new(ListAgentsResponse { agents, next_page_token }))
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Result<Response<Agent>, Status> {
        let id = request.into_inner().id;
        let id: AgentId = id.parse().map_err(|error: NameError| bad_field("id", error.to_string()))?;
        let agent = self.registry.agent(&id);
        let missing = || not_found("AGENT_NOT_FOUND", format!("no agent {id} was seen since this server started"));
        agent.map(Response::new).ok_or_else(missing)
    }

    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        // The token is `agent/stream`; ids hold no slash, so that pairs are compared, not texts.
        let after = request.page_token.split_once('/').unwrap_or_default();
        let wanted = |(agent, _, status): &(&AgentId, bool, &StreamStatus)| {
            (request.agent_id.is_empty() || agent.as_str() == request.agent_id)
                && (request.topic.is_empty() || status.topic == request.topic)
                && (agent.as_str(), status.stream_id.as_str()) > after
        };
        let (streams, next_page_token) = self.registry.streams(|streams| page(streams.filter(wanted).map(show), size));
        Ok(Response::new(ListStreamsResponse { streams, next_page_token }))
    }
}

/// A stream as it's shown, with its page token.
fn show((agent, agent_online, status): (&AgentId, bool, &StreamStatus)) -> (String, AgentStream) {
    let stream = AgentStream { agent_id: agent.to_string(), agent_online, status: Some(status.clone()) };
    (format!("{agent}/{}", status.stream_id), stream)
}
