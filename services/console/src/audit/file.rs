//! The repair's second way: what the bus no longer holds, agents read from their files again.
//!
//! They push it as they pushed it the first time; transfer takes it for events that came twice. An agent says of each range
//! what became of it, and what it couldn't do is said in the gap that is left.

use std::collections::BTreeMap;
use std::time::Duration;

use logmesh_grpc::Upstream;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{RangeRead, ReadAgainRequest, ReadOutcome, StreamRange};
use logmesh_runtime::RetryPolicy;
use logmesh_types::limits::MAX_READ_AGAIN_RANGES;
use logmesh_types::{ByteRange, Ranges, StreamId, TopicName};
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::info;

use super::repair::{Want, Wanted};

/// Agents may have other things to do: how long those that do are asked again without one of them getting on, and what is
/// waited in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Each is asked twice in any case.
    pub(super) standing: Duration,
    pub(super) pause: RetryPolicy,
}

impl Default for Patience {
    fn default() -> Self {
        let pause = RetryPolicy { initial: Duration::from_millis(200), max: Duration::from_secs(5) };
        Self { standing: Duration::from_secs(60), pause }
    }
}

/// Why a range isn't read from its file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failed {
    pub(super) range: ByteRange,
    pub(super) outcome: ReadOutcome,
    pub(super) detail: String,
}

/// What the files gave.
#[derive(Clone, Debug, Default)]
pub(super) struct FromFile {
    /// What was read and is durable on the bus.
    pub(super) sent: Ranges,
    /// Events in it.
    pub(super) events: u64,
    pub(super) failed: Vec<Failed>,
}

/// Has agents read what is still missing. Who is busy is asked again after all others: one patience is enough for all of them.
pub(super) async fn read_again(fleet: &FleetServiceClient<Upstream>, patience: Patience, wanted: &mut Wanted) {
    // Who isn't there, or does nothing for so long, isn't asked for each of its files.
    let mut away = BTreeMap::from([(String::new(), "no agent is known that collected it".to_owned())]);
    let (mut standing, mut moved) = (0, Instant::now());
    loop {
        let (progress, busy) = round(fleet, wanted, &mut away).await;
        if busy.is_empty() {
            return;
        }
        if progress {
            (standing, moved) = (0, Instant::now());
        }
        standing += 1;
        if standing > 1 && moved.elapsed() >= patience.standing {
            let error = |why| format!("the agent was asked {standing} times and did not get on with it: {why}");
            away.extend(busy.into_iter().map(|(agent, why)| (agent, error(why))));
        } else {
            tokio::time::sleep(patience.pause.delay(standing)).await;
        }
    }
}

/// Asks each agent for its streams until it's busy. Whether anything became of it, and who is busy, with the reason.
async fn round(
    fleet: &FleetServiceClient<Upstream>,
    wanted: &mut Wanted,
    away: &mut BTreeMap<String, String>,
) -> (bool, BTreeMap<String, String>) {
    let (mut progress, mut busy) = (false, BTreeMap::new());
    for (at, streams) in wanted.iter_mut() {
        for (stream, want) in streams.iter_mut().filter(|(_, want)| want.is_open()) {
            if let Some(error) = away.get(&want.agent) {
                want.give_up(error);
            } else if !busy.contains_key(&want.agent) {
                let before = want.left();
                match one(fleet.clone(), &at.topic, *stream, want).await {
                    Ok(None) => {}
                    Ok(Some(why)) => drop(busy.insert(want.agent.clone(), why)),
                    Err(error) => {
                        want.give_up(&error);
                        away.insert(want.agent.clone(), error);
                    }
                }
                progress |= want.left() != before;
            }
        }
    }
    (progress, busy)
}

/// Asks the agent of a stream until it has said of each range what became of it, or doesn't get on: why.
async fn one(
    mut fleet: FleetServiceClient<Upstream>,
    topic: &TopicName,
    stream: StreamId,
    want: &mut Want,
) -> Result<Option<String>, String> {
    while want.is_open() {
        let left = want.left();
        let why = ask(&mut fleet, topic, stream, want, &left).await?;
        if want.left() == left {
            return Ok(Some(why));
        }
    }
    let (events, bytes) = (want.file.events, want.file.sent.bytes());
    info!(%topic, %stream, agent = want.agent, events, bytes, "a repair had events read from their file again");
    Ok(None)
}

/// Asks for some of what is left, once; why some of it may be left, if that passes.
async fn ask(
    fleet: &mut FleetServiceClient<Upstream>,
    topic: &TopicName,
    stream: StreamId,
    want: &mut Want,
    left: &Ranges,
) -> Result<String, String> {
    let ranges = left.as_slice().iter().take(MAX_READ_AGAIN_RANGES);
    let request = ReadAgainRequest {
        agent_id: want.agent.clone(),
        stream_id: stream.to_string(),
        topic: topic.to_string(),
        ranges: ranges.map(|range| StreamRange { start_offset: range.start, end_offset: range.end }).collect(),
        this_server_only: false,
    };
    let answer = match fleet.read_again(request).await {
        Ok(answer) => answer.into_inner(),
        // It's there, and has no room for it now.
        Err(status) if status.code() == Code::ResourceExhausted => return Ok(in_words(status)),
        Err(status) => return Err(in_words(status)),
    };
    let undone = answer.ranges.iter().find(|range| range.outcome() == ReadOutcome::Undone);
    let why = undone.map(|range| range.detail.clone()).unwrap_or_default();
    answer.ranges.into_iter().for_each(|range| want.file.note(range));
    Ok(why)
}

fn in_words(status: Status) -> String {
    match status.code() {
        Code::Unimplemented => "the config services are of a version that can't ask for it".to_owned(),
        _ => status.message().to_owned(),
    }
}

impl FromFile {
    /// Takes in what the agent said of a range.
    fn note(&mut self, read: RangeRead) {
        let range = ByteRange::new(read.start_offset, read.end_offset.max(read.start_offset));
        match read.outcome() {
            ReadOutcome::Sent => {
                self.sent.insert(range);
                self.events += read.events;
            }
            ReadOutcome::Undone | ReadOutcome::Unspecified => {}
            outcome => self.failed.push(Failed { range, outcome, detail: read.detail }),
        }
    }

    /// What needn't be asked for again.
    pub(super) fn done(&self) -> Ranges {
        self.sent.as_slice().iter().copied().chain(self.failed.iter().map(|one| one.range)).collect()
    }

    /// Why the file didn't give some of these bytes.
    pub(super) fn failure(&self, range: &Ranges) -> Option<&Failed> {
        self.failed.iter().find(|one| !range.and(&[one.range].into_iter().collect()).is_empty())
    }
}

impl Want {
    fn give_up(&mut self, why: &str) {
        let left = self.left();
        let failed = |range: &ByteRange| Failed { range: *range, outcome: ReadOutcome::Undone, detail: why.to_owned() };
        self.file.failed.extend(left.as_slice().iter().map(failed));
    }
}
