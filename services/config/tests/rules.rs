//! RuleService over gRPC.

mod common;

use common::{next, rule, start, start_in};
use logmesh_config::Settings;
use logmesh_proto::config::v1::{
    CreateRuleRequest, DeleteRuleRequest, GetRuleRequest, ListRulesRequest, Pace, Rule, UpdateRuleRequest,
    WatchRulesRequest,
};
use logmesh_store::Precondition;
use tonic::{Code, Request};
use tonic_types::StatusExt;

fn create(rule: Rule) -> CreateRuleRequest {
    CreateRuleRequest { rule: Some(rule), ..Default::default() }
}

fn update(rule: Rule, mask: &[&str]) -> UpdateRuleRequest {
    let paths: Vec<String> = mask.iter().map(|path| (*path).to_owned()).collect();
    UpdateRuleRequest { rule: Some(rule), update_mask: Some(prost_types::FieldMask { paths }), ..Default::default() }
}

fn get(name: &str) -> GetRuleRequest {
    GetRuleRequest { name: name.into() }
}

#[tokio::test]
async fn a_rule_lives_its_life() {
    let server = start().await;
    let mut rules = server.rules();
    let made = rules.create_rule(create(rule("web", "role=web"))).await.unwrap().into_inner();
    assert_eq!((made.name.as_str(), made.selector.as_str()), ("rules/web", "role=web"));
    assert!(made.revision > 0 && !made.etag.is_empty() && made.create_time.is_some());
    assert_eq!(rules.get_rule(get("web")).await.unwrap().into_inner(), made);
    assert_eq!(rules.get_rule(get("rules/web")).await.unwrap().into_inner(), made);

    let again = rules.create_rule(create(rule("web", ""))).await.unwrap_err();
    assert_eq!((again.code(), logmesh_grpc::reason(&again).as_deref()), (Code::AlreadyExists, Some("RULE_EXISTS")));

    let changed = Rule { priority: 7, topic: "other".into(), ..made.clone() };
    let changed = rules.update_rule(update(changed, &["priority"])).await.unwrap().into_inner();
    assert_eq!((changed.priority, changed.topic.as_str()), (7, "logs"));
    assert!(changed.revision > made.revision && changed.etag != made.etag);
    assert_eq!(changed.create_time, made.create_time);

    let stale = rules.update_rule(update(Rule { priority: 8, ..made.clone() }, &["priority"])).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    let same = Rule { etag: String::new(), ..changed.clone() };
    assert_eq!(rules.update_rule(update(same, &[])).await.unwrap().into_inner(), changed, "nothing changed");

    let stale = DeleteRuleRequest { name: "web".into(), etag: made.etag, ..Default::default() };
    assert_eq!(rules.delete_rule(stale).await.unwrap_err().code(), Code::Aborted);
    let fresh = DeleteRuleRequest { name: "web".into(), etag: changed.etag, ..Default::default() };
    rules.delete_rule(fresh.clone()).await.unwrap();
    assert_eq!(rules.delete_rule(fresh).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(rules.get_rule(get("web")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn apply_makes_what_is_missing() {
    let server = start().await;
    let mut rules = server.rules();
    let missing = rules.update_rule(update(rule("a", ""), &[])).await.unwrap_err();
    assert_eq!((missing.code(), logmesh_grpc::reason(&missing).as_deref()), (Code::NotFound, Some("RULE_NOT_FOUND")));
    let apply = UpdateRuleRequest { allow_missing: true, ..update(rule("a", ""), &[]) };
    let made = rules.update_rule(apply.clone()).await.unwrap().into_inner();
    assert_eq!(rules.update_rule(apply.clone()).await.unwrap().into_inner(), made, "applying again changes nothing");
    let deleted = Rule { etag: "r1".into(), ..rule("b", "") };
    let apply = UpdateRuleRequest { rule: Some(deleted), ..apply };
    assert_eq!(rules.update_rule(apply).await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn a_bad_rule_is_refused_with_every_fields_path() {
    let server = start().await;
    let mut rules = server.rules();
    let bad = Rule {
        selector: "env=".into(),
        paths: vec!["/ok".into(), "not/absolute".into()],
        topic: "x.dead".into(),
        ..rule("bad", "")
    };
    let refused = rules.create_rule(create(bad.clone())).await.unwrap_err();
    assert_eq!(
        (refused.code(), logmesh_grpc::reason(&refused).as_deref()),
        (Code::InvalidArgument, Some("INVALID_RULE"))
    );
    let violations = refused.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["rule.selector", "rule.paths[1]", "rule.topic"]);

    rules.create_rule(create(rule("bad", ""))).await.unwrap();
    let refused = rules.update_rule(update(bad, &["paths"])).await.unwrap_err();
    let violations = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!((violations.len(), violations[0].field.as_str()), (1, "rule.paths[1]"));
    let refused = rules.update_rule(update(rule("bad", ""), &["topic", "colour"])).await.unwrap_err();
    assert_eq!(refused.get_details_bad_request().unwrap().field_violations[0].field, "update_mask.paths[1]");
    for request in [CreateRuleRequest::default(), create(rule("Bad Name", ""))] {
        assert_eq!(rules.create_rule(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(rules.get_rule(get("a/b")).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn validate_only_makes_nothing() {
    let server = start().await;
    let mut rules = server.rules();
    let request = CreateRuleRequest { validate_only: true, ..create(rule("a", "")) };
    assert_eq!(rules.create_rule(request).await.unwrap().into_inner().name, "rules/a");
    assert_eq!(rules.get_rule(get("a")).await.unwrap_err().code(), Code::NotFound);
    let made = rules.create_rule(create(rule("a", ""))).await.unwrap().into_inner();
    let pace = Some(Pace { bytes_per_second: 5, lines_per_second: 0 });
    let changed = Rule { pace, ..rule("a", "") };
    let request = UpdateRuleRequest { validate_only: true, ..update(changed, &["pace"]) };
    assert_eq!(rules.update_rule(request).await.unwrap().into_inner().pace, pace);
    assert_eq!(rules.get_rule(get("a")).await.unwrap().into_inner(), made);
}

#[tokio::test]
async fn lists_come_in_pages_by_name() {
    let server = start().await;
    let mut rules = server.rules();
    for name in ["c", "a", "b.1", "b", "d"] {
        rules.create_rule(create(rule(name, ""))).await.unwrap();
    }
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListRulesRequest { page_size: 2, page_token: token, ..Default::default() };
        let page = rules.list_rules(request).await.unwrap().into_inner();
        assert!(page.rules.len() <= 2);
        names.extend(page.rules.into_iter().map(|rule| rule.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["rules/a", "rules/b", "rules/b.1", "rules/c", "rules/d"]);
    let bad = rules.list_rules(ListRulesRequest { page_size: -1, ..Default::default() }).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn writers_without_an_etag_do_not_undo_each_other() {
    let server = start().await;
    server.rules().create_rule(create(rule("a", ""))).await.unwrap();
    let fields = [
        ("priority", Rule { priority: 9, ..rule("a", "") }),
        ("selector", rule("a", "env=prod")),
        ("topic", Rule { topic: "other".into(), ..rule("a", "") }),
        ("service", Rule { service: "shop".into(), ..rule("a", "") }),
    ];
    let updates =
        fields.into_iter().map(async |(field, rule)| server.rules().update_rule(update(rule, &[field])).await);
    for updated in futures::future::join_all(updates).await {
        updated.unwrap();
    }
    let now = server.rules().get_rule(get("a")).await.unwrap().into_inner();
    let all = (now.priority, now.selector.as_str(), now.topic.as_str(), now.service.as_str());
    assert_eq!(all, (9, "env=prod", "other", "shop"));
}

#[tokio::test]
async fn watchers_see_the_state_and_each_change() {
    let server = start().await;
    let mut rules = server.rules();
    rules.create_rule(create(rule("a", ""))).await.unwrap();
    let mut watch = rules.watch_rules(Request::new(WatchRulesRequest {})).await.unwrap().into_inner();
    let mut state = next(&mut watch).await;
    rules.create_rule(create(rule("b", ""))).await.unwrap();
    while state.rules.len() < 2 {
        let later = next(&mut watch).await;
        assert!(later.revision >= state.revision);
        state = later;
    }
    rules.delete_rule(DeleteRuleRequest { name: "a".into(), ..Default::default() }).await.unwrap();
    let state = next(&mut watch).await;
    assert_eq!(state.rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), ["rules/b"]);
    server.tasks.shutdown();
    assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable, "a watch ends with the server");
    server.stop().await;
}

#[tokio::test]
async fn rules_are_stored_readably_and_survive_a_restart() {
    let server = start().await;
    let made = server.rules().create_rule(create(rule("a", "env=prod"))).await.unwrap().into_inner();
    let stored = server.store.get("/logmesh/v1/rules/a").await.unwrap().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&stored.value).unwrap();
    assert_eq!(json["rule"]["name"], "rules/a");
    assert_eq!(json["rule"]["selector"], "env=prod");
    let folder = server.stop().await;
    let server = start_in(folder, Settings::default()).await;
    assert_eq!(server.rules().get_rule(get("a")).await.unwrap().into_inner(), made);
}

#[tokio::test]
async fn a_damaged_rule_can_be_deleted_and_hides_no_other() {
    let server = start().await;
    let mut rules = server.rules();
    rules.create_rule(create(rule("good", ""))).await.unwrap();
    server.store.put("/logmesh/v1/rules/bad", "{".into(), Precondition::None).await.unwrap();
    let list = rules.list_rules(ListRulesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.rules.len(), 1);
    let unreadable = rules.get_rule(get("bad")).await.unwrap_err();
    assert_eq!(unreadable.code(), Code::Internal);
    rules.delete_rule(DeleteRuleRequest { name: "bad".into(), ..Default::default() }).await.unwrap();
    assert_eq!(rules.get_rule(get("bad")).await.unwrap_err().code(), Code::NotFound);
}
