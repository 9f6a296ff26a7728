//! `rules status`, and `rules apply --wait`: what became of a rule on the agents that it is for.

use std::time::Duration;

use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{
    AgentRuleStatus, ListRuleStatusesRequest, ListRuleStatusesResponse, RuleState, RuleStatus, RuleStatusCounts,
};
use logmesh_types::{RuleName, UnixNanos};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

use crate::ctl::agents::Unread;
use crate::ctl::failure::note;
use crate::ctl::output::{age, count, state, time};
use crate::ctl::{Failure, LIST_PAGE, Outcome, Session, agents, request};

type Fleet = FleetServiceClient<Channel>;

/// How soon it's asked again: most agents answer within a second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// All states but that of a rule that runs as it is to.
const OTHERS: [RuleState; 7] = [
    RuleState::Unspecified,
    RuleState::Pending,
    RuleState::Applying,
    RuleState::Failed,
    RuleState::RolledBack,
    RuleState::Refused,
    RuleState::Shadowed,
];

/// The most agents that are named when a wait ends badly; `rules status` names all.
const NAMED: usize = 50;

/// What became of a rule, from all pages.
#[derive(Debug, Default)]
struct Standing {
    revision: i64,
    counts: RuleStatusCounts,
    statuses: Vec<AgentRuleStatus>,
    unreachable: Vec<String>,
}

/// `rules status NAME`: counts by state, and the agents that don't run it.
pub(super) async fn status(name: &RuleName, session: &mut Session) -> Outcome {
    let mut fleet = Fleet::new(session.channel.clone());
    let standing = ask(&mut fleet, name.as_str(), 0, &[]).await?;
    tell_unreachable(&standing, session.out.raw());
    if session.out.json {
        return Ok(session.out.json(&to_json(name.as_str(), &standing))?);
    }
    session.out.line(&format!("{name} (revision {}): {}", standing.revision, in_words(&standing.counts)))?;
    let unread = unread(&standing);
    if unread.files > 0 {
        session.out.line(&format!("{}; `logmesh agents get ID` shows their paths", unread.on_agents()))?;
    }
    let now = UnixNanos::now();
    let others = standing.statuses.iter().filter(|one| OTHERS.contains(&state_of(one)));
    let rows: Vec<[String; 6]> = others.map(|one| row(one, now)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    session.out.line("")?;
    Ok(session.out.table(["AGENT", "STATE", "RUNS", "SINCE", "FIELD", "SAYS"], &rows)?)
}

/// Waits until all connected agents that rules are for have answered for the revision that was applied. Wanting: some don't
/// run it, or the time is over; they're named.
pub(super) async fn wait(rules: &[Rule], within: Duration, session: &mut Session) -> Outcome {
    let until = Instant::now() + within;
    let mut fleet = Fleet::new(session.channel.clone());
    let mut wanting = false;
    for rule in rules {
        settle(&mut fleet, rule, until).await?;
        // A server that hasn't heard of the revision doesn't judge the one before in its place.
        let standing = ask(&mut fleet, &rule.name, rule.revision, &OTHERS).await?;
        tell_unreachable(&standing, session.out.raw());
        if session.out.json {
            session.out.json(&to_json(&rule.name, &standing))?;
        } else {
            session.out.line(&format!("{}: {}", rule.name, in_words(&standing.counts)))?;
        }
        wanting |= !tell_wanting(rule, &standing, within, session.out.raw());
    }
    if wanting { Err(Failure::Wanting) } else { Ok(()) }
}

/// Returns when nobody is to be waited for any more, or the time is over.
async fn settle(fleet: &mut Fleet, rule: &Rule, until: Instant) -> Outcome {
    let mut pause = FIRST_PAUSE;
    loop {
        let settled = match page(fleet, &rule.name, rule.revision, &[], (1, String::new())).await {
            // The server that was asked hasn't heard of the revision yet.
            Err(Failure::Call(status)) if status.code() == Code::Unavailable => false,
            page => is_settled(&page?),
        };
        if settled || Instant::now() >= until {
            return Ok(());
        }
        tokio::time::sleep_until(until.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn is_settled(page: &ListRuleStatusesResponse) -> bool {
    let RuleStatusCounts { applying, pending, .. } = page.counts.unwrap_or_default();
    applying == 0 && pending == 0 && page.unreachable_servers.is_empty()
}

/// Names the connected agents on which a rule doesn't run, or finds that all its files belong to others; true: it runs on
/// each. What a rule with a higher priority owns is left to it on purpose, as far as anybody can tell here.
fn tell_wanting(rule: &Rule, standing: &Standing, within: Duration, raw: bool) -> bool {
    let told: Vec<&AgentRuleStatus> = standing.statuses.iter().filter(|one| one.online).collect();
    for one in told.iter().take(NAMED) {
        let said = match state_of(one) {
            RuleState::Unspecified | RuleState::Pending | RuleState::Applying => {
                format!("{} after {}s", state_name(one), within.as_secs())
            }
            RuleState::Shadowed => format!("{}: {}", state_name(one), shadows(one)),
            _ => format!("{}: {}", state_name(one), reason(one)),
        };
        note(&format!("logmesh: {}: agent {}: {said}", rule.name, one.agent_id), raw);
    }
    if let Some(more) = told.len().checked_sub(NAMED).filter(|more| *more > 0) {
        note(&format!("logmesh: {}: and {more} more; see `rules status {}`", rule.name, rule.name), raw);
    }
    told.iter().all(|one| state_of(one) == RuleState::Shadowed) && standing.unreachable.is_empty()
}

fn tell_unreachable(standing: &Standing, raw: bool) {
    for server in &standing.unreachable {
        note(&format!("logmesh: config service {server} did not answer: its agents seem to be offline"), raw);
    }
}

/// All agents that are in one of the states, and the counts of all.
async fn ask(fleet: &mut Fleet, rule: &str, min_revision: i64, states: &[RuleState]) -> Result<Standing, Failure> {
    let (mut standing, mut page_token) = (Standing::default(), String::new());
    loop {
        let page = page(fleet, rule, min_revision, states, (LIST_PAGE, page_token)).await?;
        standing.statuses.extend(page.statuses);
        (standing.counts, standing.revision) = (page.counts.unwrap_or_default(), page.revision);
        standing.unreachable.extend(page.unreachable_servers);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            standing.unreachable.sort();
            standing.unreachable.dedup();
            return Ok(standing);
        }
    }
}

async fn page(
    fleet: &mut Fleet,
    rule: &str,
    min_revision: i64,
    states: &[RuleState],
    (page_size, page_token): (i32, String),
) -> Result<ListRuleStatusesResponse, Failure> {
    let states = states.iter().map(|state| (*state).into()).collect();
    let this_server_only = false;
    let rule = rule.to_owned();
    let ask = ListRuleStatusesRequest { rule, states, page_size, page_token, this_server_only, min_revision };
    Ok(fleet.list_rule_statuses(request(ask)).await?.into_inner())
}

/// `12 agents: 9 applied, 2 refused, 1 offline`.
fn in_words(counts: &RuleStatusCounts) -> String {
    let parts = [
        (counts.applied, "applied"),
        (counts.shadowed, "shadowed"),
        (counts.applying, "applying"),
        (counts.pending, "without an answer yet"),
        (counts.refused, "refused"),
        (counts.rolled_back, "rolled back"),
        (counts.failed, "failed"),
        (counts.offline, "offline"),
    ];
    let agents = count(counts.total.into(), "agent");
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    match parts.is_empty() {
        true => agents,
        false => format!("{agents}: {}", parts.join(", ")),
    }
}

/// The files that agents match by the rule and don't read.
fn unread(standing: &Standing) -> Unread {
    let mut unread = Unread::default();
    for one in &standing.statuses {
        one.status.iter().for_each(|status| unread.add(&one.agent_id, status, true));
    }
    unread
}

fn state_of(one: &AgentRuleStatus) -> RuleState {
    one.status.as_ref().map_or(RuleState::Unspecified, RuleStatus::state)
}

/// The state in words: what the agent said or, if it has said nothing, why.
fn state_name(one: &AgentRuleStatus) -> String {
    match state_of(one) {
        RuleState::Unspecified | RuleState::Pending if one.online => "no answer yet".to_owned(),
        RuleState::Unspecified | RuleState::Pending => "offline".to_owned(),
        known => state(known.as_str_name(), "RULE_STATE_").replace('_', " "),
    }
}

fn shadows(one: &AgentRuleStatus) -> String {
    one.status.as_ref().and_then(|status| status.effect.as_ref()).map(agents::shadows).unwrap_or_default()
}

/// Why it doesn't run, `paths[1]: …`, and what goes on.
fn reason(one: &AgentRuleStatus) -> String {
    let status = one.status.clone().unwrap_or_default();
    let error = status.error.unwrap_or_default();
    let field = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
    let runs = match status.running_revision {
        0 => "nothing of it runs".to_owned(),
        revision => format!("revision {revision} goes on"),
    };
    format!("{field}{} ({runs})", error.message)
}

fn row(one: &AgentRuleStatus, now: UnixNanos) -> [String; 6] {
    let status = one.status.clone().unwrap_or_default();
    let error = status.error.clone().unwrap_or_default();
    let runs = match status.running_revision {
        0 => "-".to_owned(),
        revision => revision.to_string(),
    };
    let says = if error.message.is_empty() { shadows(one) } else { format!("{}: {}", error.reason, error.message) };
    let since = status.since.as_ref().or(one.last_seen_time.as_ref());
    [one.agent_id.clone(), state_name(one), runs, age(since, now), error.field, says]
}

fn to_json(rule: &str, standing: &Standing) -> Value {
    let RuleStatusCounts { total, applied, applying, pending, failed, rolled_back, refused, offline, shadowed } =
        standing.counts;
    let unread = unread(standing);
    let statuses = standing.statuses.iter().map(|one| {
        let status = one.status.as_ref().map(agents::rule_json);
        json!({
            "agent_id": one.agent_id,
            "online": one.online,
            "server": one.server,
            "last_seen_time": time(one.last_seen_time.as_ref()),
            "status": status,
        })
    });
    json!({
        "rule": rule,
        "revision": standing.revision,
        "counts": {
            "total": total, "applied": applied, "applying": applying, "pending": pending, "failed": failed,
            "rolled_back": rolled_back, "refused": refused, "offline": offline, "shadowed": shadowed,
        },
        "files_refused": unread.files,
        "refused_by_reason": unread.by_reason,
        "unreachable_servers": standing.unreachable,
        "statuses": statuses.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use logmesh_proto::fleet::v1::{RuleEffect, RuleError};

    use super::*;

    fn one(agent: &str, online: bool, state: RuleState) -> AgentRuleStatus {
        let error = RuleError { field: "paths[1]".into(), message: "not here".into(), reason: "NOT_ALLOWED".into() };
        let status =
            RuleStatus { state: state.into(), running_revision: 3, error: Some(error), ..RuleStatus::default() };
        AgentRuleStatus { agent_id: agent.into(), online, status: Some(status), ..AgentRuleStatus::default() }
    }

    #[test]
    fn states_are_told_in_words() {
        let counts = RuleStatusCounts { total: 4, applied: 1, refused: 2, offline: 1, ..RuleStatusCounts::default() };
        assert_eq!(in_words(&counts), "4 agents: 1 applied, 2 refused, 1 offline");
        assert_eq!(in_words(&RuleStatusCounts::default()), "0 agents");
        let name = |online, state| state_name(&one("a", online, state));
        assert_eq!(name(true, RuleState::RolledBack), "rolled back");
        assert_eq!(
            (name(true, RuleState::Unspecified), name(false, RuleState::Unspecified)),
            ("no answer yet".into(), "offline".into())
        );
        assert_eq!(reason(&one("a", true, RuleState::Refused)), "paths[1]: not here (revision 3 goes on)");
        let shadowed_by = vec!["rules/x".to_owned(), "rules/y".to_owned()];
        let effect = RuleEffect { files_matched: 1, files_shadowed: 3, shadowed_by, ..RuleEffect::default() };
        assert_eq!(agents::shadows(&effect), "3 of 4 files belong to rules/x, rules/y");
        assert_eq!(agents::shadows(&RuleEffect::default()), "");
    }

    #[test]
    fn only_connected_agents_are_waited_for() {
        let settled = |counts, unreachable_servers| {
            is_settled(&ListRuleStatusesResponse { counts: Some(counts), unreachable_servers, ..Default::default() })
        };
        assert!(!settled(RuleStatusCounts { pending: 1, ..Default::default() }, vec![]));
        assert!(!settled(RuleStatusCounts { applying: 1, ..Default::default() }, vec![]));
        assert!(!settled(RuleStatusCounts::default(), vec!["config-2".into()]));
        assert!(settled(RuleStatusCounts { offline: 1, refused: 1, ..Default::default() }, vec![]));
        let told = |statuses, unreachable| {
            let standing = Standing { statuses, unreachable, ..Standing::default() };
            tell_wanting(&Rule::default(), &standing, Duration::ZERO, false)
        };
        assert!(told(vec![one("a", false, RuleState::Pending)], vec![]));
        assert!(!told(vec![one("a", true, RuleState::Refused)], vec![]));
        assert!(told(vec![one("a", true, RuleState::Shadowed)], vec![]));
        assert!(!told(vec![], vec!["config-2".into()]));
    }
}
