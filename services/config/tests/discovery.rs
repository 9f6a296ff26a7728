//! DiscoveryService over gRPC.

mod common;

use std::time::Duration;

use common::{PATIENCE, Server, next, start, start_beside, start_in, start_with, until};
use logmesh_config::Settings;
use logmesh_grpc::{Candidate, Term};
use logmesh_proto::discovery::v1::{
    CampaignRequest, CampaignResponse, Endpoint, ListLeadersRequest, RegisterRequest, RegisterResponse,
    WatchEndpointsRequest, WatchEndpointsResponse,
};
use logmesh_runtime::{CancellationToken, Tasks};
use logmesh_types::Span;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::watch;
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

/// Campaigns by hand, and gives what keeps the candidate alive, with the answers.
async fn campaign(
    server: &Server,
    office: &str,
    candidate: &str,
) -> Result<(Sender<CampaignRequest>, Streaming<CampaignResponse>), Status> {
    let (sender, messages) = channel(4);
    sender.send(CampaignRequest { office: office.into(), candidate: candidate.into() }).await.expect("room");
    let answers = server.discovery().campaign(ReceiverStream::new(messages)).await?.into_inner();
    Ok((sender, answers))
}

/// Who holds the office.
async fn holder(server: &Server, office: &str) -> Option<(String, i64)> {
    let leaders = server.discovery().list_leaders(ListLeadersRequest {}).await.expect("leaders").into_inner().leaders;
    leaders.into_iter().find(|leader| leader.name == office).map(|leader| (leader.holder, leader.revision))
}

#[tokio::test]
async fn one_candidate_leads_and_the_next_follows_when_it_resigns() {
    let server = start().await;
    let (first, mut of_first) = campaign(&server, "retention", "one").await.unwrap();
    let elected = until(&mut of_first, |answer| answer.revision > 0).await.revision;
    assert_eq!(holder(&server, "retention").await, Some(("one".to_owned(), elected)));
    let beside = start_beside(&server, Settings::default()).await;
    let (second, mut of_second) = campaign(&beside, "retention", "two").await.unwrap();
    for _ in 0..3 {
        assert_eq!(next(&mut of_second).await.revision, 0, "another leads");
        second.send(CampaignRequest::default()).await.unwrap();
    }
    first.send(CampaignRequest::default()).await.unwrap();
    assert_eq!(next(&mut of_first).await.revision, elected, "it still leads");
    drop(first);
    let followed = until(&mut of_second, |answer| answer.revision > 0).await.revision;
    assert!(followed > elected);
    assert_eq!(holder(&server, "retention").await, Some(("two".to_owned(), followed)));
}

#[tokio::test]
async fn a_silent_leader_is_followed_by_another_and_offices_are_bounded() {
    let server = start_with(short()).await;
    let (_silent, mut of_silent) = campaign(&server, "retention", "silent").await.unwrap();
    let elected = until(&mut of_silent, |answer| answer.revision > 0).await.revision;
    let (term, mut leads) = watch::channel::<Term>(None);
    let candidate = Candidate {
        office: "retention".into(),
        id: "speaking".into(),
        // The first doesn't answer.
        config_servers: vec!["127.0.0.1:1".to_owned(), server.id.replace("127.0.0.1-", "127.0.0.1:")],
    };
    let tasks = Tasks::new();
    tasks.spawn("candidate", candidate.campaign(term, tasks.token()));
    let followed = *leads.wait_for(Option::is_some).await.unwrap();
    assert!(followed > Some(elected));
    assert_eq!(holder(&server, "retention").await.map(|(holder, _)| holder), Some("speaking".to_owned()));
    tasks.shutdown();
    tasks.finish(PATIENCE).await.unwrap();
    assert_eq!(*leads.borrow(), None, "it leads no more");
    assert_eq!(holder(&server, "retention").await, None, "the office is free at once");
    for (office, candidate) in [("janitor", "me"), ("", "me"), ("retention", ""), ("retention", "a/b")] {
        assert_eq!(campaign(&server, office, candidate).await.unwrap_err().code(), Code::InvalidArgument, "{office}");
    }
}

/// Whoever leads is told before another can lead: its config service is gone.
#[tokio::test]
async fn a_leader_whose_config_service_is_gone_leads_no_more() {
    let server = start_with(short()).await;
    let beside = start_beside(&server, short()).await;
    let address = |server: &Server| server.id.replace("127.0.0.1-", "127.0.0.1:");
    let candidate = |id: &str, at: &Server| Candidate {
        office: "retention".into(),
        id: id.into(),
        config_servers: vec![address(at)],
    };
    let (term, mut first) = watch::channel::<Term>(None);
    let token = CancellationToken::new();
    let tasks = Tasks::new();
    tasks.spawn("first", candidate("first", &beside).campaign(term, token.clone()));
    first.wait_for(Option::is_some).await.unwrap();
    let (term, mut second) = watch::channel::<Term>(None);
    tasks.spawn("second", candidate("second", &server).campaign(term, token.clone()));
    beside.stop().await;
    second.wait_for(Option::is_some).await.unwrap();
    assert_eq!(*first.borrow(), None);
    token.cancel();
    tasks.shutdown();
    tasks.finish(PATIENCE).await.unwrap();
}
