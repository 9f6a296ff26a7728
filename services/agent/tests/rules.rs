//! What an agent does with rules, and what it says of each.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

mod mesh;

use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::{Delta, RuleState, RuleStatus};
use logmesh_testing::wait_for_async;

use mesh::host::{Host, arrived};
use mesh::{Centre, Gateway, LIMIT, Mode};

/// Waits until the last that was said of a rule is in this state.
async fn state(centre: &Centre, name: &str, wanted: RuleState) -> RuleStatus {
    wait_for_async("the rule's state", LIMIT, || async {
        centre.rule(name).filter(|rule| rule.state() == wanted).ok_or(format!("{name}: {:?}", centre.rule(name)))
    })
    .await
}

fn revisions(rule: &RuleStatus) -> (i64, i64, i64) {
    (rule.desired_revision, rule.attempted_revision, rule.running_revision)
}

#[tokio::test]
async fn a_rule_is_being_applied_until_what_was_sent_before_is_acked() {
    let (_silent, silent_server) = Gateway::start(Mode::Silent).await;
    let (_acks, acks_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[silent_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    wait_for_async("the line to be read", LIMIT, || async {
        centre.stream("a.log").filter(|stream| stream.read_offset == 4).map(drop).ok_or("not read".to_owned())
    })
    .await;
    centre.tell(vec![Rule { topic: "elsewhere".into(), ..host.rule("a", 2, "*.log") }], &[]);
    let applying = wait_for_async("the file to wait for the new revision", LIMIT, || async {
        let rule = centre.rule("a").filter(|rule| rule.state() == RuleState::Applying && rule.effect.is_some());
        rule.ok_or(format!("{:?}", centre.rule("a")))
    })
    .await;
    assert_eq!(revisions(&applying), (2, 2, 1));
    let effect = applying.effect.unwrap();
    assert_eq!((effect.files_matched, effect.lag_bytes), (1, 4));
    centre.set_gateways(&[acks_server.address]);
    silent_server.token.cancel();
    let applied = wait_for_async("the new revision", LIMIT, || async {
        let rule = centre.rule("a").filter(|rule| rule.state() == RuleState::Applied && rule.running_revision == 2);
        rule.ok_or(format!("{:?}", centre.rule("a")))
    })
    .await;
    assert_eq!((revisions(&applied), applied.effect.unwrap().lag_bytes), ((2, 2, 2), 0));
    let (began, ended) = (applying.since.unwrap(), applied.since.unwrap());
    assert!((ended.seconds, ended.nanos) > (began.seconds, began.nanos));
    host.stop().await;
}

#[tokio::test]
async fn a_revision_that_cannot_run_is_rolled_back_and_a_restart_runs_the_good_one() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "a.log"), host.rule("b", 2, "b.log")], &[]);
    state(&centre, "a", RuleState::Applied).await;
    let glob = |name: &str| host.path(name).display().to_string();
    let bad = Rule { paths: vec![glob("a.log"), "[".into()], ..host.rule("a", 3, "") };
    let forbidden = Rule { paths: vec![glob("b.log"), "/etc/*".into()], ..host.rule("b", 4, "") };
    centre.tell(vec![bad, forbidden], &[]);
    let rolled_back = state(&centre, "a", RuleState::RolledBack).await;
    let refused = state(&centre, "b", RuleState::Refused).await;
    assert_eq!((revisions(&rolled_back), rolled_back.error.unwrap().field.as_str()), ((3, 3, 1), "paths[1]"));
    let error = refused.error.clone().unwrap();
    assert_eq!(
        (revisions(&refused), error.reason.as_str(), error.field.as_str()),
        ((4, 4, 2), "NOT_ALLOWED", "paths[1]")
    );
    for name in ["a.log", "b.log"] {
        host.append(name, &format!("{name}\n"));
    }
    arrived(&gateway, &["a.log\n", "b.log\n"]).await;
    host.stop().await;
    server.token.cancel();

    // Without the centre, and with a gateway that it was told of before.
    host.start(&[&server]);
    for name in ["a.log", "b.log"] {
        host.append(name, "more\n");
    }
    arrived(&gateway, &["a.log\nmore\n", "b.log\nmore\n"]).await;
    host.stop().await;
}

#[tokio::test]
async fn a_rule_of_which_others_own_every_file_is_shadowed_until_it_owns_one() {
    let (_gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    for name in ["a.log", "b.log"] {
        host.append(name, "one\n");
    }
    host.start(&[&server]);
    let late = |revision| host.rule("late", revision, "*.log");
    let ranked = |name: &str, glob: &str| Rule { priority: 1, ..host.rule(name, 1, glob) };
    centre.tell(vec![ranked("a", "a.log"), ranked("b", "b.log"), late(2)], &[]);
    let shadowed = state(&centre, "late", RuleState::Shadowed).await;
    assert_eq!((revisions(&shadowed), shadowed.error), ((2, 2, 2), None));
    let effect = shadowed.effect.unwrap();
    assert_eq!((effect.files_matched, effect.files_shadowed, effect.files_refused), (0, 2, 0));
    assert_eq!(effect.shadowed_by, ["rules/a", "rules/b"]);
    assert_eq!(state(&centre, "a", RuleState::Applied).await.effect.unwrap().files_matched, 1);

    // What can't run at all says so first.
    centre.tell(vec![Rule { paths: vec!["[".into()], ..late(3) }], &[]);
    state(&centre, "late", RuleState::RolledBack).await;
    centre.tell(vec![late(4)], &[]);
    state(&centre, "late", RuleState::Shadowed).await;

    centre.tell(vec![], &["a"]);
    let effect = state(&centre, "late", RuleState::Applied).await.effect.unwrap();
    assert_eq!((effect.files_matched, effect.files_shadowed), (1, 1));
    assert_eq!(effect.shadowed_by, ["rules/b"], "of what it doesn't own it's told as well");
    host.stop().await;
}

#[tokio::test]
async fn another_store_s_snapshot_is_all_there_is() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (first, first_server) = Centre::start(&[gateway_server.address]).await;
    "store-1".clone_into(&mut first.incarnation.lock().unwrap());
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&first_server]);
    first.tell(vec![host.rule("a", 7, "a.log"), host.rule("gone", 8, "b.log")], &[]);
    arrived(&gateway, &["one\n"]).await;
    state(&first, "gone", RuleState::Applied).await;
    host.stop().await;
    first_server.token.cancel();

    let (second, second_server) = Centre::start(&[gateway_server.address]).await;
    "store-2".clone_into(&mut second.incarnation.lock().unwrap());
    let snapshot = Delta { upserted: vec![host.rule("a", 2, "a.log")], snapshot: true, ..Delta::default() };
    second.deltas.send_modify(|deltas| deltas.push(snapshot));
    host.start(&[&second_server]);
    assert_eq!(revisions(&state(&second, "a", RuleState::Applied).await), (2, 2, 2));
    let introduction = second.watches.lock().unwrap()[0].clone();
    assert_eq!((introduction.incarnation.as_str(), introduction.held.len()), ("store-1", 2));
    for name in ["a.log", "b.log"] {
        host.append(name, "two\n");
    }
    arrived(&gateway, &["one\ntwo\n"]).await;
    assert_eq!(second.rule("gone"), None);
    host.stop().await;
}

#[tokio::test]
async fn each_delta_is_answered_and_no_report_says_nothing() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["one\n"]).await;
    for count in 2..5 {
        // The same again changes nothing but is to be answered.
        centre.tell(vec![], &[]);
        wait_for_async("the answer", LIMIT, || async {
            let last = centre.reports.lock().unwrap().last().map(|report| (report.nonce.clone(), report.revision));
            if last == Some((format!("n{count}"), count)) { Ok(()) } else { Err(format!("{last:?}")) }
        })
        .await;
    }
    let reports = centre.reports.lock().unwrap().clone();
    assert!(reports[0].full && !reports[0].nonce.is_empty(), "the first report answers the first message");
    for pair in reports.windows(2) {
        let silent = pair[1].rules.is_empty() && pair[1].streams.is_empty() && pair[1].nonce == pair[0].nonce;
        assert!(!silent, "{pair:?}");
    }
    host.stop().await;
}
