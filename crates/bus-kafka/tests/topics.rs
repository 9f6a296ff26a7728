//! Topics as Kafka has them: what is set on them, and what others made.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{at, bus, noise, read_all, record, topic};
use logmesh_bus::{Bus, BusError, Cleanup, NewRecord, TopicSpec};
use logmesh_testing::servers;
use logmesh_types::UnixNanos;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;

const DAY: Duration = Duration::from_secs(86_400);

async fn address() -> String {
    tokio::task::spawn_blocking(servers::kafka).await.unwrap().address()
}

fn admin(address: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", address).create().unwrap()
}

/// What is set on the topic itself.
async fn set_on(admin: &AdminClient<DefaultClientContext>, topic: &str) -> HashMap<String, String> {
    let answer = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new()).await.unwrap();
    let entries = answer.into_iter().next().unwrap().unwrap().entries;
    let set = entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
    set.map(|entry| (entry.name, entry.value.unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_retention_keeps_what_else_is_set() {
    let address = address().await;
    let bus = bus(&address, |settings| settings.min_in_sync = Some(1));
    let name = topic(&bus, "kept", 2).await;
    let before = set_on(&admin(&address), "kept").await;
    assert_eq!((before["retention.ms"].as_str(), before["retention.bytes"].as_str()), ("-1", "-1"));
    assert_eq!((before["min.insync.replicas"].as_str(), before["compression.type"].as_str()), ("1", "producer"));
    let cleanup = Cleanup::Delete { max_age: Some(DAY), max_bytes: Some(1 << 30) };
    bus.ensure_topic(&TopicSpec { name, partitions: 2, cleanup }).await.unwrap();
    // A broker hears of a change a little after the controller has taken it.
    let changed = async {
        loop {
            let after = set_on(&admin(&address), "kept").await;
            if after["retention.ms"] != "-1" {
                return after;
            }
        }
    };
    let after = common::soon("the change", changed).await;
    assert_eq!((after["retention.ms"].as_str(), after["retention.bytes"].as_str()), ("86400000", "1073741824"));
    for (key, value) in before.iter().filter(|(key, _)| !key.starts_with("retention.")) {
        assert_eq!(&after[key], value, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_shows_removals_for_a_day() {
    let address = address().await;
    let bus = bus(&address, |_| {});
    let spec = TopicSpec { name: "t.books".parse().unwrap(), partitions: 1, cleanup: Cleanup::Compact };
    bus.ensure_topic(&spec).await.unwrap();
    assert_eq!(bus.topic(&spec.name).await.unwrap(), Some(spec));
    let set = set_on(&admin(&address), "t.books").await;
    assert_eq!((set["cleanup.policy"].as_str(), set["delete.retention.ms"].as_str()), ("compact", "86400000"));
}

/// What others made with names that ours can't have is passed over; a topic that compacts and deletes loses records by
/// age, so it isn't a compacted one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_others_are_read_as_they_are() {
    let address = address().await;
    let bus = bus(&address, |_| {});
    let both = NewTopic::new("both", 1, TopicReplication::Fixed(1))
        .set("cleanup.policy", "compact,delete")
        .set("retention.ms", "86400000");
    let capital = NewTopic::new("Capital", 1, TopicReplication::Fixed(1));
    admin(&address).create_topics([&both, &capital], &AdminOptions::new()).await.unwrap();
    let cleanup = Cleanup::Delete { max_age: Some(DAY), max_bytes: None };
    let spec = TopicSpec { name: "both".parse().unwrap(), partitions: 1, cleanup };
    let seen = async {
        loop {
            let all = bus.topics().await.unwrap();
            if all.contains(&spec) {
                return all;
            }
        }
    };
    let all = common::soon("the topic as it was made", seen).await;
    assert!(all.iter().all(|spec| !spec.name.as_str().starts_with("__")));
    let error = bus.ensure_topic(&TopicSpec { cleanup: Cleanup::Compact, ..spec }).await.unwrap_err();
    assert!(matches!(error, BusError::TopicDiffers { .. }), "{error}");
}

/// A topic that another has made with room for small records only takes large ones as soon as it is ensured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_another_gets_room_for_large_records() {
    let address = address().await;
    let bus = bus(&address, |_| {});
    let narrow = NewTopic::new("narrow", 1, TopicReplication::Fixed(1))
        .set("max.message.bytes", "1048576")
        .set("segment.ms", "3600000");
    admin(&address).create_topics([&narrow], &AdminOptions::new()).await.unwrap();
    let name = topic(&bus, "narrow", 1).await;
    let set = set_on(&admin(&address), "narrow").await;
    assert_eq!(set["segment.ms"], "3600000");
    bus.append(&name, record("k", noise(4 << 20, 1))).await.unwrap().await.unwrap();
}

/// Kafka takes `.` and `_` for the same in names: a matter for whoever names topics, not for trying again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_kafka_takes_for_another_is_refused() {
    let bus = bus(&address().await, |_| {});
    topic(&bus, "web.access", 1).await;
    let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
    let spec = TopicSpec { name: "web_access".parse().unwrap(), partitions: 1, cleanup };
    let error = bus.ensure_topic(&spec).await.unwrap_err();
    assert!(matches!(error, BusError::TopicDiffers { .. }), "{error}");
}

/// A gateway whose clock is days ahead, or years behind, loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_wrong_stop_nothing() {
    let bus = bus(&address().await, |_| {});
    let topic = topic(&bus, "clocks", 1).await;
    let ahead = UnixNanos(UnixNanos::now().0 + 100 * DAY.as_nanos() as i64);
    for time in [ahead, UnixNanos(1_000_000)] {
        let record = NewRecord { timestamp: Some(time), ..record("k", "v") };
        bus.append(&topic, record).await.unwrap().await.unwrap();
    }
    assert_eq!(read_all(&bus, &at(&topic, 0)).await.len(), 2);
}

/// Removed by an operator, a topic is unknown, and known again when it is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_topic_is_noticed() {
    let address = address().await;
    let bus = bus(&address, |settings| settings.delivery_timeout.0 = Duration::from_secs(10));
    let name = topic(&bus, "removed", 2).await;
    bus.append(&name, record("k", "v")).await.unwrap().await.unwrap();
    admin(&address).delete_topics(&["removed"], &AdminOptions::new()).await.unwrap();
    let gone = async { while bus.topic(&name).await.unwrap().is_some() {} };
    common::soon("the topic to be gone", gone).await;
    let error = match bus.append(&name, record("k", "v")).await {
        Ok(append) => append.await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, BusError::UnknownPartition { .. }), "{error}");
    topic(&bus, "removed", 1).await;
    let again = async {
        loop {
            match bus.append(&name, record("k", "v")).await.unwrap().await {
                Ok(position) => return position,
                Err(error) => assert!(error.retryable() || matches!(error, BusError::UnknownPartition { .. })),
            }
        }
    };
    assert_eq!(common::soon("an append", again).await.partition, 0);
}
