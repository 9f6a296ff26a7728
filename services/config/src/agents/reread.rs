//! Has an agent read again what it has collected, at whichever server it is connected.

use logmesh_grpc::{not_found, resource_exhausted, unavailable};
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{RangesRead, ReadAgainRequest, ReadAgainResponse, ReadRanges};
use logmesh_types::limits::MAX_READ_AGAIN_RANGES;
use logmesh_types::{AgentId, StreamId, TopicName};
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::commands::{Commands, NoAnswer};
use super::merged::{Fleet, incomplete};
use super::report::cut;
use crate::error::bad_field;
use crate::limits::{MAX_REPORT_TEXT_BYTES, PEER_TIMEOUT, READ_AGAIN_TIME};

/// Asks the agent, or the server that it is connected to.
pub(super) async fn read_again(
    fleet: &Fleet,
    commands: &Commands,
    request: ReadAgainRequest,
) -> Result<ReadAgainResponse, Status> {
    let id = check(&request)?;
    if fleet.registry.agent(&id, true).is_some_and(|agent| agent.online) {
        return ask(commands, &id, request).await;
    }
    let away = || unavailable("AGENT_OFFLINE", format!("agent {id} is not connected"));
    if request.this_server_only {
        return Err(away());
    }
    let (agent, silent) = fleet.agent(&id).await;
    let Some(agent) = agent.filter(|agent| agent.online || silent.is_empty()) else {
        return Err(match silent.is_empty() {
            true => not_found("AGENT_NOT_FOUND", format!("no agent {id} is known")),
            false => incomplete(&format!("agent {id} is not connected here"), &silent),
        });
    };
    let server = fleet.peers.reachable().into_values().find(|(server, _)| agent.online && *server == agent.server);
    let (_, channel) = server.ok_or_else(away)?;
    let request = ReadAgainRequest { this_server_only: true, ..request };
    let answer = async { FleetServiceClient::new(channel).read_again(request).await };
    let answer = timeout(READ_AGAIN_TIME + PEER_TIMEOUT, answer).await;
    let late = |_| unavailable("SERVERS_UNREACHABLE", format!("config service {} did not answer", agent.server));
    Ok(answer.map_err(late)??.into_inner())
}

fn check(request: &ReadAgainRequest) -> Result<AgentId, Status> {
    let bad = |field, error: &dyn std::fmt::Display| bad_field(field, error.to_string());
    let id = request.agent_id.parse().map_err(|error| bad("agent_id", &error))?;
    request.stream_id.parse::<StreamId>().map_err(|error| bad("stream_id", &error))?;
    request.topic.parse::<TopicName>().map_err(|error| bad("topic", &error))?;
    match request.ranges.len() {
        1..=MAX_READ_AGAIN_RANGES => Ok(id),
        count => Err(bad_field("ranges", format!("must hold 1 to {MAX_READ_AGAIN_RANGES} ranges, and holds {count}"))),
    }
}

async fn ask(commands: &Commands, id: &AgentId, request: ReadAgainRequest) -> Result<ReadAgainResponse, Status> {
    let ReadAgainRequest { stream_id, topic, ranges, .. } = request;
    // One that comes to several ends is told in parts: some more than were asked for.
    let most = 2 * ranges.len() + MAX_READ_AGAIN_RANGES;
    let kind = Kind::ReadRanges(ReadRanges { stream_id, topic, ranges });
    let unable = |error: String| unavailable("AGENT_UNABLE", format!("agent {id}: {error}"));
    let none = |NoAnswer { busy, why }| match busy {
        true => resource_exhausted("AGENT_BUSY", format!("agent {id}: {why}")),
        false => unable(why),
    };
    match commands.ask(id, kind, Instant::now() + READ_AGAIN_TIME).await.map_err(none)? {
        Answer::RangesRead(RangesRead { mut ranges }) => {
            ranges.truncate(most);
            ranges.iter_mut().for_each(|range| cut(&mut range.detail, MAX_REPORT_TEXT_BYTES));
            Ok(ReadAgainResponse { ranges })
        }
        Answer::FilesPreview(_) => Err(unable("it answered something else".to_owned())),
    }
}
