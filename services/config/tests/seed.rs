//! A logagent's tree, served as rules.

mod common;

use common::{Server, agent, next, rule, start, start_in, wait_for};
use logmesh_config::Settings;
use logmesh_proto::config::v1::{
    CreateRuleRequest, DeleteRuleRequest, GetRuleRequest, ListRuleRevisionsRequest, ListRulesRequest,
    ListRulesResponse, RollbackRuleRequest, Rule, StartAt, UpdateRuleRequest,
};
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{Delta, WatchConfigRequest, WatchConfigResponse};
use logmesh_store::Precondition;
use serde_json::{Value, json};
use tonic::Code;

const KEY: &str = "/logagent/10.0.0.7/log_config";

async fn write(server: &Server, key: &str, value: &str) {
    server.store.put(key, value.to_owned().into(), Precondition::None).await.expect("written");
}

fn entry(path: &str, topic: &str) -> Value {
    json!({"service": "shop", "log_path": path, "topic": topic, "send_rate": 100})
}

async fn list(server: &Server) -> ListRulesResponse {
    let request = ListRulesRequest { page_size: 1000, ..Default::default() };
    server.rules().list_rules(request).await.expect("a list").into_inner()
}

/// The paths of all rules, once they are so.
async fn served(server: &Server, paths: &[&str]) -> ListRulesResponse {
    let found = |list: &ListRulesResponse| {
        let mut found: Vec<String> = list.rules.iter().flat_map(|rule| rule.paths.clone()).collect();
        found.sort();
        found == paths
    };
    wait_for("the rules of the tree", async || list(server).await, found).await
}

fn problems(list: &ListRulesResponse) -> Vec<(&str, &str)> {
    list.problems.iter().map(|found| (found.key.as_str(), found.field.as_str())).collect()
}

fn host() -> WatchConfigRequest {
    agent("a", "1", &[("ip", "192.168.0.1,10.0.0.7")])
}

/// What an agent holds after the next delta.
async fn delta(stream: &mut tonic::Streaming<WatchConfigResponse>) -> Delta {
    loop {
        if let Some(Update::Delta(delta)) = next(stream).await.update {
            return delta;
        }
    }
}

#[tokio::test]
async fn a_tree_is_served_live_to_the_hosts_that_it_names() {
    let server = start().await;
    write(&server, KEY, &json!([entry("/app/a.log", "web")]).to_string()).await;
    write(&server, "/logagent/10.0.0.8/log_config", &json!([entry("/app/other.log", "web")]).to_string()).await;
    write(&server, "/logagent/10.0.0.7/other", "not for us").await;
    let shown = served(&server, &["/app/a.log", "/app/other.log"]).await;
    assert_eq!(problems(&shown), []);
    let first = &shown.rules[0];
    assert_eq!((first.origin.as_str(), first.selector.as_str(), first.service.as_str()), (KEY, "ip=10.0.0.7", "shop"));
    assert_eq!((first.pace.unwrap().lines_per_second, first.start_at()), (100, StartAt::End));
    let got = server.rules().get_rule(GetRuleRequest { name: first.name.clone() }).await.unwrap().into_inner();
    assert_eq!(&got, first);

    let mut stream = server.agents().watch_config(host()).await.unwrap().into_inner();
    assert_eq!(delta(&mut stream).await.upserted, std::slice::from_ref(first));
    write(&server, KEY, &json!([entry("/app/a.log", "db"), entry("/app/b.log", "web")]).to_string()).await;
    let edited = delta(&mut stream).await;
    let told: Vec<_> = edited.upserted.iter().map(|rule| (rule.paths[0].as_str(), rule.topic.as_str())).collect();
    assert!(told.contains(&("/app/a.log", "db")) && told.contains(&("/app/b.log", "web")), "{told:?}");
    assert!(edited.upserted.iter().any(|rule| rule.name == first.name), "a name stays while the path does");
    server.store.delete(KEY, Precondition::None).await.unwrap();
    assert_eq!(delta(&mut stream).await.removed.len(), 2);
    served(&server, &["/app/other.log"]).await;
}

#[tokio::test]
async fn a_broken_entry_spoils_no_other() {
    let server = start().await;
    write(&server, KEY, &json!([entry("/a", "web"), entry("/b", "web")]).to_string()).await;
    served(&server, &["/a", "/b"]).await;
    let broken = json!([entry("/a", "Not Good"), entry("/c", "web"), {"topic": "web"}, entry("relative", "web")]);
    write(&server, KEY, &broken.to_string()).await;
    let shown = served(&server, &["/a", "/c"]).await;
    let fields = [(KEY, "log_config[0].topic"), (KEY, "log_config[2].log_path"), (KEY, "log_config[3].log_path")];
    assert_eq!(problems(&shown), fields);
    assert_eq!(shown.rules.iter().find(|rule| rule.paths == ["/a"]).unwrap().topic, "web", "as it was");
    assert!(shown.problems[0].message.ends_with("the state before it goes on"), "{}", shown.problems[0].message);
    assert!(shown.problems[1].message.ends_with("is missing; the rule is not served"), "{}", shown.problems[1].message);
    write(&server, "/logagent/web-1/log_config", "[]").await;
    let shown = wait_for("the bad key", async || list(&server).await, |list| list.problems.len() == 4).await;
    assert_eq!(problems(&shown)[0], ("/logagent/web-1/log_config", ""));
}

#[tokio::test]
async fn a_key_that_is_no_json_goes_on_as_it_was_also_over_a_restart() {
    let server = start().await;
    write(&server, KEY, &json!([entry("/a", "web")]).to_string()).await;
    let good = served(&server, &["/a"]).await.rules.remove(0);
    write(&server, KEY, "[{").await;
    let shown = wait_for("the problem", async || list(&server).await, |list| !list.problems.is_empty()).await;
    assert_eq!((problems(&shown), &shown.rules), (vec![(KEY, "log_config")], &vec![good.clone()]));
    let mut stream = server.agents().watch_config(host()).await.unwrap().into_inner();
    let first = next(&mut stream).await;
    drop(stream);

    // The next process never saw it good: who holds the rule keeps it, and what belongs to no such key goes.
    let server = start_in(server.stop().await, Settings::default()).await;
    assert_eq!(list(&server).await.rules, []);
    let held = [(good.name.clone(), good.revision), ("rules/seed-10.0.0.70-a-1".to_owned(), 1)];
    let request = WatchConfigRequest { held: held.into(), incarnation: first.incarnation, ..host() };
    let mut stream = server.agents().watch_config(request).await.unwrap().into_inner();
    assert_eq!(delta(&mut stream).await.removed, ["rules/seed-10.0.0.70-a-1"]);
    write(&server, KEY, &json!([entry("/b", "web")]).to_string()).await;
    let repaired = delta(&mut stream).await;
    assert_eq!((repaired.removed, repaired.upserted[0].paths.clone()), (vec![good.name], vec!["/b".to_owned()]));
}

#[tokio::test]
async fn a_rule_of_the_tree_is_read_only_until_one_of_its_name_is_made() {
    let server = start().await;
    write(&server, KEY, &json!([entry("/a", "web")]).to_string()).await;
    let of_tree = served(&server, &["/a"]).await.rules.remove(0);
    let name = of_tree.name.clone();
    for allow_missing in [false, true] {
        let update = UpdateRuleRequest { rule: Some(of_tree.clone()), allow_missing, ..Default::default() };
        let refused = server.rules().update_rule(update).await.unwrap_err();
        assert_eq!(
            (refused.code(), logmesh_grpc::reason(&refused).as_deref()),
            (Code::FailedPrecondition, Some("RULE_OF_TREE"))
        );
        assert!(refused.message().contains(KEY) && refused.message().contains("logmesh rules import"), "{refused}");
    }
    let delete = DeleteRuleRequest { name: name.clone(), ..Default::default() };
    assert_eq!(server.rules().delete_rule(delete.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    let history = ListRuleRevisionsRequest { name: name.clone(), ..Default::default() };
    assert_eq!(server.rules().list_rule_revisions(history).await.unwrap_err().code(), Code::NotFound);

    let mut stream = server.agents().watch_config(host()).await.unwrap().into_inner();
    delta(&mut stream).await;
    let create = CreateRuleRequest { rule: Some(of_tree.clone()), ..Default::default() };
    let made = server.rules().create_rule(create).await.unwrap().into_inner();
    let same = Rule {
        origin: KEY.into(),
        revision: 0,
        etag: String::new(),
        create_time: None,
        update_time: None,
        ..made.clone()
    };
    assert_eq!(same, Rule { revision: 0, etag: String::new(), ..of_tree.clone() }, "it's the same rule, made here");
    let told = delta(&mut stream).await;
    assert_eq!((told.upserted, told.removed.len()), (vec![made.clone()], 0));
    assert_eq!(served(&server, &["/a"]).await.rules, std::slice::from_ref(&made));

    // What the tree says doesn't matter from now on, until the rule is deleted.
    write(&server, KEY, &json!([entry("/a", "db"), entry("/b", "db")]).to_string()).await;
    let shown = served(&server, &["/a", "/b"]).await;
    assert!(shown.rules.contains(&made));
    server.rules().delete_rule(delete).await.unwrap();
    let again = async || list(&server).await.rules.into_iter().find(|rule| rule.name == name);
    wait_for("the tree's own", again, |rule| rule.as_ref().is_some_and(|rule| rule.topic == "db")).await;
    let rollback = RollbackRuleRequest { name: name.clone(), revision: made.revision, ..Default::default() };
    assert_eq!(server.rules().rollback_rule(rollback).await.unwrap().into_inner().topic, "web");
}

#[tokio::test]
async fn what_finds_no_room_is_told() {
    let server = start().await;
    server.rules().create_rule(CreateRuleRequest { rule: Some(rule("own", "")), ..Default::default() }).await.unwrap();
    let many: Vec<Value> = (0..2001).map(|n| entry(&format!("/log/{n}"), "web")).collect();
    write(&server, KEY, &Value::Array(many).to_string()).await;
    let shown = wait_for("the problems", async || list(&server).await, |list| list.problems.len() == 2).await;
    assert_eq!(problems(&shown), [(KEY, "log_config[1999]"), (KEY, "log_config[2000]")]);
    assert!(shown.problems[0].message.contains("room for 2000 rules"), "{}", shown.problems[0].message);
    let create = CreateRuleRequest { rule: Some(rule("more", "")), ..Default::default() };
    assert_eq!(server.rules().create_rule(create).await.unwrap_err().code(), Code::ResourceExhausted);
    let import =
        server.rules().get_rule(GetRuleRequest { name: shown.rules[5].name.clone() }).await.unwrap().into_inner();
    let create = CreateRuleRequest { rule: Some(import), ..Default::default() };
    server.rules().create_rule(create).await.unwrap();
}

#[tokio::test]
async fn another_place_is_set_and_none_is_looked_for() {
    let set = |seed_prefix: &str| Settings { seed_prefix: seed_prefix.into(), ..Settings::default() };
    let server = common::start_with(set("/elsewhere/")).await;
    write(&server, KEY, &json!([entry("/a", "web")]).to_string()).await;
    write(&server, "/elsewhere/10.0.0.7/log_config", &json!([entry("/b", "web")]).to_string()).await;
    served(&server, &["/b"]).await;
    let server = start_in(server.stop().await, set("")).await;
    assert_eq!(list(&server).await.rules, []);
    for bad in ["/", "logagent", "/logmesh/v1/"] {
        assert!(set(bad).check().is_err(), "{bad}");
    }
}
