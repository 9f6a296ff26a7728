//! DiscoveryService over gRPC.

mod common;

use std::time::Duration;

use common::{Server, next, start, start_in, start_with, until};
use logmesh_config::Settings;
use logmesh_proto::discovery::v1::{
    Endpoint, RegisterRequest, RegisterResponse, WatchEndpointsRequest, WatchEndpointsResponse,
};
use logmesh_types::Span;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

fn endpoint(kind: &str, id: &str, address: &str) -> Endpoint {
    Endpoint { kind: kind.into(), id: id.into(), address: address.into() }
}

/// Registers and gives what keeps the registration alive, with the answers.
async fn register(
    server: &Server,
    endpoint: Endpoint,
) -> Result<(Sender<RegisterRequest>, Streaming<RegisterResponse>), Status> {
    let (sender, messages) = channel(4);
    sender.send(RegisterRequest { endpoint: Some(endpoint) }).await.expect("room");
    let answers = server.discovery().register(ReceiverStream::new(messages)).await?.into_inner();
    Ok((sender, answers))
}

async fn watch(server: &Server, kind: &str) -> Streaming<WatchEndpointsResponse> {
    server
        .discovery()
        .watch_endpoints(WatchEndpointsRequest { kind: kind.into() })
        .await
        .expect("a stream")
        .into_inner()
}

/// All but the config service's own endpoint.
fn others(state: &WatchEndpointsResponse) -> Vec<Endpoint> {
    state.endpoints.iter().filter(|endpoint| endpoint.kind != "config").cloned().collect()
}

/// Reads until exactly the endpoints of these ids are shown.
async fn until_ids(stream: &mut Streaming<WatchEndpointsResponse>, ids: &[&str]) {
    until(stream, |state| others(state).iter().map(|endpoint| endpoint.id.as_str()).eq(ids.iter().copied())).await;
}

fn short() -> Settings {
    Settings { endpoint_ttl: Span(Duration::from_secs(1)), ..Settings::default() }
}

#[tokio::test]
async fn endpoints_come_and_go() {
    let server = start().await;
    let mut gateways = watch(&server, "gateway").await;
    until_ids(&mut gateways, &[]).await;
    let first = endpoint("gateway", "g1", "127.0.0.1:7402");
    let (keep, mut answers) = register(&server, first.clone()).await.unwrap();
    assert_eq!(next(&mut answers).await.ttl.unwrap().seconds, 15);
    assert_eq!(next(&mut gateways).await.endpoints, [first]);
    let _transfer = register(&server, endpoint("transfer", "t1", "127.0.0.1:7403")).await.unwrap();
    let _second = register(&server, endpoint("gateway", "g2", "127.0.0.1:7412")).await.unwrap();
    until_ids(&mut gateways, &["g1", "g2"]).await;
    drop(keep);
    assert!(answers.message().await.unwrap().is_none(), "the server ends the stream after its caller did");
    until_ids(&mut gateways, &["g2"]).await;
    until_ids(&mut watch(&server, "").await, &["g2", "t1"]).await;
}

#[tokio::test]
async fn a_silent_server_is_gone_and_one_that_speaks_stays() {
    let server = start_with(short()).await;
    let mut all = watch(&server, "gateway").await;
    until_ids(&mut all, &[]).await;
    let (_silent, mut silent) = register(&server, endpoint("gateway", "silent", "h:1")).await.unwrap();
    until_ids(&mut all, &["silent"]).await;
    let (speaking, mut answers) = register(&server, endpoint("gateway", "speaking", "h:2")).await.unwrap();
    until_ids(&mut all, &["silent", "speaking"]).await;
    let speak = async {
        loop {
            next(&mut answers).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            speaking.send(RegisterRequest::default()).await.expect("the server listens");
        }
    };
    let rest = async {
        until_ids(&mut all, &["speaking"]).await;
        next(&mut silent).await;
        assert_eq!(silent.message().await.unwrap_err().code(), Code::Unavailable);
    };
    tokio::select! {
        () = speak => {}
        () = rest => {}
    }
}

#[tokio::test]
async fn a_server_that_was_killed_comes_back_at_once() {
    let server = start().await;
    let (killed, mut answers) = register(&server, endpoint("gateway", "g", "h:1")).await.unwrap();
    next(&mut answers).await;
    let (_new, mut new) = register(&server, endpoint("gateway", "g", "h:2")).await.unwrap();
    next(&mut new).await;
    let moved = [endpoint("gateway", "g", "h:2")];
    until(&mut watch(&server, "").await, |state| others(state) == moved).await;
    killed.send(RegisterRequest::default()).await.unwrap();
    let told = answers.message().await.unwrap_err();
    assert_eq!((told.code(), logmesh_grpc::reason(&told).as_deref()), (Code::Aborted, Some("TAKEN_OVER")));
    until_ids(&mut watch(&server, "").await, &["g"]).await;
}

#[tokio::test]
async fn endpoints_outlive_a_restart_of_config() {
    let server = start().await;
    let (keep, mut answers) = register(&server, endpoint("gateway", "g", "h:1")).await.unwrap();
    next(&mut answers).await;
    server.tasks.shutdown();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    drop(keep);
    let server = start_in(server.stop().await, short()).await;
    until_ids(&mut watch(&server, "gateway").await, &["g"]).await;
    let stored = server.store.get("/logmesh/v1/endpoints/gateway/g").await.unwrap().unwrap();
    assert_eq!(stored.value, r#"{"kind":"gateway","id":"g","address":"h:1"}"#);
    assert!(stored.lease.is_some());
}

#[tokio::test]
async fn bad_registrations_are_refused() {
    let server = start().await;
    let bad = [endpoint("", "g", "h:1"), endpoint("gateway", "g/h", "h:1"), endpoint("gateway", "g", "h")];
    for endpoint in bad {
        assert_eq!(register(&server, endpoint).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let (sender, messages) = channel(1);
    sender.send(RegisterRequest::default()).await.unwrap();
    let refused = server.discovery().register(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
