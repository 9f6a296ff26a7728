//! The producer against librdkafka's simulated cluster, and a broker whose every move is set.

#![allow(clippy::disallowed_methods, reason = "these are tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use logmesh_bus::NewRecord;
use logmesh_types::unit::Span;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::sync::Notify;

use super::*;
use broker::{Act, Broker};

mod broker;

fn record(value: &str) -> NewRecord {
    NewRecord { key: "k".into(), value: value.to_owned().into(), ..NewRecord::default() }
}

/// A value that is told apart by its number, and so many bytes long at least.
fn filled(number: usize, bytes: usize) -> String {
    format!("#{number}{}", "x".repeat(bytes))
}

fn partition(partition: u32) -> TopicPartition {
    TopicPartition { topic: "t".parse().unwrap(), partition }
}

/// A producer for a topic on a simulated cluster, whose errors can be chosen.
fn simulated<'c>(brokers: i32) -> (MockCluster<'c, DefaultProducerContext>, Producer, TopicPartition) {
    let cluster = MockCluster::new(brokers).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    let settings = Settings {
        brokers: cluster.bootstrap_servers().split(',').map(str::to_owned).collect(),
        client: BTreeMap::new(),
        ..Settings::default()
    };
    let producer = Producer::new(&Arc::new(settings));
    (cluster, producer, partition(0))
}

async fn append(producer: &Producer, at: &TopicPartition, value: &str) -> Result<Position, BusError> {
    producer.append(at.clone(), &[(&record(value)).into()]).await.await
}

/// What is appended now, and has an outcome later.
async fn begin(producer: &Producer, partition_number: u32, value: &str) -> Append {
    producer.append(partition(partition_number), &[(&record(value)).into()]).await
}

/// Many records fall into groups and batches, and their one outcome is that of all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_appended_together_have_one_outcome() {
    let (cluster, producer, at) = simulated(1);
    let room = producer.room.available_permits();
    let (large, larger) = (record(&"x".repeat(300_000)), record(&"x".repeat(2 << 20)));
    let records = [RecordRef::from(&large); 10];
    assert_eq!((group_len(&records), group_len(&records[..2])), (3, 2));
    assert_eq!(group_len(&[(&larger).into(), (&large).into()]), 1);
    let stored = producer.append(at.clone(), &records).await;
    assert_eq!(stored.await.unwrap(), Position { partition: 0, offset: Offset(9) });
    assert_eq!(producer.room.available_permits(), room, "the room is given back");

    // One that can never be stored, among others: they are stored, and it's the outcome of all.
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED];
    cluster.request_errors(RDKafkaApiKey::Produce, &refused);
    let error = producer.append(at.clone(), &records).await.await.unwrap_err();
    assert!(matches!(error, BusError::Refused { .. }), "{error}");
    assert_eq!(producer.room.available_permits(), room);
    let nothing = producer.append(at.clone(), &[]).await.await;
    assert!(nothing.unwrap_err().retryable());
}

/// Kafka says that it has the record, and not where: it is appended again rather than believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_without_a_place_is_not_stored() {
    let (cluster, producer, at) = simulated(1);
    append(&producer, &at, "0").await.unwrap();
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
    let error = append(&producer, &at, "1").await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("not where"), "{error}");
    append(&producer, &at, "1").await.unwrap();
}

/// What passes is waited for, and no batch overtakes one that is tried again; nothing is stored twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_errors_cost_nothing_but_time() {
    use RDKafkaRespErr::*;
    let (cluster, producer, at) = simulated(1);
    let passing = [
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        RD_KAFKA_RESP_ERR_INVALID_MSG,
        RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RD_KAFKA_RESP_ERR__TRANSPORT, // the connection is closed
    ];
    for (round, error) in passing.into_iter().enumerate() {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        let appends = [begin(&producer, 0, "first").await, begin(&producer, 0, "second").await];
        for (index, append) in appends.into_iter().enumerate() {
            let offset = Offset((2 * round + index) as u64);
            assert_eq!(append.await.unwrap(), Position { partition: 0, offset }, "{error:?}");
        }
    }
    // The same of questions that come before any batch.
    let other = Producer::new(&producer.settings);
    cluster.request_errors(RDKafkaApiKey::Metadata, &[RD_KAFKA_RESP_ERR__TRANSPORT]);
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS]);
    let offset = Offset(2 * passing.len() as u64);
    assert_eq!(append(&other, &at, "last").await.unwrap(), Position { partition: 0, offset });
}

/// What is final is told to all that are in the batch, and the next one is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn final_errors_are_those_of_all_records_of_the_batch() {
    use RDKafkaRespErr::*;
    let (cluster, producer, at) = simulated(1);
    let (size, refused) = ("too large", "refused");
    let errors = [
        (RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, size),
        (RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, refused),
        (RD_KAFKA_RESP_ERR_POLICY_VIOLATION, refused),
        (RD_KAFKA_RESP_ERR_INVALID_RECORD, refused),
        (RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, "retryable"),
        (RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, "retryable"),
        (RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, "retryable"),
        (RD_KAFKA_RESP_ERR_PRODUCER_FENCED, "retryable"),
    ];
    for (round, (error, wanted)) in errors.into_iter().enumerate() {
        cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
        // In one batch: they are appended in one call.
        let got = producer.append(at.clone(), &[(&record("a")).into(), (&record("b")).into()]).await.await.unwrap_err();
        let kind = match &got {
            BusError::RecordTooLarge { size: 2, .. } => size,
            BusError::Refused { .. } => refused,
            BusError::Unavailable { .. } => "retryable",
            _ => "other",
        };
        assert_eq!(kind, wanted, "{got}");
        let next = append(&producer, &at, "next").await.unwrap();
        assert_eq!(next.offset, Offset(round as u64), "none of the batch is stored");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_does_not_know_is_unknown_after_a_while() {
    let (_cluster, producer, at) = simulated(1);
    let begin = std::time::Instant::now();
    let error = append(&producer, &partition(7), "x").await.unwrap_err();
    assert!(matches!(error, BusError::UnknownPartition { partition: 7, .. }), "{error}");
    assert!(begin.elapsed() >= Duration::from_secs(5), "it may be made just now");
    append(&producer, &at, "x").await.unwrap();
}

/// A leader goes, another takes over: the batch finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_is_found() {
    let (cluster, producer, at) = simulated(3);
    for (round, leader) in [1, 2, 3, 1].into_iter().enumerate() {
        cluster.partition_leader("t", 0, Some(leader)).unwrap();
        if round == 3 {
            cluster.broker_down(3).unwrap();
        }
        assert_eq!(append(&producer, &at, "x").await.unwrap().offset, Offset(round as u64));
    }
}

/// The answer is lost, not the batch: it's sent again as it was, and Kafka says where it lies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_does_not_double_a_batch() {
    let broker = Broker::start([Act::Lose]).await;
    let producer = broker.producer(Duration::from_secs(60));
    for offset in 0..3 {
        assert_eq!(append(&producer, &partition(0), "x").await.unwrap().offset, Offset(offset));
    }
    let seen = broker.seen();
    assert_eq!(seen[0].bytes, seen[1].bytes);
    let sequences: Vec<_> = seen.iter().map(|seen| (seen.stamp.epoch, seen.stamp.sequence)).collect();
    assert_eq!(sequences, [(0, 0), (0, 0), (0, 1), (0, 2)]);
}

/// What was given up may still be stored by a broker that thaws, until what replaced it is: that has a new epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_given_up_has_no_ghost() {
    let broker = Broker::start([Act::Say(19), Act::Freeze]).await;
    let producer = broker.producer(Duration::from_secs(1));
    let error = append(&producer, &partition(0), "frozen").await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("not enough in-sync replicas"), "{error}");
    // What comes next waits behind it, until the link is given up as well.
    let again = loop {
        match append(&producer, &partition(0), "again").await {
            Ok(position) => break position,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
    };
    assert_eq!(again.offset, Offset(0));
    assert_eq!(append(&producer, &partition(0), "more").await.unwrap().offset, Offset(1));
    let seen = broker.seen();
    let (frozen, stored) = seen.split_at(2);
    assert!(frozen.iter().all(|seen| (seen.stamp.epoch, seen.stamp.sequence) == (0, 0)), "{frozen:?}");
    assert!(stored[0].stamp.epoch > 0 && stored[0].stamp.sequence == 0, "{stored:?}");
    let last = &stored[stored.len() - 1].stamp;
    assert_eq!((last.epoch, last.sequence), (stored[stored.len() - 2].stamp.epoch, 1));
    // Other partitions have epochs of their own.
    append(&producer, &partition(1), "x").await.unwrap();
    assert_eq!(broker.seen().last().unwrap().stamp.epoch, 0);
}

/// Kafka knows a newer epoch than ours: another producer's number is as good as none used before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_producer_gets_another_number() {
    let broker = Broker::start([Act::Say(0), Act::Say(47)]).await;
    let producer = broker.producer(Duration::from_secs(60));
    for _ in 0..2 {
        assert!(append(&producer, &partition(0), "x").await.unwrap_err().retryable());
    }
    append(&producer, &partition(0), "x").await.unwrap();
    let stamps: Vec<_> = broker.seen().iter().map(|seen| (seen.stamp.producer, seen.stamp.epoch)).collect();
    assert_eq!(stamps, [(1, 0), (1, 1), (2, 0)]);
}

/// While a batch is under way, records gather in the next one, and partitions in the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_gathered() {
    let go = Arc::new(Notify::new());
    let broker = Broker::start([Act::Wait(Arc::clone(&go)), Act::Wait(Arc::clone(&go))]).await;
    let producer = broker.producer(Duration::from_secs(60));
    let mut appends = vec![begin(&producer, 0, "first").await];
    broker.until_seen(1).await;
    appends.push(begin(&producer, 1, "first").await);
    for _ in 0..100 {
        appends.push(begin(&producer, 0, "more").await);
    }
    // The second request lies in the broker's socket; these don't find room in the link.
    for number in 2..6 {
        appends.push(begin(&producer, number, "x").await);
    }
    go.notify_one();
    broker.until_seen(2).await;
    go.notify_one();
    for append in appends {
        append.await.unwrap();
    }
    let seen = broker.seen();
    let of_first: Vec<_> = seen.iter().filter(|seen| seen.partition == 0).map(|seen| seen.count).collect();
    assert_eq!(of_first, [1, 100]);
    assert!(seen.last().unwrap().request < seen.len() - 1, "no request has two batches: {seen:?}");
}

/// The next batch is on its way before the one ahead of it is answered, but for the first: nothing proves that it won't be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_under_way_together() {
    let go = Arc::new(Notify::new());
    let broker = Broker::start([Act::Wait(Arc::clone(&go)), Act::WaitForNext]).await;
    let producer = broker.producer(Duration::from_secs(60));
    let mut appends = Vec::new();
    for number in 0..4 {
        appends.push(begin(&producer, 0, &filled(number, 600_000)).await);
    }
    broker.until_seen(1).await;
    go.notify_one();
    for (number, append) in appends.into_iter().enumerate() {
        assert_eq!(append.await.unwrap().offset, Offset(number as u64));
    }
    let sequences: Vec<_> = broker.seen().iter().map(|seen| (seen.request, seen.stamp.sequence)).collect();
    assert_eq!(sequences, [(0, 0), (1, 1), (2, 2), (3, 3)], "one of a partition in each request, and each once");
}

/// Batches of busy partitions share requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_busy_partitions_share_requests() {
    let go = Arc::new(Notify::new());
    let broker = Broker::start([Act::Wait(Arc::clone(&go)), Act::WaitForNext, Act::Wait(Arc::clone(&go))]).await;
    let producer = broker.producer(Duration::from_secs(60));
    // The first round proves the partitions' numbers, the second lies in a request while the third and fourth are handed over.
    let mut appends = Vec::new();
    for number in 0..6 {
        for at in 0..3 {
            appends.push(begin(&producer, at, &filled(number, 600_000)).await);
        }
    }
    broker.until_seen(1).await;
    go.notify_one();
    go.notify_one();
    for append in appends {
        append.await.unwrap();
    }
    let seen = broker.seen();
    let requests = seen.last().unwrap().request + 1;
    assert!(requests < 18, "{requests} requests for 18 batches");
    for at in 0..3 {
        let marks: Vec<_> = (0..6).map(|number| filled(number, 0)).collect();
        assert_eq!(broker.records(at), marks);
        let of: Vec<_> = seen.iter().filter(|seen| seen.partition == at).map(|seen| seen.request).collect();
        assert!(of.is_sorted_by(|one, next| one < next), "one of a partition in each request: {of:?}");
    }
}

/// A leader that answers no more while some are under way: the next one is asked for before any is tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_lost_on_the_way_is_asked_for_anew() {
    let go = Arc::new(Notify::new());
    let broker = Broker::start([Act::Wait(Arc::clone(&go)), Act::Say(6)]).await;
    let producer = broker.producer(Duration::from_secs(60));
    let mut appends = Vec::new();
    for number in 0..4 {
        appends.push(begin(&producer, 0, &filled(number, 600_000)).await);
    }
    broker.until_seen(1).await;
    let asked = broker.asked();
    go.notify_one();
    for (number, append) in appends.into_iter().enumerate() {
        assert_eq!(append.await.unwrap().offset, Offset(number as u64));
    }
    assert_eq!(broker.asked(), asked + 1);
    let refused = broker.seen()[1].stamp.sequence;
    assert_eq!(broker.seen().iter().filter(|seen| seen.stamp.sequence == refused).count(), 2, "it is sent once more");
}

/// Whatever a broker does with what is under way: what is said to be stored lies where it's said, in the order of the appends, and,
/// as long as nothing failed, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_whatever_happens() {
    let act = prop_oneof![
        6 => Just(Act::Store),
        1 => Just(Act::Lose),
        1 => Just(Act::Close),
        2 => prop_oneof![Just(3), Just(6), Just(19)].prop_map(Act::Say),
        1 => prop_oneof![Just(7), Just(20)].prop_map(Act::Belie),
        1 => prop_oneof![Just(10), Just(45), Just(46), Just(47), Just(87)].prop_map(Act::Say),
    ];
    let size = prop_oneof![Just(0), Just(600_000), Just(1_100_000)];
    let plan = (vec(act, 0..16), vec(vec(size, 1..4), 1..24));
    let mut runner = TestRunner::deterministic();
    let mut running = JoinSet::new();
    let mut kinds = [0; 2];
    for _ in 0..96 {
        let (acts, appends) = plan.new_tree(&mut runner).unwrap().current();
        running.spawn(async move {
            let broker = Broker::start(acts.clone()).await;
            let producer = broker.producer(Duration::from_secs(60));
            let (mut outcomes, mut count) = (Vec::new(), 0);
            for sizes in appends {
                let records: Vec<_> =
                    sizes.iter().enumerate().map(|(n, size)| record(&filled(count + n, *size))).collect();
                count += records.len();
                let records: Vec<_> = records.iter().map(RecordRef::from).collect();
                outcomes.push((count - 1, producer.append(partition(0), &records).await));
            }
            let (mut acked, mut failures) = (Vec::new(), 0);
            for (last, outcome) in outcomes {
                match outcome.await {
                    Ok(position) => acked.push((position.offset.0 as usize, filled(last, 0))),
                    Err(_) => failures += 1,
                }
            }
            let log = broker.records(0);
            let context = || format!("{acts:?}\n{log:?}\n{acked:?}");
            assert!(acked.is_sorted_by_key(|(offset, _)| *offset), "{}", context());
            assert!(acked.iter().all(|(offset, mark)| log.get(*offset) == Some(mark)), "{}", context());
            let is_final = |act: &Act| matches!(act, Act::Say(10 | 45 | 46 | 47 | 87));
            assert!(failures == 0 || acts.iter().any(is_final), "what passes fails nothing: {}", context());
            if failures == 0 {
                let all: Vec<_> = (0..count).map(|number| filled(number, 0)).collect();
                assert_eq!(log, all, "{acts:?}");
            }
            broker.forget_acts();
            let last = append(&producer, &partition(0), "last").await.unwrap();
            assert_eq!(last.offset.0 as usize, broker.records(0).len() - 1, "it goes on after all of that");
            failures
        });
    }
    while let Some(failures) = running.join_next().await {
        kinds[usize::from(failures.unwrap() > 0)] += 1;
    }
    assert!(kinds.iter().all(|kind| *kind > 10), "both kinds of runs: {kinds:?}");
}

/// Dropping the producer is an outcome for all, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dropped_producer_had_fails() {
    let broker = Broker::start([Act::Freeze]).await;
    let producer = broker.producer(Duration::from_secs(3600));
    let room = Arc::clone(&producer.room);
    let before = room.available_permits();
    let mut appends = vec![begin(&producer, 0, "under way").await];
    broker.until_seen(1).await;
    appends.push(begin(&producer, 0, "waiting").await);
    drop(producer);
    for append in appends {
        assert!(append.await.unwrap_err().to_string().contains("shutting down"));
    }
    assert_eq!(room.available_permits(), before);
}

/// A runtime that ends takes its tasks with it; the producer goes on in another one, with a new epoch.
#[test]
fn a_lane_outlives_its_runtime() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let brokers = runtime();
    let broker = brokers.block_on(Broker::start([Act::Freeze]));
    let producer = broker.producer(Duration::from_secs(60));
    let first = runtime();
    let lost = first.block_on(begin(&producer, 0, "x"));
    first.block_on(broker.until_seen(1));
    drop(first);
    runtime().block_on(async {
        assert!(lost.await.unwrap_err().retryable());
        assert_eq!(append(&producer, &partition(0), "y").await.unwrap().offset, Offset(0));
    });
    assert_eq!(broker.seen()[1].stamp.epoch, 1);
    // Ended before the lane's task has begun.
    let brief = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lost = brief.block_on(begin(&producer, 0, "z"));
    drop(brief);
    runtime().block_on(async {
        assert!(lost.await.unwrap_err().retryable());
        append(&producer, &partition(0), "z").await.unwrap();
    });
}

/// A broker that is cut off from the others goes on telling of a leader that is gone: another one is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_misleads_is_not_asked_for_ever() {
    let (stale, good) = (Broker::start([]).await, Broker::start([]).await);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    stale.mislead(gone.port());
    let brokers = [&stale, &good].map(|broker| format!("127.0.0.1:{}", broker.port)).into();
    let delivery_timeout = Span(Duration::from_secs(20));
    let producer = Producer::new(&Arc::new(Settings { brokers, delivery_timeout, ..Settings::default() }));
    append(&producer, &partition(0), "x").await.unwrap();
    assert_eq!((stale.seen().len(), good.seen().len()), (0, 1));
}

/// Something else answers at that address: it's no crash, and no end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_kafka_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    let delivery_timeout = Span(Duration::from_secs(1));
    let producer =
        Producer::new(&Arc::new(Settings { brokers: vec![address], delivery_timeout, ..Settings::default() }));
    let error = append(&producer, &partition(0), "x").await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("127.0.0.1"), "{error}");
}
