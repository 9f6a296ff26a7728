//! Reads ranges of a stream again that the centre asks for, and pushes them once more.
//!
//! The file is read by a thread of its own, with the host's own limits on what may be read, a few chunks ahead of their acks. The
//! collector doesn't wait for it, and its checkpoint doesn't move by it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use logmesh_proto::fleet::v1::{RangeRead, RangesRead, ReadOutcome, ReadRanges};
use logmesh_tail::{Chunk, NotAgain, NotAgainCause, Recall};
use logmesh_types::limits::{MAX_READ_AGAIN_BYTES, MAX_READ_AGAIN_RANGES};
use logmesh_types::{ByteRange, StreamId, TopicName};
use tokio::sync::mpsc;

use crate::collect::Handle;
use crate::commands::{Busy, guard_of};
use crate::repeats::Fate;
use crate::settings::Settings;

/// How long one command's ranges may take, so that the answer comes while the centre waits.
const TIME: Duration = Duration::from_secs(20);

/// Chunks that were read again and aren't acked, at a time: up to 4 MiB beside what the collector has on its way.
const UNACKED: usize = 4;

/// What comes of the file.
enum Part {
    Read(Chunk),
    Failed(ByteRange, NotAgain),
}

/// What was asked for.
#[derive(Debug)]
struct Wanted {
    stream: StreamId,
    topic: TopicName,
    /// In order, none of them empty.
    ranges: Vec<ByteRange>,
}

/// Does a command that came at `at`; an error in words. `busy` is set while a file is being read.
pub(crate) async fn read_again(
    command: ReadRanges,
    collector: &Handle,
    settings: Arc<Settings>,
    busy: &Arc<AtomicBool>,
    at: Instant,
) -> Result<RangesRead, String> {
    let wanted = Arc::new(Wanted::new(&command)?);
    let Some(recall) = collector.recall(wanted.stream).await.map_err(|error| error.to_string())? else {
        let gone = |range: &ByteRange| told(*range, ReadOutcome::Gone, "this agent knows of no such stream");
        return Ok(RangesRead { ranges: wanted.ranges.iter().map(gone).collect() });
    };
    let busy = match Busy::begin(busy) {
        Ok(busy) => busy,
        // It ends: whoever asks again a little later is served.
        Err(why) => {
            let undone = |range: &ByteRange| told(*range, ReadOutcome::Undone, &why);
            return Ok(RangesRead { ranges: wanted.ranges.iter().map(undone).collect() });
        }
    };
    let (sender, parts) = mpsc::channel(1);
    let (reading, until) = (wanted.clone(), at + TIME);
    // Not a task of the runtime's: one that a disk holds up must not hold up the end of the process.
    let thread = std::thread::Builder::new().name("read-again".into()).spawn(move || {
        let _busy = busy;
        reading.read(recall, &settings, until, &sender);
    });
    thread.map_err(|error| format!("cannot read: {error}"))?;
    let mut found = Vec::new();
    // What isn't done by then, or when the process ends, is told as undone.
    tokio::time::timeout_at(until.into(), push(parts, collector, &mut found)).await.map(Result::ok).ok();
    Ok(RangesRead { ranges: wanted.sum_up(found) })
}

/// Has the chunks sent, and notes what becomes of each.
async fn push(mut parts: mpsc::Receiver<Part>, collector: &Handle, found: &mut Vec<RangeRead>) -> anyhow::Result<()> {
    let (mut fates, mut is_open) = (FuturesOrdered::new(), true);
    while is_open || !fates.is_empty() {
        tokio::select! {
            part = parts.recv(), if is_open && fates.len() < UNACKED => match part {
                Some(Part::Read(chunk)) => {
                    let (range, events) = (chunk.range, chunk.events);
                    let fate = collector.repeat(chunk).await?;
                    fates.push_back(async move { (range, events, fate.await.unwrap_or(Fate::Lost)) });
                }
                Some(Part::Failed(range, error)) => found.push(told(range, outcome(error.cause), &error.detail)),
                None => is_open = false,
            },
            Some((range, events, fate)) = fates.next(), if !fates.is_empty() => found.push(match fate {
                Fate::Acked => RangeRead { events: events.into(), ..told(range, ReadOutcome::Sent, "") },
                Fate::Refused(reason) => told(range, ReadOutcome::Refused, &reason),
                Fate::Lost => told(range, ReadOutcome::Undone, "the connection to the gateway was lost"),
            }),
        }
    }
    Ok(())
}

impl Wanted {
    fn new(command: &ReadRanges) -> Result<Self, String> {
        let stream = command.stream_id.parse().map_err(|error| format!("stream_id: {error}"))?;
        let topic = command.topic.parse().map_err(|error| format!("topic: {error}"))?;
        let ranges: Vec<_> = command.ranges.iter().map(|one| (one.start_offset, one.end_offset)).collect();
        let ends: Vec<u64> = ranges.iter().flat_map(|(start, end)| [*start, *end]).collect();
        if ranges.is_empty() || ranges.len() > MAX_READ_AGAIN_RANGES {
            return Err(format!("1 to {MAX_READ_AGAIN_RANGES} ranges can be read at a time, not {}", ranges.len()));
        }
        if ranges.iter().any(|(start, end)| start >= end) || !ends.is_sorted() {
            return Err("the ranges are not in order, or one is empty".to_owned());
        }
        Ok(Self { stream, topic, ranges: ranges.into_iter().map(|(start, end)| ByteRange::new(start, end)).collect() })
    }

    /// Reads the ranges as far as there is time and room, and as long as somebody takes them.
    fn read(&self, recall: Recall, settings: &Settings, until: Instant, parts: &mpsc::Sender<Part>) {
        let opened = guard_of(settings).map_err(|detail| NotAgain { cause: NotAgainCause::NotAllowed, detail });
        let mut file = opened.and_then(|guard| recall.open(&guard));
        let mut room = MAX_READ_AGAIN_BYTES;
        for range in &self.ranges {
            let mut left = *range;
            while !left.is_empty() {
                if room == 0 || Instant::now() >= until {
                    return;
                }
                let read = match &mut file {
                    Ok(file) => file.read(left, &self.topic),
                    Err(error) => Err(error.clone()),
                };
                let part = match read {
                    Ok(chunk) => {
                        room = room.saturating_sub(chunk.data.len());
                        left.start = chunk.range.end;
                        Part::Read(chunk)
                    }
                    Err(error) => {
                        Part::Failed(std::mem::replace(&mut left, ByteRange::new(range.end, range.end)), error)
                    }
                };
                if parts.blocking_send(part).is_err() {
                    return;
                }
            }
        }
    }

    /// What became of each range, neighbours of one fate together; what nothing is said of is undone.
    fn sum_up(&self, mut found: Vec<RangeRead>) -> Vec<RangeRead> {
        found.sort_by_key(|part| part.start_offset);
        let mut found = found.into_iter().peekable();
        let mut parts: Vec<RangeRead> = Vec::new();
        for range in &self.ranges {
            let (first, mut at) = (parts.len(), range.start);
            while at < range.end {
                let next = found.peek().map_or(range.end, |part| part.start_offset.min(range.end));
                let part = match next > at {
                    true => told(ByteRange::new(at, next), ReadOutcome::Undone, "there was no time or room for it"),
                    false => found.next().unwrap_or_default(),
                };
                at = part.end_offset.max(at + 1);
                match parts[first..].last_mut() {
                    Some(last) if (last.outcome, &last.detail) == (part.outcome, &part.detail) => {
                        (last.end_offset, last.events) = (part.end_offset, last.events + part.events);
                    }
                    _ => parts.push(part),
                }
            }
        }
        parts
    }
}

fn told(range: ByteRange, outcome: ReadOutcome, detail: &str) -> RangeRead {
    let ByteRange { start: start_offset, end: end_offset } = range;
    RangeRead { start_offset, end_offset, outcome: outcome.into(), detail: detail.to_owned(), events: 0 }
}

fn outcome(cause: NotAgainCause) -> ReadOutcome {
    match cause {
        NotAgainCause::Gone => ReadOutcome::Gone,
        NotAgainCause::Changed => ReadOutcome::Changed,
        NotAgainCause::NotAllowed => ReadOutcome::NotAllowed,
        NotAgainCause::Unreadable => ReadOutcome::Unreadable,
        NotAgainCause::Forgotten => ReadOutcome::Forgotten,
        NotAgainCause::NotCollected => ReadOutcome::NotCollected,
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::fleet::v1::StreamRange;

    use super::*;

    fn command(ranges: &[(u64, u64)]) -> ReadRanges {
        let range = |(start_offset, end_offset): &(u64, u64)| StreamRange {
            start_offset: *start_offset,
            end_offset: *end_offset,
        };
        ReadRanges {
            stream_id: StreamId::from_bytes([1; 16]).to_string(),
            topic: "t".into(),
            ranges: ranges.iter().map(range).collect(),
        }
    }

    #[test]
    fn ranges_come_in_order_and_are_some() {
        assert!(Wanted::new(&command(&[(0, 5), (5, 9), (12, 13)])).is_ok());
        let many: Vec<(u64, u64)> = (0..=MAX_READ_AGAIN_RANGES as u64).map(|at| (2 * at, 2 * at + 1)).collect();
        for bad in [&[][..], &[(5, 5)], &[(5, 4)], &[(0, 5), (4, 9)], &[(5, 9), (0, 1)], &many] {
            assert!(Wanted::new(&command(bad)).is_err(), "{} ranges", bad.len());
        }
    }

    #[test]
    fn each_byte_gets_one_fate() {
        let wanted = Wanted::new(&command(&[(0, 10), (10, 20), (30, 40)])).unwrap();
        let sent = |start, end| RangeRead { events: 1, ..told(ByteRange::new(start, end), ReadOutcome::Sent, "") };
        let changed = told(ByteRange::new(35, 40), ReadOutcome::Changed, "other");
        let parts = wanted.sum_up(vec![changed, sent(5, 10), sent(0, 5), sent(30, 32)]);
        let parts: Vec<_> =
            parts.iter().map(|one| (one.start_offset, one.end_offset, one.outcome(), one.events)).collect();
        let expected = [
            (0, 10, ReadOutcome::Sent, 2),
            (10, 20, ReadOutcome::Undone, 0),
            (30, 32, ReadOutcome::Sent, 1),
            (32, 35, ReadOutcome::Undone, 0),
            (35, 40, ReadOutcome::Changed, 0),
        ];
        assert_eq!(parts, expected);
    }
}
