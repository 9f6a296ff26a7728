//! Starting, showing and ending replays, by any worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::{Bus, BusError, TopicPartition, TopicSpec, partition_of};
use logmesh_grpc::{bad_field, failed_precondition, missing_topics, not_found, refuse_topics, topics_of_rules};
use logmesh_index::IndexWriter;
use logmesh_proto::time::{timestamp, unix_nanos};
use logmesh_proto::transfer::v1::{self as proto, ReplayState};
use logmesh_record::Topics;
use logmesh_types::{ByteRange, StreamId, TopicName, UnixNanos};
use tonic::Status as Refusal;

use super::{Part, Replay, Status, Wanted, all};
use crate::jobs::Jobs;
use crate::letters::Letters;
use crate::service::bus_status;

/// Replays that may be under way, and that are kept in all: the oldest that have ended go first.
const MAX_OPEN: usize = 50;
const MAX_KEPT: usize = 1_000;

/// Records of several gateways lie a little out of order: so far behind the end of a time range is looked for more.
const OUT_OF_ORDER: Duration = Duration::from_secs(300);

/// The longest id.
const MAX_ID: usize = 40;

/// What replays are started with.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) index: Arc<dyn IndexWriter>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) topics: Topics,
    /// It knows which topics there are.
    pub(crate) letters: Letters,
}

impl Api {
    pub(crate) async fn start(&self, request: proto::StartReplayRequest) -> Result<proto::Replay, Refusal> {
        let mut replay = read(&request)?;
        let there = all(&self.jobs).await.map_err(bus_status)?;
        if there.contains_key(&replay.id) {
            let text = format!("there is a replay {} already", replay.id);
            return Err(logmesh_grpc::already_exists("REPLAY_EXISTS", text));
        }
        if there.values().filter(|status| status.is_open()).count() >= MAX_OPEN {
            let text = format!("{MAX_OPEN} replays are under way: wait for one, or cancel one");
            return Err(logmesh_grpc::resource_exhausted("TOO_MANY_REPLAYS", text));
        }
        let spec = self.bus.topic(&replay.topic).await.map_err(bus_status)?;
        let Some(spec) = spec.filter(|spec| !spec.name.is_internal()) else {
            let there = self.letters.topics().await.map_err(bus_status)?.into_iter().collect();
            let wanted = std::slice::from_ref(&replay.topic);
            refuse_topics(&missing_topics(wanted, &there, &self.letters.config).await)?;
            let text = format!("the bus has no topic {} yet: there is nothing to replay", replay.topic);
            return Err(not_found("TOPIC_NOT_FOUND", text));
        };
        if let Some(into) = &replay.into {
            self.prepare(into, &replay.topic).await?;
        }
        replay.parts = self.parts(&replay, &spec).await.map_err(bus_status)?;
        self.jobs.put(&Replay::key(&replay.id), &replay).await.map_err(bus_status)?;
        self.forget_old(there).await.map_err(bus_status)?;
        Ok(to_proto(&Status { replay, progress: BTreeMap::new() }))
    }

    pub(crate) async fn get(&self, id: &str) -> Result<proto::Replay, Refusal> {
        Ok(to_proto(&self.status(id).await?))
    }

    pub(crate) async fn list(
        &self,
        request: &proto::ListReplaysRequest,
    ) -> Result<proto::ListReplaysResponse, Refusal> {
        let limit = logmesh_grpc::page_size(request.page_size, MAX_KEPT)
            .ok_or_else(|| bad_field("page_size", "it must not be negative"))?;
        let mut replays: Vec<Status> = all(&self.jobs).await.map_err(bus_status)?.into_values().collect();
        let place = |replay: &Replay| format!("{:020}.{}", u64::MAX - replay.created.0.unsigned_abs(), replay.id);
        replays.sort_by_key(|status| place(&status.replay));
        let mut rest = replays.iter().filter(|status| place(&status.replay) > request.page_token).peekable();
        let page: Vec<&Status> = rest.by_ref().take(limit).collect();
        let last = page.last().map_or_else(String::new, |status| place(&status.replay));
        let next_page_token = if rest.peek().is_some() { last } else { String::new() };
        Ok(proto::ListReplaysResponse { replays: page.into_iter().map(to_proto).collect(), next_page_token })
    }

    /// Says what is wanted of a replay from now on.
    pub(crate) async fn want(&self, id: &str, wanted: Wanted) -> Result<proto::Replay, Refusal> {
        let mut status = self.status(id).await?;
        if status.replay.wanted == wanted {
            return Ok(to_proto(&status));
        }
        if !status.is_open() {
            let state = if status.left() == 0 { "done" } else { "cancelled" };
            return Err(failed_precondition("REPLAY_ENDED", format!("replay {id} is {state}")));
        }
        status.replay.wanted = wanted;
        self.jobs.put(&Replay::key(id), &status.replay).await.map_err(bus_status)?;
        Ok(to_proto(&status))
    }

    async fn status(&self, id: &str) -> Result<Status, Refusal> {
        let mut all = all(&self.jobs).await.map_err(bus_status)?;
        all.remove(id).ok_or_else(|| not_found("REPLAY_NOT_FOUND", format!("there is no replay {id:?}")))
    }

    /// Another index is made ready. One that transfer writes to by itself, or will by a rule, can't be: it would hold both. While no
    /// config service says which rules there are, any name is taken for free that isn't on the bus.
    async fn prepare(&self, into: &TopicName, of: &TopicName) -> Result<(), Refusal> {
        if into.is_internal()
            || self.bus.topic(into).await.map_err(bus_status)?.is_some()
            || topics_of_rules(&self.letters.config).await.is_ok_and(|topics| topics.contains(into))
        {
            return Err(bad_field("into", format!("{into} is a topic of the mesh; name one that isn't")));
        }
        let fields = &self.topics.get(of).fields;
        self.index.ensure_topic(into, fields).await.map_err(|error| match error.retryable() {
            true => logmesh_grpc::unavailable("INDEX_UNAVAILABLE", error.to_string()),
            false => bad_field("into", error),
        })
    }

    /// Which offsets are to be read.
    async fn parts(&self, replay: &Replay, spec: &TopicSpec) -> Result<BTreeMap<u32, Part>, BusError> {
        let only = replay.stream.map(|(stream, _)| partition_of(stream.to_string().as_bytes(), spec.partitions));
        let mut parts = BTreeMap::new();
        for partition in (0..spec.partitions).filter(|partition| only.is_none_or(|only| *partition == only)) {
            let at = TopicPartition { topic: spec.name.clone(), partition };
            let marks = self.bus.watermarks(&at).await?;
            let (mut start, mut end) = (marks.low.0, marks.high.0);
            if let Some(from) = replay.from {
                start = self.bus.offset_at(&at, from).await?.0.max(start);
            }
            if let Some(to) = replay.to {
                let late = i64::try_from(OUT_OF_ORDER.as_nanos()).unwrap_or(i64::MAX);
                end = self.bus.offset_at(&at, UnixNanos(to.0.saturating_add(late))).await?.0.min(end);
            }
            if start < end {
                parts.insert(partition, Part { start, end });
            }
        }
        Ok(parts)
    }

    async fn forget_old(&self, there: BTreeMap<String, Status>) -> Result<(), BusError> {
        let excess = (there.len() + 1).saturating_sub(MAX_KEPT);
        let mut ended: Vec<Status> = there.into_values().filter(|status| !status.is_open()).collect();
        ended.sort_by_key(|status| status.replay.created);
        for status in ended.into_iter().take(excess) {
            for partition in status.progress.keys() {
                self.jobs.remove(&Replay::progress_key(&status.replay.id, *partition)).await?;
            }
            self.jobs.remove(&Replay::key(&status.replay.id)).await?;
        }
        Ok(())
    }
}

/// Reads a request.
fn read(request: &proto::StartReplayRequest) -> Result<Replay, Refusal> {
    let id = match request.id.as_str() {
        "" => format!("{:012x}", rand::random::<u64>() >> 16),
        id => id.to_owned(),
    };
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if id.len() > MAX_ID || !id.bytes().all(plain) {
        let text = format!("{id:?}: lower-case letters, digits and hyphens, at most {MAX_ID}");
        return Err(bad_field("id", text));
    }
    let topic = request.topic.parse().map_err(|error| bad_field("topic", error))?;
    let (from, to) = (request.start_time.as_ref().map(unix_nanos), request.end_time.as_ref().map(unix_nanos));
    if matches!((from, to), (Some(from), Some(to)) if from >= to) {
        return Err(bad_field("end_time", "it must be later than start_time"));
    }
    let into: Option<TopicName> = match request.into.as_str() {
        "" => None,
        into => Some(into.parse().map_err(|error| bad_field("into", error))?),
    };
    let stream = stream(request)?;
    let (rate, created) = (request.events_per_second, UnixNanos::now());
    let (wanted, parts) = (Wanted::Running, BTreeMap::new());
    Ok(Replay { id, topic, from, to, stream, into, rate, created, wanted, parts })
}

fn stream(request: &proto::StartReplayRequest) -> Result<Option<(StreamId, ByteRange)>, Refusal> {
    let (start, end) = (request.start_offset, request.end_offset);
    if request.stream_id.is_empty() {
        let alone = start == 0 && end == 0;
        return if alone { Ok(None) } else { Err(bad_field("stream_id", "offsets are of a stream: say which")) };
    }
    let stream = request.stream_id.parse().map_err(|error| bad_field("stream_id", error))?;
    let end = if end == 0 { u64::MAX } else { end };
    if start >= end {
        return Err(bad_field("end_offset", "it must be larger than start_offset"));
    }
    Ok(Some((stream, ByteRange::new(start, end))))
}

fn to_proto(status: &Status) -> proto::Replay {
    let Status { replay, progress } = status;
    let sum = |of: fn(&super::Progress) -> u64| progress.values().map(of).sum();
    let read = |(partition, part): (&u32, &Part)| {
        progress.get(partition).map_or(0, |progress| progress.next.saturating_sub(part.start))
    };
    let left = status.left();
    let state = match replay.wanted {
        _ if left == 0 => ReplayState::Done,
        Wanted::Running => ReplayState::Running,
        Wanted::Paused => ReplayState::Paused,
        Wanted::Cancelled => ReplayState::Cancelled,
    };
    let refused = progress.values().filter(|progress| progress.refused > 0).max_by_key(|progress| progress.updated);
    proto::Replay {
        id: replay.id.clone(),
        request: Some(asked(replay)),
        state: state.into(),
        create_time: Some(timestamp(replay.created)),
        update_time: progress.values().filter_map(|progress| progress.updated).max().map(timestamp),
        total_records: replay.parts.values().map(|part| part.end - part.start).sum(),
        done_records: replay.parts.iter().map(read).sum(),
        events: sum(|progress| progress.events),
        indexed: sum(|progress| progress.indexed),
        already_there: sum(|progress| progress.there),
        refused: sum(|progress| progress.refused),
        retired: sum(|progress| progress.retired),
        unreadable_records: sum(|progress| progress.unreadable),
        refused_reason: refused.map_or_else(String::new, |progress| progress.reason.clone()),
        done_partitions: (replay.parts.len() - left) as u32,
        partitions: replay.parts.len() as u32,
    }
}

fn asked(replay: &Replay) -> proto::StartReplayRequest {
    let (stream, range) = replay.stream.unzip();
    let range = range.unwrap_or(ByteRange::new(0, 0));
    proto::StartReplayRequest {
        id: replay.id.clone(),
        topic: replay.topic.to_string(),
        start_time: replay.from.map(timestamp),
        end_time: replay.to.map(timestamp),
        stream_id: stream.map_or_else(String::new, |stream| stream.to_string()),
        start_offset: range.start,
        end_offset: if range.end == u64::MAX { 0 } else { range.end },
        into: replay.into.as_ref().map_or_else(String::new, TopicName::to_string),
        events_per_second: replay.rate,
    }
}
