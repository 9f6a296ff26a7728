//! Retention of the index: slices that are older than a topic's `index_retention` go, for good.
//!
//! One worker of the mesh does it, the leader. It writes first, durably, which slices are retired ([`Mark`]); a pass later it
//! deletes what lies before the mark, and looks again with each pass, so that a slice which a write in flight made again goes
//! too. Workers know the marks and write nothing that is retired. Two leaders at a time would do no harm: a mark only moves on,
//! and deleting what is retired twice is deleting it once.
//!
//! The wall clock is believed with care: see [`today`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use logmesh_bus::{Bus, BusError, NextOffset, TopicPartition, TopicSpec};
use logmesh_grpc::Term;
use logmesh_index::{IndexError, IndexWriter, Slice};
use logmesh_record::{Mark, Marks, Topics, with_books};
use logmesh_runtime::CancellationToken;
use logmesh_types::{Day, TopicName, UnixNanos, metric};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::jobs::Jobs;
use crate::retired::marks;

/// After a mark was moved, its slices are deleted this much later at the earliest: workers look for marks far more often.
const GRACE: Duration = Duration::from_secs(5);

/// A clock that is further ahead of the last mark's day than this is believed a day at a time,
const BELIEVED: u64 = 1;

/// one each so long.
const STEP: Duration = Duration::from_secs(3_600);

/// A worker that may be the leader.
#[derive(Debug)]
pub(crate) struct Retention {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) index: Arc<dyn IndexWriter>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) topics: Topics,
    /// Between two passes.
    pub(crate) interval: Duration,
    pub(crate) term: watch::Receiver<Term>,
}

impl Retention {
    /// Does the leader's work whenever this worker leads, until the token is cancelled.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            // The token first: when the process ends, who says who leads ends too.
            let term = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                term = self.term.wait_for(Option::is_some) => *term.context("nobody says who leads")?,
            };
            info!(?term, "this worker retires slices of the index");
            let mut led = self.term.clone();
            tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                _ = led.wait_for(|now| *now != term) => {}
                () = self.lead() => {}
            }
        }
    }

    async fn lead(&self) {
        // When each topic's mark was moved by a clock that isn't quite believed.
        let mut steps = HashMap::new();
        let begun = Instant::now();
        loop {
            let pause = match self.pass(&mut steps, begun, UnixNanos::now()).await {
                Ok(true) => GRACE.min(self.interval),
                Ok(false) => self.interval,
                Err(error) => {
                    warn!(%error, "retention was broken off; the next pass goes on");
                    self.interval
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Deletes what was retired before this pass, and moves marks; true if any moved.
    async fn pass(
        &self,
        steps: &mut HashMap<TopicName, Instant>,
        begun: Instant,
        now: UnixNanos,
    ) -> Result<bool, BusError> {
        let topics = with_books(self.bus.topics().await?);
        let marks = marks(&self.jobs).await?;
        // A slice that can't be deleted keeps no other from being retired.
        for spec in &topics {
            if let Err(error) = self.delete(&spec.name, &marks).await {
                warn!(topic = %spec.name, %error, "a retired slice can't be deleted now; the next pass tries again");
            }
        }
        let Some(newest) = self.newest(&topics).await? else { return Ok(false) };
        let mut moved = false;
        for spec in &topics {
            let Some(days) = self.topics.index_days(&spec.name) else { continue };
            let held = marks.get(&spec.name);
            let last = steps.get(&spec.name).copied().unwrap_or(begun);
            let (today, is_step) = today(held, Day::of(now), newest);
            if is_step && last.elapsed() < STEP {
                continue;
            }
            if is_step {
                warn!(topic = %spec.name, clock = %Day::of(now), %today, "the clock is far ahead of the last day that was retired; it is followed by a day each hour");
                steps.insert(spec.name.clone(), Instant::now());
            }
            moved |= self.mark(&spec.name, held, Mark { before: today.minus(days), today }).await?;
        }
        Ok(moved)
    }

    /// Writes a mark that is ahead of the one that is held; true if more is retired by it.
    async fn mark(&self, topic: &TopicName, held: Option<&Mark>, wanted: Mark) -> Result<bool, BusError> {
        let before = held.map_or(wanted.before, |held| held.before.max(wanted.before));
        let mark = Mark { before, ..wanted };
        if held.is_some_and(|held| *held >= mark) {
            return Ok(false);
        }
        self.jobs.put(&mark.key(topic), &mark).await?;
        let more = held.is_none_or(|held| held.before < mark.before);
        if let Some(held) = held.filter(|_| more) {
            self.jobs.remove(&held.key(topic)).await?;
        }
        info!(%topic, before = %mark.before, "slices dated before this day are retired");
        Ok(more)
    }

    async fn delete(&self, topic: &TopicName, marks: &Marks) -> Result<(), IndexError> {
        if marks.get(topic).is_none() {
            return Ok(());
        }
        for date in self.index.slices(topic).await? {
            if date.parse().is_ok_and(|day| marks.is_retired(topic, day)) {
                let slice = Slice { topic: topic.clone(), date };
                self.index.delete_slice(&slice).await?;
                metrics::counter!(metric::TRANSFER_RETIRED_SLICES).increment(1);
                info!(%topic, date = %slice.date, "a retired slice is deleted");
            }
        }
        Ok(())
    }

    /// The day of the newest record of all topics; `None` if there is no record.
    async fn newest(&self, topics: &[TopicSpec]) -> Result<Option<Day>, BusError> {
        let mut newest = None;
        for spec in topics {
            for partition in 0..spec.partitions {
                let at = TopicPartition { topic: spec.name.clone(), partition };
                let marks = self.bus.watermarks(&at).await?;
                if marks.low < marks.high {
                    let last = self.bus.read(&at, NextOffset(marks.high.0 - 1), 1).await?;
                    newest = newest.max(last.first().map(|record| Day::of(record.timestamp)));
                }
            }
        }
        Ok(newest)
    }
}

/// What is taken for the present day, and whether that is a step towards a clock that isn't believed at once.
///
/// - Never later than the day of the newest record of the bus: where nothing comes, nothing gets old by a clock, and the clock of one
///   host alone, ours or a gateway's, makes nothing older than it is. Those of agents don't count: a record's time is that of its arrival.
/// - Where the last mark's day is known and the clock is more than [`BELIEVED`] days ahead of it (it jumped, or retention
///   stood still for long), one day more than that day. Somebody has [`STEP`]s of time to set the clock right: a year's jump costs
///   a day of documents each hour, and not all of them at once.
fn today(held: Option<&Mark>, clock: Day, newest: Day) -> (Day, bool) {
    let today = clock.min(newest);
    match held {
        Some(held) if today > held.today.plus(BELIEVED) => (held.today.plus(1), true),
        _ => (today, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    #[test]
    fn a_clock_that_jumps_is_not_believed() {
        let (clock, next_year) = (day("2026-11-23"), day("2027-11-23"));
        let held = Mark { before: day("2026-10-24"), today: clock };
        assert_eq!(today(None, clock, clock), (clock, false));
        assert_eq!(today(None, next_year, clock), (clock, false), "nothing on the bus is so new");
        for ahead in 1..=400 {
            assert_eq!(today(Some(&held), clock.plus(ahead), clock), (clock, false), "this host's clock is wrong");
            assert_eq!(today(Some(&held), clock, clock.plus(ahead)), (clock, false), "a gateway's is");
        }
        assert_eq!(
            today(Some(&held), next_year, next_year),
            (clock.plus(1), true),
            "records of that clock don't prove it"
        );
        assert_eq!(today(Some(&held), clock.plus(1), clock.plus(1)), (clock.plus(1), false), "midnight is none");
        assert_eq!(
            today(Some(&held), clock.plus(2), clock.plus(2)),
            (clock.plus(1), true),
            "both are wrong, or rested"
        );
        assert_eq!(today(Some(&held), clock.minus(100), clock), (clock.minus(100), false));
    }
}
