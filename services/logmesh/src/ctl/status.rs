//! `status`: exits with 0 when every service is ready, else with 1.

mod freshness;

use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::discovery::v1::{Leader, ListLeadersRequest, WatchEndpointsRequest};
use logmesh_proto::fleet::v1::RuleState;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{GetStatusRequest, GetStatusResponse, ListDeadLettersRequest};
use logmesh_types::UnixNanos;
use serde_json::{Map, Value, json};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::agents::Unread;
use super::output::{age, bytes, time};
use super::{Failure, Outcome, Session, agents, request};

/// The services of a mesh, and what each must serve to be ready.
const SERVICES: [(&str, &[&str]); 4] = [
    (
        "config",
        &[
            "logmesh.config.v1.RuleService",
            "logmesh.fleet.v1.AgentConfigService",
            "logmesh.fleet.v1.FleetService",
            "logmesh.discovery.v1.DiscoveryService",
        ],
    ),
    ("gateway", &["logmesh.ingest.v1.IngestService"]),
    ("transfer", &["logmesh.transfer.v1.TransferService"]),
    ("console", &["logmesh.search.v1.SearchService", "logmesh.audit.v1.AuditService"]),
];

/// Pages of dead letters that are looked at for one that waits: up to 64 MiB are read for each.
const LETTER_PAGES: usize = 4;

/// What is known of one service.
struct Line {
    service: &'static str,
    ready: bool,
    detail: String,
    facts: Value,
}

pub(super) async fn run(session: &mut Session) -> Outcome {
    let mut lines = Vec::new();
    let mut fresh = Vec::new();
    for (service, parts) in SERVICES {
        let mut line = health(service, parts, session).await?;
        // What isn't served answers all the same, and knows what it waits for.
        if !line.ready
            && service == "transfer"
            && let (false, reason, facts) = transfer(session).await.or_else(describe)?
        {
            (line.detail, line.facts) = (reason, facts);
        }
        if line.ready {
            let more = match service {
                "config" => centre(session).await,
                "transfer" => transfer(session).await,
                _ => Ok((true, String::new(), json!({}))),
            };
            (line.ready, line.detail, line.facts) = more.or_else(describe)?;
            if service == "transfer" {
                fresh = freshness::add(&mut line, session).await?;
            }
        }
        lines.push(line);
    }
    show(&lines, session)?;
    freshness::show(&fresh, session)?;
    if lines.iter().all(|line| line.ready) { Ok(()) } else { Err(Failure::Wanting) }
}

/// A service that answers with an error is not ready; a server that doesn't answer ends the command.
fn describe(failure: Failure) -> Result<(bool, String, Value), Failure> {
    match failure {
        Failure::Call(status) => Ok((false, logmesh_grpc::describe(&status), json!({}))),
        other => Err(other),
    }
}

async fn health(service: &'static str, parts: &[&str], session: &Session) -> Result<Line, Failure> {
    let mut client = HealthClient::new(session.channel.clone());
    let mut wanting = Vec::new();
    for part in parts {
        let asked = client.check(request(HealthCheckRequest { service: (*part).to_owned() })).await;
        match asked.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => {}
            Ok(_) => wanting.push(format!("{part} is not serving")),
            Err(status) if status.code() == Code::NotFound => wanting.push(format!("{part} is not there")),
            Err(status) => return Err(status.into()),
        }
    }
    let detail = match wanting.is_empty() {
        true => String::new(),
        false => format!("{}; /readyz on its metrics port says why", wanting.join("; ")),
    };
    Ok(Line { service, ready: wanting.is_empty(), detail, facts: json!({}) })
}

/// The config services, who of them leads where, and their fleet.
async fn centre(session: &Session) -> Result<(bool, String, Value), Failure> {
    let mut client = DiscoveryServiceClient::new(session.channel.clone());
    let watched = client.watch_endpoints(request(WatchEndpointsRequest { kind: "config".to_owned() })).await?;
    let first = watched.into_inner().message().await?.unwrap_or_default();
    let services: Vec<String> = first.endpoints.into_iter().map(|endpoint| endpoint.id).collect();
    let leaders = client.list_leaders(request(ListLeadersRequest {})).await?.into_inner().leaders;
    let (ready, mut detail, mut facts) = fleet(session).await?;
    if services.len() > 1 {
        detail = format!("{} config services, {detail}", services.len());
    }
    for leader in &leaders {
        detail.push_str(&format!(", {} {}", leader.name, leader.holder));
    }
    facts["config_services"] = json!(services);
    let leader = |leader: Leader| json!({"name": leader.name, "holder": leader.holder, "revision": leader.revision});
    facts["leaders"] = leaders.into_iter().map(leader).collect();
    Ok((ready, detail, facts))
}

async fn fleet(session: &Session) -> Result<(bool, String, Value), Failure> {
    let agents = agents::all(&mut FleetServiceClient::new(session.channel.clone())).await?;
    let online = agents.iter().filter(|agent| agent.online).count();
    let behind: u64 = agents.iter().map(|agent| agent.lag_bytes).sum();
    let rules = agents.iter().flat_map(|agent| &agent.rules);
    let unread = Unread::of_agents(&agents);
    let bad = rules
        .filter(|rule| matches!(rule.state(), RuleState::Failed | RuleState::Refused | RuleState::RolledBack))
        .count();
    let mut detail = format!("{online} of {} agents online, {} not acked", agents.len(), bytes(behind));
    if bad > 0 {
        detail.push_str(&format!(", {bad} rules failed, rolled back or refused (see `agents get`)"));
    }
    if unread.files > 0 {
        detail.push_str(&format!(", {} (see `rules status`)", unread.of_rules()));
    }
    let facts = json!({
        "agents": agents.len(),
        "agents_online": online,
        "unacked_bytes": behind,
        "rules_not_applied": bad,
        "files_not_read": unread.files,
        "files_not_read_by_reason": unread.by_reason,
    });
    Ok((true, detail, facts))
}

async fn transfer(session: &Session) -> Result<(bool, String, Value), Failure> {
    let mut client = TransferServiceClient::new(session.channel.clone());
    let status = client.get_status(request(GetStatusRequest::default())).await?.into_inner();
    let lag: u64 = status.partitions.iter().map(|partition| partition.lag_records).sum();
    let own = Some(status.error.clone()).filter(|error| !error.is_empty());
    let others = status.other_errors.iter().map(|(id, error)| format!("worker {id}: {error}"));
    let silent = status.unreachable_workers.iter().map(|id| format!("worker {id} does not answer"));
    let waits: Vec<String> = own.into_iter().chain(others).chain(silent).collect();
    let mut detail = progress(&status, lag);
    if !waits.is_empty() {
        detail = format!("{}; {detail}", waits.join("; "));
    }
    let lost = status.counts.as_ref().map_or(0, |counts| counts.lost_records);
    let letters_wait = letters_wait(&mut client).await;
    match letters_wait {
        Some(true) => detail.push_str(", dead letters wait (see `deadletters list --summary`)"),
        Some(false) => {}
        None => detail.push_str(", whether dead letters wait isn't known (see `deadletters list --summary`)"),
    }
    if lost > 0 {
        detail.push_str(&format!(", {lost} records were removed by retention before they were indexed (see `audit`)"));
    }
    let paused: Vec<&str> =
        status.topics.iter().filter(|topic| topic.paused).map(|topic| topic.topic.as_str()).collect();
    if status.paused {
        detail.push_str(", all topics are paused");
    } else if !paused.is_empty() {
        detail.push_str(&format!(", paused: {}", paused.join(" ")));
    }
    let retired = status.topics.iter().filter(|topic| !topic.retired_before.is_empty());
    let retired: Map<String, Value> =
        retired.map(|topic| (topic.topic.clone(), topic.retired_before.clone().into())).collect();
    let facts = json!({
        "paused": status.paused,
        "paused_topics": paused,
        "retired_before": retired,
        "partitions": status.partitions.len(),
        "lag_records": lag,
        "fresh_time": time(fresh_time(&status).as_ref()),
        "waiting_time": time(waiting_time(&status).as_ref()),
        "lost_records": lost,
        "waits_for": waits,
        "dead_letters_wait": letters_wait,
        "dead_letters": status.counts.as_ref().map_or(0, |counts| counts.dead_letters),
    });
    Ok((waits.is_empty(), detail, facts))
}

/// Whether dead letters wait; `None` if that can't be told, or not without reading many that are done.
async fn letters_wait(client: &mut TransferServiceClient<Channel>) -> Option<bool> {
    let mut page_token = String::new();
    for _ in 0..LETTER_PAGES {
        let first = ListDeadLettersRequest { page_size: 1, page_token, ..Default::default() };
        let page = client.list_dead_letters(request(first)).await.ok()?.into_inner();
        if !page.dead_letters.is_empty() {
            return Some(true);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Some(false);
        }
    }
    None
}

/// Of the partitions that are behind, the time up to which the last of them is done.
fn fresh_time(status: &GetStatusResponse) -> Option<prost_types::Timestamp> {
    let behind = status.partitions.iter().filter(|partition| partition.lag_records > 0);
    earliest(behind.filter_map(|partition| partition.fresh_time))
}

/// When the first of all records that wait came to the bus.
fn waiting_time(status: &GetStatusResponse) -> Option<prost_types::Timestamp> {
    earliest(status.partitions.iter().filter_map(|partition| partition.waiting_time))
}

fn earliest(times: impl Iterator<Item = prost_types::Timestamp>) -> Option<prost_types::Timestamp> {
    times.min_by_key(|time| (time.seconds, time.nanos))
}

fn progress(status: &GetStatusResponse, lag: u64) -> String {
    match (lag, waiting_time(status)) {
        (0, _) => format!("{} partitions, nothing waits", status.partitions.len()),
        (_, None) => format!("{} partitions, {lag} records wait", status.partitions.len()),
        (_, Some(oldest)) => {
            let age = age(Some(&oldest), UnixNanos::now());
            format!("{} partitions, {lag} records wait, the oldest for {age}", status.partitions.len())
        }
    }
}

fn show(lines: &[Line], session: &mut Session) -> Result<(), Failure> {
    if !session.out.json {
        let rows: Vec<[String; 3]> =
            (lines.iter()).map(|line| [line.service.to_owned(), ready(line).to_owned(), line.detail.clone()]).collect();
        return Ok(session.out.table(["SERVICE", "STATE", "DETAIL"], &rows)?);
    }
    for line in lines {
        let mut value = json!({"service": line.service, "ready": line.ready, "detail": line.detail});
        if let (Some(value), Some(facts)) = (value.as_object_mut(), line.facts.as_object()) {
            value.extend(facts.clone());
        }
        session.out.json(&value)?;
    }
    Ok(())
}

fn ready(line: &Line) -> &'static str {
    if line.ready { "ready" } else { "not ready" }
}
