//! The dead letters of topics: looked through in order, those that are done since left out, and counted by reason.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use logmesh_bus::{Bus, BusError, NextOffset, TopicPartition};
use logmesh_grpc::Upstream;
use logmesh_proto::time::timestamp;
use logmesh_proto::transfer::v1 as proto;
use logmesh_record::{DeadLetter, with_books};
use logmesh_types::TopicName;
use tonic::Status;

use crate::jobs::Jobs;
use crate::redrive::Redriven;
use crate::service::bus_status;

/// How many bytes are read from the bus at a time.
const READ_BYTES: usize = 2 << 20;

/// Groups of one summary,
const MAX_GROUPS: usize = 200;

/// samples of a group, and bytes of a sample's document.
const MAX_SAMPLES: usize = 3;
const SAMPLE_BYTES: usize = 4_096;

/// The longest common part of reasons, in bytes.
const MAX_PATTERN: usize = 512;

/// The reason of the group that takes what doesn't fit.
const OTHERS: &str = "(others)";

/// Where the next letter is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    topic: TopicName,
    partition: u32,
    next: NextOffset,
}

/// A letter that was found.
pub(crate) struct Found<'a> {
    pub(crate) topic: &'a TopicName,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) letter: DeadLetter,
    /// Bytes of its record.
    pub(crate) size: usize,
}

/// The dead-letter topics.
#[derive(Clone, Debug)]
pub(crate) struct Letters {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) jobs: Arc<Jobs>,
    /// It knows of topics that are only a rule's so far.
    pub(crate) config: Upstream,
}

impl Letters {
    /// All topics by name.
    pub(crate) async fn topics(&self) -> Result<Vec<TopicName>, BusError> {
        Ok(with_books(self.bus.topics().await?).into_iter().map(|spec| spec.name).collect())
    }

    /// Refuses what is neither a topic of the bus nor any rule's; see [`logmesh_grpc::check_topic`].
    pub(crate) async fn check_topic(&self, topic: &TopicName) -> Result<(), Status> {
        let there = self.topics().await.map_err(bus_status)?.into_iter().collect();
        logmesh_grpc::check_topic(topic, &there, &self.config).await
    }

    /// True if the topic may have dead letters. NOT_FOUND if it's no topic at all, UNAVAILABLE if that can't be known.
    pub(crate) async fn are_there(&self, topic: &TopicName) -> Result<bool, Status> {
        if self.bus.topic(&topic.dead_letters()).await.map_err(bus_status)?.is_some() {
            return Ok(true);
        }
        self.check_topic(topic).await?;
        Ok(false)
    }

    /// Shows letters in their order until all were seen, `budget` bytes are read, or one is refused by a break: where to
    /// go on then; `None` when all were seen.
    pub(crate) async fn scan(
        &self,
        topics: &[TopicName],
        from: Option<Cursor>,
        budget: usize,
        visit: &mut (dyn FnMut(Found<'_>) -> ControlFlow<()> + Send),
    ) -> Result<Option<Cursor>, BusError> {
        let mut read = 0;
        let begin = from.as_ref().map(|cursor| &cursor.topic);
        for topic in topics.iter().filter(|topic| begin.is_none_or(|begin| *topic >= begin)) {
            let dead = topic.dead_letters();
            let Some(spec) = self.bus.topic(&dead).await? else { continue };
            let (first, mut next) = match &from {
                Some(cursor) if cursor.topic == *topic => (cursor.partition, cursor.next),
                _ => (0, NextOffset(0)),
            };
            for partition in first..spec.partitions {
                let at = TopicPartition { topic: dead.clone(), partition };
                let redriven: Redriven = self.jobs.get(&Redriven::key(topic, partition)).await?.unwrap_or_default();
                loop {
                    let here = |next| Some(Cursor { topic: topic.clone(), partition, next });
                    if read >= budget {
                        return Ok(here(next));
                    }
                    let records = self.bus.read(&at, next, READ_BYTES).await?;
                    if records.is_empty() {
                        break;
                    }
                    for record in &records {
                        read += record.size();
                        let (offset, size) = (record.offset.0, record.size());
                        if !redriven.is_done(offset)
                            && let Ok(letter) = DeadLetter::decode(record)
                            && visit(Found { topic, partition, offset, letter, size }).is_break()
                        {
                            return Ok(here(NextOffset(offset)));
                        }
                        next = record.offset.next();
                    }
                }
                next = NextOffset(0);
            }
        }
        Ok(None)
    }
}

impl Cursor {
    /// As a page token.
    pub(crate) fn to_token(&self) -> String {
        format!("{}.{}.{}", self.partition, self.next.0, self.topic)
    }

    pub(crate) fn parse(token: &str) -> Option<Self> {
        let mut parts = token.splitn(3, '.');
        let (partition, next, topic) = (parts.next()?, parts.next()?, parts.next()?);
        let next = NextOffset(next.parse().ok()?);
        Some(Self { topic: topic.parse().ok()?, partition: partition.parse().ok()?, next })
    }
}

/// What reasons of one kind have in common: what stands in single quotes is left out, and numbers of their own are `N`.
pub(crate) fn pattern(reason: &str) -> String {
    let mut out = String::with_capacity(reason.len().min(MAX_PATTERN));
    let mut rest = reason;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        if out.len() >= MAX_PATTERN {
            break;
        }
        let taken = match c {
            '\'' if !before.is_alphanumeric() => rest[1..].find('\'').map(|end| (end + 2, "'…'", '\'')),
            '0'..='9' if !before.is_alphanumeric() => {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                let alone = !rest[end..].starts_with(char::is_alphanumeric);
                alone.then_some((end, "N", '0'))
            }
            _ => None,
        };
        let (length, text, last) = taken.unwrap_or((c.len_utf8(), &rest[..c.len_utf8()], c));
        out.push_str(text);
        before = last;
        rest = &rest[length..];
    }
    out
}

/// Letters by topic and what their reasons have in common.
#[derive(Default)]
pub(crate) struct Groups(BTreeMap<(TopicName, String), proto::DeadLetterGroup>);

impl Groups {
    pub(crate) fn add(&mut self, found: Found<'_>) {
        let mut key = (found.topic.clone(), pattern(&found.letter.reason));
        if self.0.len() >= MAX_GROUPS && !self.0.contains_key(&key) {
            key.1 = OTHERS.to_owned();
        }
        let (topic, reason) = (key.0.to_string(), key.1.clone());
        let group = self.0.entry(key).or_insert_with(|| proto::DeadLetterGroup { topic, reason, ..Default::default() });
        group.letters += 1;
        group.bytes += found.letter.document.body.len() as u64;
        let time = timestamp(found.letter.time);
        let order = |time: &prost_types::Timestamp| (time.seconds, time.nanos);
        if group.first_time.as_ref().is_none_or(|first| order(&time) < order(first)) {
            group.first_time = Some(time);
        }
        if group.last_time.as_ref().is_none_or(|last| order(&time) > order(last)) {
            group.last_time = Some(time);
        }
        if group.samples.len() < MAX_SAMPLES {
            let mut sample = to_proto(found.topic, found.letter);
            // A copy, so that the sample doesn't hold the buffer of all that was read with it.
            sample.document =
                bytes::Bytes::copy_from_slice(&sample.document[..sample.document.len().min(SAMPLE_BYTES)]);
            group.samples.push(sample);
        }
    }

    pub(crate) fn into_list(self) -> Vec<proto::DeadLetterGroup> {
        self.0.into_values().collect()
    }
}

pub(crate) fn to_proto(topic: &TopicName, letter: DeadLetter) -> proto::DeadLetter {
    let stream = letter.document.stream;
    proto::DeadLetter {
        topic: topic.to_string(),
        id: letter.document.id.map_or_else(String::new, |id| id.to_string()),
        reason: letter.reason,
        time: Some(timestamp(letter.time)),
        stream_id: stream.map_or_else(String::new, |(stream, _)| stream.to_string()),
        start_offset: stream.map_or(0, |(_, range)| range.start),
        end_offset: stream.map_or(0, |(_, range)| range.end),
        document: letter.document.body,
    }
}

#[cfg(test)]
mod tests {
    use logmesh_types::UnixNanos;

    use super::*;

    #[test]
    fn reasons_of_one_kind_have_one_pattern() {
        for (reason, common) in [
            (
                "[1:25] failed to parse field [a.b2] of type [long]. Preview of field's value: 'x 5': For input string",
                "[N:N] failed to parse field [a.b2] of type [long]. Preview of field's value: '…': For input string",
            ),
            ("the date '2026-02-30' is none", "the date '…' is none"),
            ("it's 5 of 17, v2 and 3rd", "it's N of N, v2 and 3rd"),
            ("an open 'quote 7", "an open 'quote N"),
            ("größer als 5 µs", "größer als N µs"),
            ("", ""),
        ] {
            assert_eq!(pattern(reason), common);
            assert_eq!(pattern(common), common, "a pattern is its own");
        }
        assert!(pattern(&"é".repeat(10_000)).len() <= MAX_PATTERN + 8);
    }

    #[test]
    fn cursors_round_trip_and_nonsense_is_refused() {
        let cursor = Cursor { topic: "a.b-c".parse().unwrap(), partition: 3, next: NextOffset(17) };
        assert_eq!(Cursor::parse(&cursor.to_token()), Some(cursor));
        for token in ["", "1", "1.2", "1.2.", "x.2.logs", "1.2.UPPER CASE"] {
            assert_eq!(Cursor::parse(token), None, "{token:?}");
        }
    }

    #[test]
    fn groups_are_bounded_and_hold_samples() {
        let topic: TopicName = "logs".parse().unwrap();
        let mut groups = Groups::default();
        for n in 0..2 * MAX_GROUPS {
            for time in [5, 3, 9, 4] {
                let document = logmesh_record::Document {
                    id: None,
                    stream: None,
                    date: "2026-01-31".parse().unwrap(),
                    body: bytes::Bytes::from(vec![b'x'; 10_000]),
                };
                let letter = DeadLetter { document, reason: format!("r{n}"), time: UnixNanos(time) };
                groups.add(Found { topic: &topic, partition: 0, offset: 0, letter, size: 1 });
            }
        }
        let groups = groups.into_list();
        assert_eq!(groups.len(), MAX_GROUPS + 1);
        assert_eq!(groups.iter().map(|group| group.letters).sum::<u64>(), 8 * MAX_GROUPS as u64);
        assert_eq!((groups[0].reason.as_str(), groups[0].samples[0].document.len()), (OTHERS, SAMPLE_BYTES));
        let times = (groups[1].first_time.unwrap().nanos, groups[1].last_time.unwrap().nanos);
        assert_eq!((times, groups[1].samples.len(), groups[1].bytes), ((3, 9), MAX_SAMPLES, 40_000));
    }
}
