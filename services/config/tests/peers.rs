//! Several config services on one store.

#![allow(clippy::unwrap_used)] // a test, its helpers too

mod common;

use std::time::Duration;

use common::{PATIENCE, Server, agent, meet, next, start, start_beside, start_with, wait_for};
use logmesh_config::Settings;
use logmesh_proto::fleet::v1::{
    Agent, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, ListStreamsRequest, ReportStatusRequest,
    StreamStatus, WatchConfigResponse,
};
use logmesh_types::Span;
use tokio::net::TcpListener;
use tonic::{Code, Streaming};

async fn connect(server: &Server, id: &str, session: &str) -> Streaming<WatchConfigResponse> {
    let mut config = server.agents().watch_config(agent(id, session, &[])).await.expect("a stream").into_inner();
    next(&mut config).await;
    config
}

async fn report(server: &Server, id: &str, session: &str, streams: &[u8]) {
    let stream = |n: &u8| StreamStatus { stream_id: format!("{n:032x}"), topic: "logs".into(), ..Default::default() };
    let report = ReportStatusRequest {
        agent_id: id.into(),
        session: session.into(),
        full: true,
        streams: streams.iter().map(stream).collect(),
        ..Default::default()
    };
    server.agents().report_status(report).await.unwrap();
}

async fn list(server: &Server, page_size: i32, page_token: &str) -> ListAgentsResponse {
    let request = ListAgentsRequest { page_size, page_token: page_token.into(), ..Default::default() };
    server.fleet().list_agents(request).await.unwrap().into_inner()
}

/// All pages of the list: id, whether it's online, where.
async fn all(server: &Server) -> Vec<(String, bool, String)> {
    let (mut agents, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(server, 2, &token).await;
        assert!(page.agents.len() <= 2 && page.unreachable_servers.is_empty(), "{page:?}");
        agents.extend(page.agents.into_iter().map(|agent| (agent.id, agent.online, agent.server)));
        token = page.next_page_token;
        if token.is_empty() {
            return agents;
        }
    }
}

async fn get(server: &Server, id: &str) -> Result<Agent, tonic::Status> {
    let request = GetAgentRequest { id: id.into(), ..Default::default() };
    server.fleet().get_agent(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn any_of_them_answers_for_the_whole_fleet() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    let mut streams = Vec::new();
    for (server, ids) in [(&one, ["a", "d", "e"]), (&two, ["b", "b-1", "c"])] {
        for id in ids {
            streams.push(connect(server, id, "s").await);
            report(server, id, "s", &[1, 2]).await;
        }
    }
    let at = |id: &str, server: &Server| (id.to_owned(), true, server.id.clone());
    let expected =
        [at("a", &one), at("b", &two), at("b-1", &two), at("c", &two), at("d", &one), at("e", &one)].to_vec();
    assert_eq!(all(&one).await, expected);
    assert_eq!(all(&two).await, expected);
    assert_eq!(get(&one, "c").await.unwrap().server, two.id);
    assert_eq!(get(&one, "nobody").await.unwrap_err().code(), Code::NotFound);
    let request = ListAgentsRequest { this_server_only: true, ..Default::default() };
    assert_eq!(one.fleet().list_agents(request).await.unwrap().into_inner().agents.len(), 3);

    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListStreamsRequest { page_size: 5, page_token, ..Default::default() };
        let page = one.fleet().list_streams(request).await.unwrap().into_inner();
        found.extend(page.streams.into_iter().map(|stream| stream.agent_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let twice: Vec<String> = expected.iter().flat_map(|(id, ..)| [id.clone(), id.clone()]).collect();
    assert_eq!(found, twice);
}

#[tokio::test]
async fn an_agent_that_moved_is_shown_once_and_where_it_is() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    drop(connect(&one, "a", "s").await);
    wait_for("it is gone", async || get(&two, "a").await.unwrap(), |agent| !agent.online).await;
    let _moved = connect(&two, "a", "s").await;
    for server in [&one, &two] {
        assert_eq!(all(server).await, [("a".to_owned(), true, two.id.clone())]);
        assert_eq!(get(server, "a").await.unwrap().server, two.id);
    }
}

#[tokio::test]
async fn who_does_not_answer_is_named_until_its_lease_ends() {
    let short = Settings { endpoint_ttl: Span(Duration::from_secs(1)), ..Settings::default() };
    let one = start_with(short.clone()).await;
    let _agent = connect(&one, "a", "s").await;
    // It accepts connections and says nothing, as a stopped process does.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let value = format!(r#"{{"kind":"config","id":"silent","address":"{address}"}}"#);
    let lease = one.store.grant_lease(Duration::from_secs(60)).await.unwrap().id;
    let txn = logmesh_store::Txn::new().put_leased("/logmesh/v1/endpoints/config/silent", value, lease);
    one.store.txn(txn).await.unwrap();
    meet(&one, 2).await;
    let page = list(&one, 10, "").await;
    assert_eq!((page.agents.len(), page.unreachable_servers), (1, vec!["silent".to_owned()]));
    let unknown = get(&one, "nobody").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "it may be connected there");
    assert!(unknown.message().contains("silent"), "{}", unknown.message());
    assert!(get(&one, "a").await.unwrap().unreachable_servers.is_empty(), "one that is connected here is known");
    one.store.revoke_lease(lease).await.unwrap();
    meet(&one, 1).await;
    assert!(list(&one, 10, "").await.unreachable_servers.is_empty());
    assert_eq!(get(&one, "nobody").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_config_service_is_registered_while_it_lives() {
    let short = Settings { endpoint_ttl: Span(Duration::from_secs(1)), ..Settings::default() };
    let one = start_with(short.clone()).await;
    let two = start_beside(&one, short).await;
    meet(&one, 2).await;
    let key = format!("/logmesh/v1/endpoints/config/{}", two.id);
    let held = two.store.get(&key).await.unwrap().expect("it is registered");
    // Somebody takes it away: it comes again with the next sign of life.
    one.store.revoke_lease(held.lease.expect("it is leased")).await.unwrap();
    wait_for("it is there again", async || one.store.get(&key).await.unwrap(), Option::is_some).await;
    two.tasks.shutdown();
    two.tasks.finish(PATIENCE).await.unwrap();
    meet(&one, 1).await;
    assert!(one.store.get(&key).await.unwrap().is_none(), "one that stops is gone at once");
}

#[tokio::test]
async fn one_id_on_two_servers_is_one_process() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    let first = connect(&one, "a", "s1").await;
    let refused = wait_for(
        "the second is refused",
        async || two.agents().watch_config(agent("a", "s2", &[])).await.err(),
        Option::is_some,
    )
    .await
    .unwrap();
    assert_eq!(
        (refused.code(), logmesh_grpc::reason(&refused).as_deref()),
        (Code::AlreadyExists, Some("AGENT_CONNECTED"))
    );
    assert!(refused.message().contains(&one.id), "{}", refused.message());
    assert!(get(&two, "a").await.unwrap().online);
    let _moved = connect(&two, "a", "s1").await;
    drop(first);
    wait_for("it is on the second only", async || get(&one, "a").await.unwrap(), |agent| agent.server == two.id).await;
}

#[tokio::test]
async fn of_two_that_servers_could_not_know_of_the_younger_is_ended() {
    let one = start().await;
    let _elder = connect(&one, "a", "s1").await;
    // A server that has just started lets it in, and hears of the first a moment later.
    let two = start_beside(&one, Settings::default()).await;
    let mut younger = match two.agents().watch_config(agent("a", "s2", &[])).await {
        Ok(younger) => younger.into_inner(),
        Err(refused) if refused.code() == Code::AlreadyExists => return, // it heard in time
        Err(error) => panic!("{error}"),
    };
    let ended = loop {
        match younger.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Code::AlreadyExists);
    assert_eq!(get(&two, "a").await.unwrap().server, one.id);
}
