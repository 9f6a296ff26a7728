//! The history of rules over gRPC: what's kept, who and why, rollback.

mod common;

use std::collections::BTreeMap;

use common::{Server, rule, start};
use logmesh_proto::config::v1::{
    ChangeNote, CreateRuleRequest, DeleteRuleRequest, ListRuleRevisionsRequest, ListRulesRequest, RollbackRuleRequest,
    Rule, RuleChange, RuleRevision, UpdateRuleRequest,
};
use logmesh_store::Precondition;
use tonic::{Code, Status};

fn note(author: &str, reason: &str) -> Option<ChangeNote> {
    Some(ChangeNote { author: author.into(), reason: reason.into() })
}

async fn revisions(server: &Server, name: &str) -> Vec<RuleRevision> {
    let request = ListRuleRevisionsRequest { name: name.into(), page_size: 1000, ..Default::default() };
    server.rules().list_rule_revisions(request).await.expect("revisions").into_inner().revisions
}

async fn apply(server: &Server, rule: Rule) -> Rule {
    let request = UpdateRuleRequest { rule: Some(rule), allow_missing: true, ..Default::default() };
    server.rules().update_rule(request).await.expect("applied").into_inner()
}

async fn rollback(server: &Server, name: &str, revision: i64) -> Result<Rule, Status> {
    let request = RollbackRuleRequest { name: name.into(), revision, ..Default::default() };
    server.rules().rollback_rule(request).await.map(tonic::Response::into_inner)
}

/// A rule without what the server sets.
fn bare(rule: &Rule) -> Rule {
    Rule { revision: 0, etag: String::new(), create_time: None, update_time: None, ..rule.clone() }
}

fn changes(revisions: &[RuleRevision]) -> Vec<RuleChange> {
    revisions.iter().map(RuleRevision::change).collect()
}

#[tokio::test]
async fn every_change_is_told_with_who_and_why() {
    let server = start().await;
    let create = CreateRuleRequest { rule: Some(rule("a", "")), note: note("ann", "new shop"), ..Default::default() };
    let made = server.rules().create_rule(create).await.unwrap().into_inner();
    let update = UpdateRuleRequest {
        rule: Some(Rule { priority: 7, selector: "role=web".into(), ..rule("a", "") }),
        note: note("bob", ""),
        ..Default::default()
    };
    let changed = server.rules().update_rule(update.clone()).await.unwrap().into_inner();
    server.rules().update_rule(update).await.unwrap();
    let delete = DeleteRuleRequest { name: "a".into(), note: note("", "shop is closed"), ..Default::default() };
    server.rules().delete_rule(delete).await.unwrap();

    let told = revisions(&server, "a").await;
    use RuleChange::{Created, Deleted, Updated};
    assert_eq!(changes(&told), [Deleted, Updated, Created], "what changed nothing isn't told");
    assert_eq!(told[0].note, note("", "shop is closed"));
    assert!(told[0].rule.is_none() && told[0].revision > changed.revision);
    assert_eq!(
        (told[1].note.clone(), &told[1].changed_fields[..]),
        (note("bob", ""), &["selector", "priority"].map(String::from)[..])
    );
    assert_eq!((told[1].revision, told[1].rule.as_ref()), (changed.revision, Some(&changed)));
    assert_eq!((told[2].note.clone(), told[2].rule.as_ref()), (note("ann", "new shop"), Some(&made)));
    assert!(told.iter().all(|one| one.time.is_some()));
}

#[tokio::test]
async fn a_rule_goes_back_to_any_state_that_it_had() {
    let server = start().await;
    let first = apply(&server, rule("a", "env=prod")).await;
    let second = apply(&server, rule("a", "env=test")).await;
    let back = rollback(&server, "rules/a", first.revision).await.unwrap();
    assert_eq!(bare(&back), bare(&first));
    assert!(back.revision > second.revision && back.create_time == first.create_time);
    assert_eq!(rollback(&server, "a", first.revision).await.unwrap(), back, "again changes nothing");
    let told = revisions(&server, "a").await;
    assert_eq!((told[0].change(), told[0].rolled_back_to), (RuleChange::RolledBack, first.revision));
    assert_eq!(told[0].changed_fields, ["selector"]);

    server.rules().delete_rule(DeleteRuleRequest { name: "a".into(), ..Default::default() }).await.unwrap();
    let deletion = revisions(&server, "a").await[0].revision;
    let refused = rollback(&server, "a", deletion).await.unwrap_err();
    assert_eq!(
        (refused.code(), logmesh_grpc::reason(&refused).as_deref()),
        (Code::FailedPrecondition, Some("REVISION_IS_DELETION"))
    );
    let again = rollback(&server, "a", second.revision).await.unwrap();
    assert_eq!(bare(&again), bare(&second), "a deleted rule is made again");
}

#[tokio::test]
async fn rollback_checks_before_it_writes() {
    let server = start().await;
    let first = apply(&server, rule("a", "env=prod")).await;
    let second = apply(&server, rule("a", "env=test")).await;
    let request = RollbackRuleRequest { name: "a".into(), revision: first.revision, ..Default::default() };
    let stale = RollbackRuleRequest { etag: first.etag, ..request.clone() };
    assert_eq!(server.rules().rollback_rule(stale).await.unwrap_err().code(), Code::Aborted);
    let only = RollbackRuleRequest { validate_only: true, etag: second.etag.clone(), ..request };
    assert_eq!(server.rules().rollback_rule(only).await.unwrap().into_inner().selector, "env=prod");
    assert_eq!(revisions(&server, "a").await.len(), 2, "nothing was written");
    for (name, revision, reason) in
        [("a", 0, "REVISION_NOT_FOUND"), ("a", -5, "REVISION_NOT_FOUND"), ("b", 1, "RULE_NOT_FOUND")]
    {
        let missing = rollback(&server, name, revision).await.unwrap_err();
        assert_eq!((missing.code(), logmesh_grpc::reason(&missing).as_deref()), (Code::NotFound, Some(reason)));
    }
    let delete = DeleteRuleRequest { name: "a".into(), validate_only: true, ..Default::default() };
    server.rules().delete_rule(delete).await.unwrap();
    assert_eq!(rollback(&server, "a", second.revision).await.unwrap(), second, "it's still there");
    let long = UpdateRuleRequest { rule: Some(rule("a", "")), note: note(&"x".repeat(129), ""), ..Default::default() };
    let refused = server.rules().update_rule(long).await.unwrap_err();
    assert!(refused.message().starts_with("note.author: "), "{refused}");
}

#[tokio::test]
async fn the_history_is_bounded_and_comes_in_pages() {
    let server = start().await;
    let mut made = Vec::new();
    for priority in 0..110 {
        made.push(apply(&server, Rule { priority, ..rule("a", "") }).await.revision);
    }
    made.reverse();
    made.truncate(100);
    let (mut told, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListRuleRevisionsRequest { name: "a".into(), page_size: 30, page_token };
        let page = server.rules().list_rule_revisions(request).await.unwrap().into_inner();
        told.extend(page.revisions.iter().map(|one| one.revision));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(told, made);
    let stored = server.store.list("/logmesh/v1/history/a/").await.unwrap();
    assert_eq!(stored.entries.len(), 100);
    assert_eq!(stored.entries[0].key, "/logmesh/v1/history/a/0000000011");
}

#[tokio::test]
async fn writers_at_one_time_leave_one_change_each() {
    let server = start().await;
    apply(&server, rule("a", "")).await;
    let fields = ["selector", "topic", "service", "encoding"];
    let updates = fields.map(async |field| {
        let changed = Rule {
            selector: "env=prod".into(),
            topic: "other".into(),
            service: "shop".into(),
            encoding: "gbk".into(),
            ..rule("a", "")
        };
        let update_mask = Some(prost_types::FieldMask { paths: vec![field.to_owned()] });
        let request = UpdateRuleRequest { rule: Some(changed), update_mask, ..Default::default() };
        server.rules().update_rule(request).await.unwrap().into_inner()
    });
    let made: BTreeMap<i64, Rule> =
        futures::future::join_all(updates).await.into_iter().map(|rule| (rule.revision, rule)).collect();
    let told = revisions(&server, "a").await;
    assert_eq!(told.len(), 5);
    for change in &told[..4] {
        assert_eq!(change.changed_fields.len(), 1);
        assert_eq!(change.rule.as_ref(), made.get(&change.revision));
    }
}

#[tokio::test]
async fn a_rule_of_an_earlier_version_gets_a_history() {
    let server = start().await;
    let old = r#"{"rule": {"name": "rules/old", "paths": ["/a"], "topic": "logs"},
        "create_time": "2026-01-01T00:00:00Z", "update_time": "2026-02-01T00:00:00Z"}"#;
    let written = server.store.put("/logmesh/v1/rules/old", old.into(), Precondition::None).await.unwrap();
    let written = i64::try_from(written.0).unwrap();
    let told = revisions(&server, "old").await;
    assert_eq!((told.len(), told[0].revision, told[0].change()), (1, written, RuleChange::Updated));
    apply(&server, Rule { paths: vec!["/b".into()], topic: "logs".into(), name: "old".into(), ..Rule::default() })
        .await;
    let told = revisions(&server, "old").await;
    assert_eq!(changes(&told), [RuleChange::Updated, RuleChange::Updated]);
    assert_eq!(told[1].revision, written);
    assert_eq!(rollback(&server, "old", written).await.unwrap().paths, ["/a"]);
}

#[tokio::test]
async fn a_damaged_rule_can_be_rolled_back_and_is_told() {
    let server = start().await;
    let good = apply(&server, rule("a", "env=prod")).await;
    server.store.put("/logmesh/v1/rules/a", "{".into(), Precondition::None).await.unwrap();
    server.store.put("/logmesh/v1/rules/b", "{\"rule\": {\"name\": 7}}".into(), Precondition::None).await.unwrap();
    let list = async || server.rules().list_rules(ListRulesRequest::default()).await.unwrap().into_inner();
    let told = common::wait_for("both problems", list, |list| list.problems.len() == 2).await.problems;
    assert_eq!((told[0].key.as_str(), told[0].field.as_str()), ("/logmesh/v1/rules/a", ""));
    assert!(told[0].message.contains("the state before it goes on"), "{}", told[0].message);
    assert_eq!((told[1].key.as_str(), told[1].field.as_str()), ("/logmesh/v1/rules/b", "rule.name"));
    let back = rollback(&server, "a", good.revision).await.unwrap();
    assert_eq!(bare(&back), bare(&good));
    common::wait_for("one problem", list, |list| list.problems.len() == 1 && list.rules.len() == 1).await;
}

#[tokio::test]
async fn lists_are_filtered_by_the_rules_own_fields() {
    let server = start().await;
    for (name, topic) in [("a", "logs"), ("b", "web"), ("c", "logs"), ("d", "logs")] {
        apply(&server, Rule { topic: topic.into(), ..rule(name, "") }).await;
    }
    let list = async |filter: &str, page_token: String| {
        let request = ListRulesRequest { filter: filter.into(), page_size: 2, page_token };
        server.rules().list_rules(request).await.map(tonic::Response::into_inner)
    };
    let names = |rules: &[Rule]| rules.iter().map(|rule| rule.name.clone()).collect::<Vec<_>>();
    let page = list("topic=logs", String::new()).await.unwrap();
    assert_eq!(names(&page.rules), ["rules/a", "rules/c"]);
    let page = list("topic=logs", page.next_page_token).await.unwrap();
    assert_eq!((names(&page.rules), page.next_page_token.as_str()), (vec!["rules/d".into()], ""));
    assert_eq!(names(&list("NOT (topic=logs OR id=x)", String::new()).await.unwrap().rules), ["rules/b"]);
    let refused = list("topic=logs AND", String::new()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("filter: at character 15"), "{refused}");
}
