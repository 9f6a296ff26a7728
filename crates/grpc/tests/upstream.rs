//! Calls that a front door passes on: streams both ways, errors as they are, and a server that goes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::{PATIENCE, next, serve};
use logmesh_grpc::{Choice, Routes, Upstream, channel, reason};
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::discovery_service_server::DiscoveryServiceServer;
use logmesh_proto::discovery::v1::{Endpoint, RegisterRequest, WatchEndpointsRequest};
use logmesh_runtime::Tasks;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_through_and_move_to_the_server_that_is_left() {
    let ((first, at_first), (second, at_second)) = (listener().await, listener().await);
    let (first_tasks, second_tasks, front_tasks) = (Tasks::new(), Tasks::new(), Tasks::new());
    let mut first_seen = serve(first, &first_tasks).await;
    let mut second_seen = serve(second, &second_tasks).await;

    let upstream = Upstream::new("config", Choice::First);
    upstream.set_servers(&[at_first, at_second]).unwrap();
    front_tasks.spawn("upstream", upstream.clone().follow(front_tasks.token()));
    let mut routes = Routes::new();
    routes.pass_on::<DiscoveryServiceServer<()>>(&upstream);
    let (front, address) = listener().await;
    let token = front_tasks.token();
    front_tasks.spawn("front", async move { Ok(logmesh_grpc::serve(front, routes, token).await?) });

    // Health of what is passed on is the health of whom it's passed on to.
    let service = "logmesh.discovery.v1.DiscoveryService".to_owned();
    let mut health = HealthClient::new(channel(&address).unwrap());
    let mut watch = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}

    let mut client = DiscoveryServiceClient::new(channel(&address).unwrap());
    let (requests, stream) = mpsc::unbounded_channel();
    let endpoint = Endpoint { address: "a:1".to_owned(), ..Endpoint::default() };
    requests.send(RegisterRequest { endpoint: Some(endpoint) }).unwrap();
    let mut answers = client.register(UnboundedReceiverStream::new(stream)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    assert_eq!(next(&mut first_seen).await.as_deref(), Some("a:1"));
    requests.send(RegisterRequest { endpoint: None }).unwrap();
    answers.message().await.unwrap().unwrap();
    drop(requests);
    assert!(answers.message().await.unwrap().is_none(), "the end goes through as well");

    let refused = client.watch_endpoints(WatchEndpointsRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, "nothing is known here"));

    first_tasks.shutdown();
    first_tasks.finish(PATIENCE).await.unwrap();
    // The call that finds the server gone may fail; the next one goes to the other server.
    let mut moved = false;
    for _ in 0..2 {
        let register =
            RegisterRequest { endpoint: Some(Endpoint { address: "b:1".to_owned(), ..Endpoint::default() }) };
        match client.register(tokio_stream::iter([register])).await {
            Ok(answers) => moved = answers.into_inner().message().await.unwrap().is_some(),
            Err(status) => assert_eq!(status.code(), Code::Unavailable),
        }
    }
    assert!(moved);
    assert_eq!(next(&mut second_seen).await.as_deref(), Some("b:1"));

    second_tasks.shutdown();
    second_tasks.finish(PATIENCE).await.unwrap();
    while watch.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    let away = client.watch_endpoints(WatchEndpointsRequest::default()).await.unwrap_err();
    assert_eq!((away.code(), reason(&away).as_deref()), (Code::Unavailable, Some("SERVER_UNREACHABLE")));
    upstream.set_servers(&[]).unwrap();
    let nobody = client.watch_endpoints(WatchEndpointsRequest::default()).await.unwrap_err();
    assert_eq!((nobody.code(), reason(&nobody).as_deref()), (Code::Unavailable, Some("NO_SERVER")));
    front_tasks.shutdown();
    front_tasks.finish(PATIENCE).await.unwrap();
}
