//! How fresh the index is: how long events took for each hop of their way, over the last minutes.
//!
//! Only events that came for the first time count: what is replayed, repaired, sent through again, or was there already
//! says nothing about how long a line takes. Each time is by the clock of the machine that noted it; a hop that comes out
//! negative took no time, and is counted as skewed.

mod sketch;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::{Record, TopicPartition};
use logmesh_proto::time::{duration, std_duration};
use logmesh_proto::transfer::v1 as proto;
use logmesh_proto::transfer::v1::Hop;
use logmesh_record::Times;
use logmesh_record::codec::Found;
use logmesh_types::{UnixNanos, metric};
use metrics::{Histogram, counter, histogram};
use tokio::time::Instant;

use sketch::Sketch;

/// How far back is looked,
pub(crate) const WINDOW: Duration = Duration::from_secs(300);

/// and in which steps what is older is forgotten: up to one more is looked at.
const STEP: Duration = Duration::from_secs(15);

/// Topics that are told apart, in answers and in metrics; those that come later are one. With all buckets of all hops that
/// is an answer of 4 MiB to another worker at most.
const MAX_TOPICS: usize = 100;

/// Their name.
const OTHERS: &str = "(others)";

/// Clocks that differ by less are taken for equal: Kafka's times are in milliseconds.
const TICK: i64 = 10_000_000;

/// All hops with their labels, in the order of the way; the whole is last.
const HOPS: [(Hop, &str); 6] = [
    (Hop::FileToAgent, "file_to_agent"),
    (Hop::AgentToGateway, "agent_to_gateway"),
    (Hop::GatewayToBus, "gateway_to_bus"),
    (Hop::BusToTransfer, "bus_to_transfer"),
    (Hop::TransferToIndex, "transfer_to_index"),
    (Hop::Total, "total"),
];
const TOTAL: usize = HOPS.len() - 1;

/// How long each hop took.
type Sketches = [Sketch; HOPS.len()];

/// How long one hop took, in microseconds; and whether the clocks of its ends differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Took {
    micros: u64,
    skewed: bool,
}

/// Events that came together: of one record, or of several that follow each other and have the same times.
#[derive(Debug)]
struct Sample {
    at: Arc<TopicPartition>,
    times: Times,
    bus: UnixNanos,
    taken: UnixNanos,
    /// How many of them are new in the index.
    created: u64,
}

/// The events of a bulk that are to be measured. An event refers to its sample by a number.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    list: Vec<Sample>,
    /// The times of the last one as its record bears them: most records bear those of the one before.
    times: Bytes,
}

impl Samples {
    /// The sample of a record that transfer took just now; `None` if it was on the bus before.
    pub(crate) fn of(
        &mut self,
        at: &Arc<TopicPartition>,
        record: &Record,
        found: &Found<'_>,
        taken: UnixNanos,
    ) -> Option<usize> {
        if found.repeated.is_some() || found.redrive.is_some() {
            return None;
        }
        // In milliseconds: so those of one chunk that went to the bus one by one are one sample.
        let bus = UnixNanos(record.timestamp.0 - record.timestamp.0.rem_euclid(1_000_000));
        let times = found.times.cloned().unwrap_or_default();
        let is_same = |last: &Sample| (last.bus, last.taken) == (bus, taken) && last.at.topic == at.topic;
        if times != self.times || !self.list.last().is_some_and(is_same) {
            self.list.push(Sample { at: at.clone(), times: Times::read(&times), bus, taken, created: 0 });
            self.times = times;
        }
        Some(self.list.len() - 1)
    }

    /// One event of a sample is new in the index.
    pub(crate) fn created(&mut self, sample: Option<usize>) {
        if let Some(sample) = sample.and_then(|sample| self.list.get_mut(sample)) {
            sample.created += 1;
        }
    }

    /// The events that were created since the last call were stored just now.
    pub(crate) fn stored(&mut self, freshness: &Freshness) {
        let (stored, mut topics) = (UnixNanos::now(), freshness.lock());
        for sample in self.list.iter_mut().filter(|sample| sample.created > 0) {
            let events = std::mem::take(&mut sample.created);
            topics.note(sample.at.topic.as_str(), &hops(sample, stored), events, Instant::now());
        }
    }
}

/// How long each hop took, where that is known.
fn hops(sample: &Sample, stored: UnixNanos) -> [Option<Took>; HOPS.len()] {
    let Times { written, read, received } = sample.times;
    let times = [written, read, received, Some(sample.bus), Some(sample.taken), Some(stored)];
    let mut hops = [None; HOPS.len()];
    for (hop, pair) in hops.iter_mut().zip(times.windows(2)) {
        if let [Some(from), Some(to)] = pair {
            let nanos = to.0.saturating_sub(from.0);
            *hop = Some(Took { micros: nanos.max(0) as u64 / 1_000, skewed: nanos < -TICK });
        }
    }
    // What came before its way is known, from another's tool or an older gateway, has no beginning. A sum, so that one
    // clock that is ahead doesn't hide what was measured by the others.
    if received.is_some() {
        let took = hops.iter().flatten();
        let micros = took.clone().fold(0u64, |sum, hop| sum.saturating_add(hop.micros));
        hops[TOTAL] = Some(Took { micros, skewed: took.clone().any(|hop| hop.skewed) });
    }
    hops
}

/// What a worker has measured.
#[derive(Debug, Default)]
pub(crate) struct Freshness(Mutex<Topics>);

/// By the topic's name.
#[derive(Debug, Default)]
struct Topics(BTreeMap<String, Topic>);

#[derive(Debug)]
struct Topic {
    /// What was measured in each step of time, oldest first.
    steps: VecDeque<(Instant, Sketches)>,
    histograms: [Histogram; HOPS.len()],
}

impl Topics {
    fn note(&mut self, name: &str, hops: &[Option<Took>; HOPS.len()], events: u64, now: Instant) {
        let known = self.0.contains_key(name) || self.0.len() < MAX_TOPICS;
        let name = if known { name } else { OTHERS };
        let topic = self.0.entry(name.to_owned()).or_insert_with(|| Topic::new(name));
        topic.forget(now);
        if topic.steps.back().is_none_or(|(begin, _)| now.saturating_duration_since(*begin) >= STEP) {
            topic.steps.push_back((now, Sketches::default()));
        }
        let Some((_, sketches)) = topic.steps.back_mut() else { return };
        for (index, (sketch, took)) in sketches.iter_mut().zip(hops).enumerate() {
            let Some(took) = took else { continue };
            sketch.add(took.micros, events);
            topic.histograms[index].record(took.micros as f64 / 1e6);
            if took.skewed {
                sketch.add_skewed(events);
                let hop = HOPS[index].1;
                counter!(metric::FRESHNESS_SKEWED_EVENTS, "topic" => name.to_owned(), "hop" => hop).increment(events);
            }
        }
    }
}

impl Topic {
    fn new(name: &str) -> Self {
        let histogram = |(_, hop)| histogram!(metric::FRESHNESS_SECONDS, "topic" => name.to_owned(), "hop" => hop);
        Self { steps: VecDeque::new(), histograms: HOPS.map(histogram) }
    }

    fn forget(&mut self, now: Instant) {
        while self.steps.front().is_some_and(|(begin, _)| now.saturating_duration_since(*begin) >= WINDOW + STEP) {
            self.steps.pop_front();
        }
    }
}

impl Freshness {
    fn lock(&self) -> std::sync::MutexGuard<'_, Topics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was measured within the window.
    pub(crate) fn measured(&self) -> Measured {
        let (mut topics, mut measured) = (self.lock(), Measured::default());
        let now = Instant::now();
        for (name, topic) in &mut topics.0 {
            topic.forget(now);
            topic.steps.iter().for_each(|(_, sketches)| measured.add(name, sketches));
        }
        measured
    }
}

/// What one worker or several have measured, by topic.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured(BTreeMap<String, Sketches>);

impl Measured {
    fn add(&mut self, topic: &str, sketches: &Sketches) {
        let sums = self.0.entry(topic.to_owned()).or_default();
        sums.iter_mut().zip(sketches).for_each(|(sum, sketch)| sum.merge(sketch));
    }

    /// Adds what another worker has measured.
    pub(crate) fn hear(&mut self, told: proto::GetFreshnessResponse) {
        for topic in told.topics {
            let mut sketches = Sketches::default();
            for hop in topic.hops {
                let Some(index) = HOPS.iter().position(|(known, _)| *known == hop.hop()) else { continue };
                let longest = hop.max.as_ref().and_then(std_duration).unwrap_or_default().as_micros();
                let buckets = hop.bucket_micros.into_iter().zip(hop.bucket_events);
                sketches[index] = Sketch::of(buckets, longest.try_into().unwrap_or(u64::MAX), hop.skewed_events);
            }
            self.add(&topic.topic, &sketches);
        }
    }

    /// The hops of a topic of which anything is known; with their buckets, so that another worker can add them to its own.
    pub(crate) fn tell(&self, topic: &str, with_buckets: bool) -> proto::TopicFreshness {
        let known = self.0.get(topic).into_iter().flatten().zip(HOPS);
        let hops = known.filter(|(sketch, _)| sketch.events() > 0).map(|(sketch, (hop, _))| {
            let time = |micros| Some(duration(Duration::from_micros(micros)));
            let (bucket_micros, bucket_events) =
                if with_buckets { sketch.buckets().unzip() } else { Default::default() };
            proto::HopFreshness {
                hop: hop.into(),
                events: sketch.events(),
                p50: time(sketch.quantile(0.5)),
                p99: time(sketch.quantile(0.99)),
                max: time(sketch.longest()),
                skewed_events: sketch.skewed(),
                bucket_micros,
                bucket_events,
            }
        });
        proto::TopicFreshness { topic: topic.to_owned(), hops: hops.collect() }
    }

    /// The topics of which anything is known.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests;
