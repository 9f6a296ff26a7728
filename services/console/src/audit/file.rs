//! The repair's second way: what the bus no longer holds, agents read from their files again.
//!
//! They push it as they pushed it the first time; transfer takes it for events that came twice. An agent says of each range
//! what became of it, and what it couldn't do is said in the gap that is left.

use std::collections::BTreeMap;

use logmesh_grpc::Upstream;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{RangeRead, ReadAgainRequest, ReadOutcome, StreamRange};
use logmesh_types::limits::MAX_READ_AGAIN_RANGES;
use logmesh_types::{ByteRange, Ranges, StreamId, TopicName};
use tonic::{Code, Status};
use tracing::info;

use super::repair::{Want, Wanted};

/// How often an agent is asked for the rest in a row without getting on.
const STANDSTILL: usize = 2;

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

/// Has agents read what is still missing.
pub(super) async fn read_again(fleet: &FleetServiceClient<Upstream>, wanted: &mut Wanted) {
    // Who isn't there isn't asked for each of its files.
    let mut away: BTreeMap<String, String> = BTreeMap::new();
    for (at, streams) in wanted.iter_mut() {
        for (stream, want) in streams.iter_mut().filter(|(_, want)| want.is_open()) {
            match away.get(&want.agent) {
                Some(error) => want.give_up(error),
                None => {
                    if let Err(error) = one(fleet.clone(), &at.topic, *stream, want).await {
                        want.give_up(&error);
                        away.insert(want.agent.clone(), error);
                    }
                }
            }
        }
    }
}

/// Asks the agent of a stream until it has nothing more to say.
async fn one(
    mut fleet: FleetServiceClient<Upstream>,
    topic: &TopicName,
    stream: StreamId,
    want: &mut Want,
) -> Result<(), String> {
    if want.agent.is_empty() {
        return Err("no agent is known that collected it".to_owned());
    }
    let mut standing = 0;
    while want.is_open() && standing < STANDSTILL {
        let left = want.left();
        let ranges = left.as_slice().iter().take(MAX_READ_AGAIN_RANGES);
        let request = ReadAgainRequest {
            agent_id: want.agent.clone(),
            stream_id: stream.to_string(),
            topic: topic.to_string(),
            ranges: ranges.map(|range| StreamRange { start_offset: range.start, end_offset: range.end }).collect(),
            this_server_only: false,
        };
        let answer = fleet.read_again(request).await.map_err(in_words)?.into_inner();
        answer.ranges.into_iter().for_each(|range| want.file.note(range));
        standing = if want.left() == left { standing + 1 } else { 0 };
    }
    let (events, bytes) = (want.file.events, want.file.sent.bytes());
    info!(%topic, %stream, agent = want.agent, events, bytes, "a repair had events read from their file again");
    if want.is_open() {
        want.give_up("the agent does not get on with it: see its status");
    }
    Ok(())
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
