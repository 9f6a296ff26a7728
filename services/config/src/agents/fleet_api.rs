//! `logmesh.fleet.v1.FleetService`.

use std::sync::Arc;

use logmesh_grpc::{not_found, resource_exhausted};
use logmesh_proto::fleet::v1::fleet_service_server::FleetService;
use logmesh_proto::fleet::v1::{
    Agent, ForgetAgentRequest, ForgetAgentResponse, GetAgentRequest, ListAgentsRequest, ListAgentsResponse,
    ListRuleStatusesRequest, ListRuleStatusesResponse, ListStreamsRequest, ListStreamsResponse, ReadAgainRequest,
    ReadAgainResponse, UpdateAgentRequest, WatchAgentsRequest, WatchAgentsResponse, WatchSessionsRequest,
    WatchSessionsResponse,
};
use logmesh_types::{AgentId, NameError};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::commands::Commands;
use super::merged::{Fleet, incomplete};
use super::{doubles, filter, reread, watch};
use crate::error::bad_field;
use crate::limits::MAX_AGENT_WATCHES;
use crate::paging::page_size;
use crate::peers::Page;
use crate::push::{Push, Stream};

/// The API that shows agents.
#[derive(Clone, Debug)]
pub(crate) struct FleetApi {
    fleet: Fleet,
    commands: Commands,
    push: Push,
    watches: Arc<Semaphore>,
}

impl FleetApi {
    pub(crate) fn new(fleet: Fleet, commands: Commands, push: Push) -> Self {
        Self { fleet, commands, push, watches: Arc::new(Semaphore::new(MAX_AGENT_WATCHES)) }
    }
}

#[tonic::async_trait]
impl FleetService for FleetApi {
    async fn list_agents(&self, request: Request<ListAgentsRequest>) -> Result<Response<ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let filter = filter::read(&request.filter)?;
        self.fleet.loaded().await?;
        let page = match request.this_server_only {
            true => self.fleet.own_agents(&request.page_token, size, true).into(),
            false => self.fleet.agents(request.page_token, size, filter.as_ref(), &mut Default::default()).await,
        };
        let Page { items, next_page_token, unreachable } = page;
        Ok(Response::new(ListAgentsResponse { agents: items, next_page_token, unreachable_servers: unreachable }))
    }

    async fn get_agent(&self, request: Request<GetAgentRequest>) -> Result<Response<Agent>, Status> {
        let GetAgentRequest { id, this_server_only } = request.into_inner();
        let id = parse(&id)?;
        self.fleet.loaded().await?;
        let (agent, unreachable) = match this_server_only {
            true => (self.fleet.registry.agent(&id, true), Vec::new()),
            false => self.fleet.agent(&id).await,
        };
        match agent {
            Some(agent) => Ok(Response::new(Agent { unreachable_servers: unreachable, ..agent })),
            None if unreachable.is_empty() => Err(not_found("AGENT_NOT_FOUND", format!("no agent {id} is known"))),
            None => Err(incomplete(&format!("no agent {id} is known here"), &unreachable)),
        }
    }

    async fn update_agent(&self, request: Request<UpdateAgentRequest>) -> Result<Response<Agent>, Status> {
        let request = request.into_inner();
        let id = parse(&request.id)?;
        self.fleet.update(&id, &request).await.map(Response::new)
    }

    async fn forget_agent(
        &self,
        request: Request<ForgetAgentRequest>,
    ) -> Result<Response<ForgetAgentResponse>, Status> {
        self.fleet.forget(&parse(&request.into_inner().id)?).await?;
        Ok(Response::new(ForgetAgentResponse {}))
    }

    type WatchAgentsStream = Stream<WatchAgentsResponse>;

    async fn watch_agents(
        &self,
        request: Request<WatchAgentsRequest>,
    ) -> Result<Response<Self::WatchAgentsStream>, Status> {
        let filter = filter::read(&request.into_inner().filter)?;
        let permit = self.watches.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_AGENT_WATCHES} callers watch agents already; try again later");
            resource_exhausted("TOO_MANY_WATCHERS", message)
        })?;
        Ok(Response::new(watch::watch(self.fleet.clone(), filter, permit, self.push.token.clone())))
    }

    async fn list_rule_statuses(
        &self,
        request: Request<ListRuleStatusesRequest>,
    ) -> Result<Response<ListRuleStatusesResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        self.fleet.rule_statuses(&request, size).await.map(Response::new)
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

    async fn read_again(&self, request: Request<ReadAgainRequest>) -> Result<Response<ReadAgainResponse>, Status> {
        reread::read_again(&self.fleet, &self.commands, request.into_inner()).await.map(Response::new)
    }

    type WatchSessionsStream = Stream<WatchSessionsResponse>;

    async fn watch_sessions(
        &self,
        _: Request<WatchSessionsRequest>,
    ) -> Result<Response<Self::WatchSessionsStream>, Status> {
        Ok(Response::new(doubles::tell(&self.fleet.registry, &self.push)?))
    }
}

fn parse(id: &str) -> Result<AgentId, Status> {
    id.parse().map_err(|error: NameError| bad_field("id", error.to_string()))
}
