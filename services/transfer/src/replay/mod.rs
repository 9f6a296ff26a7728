//! Replays: what the bus still holds of a topic is written into the index again.
//!
//! What is wanted lies in `logmesh.jobs` under `replay/ID`, how far a partition is under `progress/ID/PARTITION`. The
//! worker that holds a partition does its part, between its bulks and in the same task ([`run`]): so a partition is
//! never read by two, an event is never looked up here while it is written there, and a worker that is gone is followed
//! by the partition's next holder. [`api`] starts, shows and ends them.

pub(crate) mod api;
pub(crate) mod run;

use std::collections::BTreeMap;

use logmesh_bus::{BusError, Record};
use logmesh_types::{ByteRange, StreamId, TopicName, UnixNanos};

use crate::jobs::Jobs;

/// Keys of what is wanted,
const REPLAYS: &str = "replay/";

/// and of how far each partition is.
const PROGRESS: &str = "progress/";

/// What is wanted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wanted {
    Running,
    Paused,
    Cancelled,
}

/// A replay as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Replay {
    pub(crate) id: String,
    pub(crate) topic: TopicName,
    pub(crate) from: Option<UnixNanos>,
    pub(crate) to: Option<UnixNanos>,
    /// A stream and the bytes of it; all of them end at the largest number.
    pub(crate) stream: Option<(StreamId, ByteRange)>,
    pub(crate) into: Option<TopicName>,
    /// Events per second; 0: as fast as it goes.
    pub(crate) rate: u64,
    pub(crate) created: UnixNanos,
    pub(crate) wanted: Wanted,
    /// The offsets to read, of each partition with any.
    pub(crate) parts: BTreeMap<u32, Part>,
}

/// Offsets of a partition, the end not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// How far a partition is. Written after the index has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Progress {
    /// The next offset to read.
    pub(crate) next: u64,
    pub(crate) events: u64,
    pub(crate) indexed: u64,
    pub(crate) there: u64,
    pub(crate) refused: u64,
    #[serde(default)]
    pub(crate) retired: u64,
    /// Records that can't be read.
    #[serde(default)]
    pub(crate) unreadable: u64,
    /// The last one's reason.
    pub(crate) reason: String,
    pub(crate) updated: Option<UnixNanos>,
}

impl Replay {
    fn key(id: &str) -> String {
        format!("{REPLAYS}{id}")
    }

    fn progress_key(id: &str, partition: u32) -> String {
        format!("{PROGRESS}{id}/{partition}")
    }

    /// The topic in whose index the documents are.
    pub(crate) fn target(&self) -> &TopicName {
        self.into.as_ref().unwrap_or(&self.topic)
    }

    /// Whether an event is meant.
    pub(crate) fn holds(&self, stream: Option<(StreamId, ByteRange)>) -> bool {
        let Some((wanted, range)) = self.stream else { return true };
        stream.is_some_and(|(stream, own)| stream == wanted && own.start < range.end && range.start < own.end)
    }

    /// Whether a record may hold events that are meant, by when it arrived and whose its key says it is. A key that is damaged
    /// may be anybody's.
    fn may_hold(&self, record: &Record) -> bool {
        let time = record.timestamp;
        let in_time = self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time < to);
        let key = || std::str::from_utf8(&record.key).ok().and_then(|key| key.parse::<StreamId>().ok());
        in_time && self.stream.is_none_or(|(wanted, _)| key().is_none_or(|stream| stream == wanted))
    }
}

/// A replay and how far it is.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) replay: Replay,
    /// Of those partitions that were begun.
    pub(crate) progress: BTreeMap<u32, Progress>,
}

impl Status {
    pub(crate) fn is_done(&self, partition: u32) -> bool {
        let Some(part) = self.replay.parts.get(&partition) else { return true };
        self.progress.get(&partition).is_some_and(|progress| progress.next >= part.end)
    }

    /// How many partitions aren't done.
    pub(crate) fn left(&self) -> usize {
        self.replay.parts.keys().filter(|partition| !self.is_done(**partition)).count()
    }

    /// Neither ended nor done.
    pub(crate) fn is_open(&self) -> bool {
        self.replay.wanted != Wanted::Cancelled && self.left() > 0
    }
}

/// All replays, by id.
pub(crate) async fn all(jobs: &Jobs) -> Result<BTreeMap<String, Status>, BusError> {
    let replays: BTreeMap<String, Replay> = jobs.all(REPLAYS).await?;
    let mut all: BTreeMap<String, Status> =
        replays.into_values().map(|replay| (replay.id.clone(), Status { replay, progress: BTreeMap::new() })).collect();
    let progress: BTreeMap<String, Progress> = jobs.all(PROGRESS).await?;
    for (key, progress) in progress {
        let Some((id, partition)) = key.strip_prefix(PROGRESS).and_then(|key| key.rsplit_once('/')) else { continue };
        if let (Some(status), Ok(partition)) = (all.get_mut(id), partition.parse()) {
            status.progress.insert(partition, progress);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_a_stream_holds_what_has_a_byte_in_it() {
        let (stream, other) = (StreamId::from_bytes([1; 16]), StreamId::from_bytes([2; 16]));
        let replay = Replay {
            id: "r".to_owned(),
            topic: "logs".parse().unwrap(),
            from: None,
            to: None,
            stream: Some((stream, ByteRange::new(10, 20))),
            into: None,
            rate: 0,
            created: UnixNanos(0),
            wanted: Wanted::Running,
            parts: BTreeMap::from([(0, Part { start: 5, end: 9 })]),
        };
        for (start, end, held) in [(0, 10, false), (0, 11, true), (12, 14, true), (19, 30, true), (20, 30, false)] {
            assert_eq!(replay.holds(Some((stream, ByteRange::new(start, end)))), held, "{start}-{end}");
        }
        assert!(!replay.holds(Some((other, ByteRange::new(12, 14)))) && !replay.holds(None));
        let mut status = Status { replay, progress: BTreeMap::new() };
        assert!(status.is_open() && status.is_done(3));
        status.progress.insert(0, Progress { next: 9, ..Progress::default() });
        assert!(!status.is_open());
    }
}
