//! A discovery service that tells the test what it's asked.

#![allow(dead_code, reason = "not every test uses everything")]

use std::time::Duration;

use futures::stream::BoxStream;
use logmesh_grpc::Routes;
use logmesh_proto::discovery::v1::discovery_service_server::{DiscoveryService, DiscoveryServiceServer};
use logmesh_proto::discovery::v1::{
    CampaignRequest, CampaignResponse, ListLeadersRequest, ListLeadersResponse, RegisterRequest, RegisterResponse,
    WatchEndpointsRequest, WatchEndpointsResponse,
};
use logmesh_proto::time::duration;
use logmesh_runtime::{CancellationToken, Tasks};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the test what comes: an address, a sign of life, or the end.
#[derive(Clone)]
struct Registry {
    seen: mpsc::UnboundedSender<Option<String>>,
    token: CancellationToken,
}

#[tonic::async_trait]
impl DiscoveryService for Registry {
    type RegisterStream = BoxStream<'static, Result<RegisterResponse, Status>>;
    type CampaignStream = BoxStream<'static, Result<CampaignResponse, Status>>;
    type WatchEndpointsStream = BoxStream<'static, Result<WatchEndpointsResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let state = (request.into_inner(), self.seen.clone(), self.token.clone());
        let answers = futures::stream::unfold(state, |(mut messages, seen, token)| async move {
            let message = tokio::select! {
                message = messages.message() => message,
                () = token.cancelled() => return None,
            };
            let Ok(Some(message)) = message else {
                drop(seen.send(None));
                return None;
            };
            drop(seen.send(Some(message.endpoint.map_or(String::new(), |endpoint| endpoint.address))));
            let ttl = Some(duration(Duration::from_millis(300)));
            Some((Ok(RegisterResponse { ttl }), (messages, seen, token)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn watch_endpoints(
        &self,
        _: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        Err(Status::unimplemented("nothing is known here"))
    }

    async fn list_leaders(&self, _: Request<ListLeadersRequest>) -> Result<Response<ListLeadersResponse>, Status> {
        Err(Status::unimplemented("nobody leads here"))
    }

    async fn campaign(&self, _: Request<Streaming<CampaignRequest>>) -> Result<Response<Self::CampaignStream>, Status> {
        Err(Status::unimplemented("there is no office here"))
    }
}

/// Serves it until the tasks end.
pub(crate) async fn serve(listener: TcpListener, tasks: &Tasks) -> mpsc::UnboundedReceiver<Option<String>> {
    let (seen, events) = mpsc::unbounded_channel();
    let mut routes = Routes::new();
    let token = tasks.token();
    routes.add(DiscoveryServiceServer::new(Registry { seen, token: token.clone() }));
    tasks.spawn("discovery", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
    events
}

/// What comes next; panics if nothing does.
pub(crate) async fn next(events: &mut mpsc::UnboundedReceiver<Option<String>>) -> Option<String> {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("nothing in time").expect("the server is there")
}
