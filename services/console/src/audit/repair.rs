//! The repair: events that are missing from the index and still lie on the bus are sent through it once more; others their
//! agents read again ([`file`]).
//!
//! The console writes nothing else to the bus. Transfer takes such an event for one that was sent again: it asks the index for its id,
//! stores it if it isn't there, and books it. So the books keep their one writer, twice the same repair changes nothing, and
//! one that is killed half-way has only done half of the work.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures::future::try_join_all;
use logmesh_bus::{Append, Bus, BusError, NextOffset, Record, TopicPartition, partition_of};
use logmesh_grpc::Upstream;
use logmesh_proto::audit::v1::{RangeRepair, RepairSource, StreamAudit};
use logmesh_proto::fleet::v1::ReadOutcome;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_record::codec::{self, Content};
use logmesh_record::{Document, TRANSFER_GROUP, document};
use logmesh_types::{ByteRange, Ranges, StreamId};
use tokio::time::Instant;
use tracing::info;

use super::file::{self, FromFile, Patience};
use super::removal::Removal;

/// Bytes that are read from the bus at a time.
const READ_BYTES: usize = 4 << 20;

/// Bytes of events, and events, that were handed to the bus and aren't durable yet.
const APPENDING_BYTES: usize = 16 << 20;
const APPENDING_EVENTS: usize = 10_000;

/// How often transfer is asked how far it is, and how long it may stand still before the repair answers all the same.
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// Ranges of a stream of which is told what became of them.
const MAX_TOLD: usize = 200;

/// What is wanted of one stream, and what was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Want {
    /// Who collected it; empty if that isn't known.
    pub(super) agent: String,
    /// What is missing.
    pub(super) missing: Ranges,
    /// What of the bus was sent through it again.
    pub(super) found: Ranges,
    /// Events in it.
    pub(super) events: u64,
    /// What of the file was.
    pub(super) file: FromFile,
    /// What is there more than once.
    pub(super) doubled: Ranges,
    /// What was removed of it.
    pub(super) removal: Removal,
}

/// The streams of a partition, by id.
pub(super) type Wanted = BTreeMap<TopicPartition, HashMap<StreamId, Want>>;

/// Sends what is missing through the bus again, from the bus or from the file, and waits until transfer has done it or stands
/// still. Each partition is read once.
pub(super) async fn repair(
    bus: &dyn Bus,
    fleet: &FleetServiceClient<Upstream>,
    patience: Patience,
    wanted: &mut Wanted,
) -> Result<(), BusError> {
    for (at, streams) in wanted.iter_mut().filter(|(_, streams)| streams.values().any(Want::is_open)) {
        match send_again(bus, at, streams).await {
            // Somebody removed the topic: it holds nothing, and what agents read again makes it anew.
            Err(error @ BusError::UnknownPartition { .. }) => info!(%error, "a repair takes it from the files"),
            sent => sent?,
        }
    }
    file::read_again(fleet, patience, wanted).await;
    wait(bus, ends(bus, wanted).await?).await
}

/// The ends of the partitions in which something was sent, as they are now: a topic that was gone may have been made anew since,
/// with other partitions.
async fn ends(bus: &dyn Bus, wanted: &Wanted) -> Result<Vec<(TopicPartition, NextOffset)>, BusError> {
    let mut places = BTreeSet::new();
    for (at, streams) in wanted {
        let mut sent: Vec<StreamId> = Vec::new();
        for (stream, want) in streams {
            sent.extend((want.events + want.file.events > 0).then_some(*stream));
        }
        if !sent.is_empty()
            && let Some(spec) = bus.topic(&at.topic).await?
        {
            for stream in sent {
                let partition = partition_of(stream.to_string().as_bytes(), spec.partitions);
                places.insert(TopicPartition { topic: at.topic.clone(), partition });
            }
        }
    }
    let mut ends = Vec::new();
    for at in places {
        let high = bus.watermarks(&at).await?.high;
        ends.push((at, high));
    }
    Ok(ends)
}

/// Reads what transfer has done of a partition, until nothing more is missing.
async fn send_again(bus: &dyn Bus, at: &TopicPartition, streams: &mut HashMap<StreamId, Want>) -> Result<(), BusError> {
    let done = bus.committed(TRANSFER_GROUP, at).await?.unwrap_or(NextOffset(0));
    let mut next = bus.watermarks(at).await?.low;
    let mut sending = Sending { bus, at, appends: Vec::new(), bytes: 0 };
    while next < done && streams.values().any(Want::is_open) {
        let records = bus.read(at, next, READ_BYTES).await?;
        let Some(last) = records.last() else { break };
        next = last.offset.next();
        for record in records.iter().filter(|record| record.offset.next() <= done) {
            for event in events(record, streams) {
                sending.append(event).await?;
            }
        }
    }
    sending.finish().await?;
    let events: u64 = streams.values().map(|want| want.events).sum();
    info!(topic = %at.topic, partition = at.partition, events, "a repair sent events through the bus again");
    Ok(())
}

/// The events of a record that are missing, and noted as found.
fn events(record: &Record, streams: &mut HashMap<StreamId, Want>) -> Vec<Document> {
    let key = std::str::from_utf8(&record.key).ok().and_then(|key| key.parse::<StreamId>().ok());
    let Some(want) = key.and_then(|stream| streams.get_mut(&stream)).filter(|want| want.is_open()) else {
        return Vec::new();
    };
    let documents = match codec::decode(record) {
        Ok(Content::Chunk(chunk)) if want.lacks(ByteRange::new(chunk.start_offset, chunk.end_offset)) => {
            document::of_chunk(&chunk)
        }
        Ok(Content::Event(event)) => vec![event],
        Ok(Content::Chunk(_)) | Err(_) => Vec::new(),
    };
    documents.into_iter().filter(|event| event.stream.is_some_and(|(_, range)| want.take(range))).collect()
}

impl Want {
    pub(super) fn is_open(&self) -> bool {
        !self.left().is_empty()
    }

    /// What is missing, and neither the bus nor the file has given.
    pub(super) fn left(&self) -> Ranges {
        self.missing.without(&self.found).without(&self.file.done())
    }

    /// True if some of these bytes are missing and weren't found yet.
    fn lacks(&self, range: ByteRange) -> bool {
        let range: Ranges = [range].into_iter().collect();
        !range.and(&self.missing).without(&self.found).is_empty()
    }

    /// Notes an event as found; false if it isn't wanted.
    fn take(&mut self, range: ByteRange) -> bool {
        let lacks = self.lacks(range);
        if lacks {
            self.found.insert(range);
            self.events += 1;
        }
        lacks
    }

    /// Says of the gaps that are left which the bus can't fill. True if there are some that this repair didn't look for.
    pub(super) fn explain(&self, audit: &mut StreamAudit) -> bool {
        let mut again = false;
        for gap in audit.gaps.iter_mut().filter(|gap| !gap.lost_at_source) {
            let range: Ranges = [ByteRange::new(gap.start_offset, gap.end_offset)].into_iter().collect();
            let sought = range.and(&self.missing);
            gap.off_bus = !sought.is_empty() && sought.and(&self.found).is_empty();
            again |= sought.is_empty();
            let failed = self.file.failure(&sought).filter(|_| gap.off_bus);
            let more = match failed {
                Some(failed) => format!("the bus no longer holds it; the file: {}", failed.detail),
                None if sought.is_empty() => "found after the repair: another one mends it".to_owned(),
                None => "sent through the bus again, and not stored: see the status of transfer".to_owned(),
            };
            gap.detail = format!("{}; {more}", gap.detail);
            gap.set_read_outcome(failed.map_or(ReadOutcome::Unspecified, |failed| failed.outcome));
        }
        again
    }

    /// What became of each range, as many as are told.
    pub(super) fn ranges(&self) -> Vec<RangeRepair> {
        let one = |range: &ByteRange, source: RepairSource| RangeRepair {
            start_offset: range.start,
            end_offset: range.end,
            source: source.into(),
            ..RangeRepair::default()
        };
        let found = self.found.as_slice().iter().map(|range| one(range, RepairSource::Bus));
        let sent = self.file.sent.as_slice().iter().map(|range| one(range, RepairSource::File));
        let failed = self.file.failed.iter().map(|failed| RangeRepair {
            read_outcome: failed.outcome.into(),
            detail: failed.detail.clone(),
            ..one(&failed.range, RepairSource::Unspecified)
        });
        let mut ranges: Vec<RangeRepair> = found.chain(sent).chain(failed).collect();
        ranges.sort_by_key(|range| range.start_offset);
        ranges.truncate(MAX_TOLD);
        ranges
    }
}

/// Events on their way to the bus.
struct Sending<'a> {
    bus: &'a dyn Bus,
    at: &'a TopicPartition,
    appends: Vec<Append>,
    bytes: usize,
}

impl Sending<'_> {
    async fn append(&mut self, event: Document) -> Result<(), BusError> {
        let record = codec::repeated(codec::encode_event(&event));
        self.bytes += record.size();
        self.appends.push(self.bus.append(&self.at.topic, record).await?);
        if self.bytes >= APPENDING_BYTES || self.appends.len() >= APPENDING_EVENTS {
            self.finish().await?;
        }
        Ok(())
    }

    /// Waits until all of them are durable.
    async fn finish(&mut self) -> Result<(), BusError> {
        self.bytes = 0;
        try_join_all(self.appends.drain(..)).await.map(drop)
    }
}

/// Waits until transfer has done each partition up to its offset; gives up when it does nothing for [`PATIENCE`].
async fn wait(bus: &dyn Bus, mut ends: Vec<(TopicPartition, NextOffset)>) -> Result<(), BusError> {
    let (mut before, mut moved) = (Vec::new(), Instant::now());
    while !ends.is_empty() {
        let mut committed = Vec::new();
        for (at, _) in &ends {
            committed.push(bus.committed(TRANSFER_GROUP, at).await?.unwrap_or(NextOffset(0)));
        }
        let mut places = committed.iter();
        ends.retain(|(_, end)| places.next().is_some_and(|done| done < end));
        if committed != before {
            (before, moved) = (committed, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            return Ok(());
        }
        if !ends.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use logmesh_proto::audit::v1::Finding;

    use super::super::file::Failed;
    use super::*;

    fn ranges(parts: &[(u64, u64)]) -> Ranges {
        parts.iter().map(|(start, end)| ByteRange::new(*start, *end)).collect()
    }

    #[test]
    fn each_missing_event_is_taken_once() {
        let mut want = Want { missing: ranges(&[(5, 10), (20, 30)]), ..Want::default() };
        assert!(!want.take(ByteRange::new(0, 5)) && !want.take(ByteRange::new(10, 20)));
        assert!(want.take(ByteRange::new(5, 10)) && !want.take(ByteRange::new(5, 10)));
        assert!(want.is_open() && want.take(ByteRange::new(15, 40)) && !want.is_open());
        assert_eq!((want.events, want.found), (2, ranges(&[(5, 10), (15, 40)])));
    }

    #[test]
    fn what_is_left_is_explained() {
        let gap = |start_offset, end_offset| Finding { start_offset, end_offset, ..Finding::default() };
        let at_source = Finding { lost_at_source: true, ..gap(50, 60) };
        let mut audit =
            StreamAudit { gaps: vec![gap(0, 5), gap(10, 15), gap(40, 45), at_source], ..StreamAudit::default() };
        let mut want = Want { missing: ranges(&[(0, 5), (10, 15)]), found: ranges(&[(10, 15)]), ..Want::default() };
        let (range, outcome, detail) = (ByteRange::new(0, 5), ReadOutcome::Gone, "it is gone".to_owned());
        want.file.failed.push(Failed { range, outcome, detail });
        assert!(want.explain(&mut audit));
        let said: Vec<(bool, &str)> = audit.gaps.iter().map(|gap| (gap.off_bus, gap.detail.as_str())).collect();
        assert!(said[0].0 && said[0].1.contains("no longer holds it; the file: it is gone"), "{said:?}");
        assert_eq!(audit.gaps[0].read_outcome(), ReadOutcome::Gone);
        assert!(!said[1].0 && said[1].1.contains("not stored"), "{said:?}");
        assert!(!said[2].0 && said[2].1.contains("another one"), "{said:?}");
        assert_eq!(said[3], (false, ""));
        let told: Vec<_> = want.ranges().iter().map(|one| (one.start_offset, one.source())).collect();
        assert_eq!(told, [(0, RepairSource::Unspecified), (10, RepairSource::Bus)]);
    }
}
