//! `agents watch`: a line for each agent, and again whenever something of it changes.

use std::collections::BTreeSet;

use logmesh_proto::fleet::v1::{Agent, WatchAgentsRequest, WatchAgentsResponse};
use logmesh_types::UnixNanos;
use serde_json::json;

use super::super::output::{Output, bytes};
use super::super::{Failure, Outcome};
use super::{Client, labels, note_silence, online, running, to_json};

pub(super) async fn run(filter: String, client: &mut Client, out: &mut Output) -> Outcome {
    let mut news = client.watch_agents(WatchAgentsRequest { filter }).await?.into_inner();
    let mut silent = BTreeSet::new();
    while let Some(message) = news.message().await? {
        show(&message, out)?;
        out.flush()?;
        let now: BTreeSet<String> = message.unreachable_servers.into_iter().collect();
        if message.complete && std::mem::replace(&mut silent, now.clone()) != now {
            note_silence(&now);
        }
    }
    Err(Failure::Gone("the server ended the stream".to_owned()))
}

fn show(message: &WatchAgentsResponse, out: &mut Output) -> Outcome {
    for agent in &message.agents {
        if out.json {
            out.json(&to_json(agent))?;
        } else {
            out.line(&line(agent))?;
        }
    }
    for id in &message.removed {
        if out.json {
            out.json(&json!({"id": id, "removed": true}))?;
        } else {
            out.line(&format!("{}  {id}  gone from the list", UnixNanos::now()))?;
        }
    }
    Ok(())
}

fn line(agent: &Agent) -> String {
    let now = UnixNanos::now();
    let (state, rules, behind) = (online(agent.online), running(agent), bytes(agent.lag_bytes));
    format!("{now}  {}  {state}  rules {rules}  {behind} behind  {}", agent.id, labels(agent))
}
