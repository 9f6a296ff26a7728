//! Registration with a config service that comes late, falls silent and goes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::time::Duration;

use common::{PATIENCE, Server};
use futures::stream::BoxStream;
use logmesh_gateway::Settings;
use logmesh_grpc::Routes;
use logmesh_proto::discovery::v1::discovery_service_server::{DiscoveryService, DiscoveryServiceServer};
use logmesh_proto::discovery::v1::{RegisterRequest, RegisterResponse, WatchEndpointsRequest, WatchEndpointsResponse};
use logmesh_proto::time::duration;
use logmesh_runtime::{CancellationToken, Tasks};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

/// Tells the test what comes: an address, a sign of life, or the end.
#[derive(Clone)]
struct Registry {
    seen: mpsc::UnboundedSender<Option<String>>,
    token: CancellationToken,
}

#[tonic::async_trait]
impl DiscoveryService for Registry {
    type RegisterStream = BoxStream<'static, Result<RegisterResponse, Status>>;
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
        Err(Status::unimplemented("not needed"))
    }
}

async fn serve(listener: TcpListener, tasks: &Tasks) -> mpsc::UnboundedReceiver<Option<String>> {
    let (seen, events) = mpsc::unbounded_channel();
    let mut routes = Routes::new();
    let token = tasks.token();
    routes.add(DiscoveryServiceServer::new(Registry { seen, token: token.clone() }));
    tasks.spawn("discovery", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
    events
}

async fn next(events: &mut mpsc::UnboundedReceiver<Option<String>>) -> Option<String> {
    tokio::time::timeout(PATIENCE, events.recv()).await.expect("nothing in time").expect("the server is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_registers_keeps_alive_moves_and_leaves() {
    let listeners = [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let config_servers = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let [first, second] = listeners;
    let first_tasks = Tasks::new();
    let mut at_first = serve(first, &first_tasks).await;
    let advertise = "gate.example:7402".to_owned();
    let gateway = Server::start(Settings { config_servers, advertise, ..Settings::default() }).await;
    assert_eq!(next(&mut at_first).await.as_deref(), Some("gate.example:7402"));
    assert_eq!(next(&mut at_first).await.as_deref(), Some(""), "a sign of life");

    let second_tasks = Tasks::new();
    let mut at_second = serve(second, &second_tasks).await;
    first_tasks.shutdown();
    assert_eq!(next(&mut at_second).await.as_deref(), Some("gate.example:7402"));

    gateway.tasks.shutdown();
    while next(&mut at_second).await.is_some() {}
    gateway.tasks.finish(PATIENCE).await.unwrap();
    second_tasks.shutdown();
}
