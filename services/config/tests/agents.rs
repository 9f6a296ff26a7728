//! AgentConfigService and FleetService over gRPC.

mod common;

use std::time::Duration;

use common::{Server, agent, next, rule, start, start_in, start_with, until, wait_for};
use logmesh_config::Settings;
use logmesh_proto::config::v1::{CreateRuleRequest, DeleteRuleRequest, Rule, UpdateRuleRequest, WatchRulesRequest};
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{
    Agent, Delta, GetAgentRequest, ListAgentsRequest, ListStreamsRequest, ReportStatusRequest, RuleState, RuleStatus,
    StreamStatus, WatchConfigRequest, WatchConfigResponse,
};
use logmesh_types::Span;
use tonic::{Code, Streaming};

type Config = Streaming<WatchConfigResponse>;

async fn watch(server: &Server, request: WatchConfigRequest) -> Config {
    server.agents().watch_config(request).await.expect("a stream").into_inner()
}

async fn create(server: &Server, rule: Rule) -> Rule {
    let request = CreateRuleRequest { rule: Some(rule), ..Default::default() };
    let made = server.rules().create_rule(request).await.expect("created").into_inner();
    // From here on every stream begins with it.
    let mut rules = server.rules().watch_rules(WatchRulesRequest {}).await.expect("a stream").into_inner();
    until(&mut rules, |state| state.revision >= made.revision).await;
    made
}

async fn delete(server: &Server, name: &str) {
    let request = DeleteRuleRequest { name: name.into(), ..Default::default() };
    server.rules().delete_rule(request).await.expect("deleted");
}

async fn delta(config: &mut Config) -> Delta {
    loop {
        match next(config).await.update {
            Some(Update::Delta(delta)) => return delta,
            Some(Update::Bookmark(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn names(rules: &[Rule]) -> Vec<&str> {
    rules.iter().map(|rule| rule.name.as_str()).collect()
}

fn get_request(id: &str) -> GetAgentRequest {
    GetAgentRequest { id: id.into(), ..Default::default() }
}

async fn get(server: &Server, id: &str) -> Agent {
    server.fleet().get_agent(get_request(id)).await.expect("known").into_inner()
}

#[tokio::test]
async fn an_agent_gets_its_rules_then_each_change() {
    let server = start().await;
    let web = create(&server, rule("web", "role=web")).await;
    create(&server, rule("db", "role=db")).await;
    let mut config = watch(&server, agent("a1", "s1", &[("role", "web")])).await;
    assert_eq!(delta(&mut config).await, Delta { upserted: vec![web.clone()], removed: vec![], snapshot: true });
    create(&server, rule("all", "")).await;
    assert_eq!(names(&delta(&mut config).await.upserted), ["rules/all"]);
    let moved = UpdateRuleRequest { rule: Some(rule("web", "role=db")), ..Default::default() };
    server.rules().update_rule(moved).await.unwrap();
    assert_eq!(delta(&mut config).await, Delta { upserted: vec![], removed: vec![web.name], ..Delta::default() });
    delete(&server, "all").await;
    assert_eq!(delta(&mut config).await.removed, ["rules/all"]);
}

#[tokio::test]
async fn only_the_difference_to_what_is_held_is_sent() {
    let server = start().await;
    let (same, newer) = (create(&server, rule("same", "")).await, create(&server, rule("newer", "")).await);
    let mut request = agent("a1", "s", &[]);
    request.incarnation = incarnation(&server).await;
    request.held =
        [(same.name.clone(), same.revision), (newer.name.clone(), newer.revision - 1), ("rules/gone".into(), 1)].into();
    let first = delta(&mut watch(&server, request.clone()).await).await;
    assert_eq!(first, Delta { upserted: vec![newer.clone()], removed: vec!["rules/gone".into()], ..Delta::default() });

    request.agent_id = "a2".into();
    request.held = [(same.name, same.revision), (newer.name, newer.revision)].into();
    let first = delta(&mut watch(&server, request).await).await;
    assert_eq!(first, Delta::default(), "an empty difference says that all is held");
}

async fn incarnation(server: &Server) -> String {
    next(&mut watch(server, agent("asks", "s", &[])).await).await.incarnation
}

#[tokio::test]
async fn what_is_held_of_another_store_says_nothing() {
    let server = start().await;
    let made = create(&server, rule("r", "")).await;
    let mut request = agent("a1", "s", &[]);
    request.held = [(made.name.clone(), made.revision), ("rules/gone".into(), 1)].into();
    for incarnation in ["", "of another store"] {
        request.incarnation = incarnation.into();
        let message = next(&mut watch(&server, request.clone()).await).await;
        assert_eq!(message.incarnation.len(), 32);
        let Some(Update::Delta(delta)) = message.update else { panic!("{:?}", message.update) };
        let removed = vec!["rules/gone".to_owned()];
        assert_eq!(delta, Delta { upserted: vec![made.clone()], removed, snapshot: true });
    }
    let before = incarnation(&server).await;
    let server = start_in(server.stop().await, Settings::default()).await;
    assert_eq!(incarnation(&server).await, before, "a restart changes nothing");
    assert_ne!(incarnation(&start().await).await, before);
}

#[tokio::test]
async fn an_agent_never_sees_an_older_state() {
    let server = start().await;
    let made = create(&server, rule("r", "")).await;
    let mut request = agent("a1", "s", &[]);
    request.incarnation = incarnation(&server).await;
    // It has seen the next state on another server, before this one did.
    request.revision = made.revision + 1;
    let mut config = watch(&server, request.clone()).await;
    let update = UpdateRuleRequest { rule: Some(Rule { priority: 1, ..rule("r", "") }), ..Default::default() };
    let changed = server.rules().update_rule(update).await.unwrap().into_inner();
    let first = next(&mut config).await;
    let Some(Update::Delta(delta)) = first.update else { panic!("{:?}", first.update) };
    assert_eq!(delta.upserted, [changed]);
    // Revisions of other things than rules don't hold it up for long, and what it is told doesn't go back.
    request.agent_id = "a2".into();
    request.revision = first.revision + 1000;
    assert_eq!(next(&mut watch(&server, request.clone()).await).await.revision, request.revision);
}

#[tokio::test]
async fn what_an_agent_has_applied_is_known_by_the_nonce() {
    let server = start().await;
    create(&server, rule("r", "")).await;
    let mut config = watch(&server, agent("a1", "s", &[])).await;
    let message = next(&mut config).await;
    let report = async |nonce: &str| {
        let report = ReportStatusRequest {
            agent_id: "a1".into(),
            session: "s".into(),
            full: true,
            nonce: nonce.into(),
            revision: message.revision,
            ..Default::default()
        };
        server.agents().report_status(report).await.unwrap();
        get(&server, "a1").await.config_revision
    };
    assert_eq!(report("of another stream").await, 0);
    assert_eq!(report(&message.nonce).await, message.revision);
}

#[tokio::test]
async fn a_slow_agent_gets_the_newest_state() {
    let server = start().await;
    let mut config = watch(&server, agent("a1", "s", &[])).await;
    delta(&mut config).await;
    let mut last = create(&server, rule("r", "")).await;
    for priority in 1..200 {
        let changed = Rule { priority, ..rule("r", "") };
        let request = UpdateRuleRequest { rule: Some(changed), ..Default::default() };
        last = server.rules().update_rule(request).await.unwrap().into_inner();
    }
    let (mut messages, mut revision) = (0, 0);
    loop {
        let message = next(&mut config).await;
        assert!(message.revision >= revision, "revisions only grow");
        revision = message.revision;
        let Some(Update::Delta(delta)) = message.update else { continue };
        messages += 1;
        if delta.upserted == [last.clone()] {
            break;
        }
    }
    assert!(messages <= 200);
}

#[tokio::test]
async fn bookmarks_come_while_nothing_changes() {
    let bookmark_interval = Span(Duration::from_millis(50));
    let server = start_with(Settings { bookmark_interval, ..Settings::default() }).await;
    let mut config = watch(&server, agent("a1", "s", &[])).await;
    assert!(matches!(next(&mut config).await.update, Some(Update::Delta(_))), "a delta comes first");
    let mut nonces = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let message = next(&mut config).await;
        assert!(matches!(message.update, Some(Update::Bookmark(_))));
        assert!(nonces.insert(message.nonce));
    }
}

#[tokio::test]
async fn two_processes_must_not_share_an_id() {
    let server = start().await;
    let mut first = watch(&server, agent("a1", "s1", &[("host", "web-1")])).await;
    delta(&mut first).await;
    let refused = server.agents().watch_config(agent("a1", "s2", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("a1") && refused.message().contains("web-1"), "{}", refused.message());

    let mut again = watch(&server, agent("a1", "s1", &[])).await;
    delta(&mut again).await;
    assert!(matches!(next(&mut first).await.update, Some(Update::GoAway(_))), "the older stream is told to go");
    assert!(first.message().await.unwrap().is_none());

    drop(again);
    wait_for("the agent is offline", async || get(&server, "a1").await, |agent| !agent.online).await;
    delta(&mut watch(&server, agent("a1", "s2", &[])).await).await;
}

#[tokio::test]
async fn streams_end_with_a_go_away() {
    let server = start_with(Settings { max_stream_age: Span(Duration::from_millis(100)), ..Settings::default() }).await;
    let mut aged = watch(&server, agent("a1", "s", &[])).await;
    delta(&mut aged).await;
    assert!(matches!(next(&mut aged).await.update, Some(Update::GoAway(_))));
    assert!(aged.message().await.unwrap().is_none());
    server.stop().await;

    let server = start().await;
    let mut config = watch(&server, agent("a1", "s", &[])).await;
    delta(&mut config).await;
    server.tasks.shutdown();
    assert!(matches!(next(&mut config).await.update, Some(Update::GoAway(_))));
    assert!(config.message().await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn bad_introductions_are_refused_by_field() {
    let server = start().await;
    let long = "x".repeat(5000);
    let bad = [
        ("agent_id", agent("Not An Id", "s", &[])),
        ("session", agent("a", "", &[])),
        ("labels", agent("a", "s", &[("", "x")])),
        ("labels", agent("a", "s", &[("k", &long)])),
    ];
    for (field, request) in bad {
        let refused = server.agents().watch_config(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(&format!("{field}: ")), "{}", refused.message());
    }
}

fn stream(id: u8, topic: &str, size: u64, acked_offset: u64) -> StreamStatus {
    StreamStatus { stream_id: format!("{id:032x}"), topic: topic.into(), size, acked_offset, ..Default::default() }
}

#[tokio::test]
async fn reports_show_in_the_fleet_also_when_the_agent_is_gone() {
    let server = start().await;
    let made = create(&server, rule("r", "")).await;
    let applied = RuleStatus {
        name: "rules/r".into(),
        desired_revision: made.revision,
        attempted_revision: made.revision,
        state: RuleState::Applied.into(),
        ..Default::default()
    };
    let report = ReportStatusRequest {
        agent_id: "a1".into(),
        session: "s".into(),
        full: true,
        rules: vec![applied.clone()],
        streams: vec![stream(1, "logs", 100, 40), stream(2, "web", 10, 10)],
        ..Default::default()
    };
    let early = server.agents().report_status(report.clone()).await.unwrap_err();
    assert_eq!((early.code(), logmesh_grpc::reason(&early).as_deref()), (Code::NotFound, Some("NO_SESSION")));

    let mut config = watch(&server, agent("a1", "s", &[("env", "prod")])).await;
    assert_eq!(delta(&mut config).await.upserted.len(), 1);
    let silent = RuleStatus { attempted_revision: 0, state: RuleState::Pending.into(), ..applied.clone() };
    assert_eq!(get(&server, "a1").await.rules, [silent], "it has said nothing yet");
    let partial = ReportStatusRequest { full: false, ..report.clone() };
    assert!(server.agents().report_status(partial).await.unwrap().into_inner().want_full);
    assert!(!server.agents().report_status(report).await.unwrap().into_inner().want_full);
    let shown = get(&server, "a1").await;
    assert_eq!((shown.online, shown.stream_count, shown.lag_bytes, shown.version.as_str()), (true, 2, 60, "test"));
    assert_eq!((shown.labels["env"].as_str(), shown.rules), ("prod", vec![applied]));

    delete(&server, "r").await;
    assert_eq!(delta(&mut config).await.removed, ["rules/r"]);
    assert!(get(&server, "a1").await.rules.is_empty(), "what it said of a rule that is gone is forgotten");
    drop(config);
    let gone = wait_for("the agent is offline", async || get(&server, "a1").await, |agent| !agent.online).await;
    assert!(gone.stream_count == 2 && gone.last_seen_time.is_some());
    let streams = server.fleet().list_streams(ListStreamsRequest::default()).await.unwrap().into_inner().streams;
    assert!(streams.len() == 2 && streams.iter().all(|stream| !stream.agent_online));
    let unknown = server.fleet().get_agent(get_request("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn fleet_lists_come_in_pages() {
    let server = start().await;
    let mut configs = Vec::new();
    for id in ["a", "a-1", "b"] {
        configs.push(watch(&server, agent(id, "s", &[])).await);
        let report = ReportStatusRequest {
            agent_id: id.into(),
            session: "s".into(),
            full: true,
            streams: vec![stream(1, "logs", 1, 0), stream(2, "web", 1, 0)],
            ..Default::default()
        };
        server.agents().report_status(report).await.unwrap();
    }
    let list = async |page_token: &str| {
        let request = ListAgentsRequest { page_size: 2, page_token: page_token.into(), ..Default::default() };
        server.fleet().list_agents(request).await.unwrap().into_inner()
    };
    let first = list("").await;
    assert_eq!(first.agents.iter().map(|agent| agent.id.as_str()).collect::<Vec<_>>(), ["a", "a-1"]);
    let second = list(&first.next_page_token).await;
    assert_eq!((second.agents[0].id.as_str(), second.next_page_token.as_str()), ("b", ""));

    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListStreamsRequest { page_size: 1, page_token, topic: "web".into(), ..Default::default() };
        let page = server.fleet().list_streams(request).await.unwrap().into_inner();
        found.extend(page.streams.into_iter().map(|stream| stream.agent_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["a", "a-1", "b"]);
    let one = ListStreamsRequest { agent_id: "a".into(), ..Default::default() };
    assert_eq!(server.fleet().list_streams(one).await.unwrap().into_inner().streams.len(), 2);
}
