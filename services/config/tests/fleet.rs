//! What is known of agents that are away, their labels, and what became of a rule on all of them.

#![allow(clippy::unwrap_used)] // a test, its helpers too

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Server, agent, meet, next, rule, start, start_beside, start_in, start_with, until, wait_for};
use logmesh_config::Settings;
use logmesh_proto::config::v1::{CreateRuleRequest, Rule, UpdateRuleRequest};
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{
    Agent, ForgetAgentRequest, GetAgentRequest, ListAgentsRequest, ListRuleStatusesRequest, ListRuleStatusesResponse,
    ReportStatusRequest, RuleState, RuleStatus, RuleStatusCounts, UpdateAgentRequest, WatchAgentsRequest,
    WatchConfigResponse,
};
use logmesh_types::Span;
use tonic::{Code, Streaming};

type Config = Streaming<WatchConfigResponse>;

async fn connect(server: &Server, id: &str, labels: &[(&str, &str)]) -> Config {
    let mut config = server.agents().watch_config(agent(id, "s", labels)).await.expect("a stream").into_inner();
    next(&mut config).await;
    config
}

async fn list(server: &Server, filter: &str) -> Vec<Agent> {
    let request = ListAgentsRequest { filter: filter.into(), ..Default::default() };
    server.fleet().list_agents(request).await.unwrap().into_inner().agents
}

async fn ids(server: &Server, filter: &str) -> Vec<String> {
    list(server, filter).await.into_iter().map(|agent| agent.id).collect()
}

async fn get(server: &Server, id: &str) -> Agent {
    let request = GetAgentRequest { id: id.into(), ..Default::default() };
    server.fleet().get_agent(request).await.expect("known").into_inner()
}

async fn label(server: &Server, id: &str, set: &[(&str, &str)], remove: &[&str]) -> Result<Agent, tonic::Status> {
    let request = UpdateAgentRequest {
        id: id.into(),
        set_labels: set.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        remove_labels: remove.iter().map(|key| (*key).into()).collect(),
    };
    server.fleet().update_agent(request).await.map(tonic::Response::into_inner)
}

async fn create(server: &Server, rule: Rule) -> Rule {
    let request = CreateRuleRequest { rule: Some(rule), ..Default::default() };
    server.rules().create_rule(request).await.expect("created").into_inner()
}

/// Waits until the store keeps so many agents.
async fn stored(server: &Server, count: usize) -> BTreeMap<String, serde_json::Value> {
    let look = async || {
        let entries = server.store.list("/logmesh/v1/agents/").await.unwrap().entries;
        let json = |value: &[u8]| serde_json::from_slice(value).unwrap();
        entries.into_iter().map(|entry| (entry.key, json(&entry.versioned.value))).collect::<BTreeMap<_, _>>()
    };
    wait_for("agents are stored", look, |agents| agents.len() == count).await
}

/// The names of the rules that come and go next.
async fn change(config: &mut Config) -> (Vec<String>, Vec<String>) {
    let delta = until(config, |message| matches!(message.update, Some(Update::Delta(_)))).await.update;
    let Some(Update::Delta(delta)) = delta else { unreachable!() };
    (delta.upserted.into_iter().map(|rule| rule.name).collect(), delta.removed)
}

#[tokio::test]
async fn agents_outlive_a_restart_of_all_config_services() {
    let server = start().await;
    create(&server, rule("all", "")).await;
    let configs = [connect(&server, "a", &[("env", "prod")]).await, connect(&server, "b", &[("env", "test")]).await];
    let agents = stored(&server, 2).await;
    assert_eq!(agents["/logmesh/v1/agents/a"]["host_labels"]["env"], "prod");
    let before = server.store.list("/logmesh/v1/agents/").await.unwrap();
    // What is known already is not written again, whatever an agent says of its streams.
    drop(configs);
    let _again = connect(&server, "a", &[("env", "prod")]).await;
    let _new = connect(&server, "c", &[]).await;
    stored(&server, 3).await;
    let after = server.store.list("/logmesh/v1/agents/").await.unwrap();
    assert_eq!(after.entries[0], before.entries[0]);

    let server = start_in(server.stop().await, Settings::default()).await;
    let known = list(&server, "").await;
    assert_eq!(known.iter().map(|agent| agent.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    // Told without it, they would look as if nothing were asked of them.
    assert!(known.iter().all(|agent| agent.rules.iter().map(|rule| &rule.name).eq(["rules/all"])), "{known:?}");
    assert!(known.iter().all(|agent| !agent.online && agent.last_seen_time.is_some() && agent.version == "test"));
    assert_eq!(known[1].labels["env"], "test");
}

#[tokio::test]
async fn one_that_stays_connected_is_not_forgotten() {
    let retention = Settings { agent_retention: Span(Duration::from_secs(1)), ..Settings::default() };
    let server = start_with(retention).await;
    let _connected = connect(&server, "a", &[]).await;
    let first = stored(&server, 1).await["/logmesh/v1/agents/a"]["last_seen"].clone();
    let look = async || stored(&server, 1).await["/logmesh/v1/agents/a"]["last_seen"].clone();
    wait_for("its time is written again", look, |last| *last != first).await;
}

#[tokio::test]
async fn many_agents_that_come_at_once_are_few_transactions() {
    let server = start().await;
    let before = server.store.list("").await.unwrap().revision;
    let mut configs = Vec::new();
    for n in 0..500 {
        configs.push(connect(&server, &format!("agent-{n:03}"), &[]).await);
    }
    stored(&server, 500).await;
    let writes = server.store.list("").await.unwrap().revision.0 - before.0;
    assert!(writes < 100, "{writes} transactions for 500 agents");
}

#[tokio::test]
async fn the_centres_labels_move_rules_at_once_and_last() {
    let server = start().await;
    create(&server, rule("web", "role=web")).await;
    create(&server, rule("test", "env=test")).await;
    let mut config = server.agents().watch_config(agent("a", "s", &[("env", "test")])).await.unwrap().into_inner();
    assert_eq!(change(&mut config).await.0, ["rules/test"]);
    let labelled = label(&server, "a", &[("role", "web"), ("env", "prod")], &[]).await.unwrap();
    assert_eq!((labelled.labels["env"].as_str(), labelled.host_labels["env"].as_str()), ("prod", "test"));
    assert_eq!(labelled.central_labels.len(), 2);
    assert_eq!(change(&mut config).await, (vec!["rules/web".to_owned()], vec!["rules/test".to_owned()]));
    // They hold for an agent that is away, and after a restart its first message is by them.
    drop(config);
    let server = start_in(server.stop().await, Settings::default()).await;
    let mut config = server.agents().watch_config(agent("a", "s2", &[("env", "test")])).await.unwrap().into_inner();
    assert_eq!(change(&mut config).await.0, ["rules/web"]);
    let bare = label(&server, "a", &[], &["role", "env"]).await.unwrap();
    assert_eq!((bare.labels.len(), bare.labels["env"].as_str(), bare.central_labels.len()), (1, "test", 0));
    assert_eq!(change(&mut config).await, (vec!["rules/test".to_owned()], vec!["rules/web".to_owned()]));

    for (key, id) in [("ip", "a"), ("host", "a"), ("os", "a"), ("", "a")] {
        assert_eq!(label(&server, id, &[(key, "x")], &[]).await.unwrap_err().code(), Code::InvalidArgument, "{key}");
    }
    assert_eq!(label(&server, "nobody", &[("a", "b")], &[]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_agent_on_another_server_is_labelled_and_forgotten_from_any() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    create(&one, rule("web", "role=web")).await;
    let mut config = connect(&two, "a", &[]).await;
    label(&one, "a", &[("role", "web")], &[]).await.unwrap();
    assert_eq!(change(&mut config).await.0, ["rules/web"]);
    let forget = async |server: &Server| server.fleet().forget_agent(ForgetAgentRequest { id: "a".into() }).await;
    assert_eq!(forget(&one).await.unwrap_err().code(), Code::FailedPrecondition);
    drop(config);
    wait_for("it is gone", async || get(&one, "a").await, |agent| !agent.online).await;
    forget(&one).await.unwrap();
    assert_eq!(forget(&one).await.unwrap_err().code(), Code::NotFound);
    stored(&one, 0).await;
    wait_for("the other server forgets it too", async || ids(&two, "").await, Vec::is_empty).await;
}

#[tokio::test]
async fn filters_select_by_labels_and_by_what_is_known() {
    let server = start().await;
    let _a = connect(&server, "a", &[("env", "prod")]).await;
    let b = connect(&server, "b", &[("env", "prod")]).await;
    let _c = connect(&server, "c", &[("env", "test")]).await;
    drop(b);
    wait_for("b is gone", async || get(&server, "b").await, |agent| !agent.online).await;
    assert_eq!(ids(&server, "env=prod").await, ["a", "b"]);
    assert_eq!(ids(&server, "env=prod, online=true").await, ["a"]);
    assert_eq!(ids(&server, "id in (b, c), version=test").await, ["b", "c"]);
    assert_eq!(ids(&server, &format!("server=\"{}\"", server.id)).await.len(), 3);
    let request = ListAgentsRequest { filter: "env=prod".into(), page_size: 1, ..Default::default() };
    let first = server.fleet().list_agents(request.clone()).await.unwrap().into_inner();
    let request = ListAgentsRequest { page_token: first.next_page_token, ..request };
    let second = server.fleet().list_agents(request).await.unwrap().into_inner();
    assert_eq!((first.agents[0].id.as_str(), second.agents[0].id.as_str()), ("a", "b"));
    let bad = ListAgentsRequest { filter: "env=".into(), ..Default::default() };
    assert_eq!(server.fleet().list_agents(bad).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn watchers_see_all_agents_and_each_that_changes() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    let _a = connect(&one, "a", &[]).await;
    let mut watched = one.fleet().watch_agents(WatchAgentsRequest::default()).await.unwrap().into_inner();
    let first = next(&mut watched).await;
    assert!(first.complete && first.agents.len() == 1 && first.agents[0].online, "{first:?}");
    let b = connect(&two, "b", &[]).await;
    let news = next(&mut watched).await;
    assert_eq!((news.agents.len(), news.agents[0].id.as_str(), news.agents[0].online), (1, "b", true));
    drop(b);
    until(&mut watched, |news| news.agents.iter().any(|agent| agent.id == "b" && !agent.online)).await;
    one.fleet().forget_agent(ForgetAgentRequest { id: "b".into() }).await.unwrap();
    until(&mut watched, |news| news.removed == ["b"]).await;
}

async fn statuses(server: &Server, rule: &Rule, states: &[RuleState]) -> ListRuleStatusesResponse {
    let request = ListRuleStatusesRequest {
        rule: rule.name.clone(),
        states: states.iter().map(|state| (*state).into()).collect(),
        min_revision: rule.revision,
        ..Default::default()
    };
    server.fleet().list_rule_statuses(request).await.unwrap().into_inner()
}

async fn report(server: &Server, id: &str, rule: &Rule, state: RuleState) {
    let status = RuleStatus {
        name: rule.name.clone(),
        attempted_revision: rule.revision,
        state: state.into(),
        ..Default::default()
    };
    let report = ReportStatusRequest {
        agent_id: id.into(),
        session: "s".into(),
        full: true,
        rules: vec![status],
        ..Default::default()
    };
    server.agents().report_status(report).await.unwrap();
}

#[tokio::test]
async fn what_became_of_a_rule_is_counted_over_all_servers() {
    let one = start().await;
    let two = start_beside(&one, Settings::default()).await;
    meet(&one, 2).await;
    meet(&two, 2).await;
    let made = create(&one, rule("web", "role=web")).await;
    let web = [("role", "web")];
    let mut configs = Vec::new();
    for (server, id) in [(&one, "a"), (&one, "b"), (&two, "c"), (&two, "d")] {
        configs.push(connect(server, id, &web).await);
    }
    configs.push(connect(&one, "other", &[]).await);
    drop(connect(&two, "gone", &web).await);
    stored(&one, 6).await;
    report(&one, "a", &made, RuleState::Applied).await;
    report(&two, "c", &made, RuleState::Failed).await;
    let expected = RuleStatusCounts { total: 5, applied: 1, failed: 1, pending: 2, offline: 1, ..Default::default() };
    for server in [&one, &two] {
        let answer = wait_for(
            "all is counted",
            async || statuses(server, &made, &[]).await,
            |answer| answer.counts == Some(expected),
        )
        .await;
        assert_eq!((answer.revision, answer.statuses.len()), (made.revision, 5));
        let failed = statuses(server, &made, &[RuleState::Failed]).await;
        assert_eq!((failed.statuses.len(), failed.statuses[0].agent_id.as_str()), (1, "c"));
        assert_eq!(failed.counts, Some(expected));
    }
    // What was said of the former revision is no answer to the next.
    let update = UpdateRuleRequest { rule: Some(Rule { priority: 3, ..made }), ..Default::default() };
    let changed = one.rules().update_rule(update).await.unwrap().into_inner();
    let answer = statuses(&two, &changed, &[]).await;
    let counts = RuleStatusCounts { total: 5, pending: 4, offline: 1, ..Default::default() };
    assert_eq!((answer.revision, answer.counts), (changed.revision, Some(counts)));
    let unknown = ListRuleStatusesRequest { rule: "rules/none".into(), ..Default::default() };
    assert_eq!(one.fleet().list_rule_statuses(unknown).await.unwrap_err().code(), Code::NotFound);
}
