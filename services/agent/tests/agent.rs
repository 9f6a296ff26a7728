//! An agent against a centre and gateways in this process, over real connections.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

mod mesh;

use std::time::Duration;

use logmesh_agent::{Agent, Compression, Settings};
use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::{RuleState, StreamState};
use logmesh_runtime::Tasks;
use logmesh_testing::wait_for_async;
use logmesh_types::Span;

use mesh::host::{Host, arrived};
use mesh::{Centre, Gateway, LIMIT, Mode};

#[tokio::test]
async fn lines_reach_the_gateway_and_the_centre_is_told() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\ntwo\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("shop", 7, "*.log")], &[]);
    arrived(&gateway, &["one\ntwo\n"]).await;
    host.append("a.log", "three\n");
    arrived(&gateway, &["one\ntwo\nthree\n"]).await;

    let chunk = gateway.chunks.lock().unwrap()[0].clone();
    let source = chunk.source.unwrap();
    assert_eq!((chunk.topic.as_str(), chunk.rule.as_str(), chunk.rule_revision), ("logs", "rules/shop", 7));
    assert_eq!(
        (source.agent_id.as_str(), source.service.as_str(), &source.labels["role"][..]),
        ("host-1", "shop", "web")
    );
    assert_eq!(source.path, host.path("a.log").display().to_string());
    assert!(chunk.event_lengths.is_empty());

    wait_for_async("the report", LIMIT, || async {
        let stream = centre.stream("a.log").ok_or("no stream")?;
        if stream.acked_offset == 14 { Ok(()) } else { Err(format!("{stream:?}")) }
    })
    .await;
    let rule = centre.rule("shop").unwrap();
    assert_eq!((rule.state(), rule.desired_revision, rule.running_revision), (RuleState::Applied, 7, 7));
    assert_eq!(rule.effect.unwrap().files_matched, 1);
    let labels = centre.watches.lock().unwrap()[0].labels.clone();
    assert!(["host", "os", "ip", "role"].iter().all(|key| labels.contains_key(*key)));
    assert!(centre.reports.lock().unwrap()[0].full);
    host.stop().await;
}

#[tokio::test]
async fn a_restart_without_the_centre_goes_on_where_it_was() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["one\n"]).await;
    wait_for_async("the ack", LIMIT, || async {
        centre.stream("a.log").filter(|stream| stream.acked_offset == 4).map(drop).ok_or("not acked".to_owned())
    })
    .await;
    host.stop().await;
    server.token.cancel();
    host.append("a.log", "two\n");
    host.start(&[&server]);
    arrived(&gateway, &["one\ntwo\n"]).await;
    assert_eq!(gateway.chunks.lock().unwrap().len(), 2, "what was acked isn't sent again");
    host.stop().await;
}

#[tokio::test]
async fn another_centre_is_tried_and_told_what_is_held() {
    let (_gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (first, first_server) = Centre::start(&[gateway_server.address]).await;
    let (second, second_server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.start(&[&first_server, &second_server]);
    first.tell(vec![host.rule("a", 3, "*.log")], &[]);
    let applied = async |centre: &Centre| {
        wait_for_async("the rule to be applied", LIMIT, || async {
            centre.rule("a").filter(|rule| rule.running_revision == 3).map(drop).ok_or("not yet".to_owned())
        })
        .await;
    };
    applied(&first).await;
    first_server.token.cancel();
    applied(&second).await;
    let watches = second.watches.lock().unwrap();
    assert_eq!(watches[0].held["rules/a"], 3);
    assert_eq!(watches[0].session, first.watches.lock().unwrap()[0].session);
    assert!(second.reports.lock().unwrap()[0].full);
}

#[tokio::test]
async fn a_gateway_that_fails_is_replaced_and_nothing_is_lost() {
    let (good, good_server) = Gateway::start(Mode::Silent).await;
    let (bad, bad_server) = Gateway::start(Mode::Break).await;
    let (centre, server) = Centre::start(&[bad_server.address, good_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&good, &["one\n"]).await;
    assert!(bad.texts().is_empty());
    // It dies with the chunk unacked; the other recovers.
    bad.mode.send_replace(Mode::Ack);
    good_server.token.cancel();
    host.append("a.log", "two\n");
    arrived(&bad, &["one\ntwo\n"]).await;
    host.stop().await;
}

#[tokio::test]
async fn a_go_away_is_followed_without_sending_anything_twice() {
    let (gateway, gateway_server) = Gateway::start(Mode::GoAway).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["one\n"]).await;
    wait_for_async("a second connection", LIMIT, || async {
        let connections = *gateway.connections.lock().unwrap();
        if connections == 2 { Ok(()) } else { Err(format!("{connections} connections")) }
    })
    .await;
    host.append("a.log", "two\n");
    arrived(&gateway, &["one\ntwo\n"]).await;
    assert_eq!(gateway.chunks.lock().unwrap().len(), 2);
    host.stop().await;
}

/// Stops an agent whose gateway has one chunk unacked, starts it again, and answers how many chunks came in all.
async fn stopped_with_a_chunk_unacked(mode: Mode, drain: Duration) -> usize {
    let (gateway, gateway_server) = Gateway::start(mode).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    let settings = |host: &Host| Settings { drain: Span(drain), ..host.settings(&[&server]) };
    host.start_with(settings(&host));
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["one\n"]).await;
    host.stop().await;
    gateway.mode.send_replace(Mode::Ack);
    host.append("a.log", "two\n");
    host.start_with(settings(&host));
    arrived(&gateway, &["one\ntwo\n"]).await;
    host.stop().await;
    let starts: Vec<u64> = gateway.chunks.lock().unwrap().iter().map(|chunk| chunk.start_offset).collect();
    starts.iter().filter(|start| **start == 0).count()
}

/// Sends lines with zstd to a gateway, and answers how they came.
async fn sent_with_zstd(mode: Mode) -> Option<String> {
    let (gateway, gateway_server) = Gateway::start(mode).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    let text = "the same words again and again\n".repeat(1_000);
    host.append("a.log", &text);
    host.start_with(Settings { compression: Compression::Zstd, ..host.settings(&[&server]) });
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &[&text]).await;
    host.stop().await;
    gateway.encoding.lock().unwrap().clone()
}

#[tokio::test]
async fn chunks_are_compressed_where_the_gateway_can_open_them() {
    assert_eq!(sent_with_zstd(Mode::Ack).await.as_deref(), Some("zstd"));
    assert_eq!(sent_with_zstd(Mode::Plain).await, None);
}

#[tokio::test]
async fn an_agent_that_ends_waits_for_the_acks_of_what_is_on_its_way() {
    let sent = stopped_with_a_chunk_unacked(Mode::Late, LIMIT).await;
    assert_eq!(sent, 1, "what was acked while the agent ended isn't sent again");
}

#[tokio::test]
async fn an_agent_that_ends_waits_no_longer_than_it_was_told() {
    let sent = stopped_with_a_chunk_unacked(Mode::Deaf, Duration::from_millis(50)).await;
    assert_eq!(sent, 2, "what wasn't acked is sent again");
}

#[tokio::test]
async fn an_agent_without_a_gateway_ends_at_once() {
    let (centre, server) = Centre::start(&[]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start_with(Settings { drain: Span(2 * LIMIT), ..host.settings(&[&server]) });
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    wait_for_async("the rule", LIMIT, || async { centre.rule("a").map(drop).ok_or("not yet".to_owned()) }).await;
    // It gives up after half of what the agent would wait.
    host.stop().await;
}

#[tokio::test]
async fn a_refused_chunk_blocks_its_stream_and_is_reported() {
    let (_gateway, gateway_server) = Gateway::start(Mode::Refuse).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    host.start(&[&server]);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    let stream = wait_for_async("the block", LIMIT, || async {
        centre.stream("a.log").filter(|stream| stream.state() == StreamState::Blocked).ok_or("not blocked".to_owned())
    })
    .await;
    assert_eq!(stream.acked_offset, 0);
    assert!(stream.error.contains("BAD_NAME: refused on purpose"), "{}", stream.error);
    host.stop().await;
}

#[tokio::test]
async fn each_rule_is_judged_by_itself() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "fine\n");
    host.start(&[&server]);
    let outside = Rule { paths: vec!["/etc/passwd".into()], ..host.rule("outside", 2, "") };
    let broken =
        Rule { paths: vec![host.path("b.log").display().to_string(), "[".into()], ..host.rule("broken", 3, "") };
    centre.tell(vec![host.rule("fine", 1, "a.log"), outside, broken], &[]);
    arrived(&gateway, &["fine\n"]).await;
    let state = async |name: &str, wanted: RuleState| {
        wait_for_async("the rule's state", LIMIT, || async {
            centre.rule(name).filter(|rule| rule.state() == wanted).ok_or(format!("{name}: {:?}", centre.rule(name)))
        })
        .await
    };
    assert_eq!(state("fine", RuleState::Applied).await.error, None);
    let refused = state("outside", RuleState::Refused).await.error.unwrap();
    assert_eq!((refused.reason.as_str(), refused.field.as_str()), ("NOT_ALLOWED", "paths[0]"));
    let failed = state("broken", RuleState::Failed).await;
    assert_eq!((failed.running_revision, failed.error.unwrap().field.as_str()), (0, "paths[1]"));

    // A rule that is dropped stops; one that is mended runs.
    centre.tell(vec![host.rule("broken", 4, "b.log")], &["fine"]);
    assert_eq!(state("broken", RuleState::Applied).await.running_revision, 4);
    host.append("a.log", "no more\n");
    host.append("b.log", "mended\n");
    arrived(&gateway, &["fine\n", "mended\n"]).await;
    host.stop().await;
}

#[tokio::test]
async fn a_state_folder_serves_one_agent() {
    let (_centre, server) = Centre::start(&[]).await;
    let mut host = Host::new();
    host.start(&[&server]);
    let error = Agent::start(host.settings(&[&server]), &Tasks::new()).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    host.stop().await;
    host.start(&[&server]);
    host.stop().await;
}
