//! `replay start|list|get|pause|resume|cancel`.

use logmesh_proto::time::timestamp;
use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{
    CancelReplayRequest, GetReplayRequest, ListReplaysRequest, PauseReplayRequest, Replay, ReplayState,
    ResumeReplayRequest, StartReplayRequest,
};
use logmesh_types::{StreamId, TopicName, UnixNanos};
use serde_json::{Value, json};

use super::failure::note;
use super::output::{Output, state, time};
use super::{Failure, LIST_PAGE, Outcome, Session, request};

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    #[command(subcommand)]
    command: ReplayCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ReplayCommand {
    /// Begin to write what the bus still holds into the index again; prints the replay's id. What is there isn't doubled
    Start(StartArgs),
    /// Show all replays, newest first
    List,
    /// Show one
    Get {
        /// Its id
        id: String,
    },
    /// Hold one until it is resumed
    Pause {
        /// Its id
        id: String,
    },
    /// Go on with one that was paused
    Resume {
        /// Its id
        id: String,
    },
    /// End one for good; what it has written stays
    Cancel {
        /// Its id
        id: String,
    },
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    /// The topic whose records are read
    #[arg(long, value_name = "TOPIC")]
    topic: TopicName,
    /// Only what arrived at this time or later: RFC 3339, a day (UTC), or now-1h
    #[arg(long, value_name = "T")]
    from: Option<UnixNanos>,
    /// Only what arrived before this time: RFC 3339, a day (UTC: before it begins), now, or now-1h
    #[arg(long, value_name = "T")]
    to: Option<UnixNanos>,
    /// Only this stream
    #[arg(long, value_name = "ID")]
    stream: Option<StreamId>,
    /// Only the stream's bytes from here
    #[arg(long, value_name = "OFFSET", default_value_t = 0, requires = "stream", hide_default_value = true)]
    start_offset: u64,
    /// Only the stream's bytes before this
    #[arg(long, value_name = "OFFSET", default_value_t = 0, requires = "stream", hide_default_value = true)]
    end_offset: u64,
    /// Events per second, on average; as fast as it goes if not said. Of a topic of format chunks, chunk by chunk: thousands at
    /// once, then a pause
    #[arg(long, value_name = "N", value_parser = rate, allow_hyphen_values = true)]
    rate: Option<u64>,
    /// Write into the index of this name, which no topic may have, instead of the topic's own
    #[arg(long, value_name = "PREFIX")]
    into: Option<TopicName>,
    /// The id it is to have; one is made up if not said
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    id: String,
}

impl StartArgs {
    fn to_request(&self) -> Result<StartReplayRequest, Failure> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            return Err(Failure::Usage(format!("--from {from} is not before --to {to}: nothing can lie between")));
        }
        Ok(StartReplayRequest {
            id: self.id.clone(),
            topic: self.topic.to_string(),
            start_time: self.from.map(timestamp),
            end_time: self.to.map(timestamp),
            stream_id: self.stream.map_or_else(String::new, |stream| stream.to_string()),
            start_offset: self.start_offset,
            end_offset: self.end_offset,
            into: self.into.as_ref().map_or_else(String::new, TopicName::to_string),
            events_per_second: self.rate.unwrap_or_default(),
        })
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| format!("write a whole number from 1 to {}", u64::MAX))
}

pub(super) async fn run(args: ReplayArgs, session: &mut Session) -> Outcome {
    let mut client = TransferServiceClient::new(session.channel.clone());
    let replay = match args.command {
        ReplayCommand::Start(start) => client.start_replay(request(start.to_request()?)).await?,
        ReplayCommand::Get { id } => client.get_replay(request(GetReplayRequest { id })).await?,
        ReplayCommand::Pause { id } => client.pause_replay(request(PauseReplayRequest { id })).await?,
        ReplayCommand::Resume { id } => client.resume_replay(request(ResumeReplayRequest { id })).await?,
        ReplayCommand::Cancel { id } => client.cancel_replay(request(CancelReplayRequest { id })).await?,
        ReplayCommand::List => {
            let (mut page_token, mut empty) = (String::new(), true);
            loop {
                let list = ListReplaysRequest { page_size: LIST_PAGE, page_token };
                let page = client.list_replays(request(list)).await?.into_inner();
                empty &= page.replays.is_empty();
                for replay in &page.replays {
                    show(replay, &mut session.out)?;
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    if empty && !session.out.json {
                        note("logmesh: there is no replay", false);
                    }
                    return Ok(());
                }
            }
        }
    };
    show(replay.get_ref(), &mut session.out)
}

fn show(replay: &Replay, out: &mut Output) -> Outcome {
    if out.json {
        return Ok(out.json(&to_json(replay))?);
    }
    let asked = replay.request.clone().unwrap_or_default();
    let into = if asked.into.is_empty() { String::new() } else { format!(" into {}", asked.into) };
    let mut line = format!(
        "{}  {}{into}  {}  {} of {} records, {} events: {} indexed, {} already there, {} refused",
        replay.id,
        asked.topic,
        state(replay.state().as_str_name(), "REPLAY_STATE_"),
        replay.done_records,
        replay.total_records,
        replay.events,
        replay.indexed,
        replay.already_there,
        replay.refused,
    );
    if replay.refused > 0 {
        line.push_str(&format!(" ({})", replay.refused_reason));
    }
    if replay.retired > 0 {
        line.push_str(&format!(", {} of retired days", replay.retired));
    }
    if replay.unreadable_records > 0 {
        line.push_str(&format!("; {} records can't be read", replay.unreadable_records));
        // It mends the topic's own index only.
        if asked.into.is_empty() {
            line.push_str(": see logmesh audit --repair");
        }
    } else if replay.state() == ReplayState::Done && replay.events == 0 {
        line.push_str("; the bus holds nothing that was asked for");
    }
    Ok(out.line(&line)?)
}

fn to_json(replay: &Replay) -> Value {
    let asked = replay.request.clone().unwrap_or_default();
    json!({
        "id": replay.id,
        "topic": asked.topic,
        "start_time": time(asked.start_time.as_ref()),
        "end_time": time(asked.end_time.as_ref()),
        "stream_id": asked.stream_id,
        "start_offset": asked.start_offset,
        "end_offset": asked.end_offset,
        "into": asked.into,
        "events_per_second": asked.events_per_second,
        "state": state(replay.state().as_str_name(), "REPLAY_STATE_"),
        "create_time": time(replay.create_time.as_ref()),
        "update_time": time(replay.update_time.as_ref()),
        "total_records": replay.total_records,
        "done_records": replay.done_records,
        "events": replay.events,
        "indexed": replay.indexed,
        "already_there": replay.already_there,
        "refused": replay.refused,
        "refused_reason": replay.refused_reason,
        "retired": replay.retired,
        "unreadable_records": replay.unreadable_records,
    })
}
