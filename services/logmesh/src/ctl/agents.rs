//! `agents list|get|watch|label|forget`.

mod change;
mod unread;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{
    Agent, AgentStream, GetAgentRequest, ListAgentsRequest, ListStreamsRequest, LostRange, RuleEffect, RuleState,
    RuleStatus, StreamStatus,
};
use logmesh_types::{AgentId, UnixNanos};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::failure::note;
use super::output::{Output, age, bytes, state, time};
use super::{Failure, LIST_PAGE, Outcome, Session, request};
pub(super) use unread::Unread;

#[derive(Debug, clap::Args)]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    command: AgentsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AgentsCommand {
    /// Show all agents
    List {
        /// Only those that a selector over labels, id, online, version and server selects: 'env=prod, online=true'
        #[arg(long, value_name = "SELECTOR", default_value = "")]
        filter: String,
    },
    /// Show agents as they come, go and change, until stopped
    Watch {
        /// Only those that a selector selects, as for list
        #[arg(long, value_name = "SELECTOR", default_value = "")]
        filter: String,
    },
    /// Give an agent labels, or take them away; its rules move at once
    Label {
        /// Its id
        id: AgentId,
        /// k=v sets a label, k- takes away what was set here
        #[arg(value_name = "K=V|K-", required = true, value_parser = change::label)]
        labels: Vec<change::Label>,
    },
    /// Forget an agent that is gone for good, and the labels that it was given
    Forget {
        /// Its id
        id: AgentId,
    },
    /// Show one agent: its rules, and its files with how far each is
    Get {
        /// Its id
        id: AgentId,
    },
}

type Client = FleetServiceClient<Channel>;

pub(super) async fn run(args: AgentsArgs, session: &mut Session) -> Outcome {
    let mut client = FleetServiceClient::new(session.channel.clone());
    match args.command {
        AgentsCommand::List { filter } => list(&filter, &mut client, &mut session.out).await,
        AgentsCommand::Watch { filter } => watch::run(filter, &mut client, &mut session.out).await,
        AgentsCommand::Label { id, labels } => change::set(&id, labels, &mut client, &mut session.out).await,
        AgentsCommand::Forget { id } => change::forget(&id, &mut client, &mut session.out).await,
        AgentsCommand::Get { id } => get(&id, &mut client, &mut session.out).await,
    }
}

/// All agents, by id. Says on stderr whose are missing.
pub(super) async fn all(client: &mut Client) -> Result<Vec<Agent>, Failure> {
    selected("", client).await
}

async fn selected(filter: &str, client: &mut Client) -> Result<Vec<Agent>, Failure> {
    let (mut agents, mut page_token, mut silent) = (Vec::new(), String::new(), BTreeSet::new());
    loop {
        let filter = filter.to_owned();
        let list = ListAgentsRequest { page_size: LIST_PAGE, page_token, filter, ..Default::default() };
        let page = client.list_agents(request(list)).await?.into_inner();
        agents.extend(page.agents);
        silent.extend(page.unreachable_servers);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            note_silence(&silent);
            return Ok(agents);
        }
    }
}

/// Says which config services didn't answer, if any didn't.
pub(super) fn silence<'a>(servers: impl IntoIterator<Item = &'a String>) -> Option<String> {
    let servers: Vec<&str> = servers.into_iter().map(String::as_str).collect();
    (!servers.is_empty()).then(|| format!("config services that did not answer: {}", servers.join(", ")))
}

fn note_silence<'a>(servers: impl IntoIterator<Item = &'a String>) {
    if let Some(silence) = silence(servers) {
        note(&format!("logmesh: {silence}; their agents are missing here, or shown as they were"), false);
    }
}

async fn list(filter: &str, client: &mut Client, out: &mut Output) -> Outcome {
    let agents = selected(filter, client).await?;
    if out.json {
        return Ok(agents.iter().try_for_each(|agent| out.json(&to_json(agent)))?);
    }
    let now = UnixNanos::now();
    let rows: Vec<[String; 8]> = agents.iter().map(|agent| row(agent, now)).collect();
    Ok(out.table(["AGENT", "STATE", "SEEN", "RULES", "STREAMS", "BEHIND", "VERSION", "LABELS"], &rows)?)
}

fn row(agent: &Agent, now: UnixNanos) -> [String; 8] {
    [
        agent.id.clone(),
        online(agent.online).to_owned(),
        seen(agent, now),
        running(agent),
        agent.stream_count.to_string(),
        bytes(agent.lag_bytes),
        agent.version.clone(),
        labels(agent),
    ]
}

/// How many of its rules run, those that find all files taken among them.
fn running(agent: &Agent) -> String {
    let runs = |rule: &&RuleStatus| matches!(rule.state(), RuleState::Applied | RuleState::Shadowed);
    let running = agent.rules.iter().filter(runs).count();
    format!("{running}/{}", agent.rules.len())
}

/// When it was last heard of. One that is connected is there now, whatever the clocks of two machines say.
fn seen(agent: &Agent, now: UnixNanos) -> String {
    if agent.online { "now".to_owned() } else { age(agent.last_seen_time.as_ref(), now) }
}

fn online(online: bool) -> &'static str {
    if online { "online" } else { "offline" }
}

fn labels(agent: &Agent) -> String {
    pairs(&agent.labels)
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

async fn get(id: &AgentId, client: &mut Client, out: &mut Output) -> Outcome {
    let wanted = GetAgentRequest { id: id.to_string(), ..Default::default() };
    let agent = client.get_agent(request(wanted)).await?.into_inner();
    let streams = streams(id, client).await?;
    note_silence(&agent.unreachable_servers);
    if out.json {
        let mut value = to_json(&agent);
        value["streams"] = streams.iter().filter_map(|stream| stream.status.as_ref()).map(stream_json).collect();
        return Ok(out.json(&value)?);
    }
    let now = UnixNanos::now();
    out.line(&format!("agent    {}", agent.id))?;
    let state = match agent.online {
        true => "online".to_owned(),
        false => format!("offline, seen {} ago", age(agent.last_seen_time.as_ref(), now)),
    };
    out.line(&format!("state    {state}"))?;
    out.line(&format!("server   {}", agent.server))?;
    out.line(&format!("version  {}", agent.version))?;
    out.line(&format!("labels   {}", labels(&agent)))?;
    if !agent.central_labels.is_empty() {
        out.line(&format!("         given here: {}", pairs(&agent.central_labels)))?;
    }
    out.line("")?;
    let rules: Vec<[String; 5]> = agent.rules.iter().map(rule_row).collect();
    out.table(["RULE", "STATE", "REVISION", "FILES", "SAYS"], &rules)?;
    for rule in &agent.rules {
        for problem in rule.effect.iter().flat_map(|effect| &effect.problems) {
            out.line(&format!("  {} {}: {} {}", rule.name, problem.path, problem.reason, problem.detail))?;
        }
    }
    out.line("")?;
    let statuses = streams.iter().filter_map(|stream| stream.status.as_ref());
    let rows: Vec<[String; 9]> = statuses.map(|stream| stream_row(stream, now)).collect();
    out.table(["STREAM", "STATE", "SIZE", "READ", "ACKED", "WAITS", "RATE", "PATH", "SAYS"], &rows)?;
    losses(streams.iter().filter_map(|stream| stream.status.as_ref()), out)
}

/// What was gone before it could be collected, if anything was.
fn losses<'a>(streams: impl Iterator<Item = &'a StreamStatus>, out: &mut Output) -> Outcome {
    let lost: Vec<&StreamStatus> = streams.filter(|stream| stream.lost_bytes > 0).collect();
    if lost.is_empty() {
        return Ok(());
    }
    out.line("")?;
    out.line("lost before it could be collected, unless `logmesh audit` finds that it arrived:")?;
    for stream in lost {
        for range in &stream.lost_ranges {
            let (cause, time) = (loss_cause(range), time(range.time.as_ref()));
            let place = format!("[{}, {})", range.start_offset, range.end_offset);
            out.line(&format!("  {}  {place}  {cause}  {}  {}", stream.stream_id, text(&time), stream.path))?;
        }
        let told: u64 = stream.lost_ranges.iter().map(|one| one.end_offset.saturating_sub(one.start_offset)).sum();
        let rest = stream.lost_bytes.saturating_sub(told);
        if rest > 0 {
            out.line(&format!("  {}  {rest} bytes, places not kept  {}", stream.stream_id, stream.path))?;
        }
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn loss_cause(range: &LostRange) -> String {
    state(range.cause().as_str_name(), "LOSS_CAUSE_")
}

async fn streams(id: &AgentId, client: &mut Client) -> Result<Vec<AgentStream>, Failure> {
    let (mut streams, mut page_token) = (Vec::new(), String::new());
    loop {
        let agent_id = id.to_string();
        let list = ListStreamsRequest { agent_id, page_size: LIST_PAGE, page_token, ..Default::default() };
        let page = client.list_streams(request(list)).await?.into_inner();
        streams.extend(page.streams);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(streams);
        }
    }
}

fn rule_state(rule: &RuleStatus) -> String {
    state(rule.state().as_str_name(), "RULE_STATE_")
}

fn stream_state(stream: &StreamStatus) -> String {
    state(stream.state().as_str_name(), "STREAM_STATE_")
}

fn rule_row(rule: &RuleStatus) -> [String; 5] {
    let effect = rule.effect.clone().unwrap_or_default();
    let mut files = effect.files_matched.to_string();
    for (count, what) in [(effect.files_shadowed, "shadowed"), (effect.files_refused, "refused")] {
        if count > 0 {
            files.push_str(&format!(", {count} {what}"));
        }
    }
    let says = rule.error.as_ref().map_or(shadows(&effect), |error| {
        let field = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
        format!("{field}{}", error.message)
    });
    let revision = if rule.running_revision == rule.desired_revision {
        rule.running_revision.to_string()
    } else {
        format!("{} of {}", rule.running_revision, rule.desired_revision)
    };
    [rule.name.clone(), rule_state(rule), revision, files, says]
}

/// Who owns files that a rule matches, `2 of 5 files belong to rules/a, rules/b`; nothing if nobody else does.
pub(super) fn shadows(effect: &RuleEffect) -> String {
    let RuleEffect { files_matched, files_shadowed, files_refused, shadowed_by, .. } = effect;
    if *files_shadowed == 0 {
        return String::new();
    }
    let all = files_matched + files_shadowed + files_refused;
    let owners = if shadowed_by.is_empty() { "other rules".to_owned() } else { shadowed_by.join(", ") };
    format!("{files_shadowed} of {all} files belong to {owners}")
}

fn stream_row(stream: &StreamStatus, now: UnixNanos) -> [String; 9] {
    let mut says = stream.error.clone();
    if stream.at_risk {
        says = format!("at risk to be gone before it is acked {says}").trim_end().to_owned();
    }
    [
        stream.stream_id.clone(),
        stream_state(stream),
        bytes(stream.size),
        bytes(stream.read_offset),
        bytes(stream.acked_offset),
        age(stream.oldest_unacked_time.as_ref(), now),
        format!("{}/s", bytes(stream.bytes_per_second)),
        stream.path.clone(),
        says,
    ]
}

fn to_json(agent: &Agent) -> Value {
    json!({
        "id": agent.id,
        "labels": agent.labels,
        "host_labels": agent.host_labels,
        "central_labels": agent.central_labels,
        "version": agent.version,
        "online": agent.online,
        "connect_time": time(agent.connect_time.as_ref()),
        "last_seen_time": time(agent.last_seen_time.as_ref()),
        "rules": agent.rules.iter().map(rule_json).collect::<Vec<_>>(),
        "stream_count": agent.stream_count,
        "lag_bytes": agent.lag_bytes,
        "config_revision": agent.config_revision,
        "server": agent.server,
    })
}

/// What an agent says of a rule.
pub(super) fn rule_json(rule: &RuleStatus) -> Value {
    let effect = rule.effect.clone().unwrap_or_default();
    let error = (rule.error.as_ref())
        .map(|error| json!({"reason": error.reason, "message": error.message, "field": error.field}));
    let problems: Vec<Value> = effect
        .problems
        .iter()
        .map(|one| json!({"path": one.path, "reason": one.reason, "detail": one.detail}))
        .collect();
    json!({
        "name": rule.name,
        "state": rule_state(rule),
        "desired_revision": rule.desired_revision,
        "attempted_revision": rule.attempted_revision,
        "running_revision": rule.running_revision,
        "error": error,
        "since": time(rule.since.as_ref()),
        "files_matched": effect.files_matched,
        "files_shadowed": effect.files_shadowed,
        "shadowed_by": effect.shadowed_by,
        "files_refused": effect.files_refused,
        "refused_by_reason": effect.refused_by_reason,
        "lines_per_second": effect.lines_per_second,
        "bytes_per_second": effect.bytes_per_second,
        "lag_bytes": effect.lag_bytes,
        "decode_errors": effect.decode_errors,
        "problems": problems,
    })
}

fn range_json(range: &LostRange) -> Value {
    json!({
        "start_offset": range.start_offset,
        "end_offset": range.end_offset,
        "cause": loss_cause(range),
        "time": time(range.time.as_ref()),
    })
}

fn stream_json(stream: &StreamStatus) -> Value {
    json!({
        "stream_id": stream.stream_id,
        "path": stream.path,
        "rule": stream.rule,
        "topic": stream.topic,
        "state": stream_state(stream),
        "start_offset": stream.start_offset,
        "size": stream.size,
        "read_offset": stream.read_offset,
        "acked_offset": stream.acked_offset,
        "oldest_unacked_time": time(stream.oldest_unacked_time.as_ref()),
        "error": stream.error,
        "at_risk": stream.at_risk,
        "bytes_per_second": stream.bytes_per_second,
        "lost_bytes": stream.lost_bytes,
        "lost_ranges": stream.lost_ranges.iter().map(range_json).collect::<Vec<_>>(),
    })
}
