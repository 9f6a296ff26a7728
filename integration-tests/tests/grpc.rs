//! Every method that is declared works by `grpcurl`, without a proto file at hand.
//!
//! The list of methods comes from the descriptors, so a new method without a call here fails.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeSet;

use logmesh_integration_tests::Mesh;
use logmesh_integration_tests::grpcurl::{call, grpcurl};
use prost::Message;
use prost_types::FileDescriptorSet;

/// Its calls are run by a test of their own.
const COOKBOOK: &str = include_str!("../../docs/grpcurl.md");

/// How a call is to end.
#[derive(Clone, Copy)]
enum End {
    /// With an answer that holds this text.
    Answer(&'static str),
    /// With this code and this text.
    Error(&'static str, &'static str),
    /// It's a stream that never ends: a message with this text comes until grpcurl gives up.
    Stream(&'static str),
}

/// Seconds that a call may take; a stream without an end is read for so long.
const LONG: u32 = 30;
const STREAM: u32 = 3;

use End::{Answer, Error, Stream};

/// A call of each method, in an order in which they work.
const CALLS: &[(&str, &str, End)] = &[
    (
        "logmesh.config.v1.RuleService/CreateRule",
        r#"{"rule": {"name": "rules/web", "paths": ["/srv/web/*.log"], "topic": "web"}}"#,
        Answer(r#""etag""#),
    ),
    (
        "logmesh.config.v1.RuleService/CreateRule",
        r#"{"rule": {"name": "rules/web", "paths": ["/srv/web/*.log"], "topic": "web"}}"#,
        Error("AlreadyExists", "web"),
    ),
    (
        "logmesh.config.v1.RuleService/CreateRule",
        r#"{"rule": {"name": "rules/bad", "paths": ["/srv/[.log"], "topic": "web"}}"#,
        Error("InvalidArgument", "paths[0]"),
    ),
    ("logmesh.config.v1.RuleService/GetRule", r#"{"name": "rules/web"}"#, Answer("/srv/web/*.log")),
    ("logmesh.config.v1.RuleService/GetRule", r#"{"name": "rules/none"}"#, Error("NotFound", "none")),
    ("logmesh.config.v1.RuleService/ListRules", "{}", Answer("rules/web")),
    (
        "logmesh.config.v1.RuleService/UpdateRule",
        r#"{"rule": {"name": "rules/web", "priority": 5}, "update_mask": {"paths": ["priority"]}}"#,
        Answer(r#""priority": 5"#),
    ),
    (
        "logmesh.config.v1.RuleService/UpdateRule",
        r#"{"rule": {"name": "rules/web", "priority": 6, "etag": "stale"}, "update_mask": {"paths": ["priority"]}}"#,
        Error("Aborted", ""),
    ),
    ("logmesh.config.v1.RuleService/WatchRules", "{}", Stream("rules/web")),
    ("logmesh.config.v1.RuleService/DeleteRule", r#"{"name": "rules/web"}"#, Answer("{}")),
    (
        "logmesh.discovery.v1.DiscoveryService/Register",
        r#"{"endpoint": {"kind": "console", "id": "test", "address": "127.0.0.1:1"}}"#,
        Answer("ttl"),
    ),
    ("logmesh.discovery.v1.DiscoveryService/WatchEndpoints", "{}", Stream("gateway")),
    (
        "logmesh.discovery.v1.DiscoveryService/Campaign",
        r#"{"office": "retention", "candidate": "test"}"#,
        Answer("ttl"),
    ),
    (
        "logmesh.fleet.v1.AgentConfigService/WatchConfig",
        r#"{"agent_id": "test-agent", "session": "s1", "labels": {"os": "linux"}}"#,
        Stream("revision"),
    ),
    (
        "logmesh.fleet.v1.AgentConfigService/ReportStatus",
        r#"{"agent_id": "unheard-of", "session": "s1", "full": true}"#,
        Error("NotFound", ""),
    ),
    ("logmesh.fleet.v1.FleetService/ListAgents", "{}", Answer(r#""agents""#)),
    ("logmesh.fleet.v1.FleetService/GetAgent", r#"{"id": "unheard-of"}"#, Error("NotFound", "unheard-of")),
    ("logmesh.fleet.v1.FleetService/ListAgents", r#"{"filter": "online=true, id=nobody"}"#, Answer("{")),
    ("logmesh.fleet.v1.FleetService/ListAgents", r#"{"filter": "env="}"#, Error("InvalidArgument", "filter")),
    (
        "logmesh.fleet.v1.FleetService/UpdateAgent",
        r#"{"id": "test-agent", "set_labels": {"role": "web"}}"#,
        Answer(r#""role": "web""#),
    ),
    (
        "logmesh.fleet.v1.FleetService/UpdateAgent",
        r#"{"id": "test-agent", "set_labels": {"ip": "10.0.0.1"}}"#,
        Error("InvalidArgument", "ip"),
    ),
    ("logmesh.fleet.v1.FleetService/ForgetAgent", r#"{"id": "test-agent"}"#, Answer("{}")),
    ("logmesh.fleet.v1.FleetService/ForgetAgent", r#"{"id": "test-agent"}"#, Error("NotFound", "test-agent")),
    ("logmesh.fleet.v1.FleetService/WatchAgents", "{}", Stream(r#""complete": true"#)),
    ("logmesh.fleet.v1.FleetService/ListRuleStatuses", r#"{"rule": "rules/none"}"#, Error("NotFound", "none")),
    ("logmesh.fleet.v1.FleetService/WatchSessions", "{}", Stream(r#""snapshot": true"#)),
    ("logmesh.fleet.v1.FleetService/ListStreams", "{}", Answer("{")),
    // Without a chunk there's nothing to ack, but the server grants its credit.
    ("logmesh.ingest.v1.IngestService/Push", "", Answer("credit")),
    (
        "logmesh.ingest.v1.IngestService/Write",
        r#"{"topic": "events", "events": [{"event_id": "e1", "message": "written by grpcurl"}]}"#,
        Answer("positions"),
    ),
    ("logmesh.search.v1.SearchService/Search", r#"{"query": "*"}"#, Answer("{")),
    ("logmesh.search.v1.SearchService/Search", r#"{"query": "a AND ("}"#, Error("InvalidArgument", "query")),
    ("logmesh.search.v1.SearchService/Histogram", r#"{"query": "*"}"#, Answer("{")),
    ("logmesh.search.v1.SearchService/Facets", r#"{"query": "*", "field": "host.name"}"#, Answer("{")),
    (
        "logmesh.search.v1.SearchService/Facets",
        r#"{"query": "*", "field": "message"}"#,
        Error("InvalidArgument", "field"),
    ),
    ("logmesh.search.v1.SearchService/Search", r#"{"topics": ["evnets"]}"#, Error("NotFound", "did you mean events?")),
    (
        "logmesh.search.v1.SearchService/GetContext",
        r#"{"topic": "logs", "stream_id": "00000000000000000000000000000000"}"#,
        Error("NotFound", "stream"),
    ),
    (
        "logmesh.search.v1.SearchService/GetContext",
        r#"{"topic": "logs", "before": -1}"#,
        Error("InvalidArgument", "stream_id"),
    ),
    ("logmesh.search.v1.SearchService/Tail", r#"{"query": "*"}"#, Stream("")),
    (
        "logmesh.search.v1.SearchService/Tail",
        r#"{"query": "*", "topics": ["evnets"]}"#,
        Stream("there is no topic evnets"),
    ),
    ("logmesh.transfer.v1.TransferService/Pause", r#"{"topic": "none"}"#, Error("NotFound", "none")),
    ("logmesh.transfer.v1.TransferService/Pause", "{}", Answer(r#""all": true"#)),
    ("logmesh.transfer.v1.TransferService/Resume", r#"{"topic": "events"}"#, Error("FailedPrecondition", "all")),
    ("logmesh.transfer.v1.TransferService/Resume", "{}", Answer("{}")),
    ("logmesh.audit.v1.AuditService/AuditFleet", "{}", Answer("{")),
    (
        "logmesh.audit.v1.AuditService/GetStreamAudit",
        r#"{"stream_id": "00000000000000000000000000000000"}"#,
        Error("NotFound", ""),
    ),
    (
        "logmesh.audit.v1.AuditService/Repair",
        r#"{"streams": [{"topic": "logs", "stream_id": "00000000000000000000000000000000"}]}"#,
        Error("NotFound", "logs"),
    ),
    ("logmesh.audit.v1.AuditService/Repair", "{}", Error("InvalidArgument", "streams")),
    ("logmesh.transfer.v1.TransferService/GetStatus", "{}", Answer("counts")),
    ("logmesh.transfer.v1.TransferService/GetFreshness", "{}", Answer("window")),
    ("logmesh.transfer.v1.TransferService/GetFreshness", r#"{"topic": "none"}"#, Error("NotFound", "none")),
    ("logmesh.transfer.v1.TransferService/ListDeadLetters", r#"{"topic": "logs"}"#, Answer("{")),
    ("logmesh.transfer.v1.TransferService/SummarizeDeadLetters", "{}", Answer("{")),
    ("logmesh.transfer.v1.TransferService/RedriveDeadLetters", r#"{"topic": "events"}"#, Answer("{")),
    ("logmesh.transfer.v1.TransferService/RedriveDeadLetters", r#"{"topic": "none"}"#, Error("NotFound", "none")),
    (
        "logmesh.transfer.v1.TransferService/StartReplay",
        r#"{"id": "r1", "topic": "events", "into": "events-again", "events_per_second": 5}"#,
        Answer(r#""id": "r1""#),
    ),
    (
        "logmesh.transfer.v1.TransferService/StartReplay",
        r#"{"topic": "events", "start_offset": 5}"#,
        Error("InvalidArgument", "stream_id"),
    ),
    ("logmesh.transfer.v1.TransferService/GetReplay", r#"{"id": "r1"}"#, Answer("REPLAY_STATE_")),
    ("logmesh.transfer.v1.TransferService/ListReplays", "{}", Answer("r1")),
    ("logmesh.transfer.v1.TransferService/PauseReplay", r#"{"id": "none"}"#, Error("NotFound", "none")),
    ("logmesh.transfer.v1.TransferService/ResumeReplay", r#"{"id": "none"}"#, Error("NotFound", "none")),
    ("logmesh.transfer.v1.TransferService/CancelReplay", r#"{"id": "none"}"#, Error("NotFound", "none")),
];

/// The full names of all our services, and of their methods as `service/method`.
fn declared() -> (BTreeSet<String>, BTreeSet<String>) {
    let set = FileDescriptorSet::decode(logmesh_proto::FILE_DESCRIPTOR_SET).unwrap();
    let (mut services, mut methods) = (BTreeSet::new(), BTreeSet::new());
    for file in set.file.iter().filter(|file| file.package().starts_with("logmesh.")) {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            methods.extend(service.method.iter().map(|method| format!("{name}/{}", method.name())));
            services.insert(name);
        }
    }
    (services, methods)
}

#[test]
fn there_is_a_call_of_every_declared_method() {
    let in_cookbook = |method: &String| [" |", "\n"].iter().any(|end| COOKBOOK.contains(&format!(" {method}{end}")));
    let is_called = |method: &String| CALLS.iter().any(|(called, ..)| called == method) || in_cookbook(method);
    let left_out: Vec<String> = declared().1.into_iter().filter(|method| !is_called(method)).collect();
    assert!(left_out.is_empty(), "no call of {left_out:?}");
}

#[test]
fn standalone_answers_grpcurl_on_every_method() {
    let mesh = Mesh::started();
    for (method, request, end) in CALLS {
        let seconds = if matches!(end, Stream(_)) { STREAM } else { LONG };
        let done = call(mesh.grpc(), method, request, seconds);
        let about = format!("{method} {request}\nstdout: {}\nstderr: {}", done.stdout, done.stderr);
        match end {
            Answer(text) => assert!(done.code == Some(0) && done.stdout.contains(text), "wanted {text:?}: {about}"),
            Error(code, text) => {
                let said = done.stderr.contains(&format!("Code: {code}")) && done.stderr.contains(text);
                assert!(done.code != Some(0) && said, "wanted {code} with {text:?}: {about}");
            }
            Stream(text) => {
                let open = done.stderr.contains("Code: DeadlineExceeded");
                assert!(open && done.stdout.contains(text), "wanted a stream with {text:?}: {about}");
            }
        }
    }
    // As it was written, and once more by the replay into another index.
    mesh.wait_count("grpcurl", 2);
}

#[test]
fn list_describe_and_health_work() {
    let mesh = Mesh::started();
    let listed: BTreeSet<String> =
        grpcurl(&[], mesh.grpc(), &["list"]).expect(0).stdout.lines().map(str::to_owned).collect();
    let (services, methods) = declared();
    let health = "grpc.health.v1.Health";
    for service in services.iter().map(String::as_str).chain([health, "grpc.reflection.v1.ServerReflection"]) {
        assert!(listed.contains(service), "{service} is not in {listed:?}");
    }
    for service in &services {
        let described = grpcurl(&[], mesh.grpc(), &["describe", service]).expect(0).stdout;
        for method in methods.iter().filter_map(|method| method.strip_prefix(&format!("{service}/"))) {
            assert!(described.contains(&format!("rpc {method} ")), "{method} is not in {described}");
        }
        let request = format!(r#"{{"service": "{service}"}}"#);
        let answer = call(mesh.grpc(), "grpc.health.v1.Health/Check", &request, LONG).expect(0);
        assert!(answer.stdout.contains("SERVING"), "{service}: {answer:?}");
    }
    assert!(call(mesh.grpc(), "grpc.health.v1.Health/Check", "{}", LONG).expect(0).stdout.contains("SERVING"));
}
