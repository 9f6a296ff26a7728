use bytes::Bytes;
use logmesh_bus::{NewRecord, Offset};
use logmesh_record::codec;

use super::*;

const SECOND: i64 = 1_000_000_000;

fn record(times: Times, seconds: i64) -> Record {
    let mut record = NewRecord::default();
    times.stamp(&mut record);
    let NewRecord { key, value, headers, .. } = record;
    Record { offset: Offset(0), timestamp: at(seconds).unwrap(), key, value, headers }
}

fn sample(samples: &mut Samples, record: &Record, taken: UnixNanos) -> Option<usize> {
    samples.of(&place(), record, &Found::of(record), taken)
}

fn at(seconds: i64) -> Option<UnixNanos> {
    Some(UnixNanos(seconds * SECOND))
}

fn place() -> Arc<TopicPartition> {
    Arc::new(TopicPartition { topic: "logs".parse().unwrap(), partition: 0 })
}

/// Seconds of each hop of a record with these times that was on the bus at 5, taken at 7 and stored at 8.
fn seconds(written: Option<UnixNanos>, read: Option<UnixNanos>, received: Option<UnixNanos>) -> [Option<u64>; 6] {
    let mut samples = Samples::default();
    sample(&mut samples, &record(Times { written, read, received }, 5), UnixNanos(7 * SECOND));
    hops(&samples.list[0], UnixNanos(8 * SECOND)).map(|hop| hop.map(|took| took.micros / 1_000_000))
}

#[test]
fn each_hop_is_told_where_both_its_ends_are_known() {
    assert_eq!(seconds(at(1), at(3), at(4)), [Some(2), Some(1), Some(1), Some(2), Some(1), Some(7)]);
    assert_eq!(seconds(None, at(3), at(4)), [None, Some(1), Some(1), Some(2), Some(1), Some(5)]);
    assert_eq!(seconds(None, None, at(4)), [None, None, Some(1), Some(2), Some(1), Some(4)], "a client's");
    assert_eq!(seconds(None, None, None), [None, None, None, Some(2), Some(1), None], "a stranger's");
}

#[test]
fn a_clock_that_is_ahead_or_mad_makes_no_hop_negative() {
    assert_eq!(seconds(at(50), at(60), at(4)), [Some(10), Some(0), Some(1), Some(2), Some(1), Some(14)]);
    let mad = Some(UnixNanos(i64::MIN));
    seconds(mad, Some(UnixNanos(i64::MAX)), mad);
    let mut samples = Samples::default();
    sample(&mut samples, &record(Times { written: None, read: at(60), received: at(4) }, 4), UnixNanos(4 * SECOND));
    let [_, skewed, even, ..] = hops(&samples.list[0], UnixNanos(4 * SECOND));
    assert!(skewed.unwrap().skewed && !even.unwrap().skewed);
}

#[test]
fn what_was_on_the_bus_before_is_left_out_and_what_came_together_is_one_sample() {
    let (mut samples, taken) = (Samples::default(), UnixNanos(7 * SECOND));
    let plain = record(Times::of_event(UnixNanos(4 * SECOND)), 5);
    for name in [codec::REPEATED, codec::REDRIVE] {
        let mut again = plain.clone();
        again.headers.push((name.into(), Bytes::from_static(b"x")));
        assert_eq!(sample(&mut samples, &again, taken), None, "{name}");
    }
    assert_eq!(sample(&mut samples, &plain, taken), Some(0));
    let near = Record { timestamp: UnixNanos(plain.timestamp.0 + 900_000), ..plain.clone() };
    assert_eq!(sample(&mut samples, &near, taken), Some(0));
    assert_eq!(sample(&mut samples, &plain, UnixNanos(8 * SECOND)), Some(1));
    let other = record(Times::of_event(UnixNanos(3 * SECOND)), 5);
    assert_eq!(sample(&mut samples, &other, UnixNanos(8 * SECOND)), Some(2));
    assert_eq!(samples.list[2].times.received, at(3));
}

#[tokio::test]
async fn only_what_is_new_counts_and_a_worker_s_answer_adds_up() {
    let (freshness, mut samples) = (Freshness::default(), Samples::default());
    let sample = sample(&mut samples, &record(Times::of_event(UnixNanos(4 * SECOND)), 5), UnixNanos::now());
    samples.stored(&freshness);
    assert_eq!(freshness.measured(), Measured::default(), "nothing was created");
    (0..3).for_each(|_| samples.created(sample));
    samples.created(None);
    samples.stored(&freshness);
    samples.stored(&freshness);
    let mut sum = freshness.measured();
    let own = sum.tell("logs", true);
    let events: Vec<(Hop, u64)> = own.hops.iter().map(|hop| (hop.hop(), hop.events)).collect();
    let known = [Hop::GatewayToBus, Hop::BusToTransfer, Hop::TransferToIndex, Hop::Total];
    assert_eq!(events, known.map(|hop| (hop, 3)));
    let p50: std::time::Duration = own.hops[0].p50.unwrap().try_into().unwrap();
    assert!((p50.as_secs_f64() - 1.0).abs() < 1.0 / 32.0, "{p50:?}");
    sum.hear(proto::GetFreshnessResponse { topics: vec![own], ..Default::default() });
    let both = sum.tell("logs", false);
    assert!(both.hops.iter().all(|hop| hop.events == 6 && hop.bucket_micros.is_empty()), "{both:?}");
    assert!(sum.tell("other", true).hops.is_empty());
}

#[test]
fn old_steps_and_too_many_topics_are_bounded() {
    let mut topics = Topics::default();
    let (begin, took) = (Instant::now(), [Some(Took { micros: 5, skewed: false }); HOPS.len()]);
    for step in 0..200 {
        topics.note("logs", &took, 1, begin + STEP * step);
    }
    let steps = topics.0["logs"].steps.len() as u64;
    assert!(steps <= 1 + (WINDOW + STEP).as_secs() / STEP.as_secs(), "{steps}");
    for number in 0..2 * MAX_TOPICS {
        topics.note(&format!("topic-{number}"), &took, 1, begin);
    }
    assert_eq!(topics.0.len(), MAX_TOPICS + 1);
    assert_eq!(topics.0[OTHERS].steps[0].1[TOTAL].events() as usize, 1 + MAX_TOPICS);
}
