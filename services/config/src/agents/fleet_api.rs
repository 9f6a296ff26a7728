//! `logmesh.fleet.v1.FleetService`.

use logmesh_grpc::not_found;
use logmesh_proto::fleet::v1::fleet_service_server::FleetService;
use logmesh_proto::fleet::v1::{
    Agent, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, ListStreamsRequest, ListStreamsResponse,
};
use logmesh_types::{AgentId, NameError};
use tonic::{Request, Response, Status};

use super::merged::{Fleet, incomplete};
use super::registry::Registry;
use crate::error::bad_field;
use crate::paging::page_size;
use crate::peers::{Page, Peers};

/// The API that shows agents.
#[derive(Clone, Debug)]
pub(crate) struct FleetApi {
    fleet: Fleet,
}

impl FleetApi {
    pub(crate) fn new(registry: Registry, peers: Peers) -> Self {
        Self { fleet: Fleet { registry, peers } }
    }
}

#[tonic::async_trait]
impl FleetService for FleetApi {
    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        let ListAgentsRequest { page_size: asked, page_token, this_server_only } = request.into_inner();
        let size = page_size(asked)?;
        let page = match this_server_only {
            true => self.fleet.own_agents(&page_token, size).into(),
            false => self.fleet.agents(page_token, size).await,
        };
        let Page { items, next_page_token, unreachable } = page;
        Ok(Response::new(ListAgentsResponse { agents: items, next_page_token, unreachable_servers: unreachable }))
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Result<Response<Agent>, Status> {
        let GetAgentRequest { id, this_server_only } = request.into_inner();
        let id: AgentId = id.parse().map_err(|error: NameError| bad_field("id", error.to_string()))?;
        let (agent, unreachable) = match this_server_only {
            true => (self.fleet.registry.agent(&id), Vec::new()),
            false => self.fleet.agent(&id).await,
        };
        match agent {
            Some(agent) => Ok(Response::new(Agent { unreachable_servers: unreachable, ..agent })),
            None if unreachable.is_empty() => {
                Err(not_found("AGENT_NOT_FOUND", format!("no agent {id} was seen since this server started")))
            }
            None => Err(incomplete(&format!("no agent {id} is known here"), &unreachable)),
        }
    }

    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let page = match request.this_server_only {
            true => self.fleet.own_streams(&request, &request.page_token, size).into(),
            false => self.fleet.streams(&request, size).await,
        };
        let Page { items, next_page_token, unreachable } = page;
        Ok(Response::new(ListStreamsResponse { streams: items, next_page_token, unreachable_servers: unreachable }))
    }
}
