//! Somebody removes topics of the mesh's own from Kafka: the books of a topic, and its dead letters. They are made again, nothing is
//! doubled, and what was only in them is named and comes back.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::cluster;
use logmesh_integration_tests::program::Done;
use logmesh_integration_tests::{Cluster, PATIENCE, grpcurl};
use logmesh_testing::wait_for;
use logmesh_types::UnixNanos;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Message, Offset, TopicPartitionList};

/// Streams that no agent knows.
const QUIET: &str = "217a55e0e277d86e24b960c80282a1c5";
const ASTRAY: &str = "00112233445566778899aabbccddeeff";

const WORKERS: [&str; 2] = ["transfer-1", "transfer-2"];

fn ago(days: i64) -> UnixNanos {
    UnixNanos(UnixNanos::now().0 - days * 86_400_000_000_000)
}

/// Removes topics.
fn remove(kafka: &str, topics: &[&str]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka).create().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let removed = runtime.block_on(admin.delete_topics(topics, &AdminOptions::new())).unwrap();
    removed.into_iter().for_each(|topic| drop(topic.unwrap()));
}

fn until_gone(kafka: &str, topic: &str) {
    let asking: BaseConsumer = ClientConfig::new().set("bootstrap.servers", kafka).create().unwrap();
    wait_for("a topic to be gone", PATIENCE, || {
        let metadata = asking.fetch_metadata(None, Duration::from_secs(10)).map_err(|error| error.to_string())?;
        if metadata.topics().iter().any(|one| one.name() == topic) { Err("it's there".to_owned()) } else { Ok(()) }
    });
}

fn lines(from: usize) -> String {
    (from..from + 100).map(|line| format!("line {line}\n")).collect()
}

fn append(cluster: &Cluster, from: usize) {
    let mut log = std::fs::File::options().create(true).append(true).open(cluster.log("app.log")).unwrap();
    log.write_all(lines(from).as_bytes()).unwrap();
}

/// Waits until the command says this, and ends so.
fn until_says(cluster: &Cluster, args: &[&str], code: i32, text: &str) -> Done {
    wait_for(&format!("{args:?} to say {text:?}"), PATIENCE, || {
        let done = cluster.client().run(args);
        if done.code == Some(code) && done.stdout.contains(text) { Ok(done) } else { Err(format!("{done:?}")) }
    })
}

/// A mesh with lines of an agent, lines that come by hand, and a dead letter of a host whose clock is behind.
fn with_a_letter() -> Cluster {
    let mut cluster = Cluster::new(
        "[topics.default]\nindex_retention = \"3d\"\n[transfer]\nretention_interval = \"1s\"\n[config]\nendpoint_ttl = \"3s\"\n",
    );
    cluster.start();
    let file = cluster.folder.join("rule.yaml");
    std::fs::write(&file, cluster::rule("all", &[&cluster.log("*.log")])).unwrap();
    cluster.client().run(&["rules", "apply", "-f", file.to_str().unwrap(), "--wait", "30s"]).expect(0);
    append(&cluster, 0);
    grpcurl::push(&cluster.grpc("gateway-1"), QUIET, 0, "still\nhere\n", ago(0));
    cluster.client().wait_count("*", 102);
    until_says(&cluster, &["status", "--json"], 0, "retired_before\":{\"logs\"");
    grpcurl::push(&cluster.grpc("gateway-1"), ASTRAY, 0, "astray\n", ago(9));
    until_says(&cluster, &["deadletters", "list"], 0, "by the clock of agent 'web-1'");
    cluster
}

#[test]
fn what_is_removed_comes_back_and_nothing_is_lost_or_doubled() {
    let mut cluster = with_a_letter();
    let kafka = cluster.backend("kafka").address();

    // While workers run: they know what was in the books, and nobody knows what was in the letters.
    remove(&kafka, &["logs.books", "logs.dead"]);
    append(&cluster, 100);
    cluster.client().wait_count("*", 202);
    let audit = until_says(&cluster, &["audit"], 1, "3 streams, 202 documents: 1 stream with faults, 1 gap, 0 doubles");
    assert!(audit.stdout.contains("booked as indexed, and no document holds it"), "{audit:?}");
    until_says(&cluster, &["audit", "--repair"], 0, "7 B in the dead letters");
    until_says(&cluster, &["deadletters", "list"], 0, "by the clock of agent 'web-1'");
    cluster.client().wait_ready();

    // While none runs, nobody knows what was in the books. What comes again on another day is found by its id.
    WORKERS.iter().for_each(|name| cluster.stop(name));
    remove(&kafka, &["logs.books"]);
    until_gone(&kafka, "logs.books");
    grpcurl::push(&cluster.grpc("gateway-1"), QUIET, 0, "still\nhere\nmore\n", ago(1));
    append(&cluster, 200);
    WORKERS.iter().for_each(|name| cluster.spawn(name));
    cluster.client().wait_ready();
    cluster.client().wait_count("*", 303);
    cluster.client().wait_count("more", 1);
    until_says(&cluster, &["audit", "--repair"], 0, "no gap, no double");
    wait_for("the letter to be redriven", PATIENCE, || {
        let done = cluster.client().run(&["deadletters", "redrive", "--topic", "logs"]);
        // One that was sent goes through though the call failed.
        let sent = done.code == Some(0) || done.stderr.contains("has no dead letter");
        if sent { Ok(()) } else { Err(format!("{done:?}")) }
    });
    cluster.client().wait_count("astray", 1);
    cluster.client().audit();
    assert_eq!(cluster.client().count("*"), 304);
    assert!(WORKERS.iter().any(|name| cluster.said(name).contains("somebody removed a topic of the mesh's")));
    let streams = json_lines(&cluster.client().run(&["audit", "--json"]).expect(0).stdout);
    assert!(streams.iter().all(|one| one["clean"] == true), "{streams:?}");
    cluster.assert_alive();
}

/// What `logmesh.jobs` says of the books of topic `logs`, by key.
fn kept(kafka: &str) -> BTreeMap<String, String> {
    let reading: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", kafka).set("group.id", "test").create().unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset("logmesh.jobs", 0, Offset::Beginning).unwrap();
    reading.assign(&from).unwrap();
    let (_, end) = reading.fetch_watermarks("logmesh.jobs", 0, PATIENCE).unwrap();
    let mut kept = BTreeMap::new();
    loop {
        let record = reading.poll(PATIENCE).unwrap().unwrap();
        let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
        let (key, value) = (text(record.key()), text(record.payload()));
        match (key.starts_with("books/logs/"), value.is_empty()) {
            (true, false) => drop(kept.insert(key, value)),
            (true, true) => drop(kept.remove(&key)),
            (false, _) => {}
        }
        if record.offset() + 1 == end {
            return kept;
        }
    }
}

fn until_kept(kafka: &str, says: &str) -> Vec<String> {
    wait_for(&format!("all that is kept of books to say {says}"), PATIENCE, || match kept(kafka) {
        kept if !kept.is_empty() && kept.values().all(|value| value.contains(says)) => Ok(kept.into_keys().collect()),
        kept => Err(format!("{kept:?}")),
    })
}

/// As docs/operations.md has it.
#[test]
fn a_topic_that_is_removed_with_all_beside_it_begins_anew_when_somebody_says_so() {
    let mut cluster = Cluster::started();
    let kafka = cluster.backend("kafka").address();
    grpcurl::push(&cluster.grpc("gateway-1"), QUIET, 0, "still\nhere\n", ago(0));
    cluster.client().wait_count("*", 2);
    until_kept(&kafka, "\"lost\":false");

    WORKERS.iter().for_each(|name| cluster.stop(name));
    let topics = ["logs", "logs.books", "logs.dead"];
    remove(&kafka, &topics);
    topics.iter().for_each(|topic| until_gone(&kafka, topic));
    grpcurl::push(&cluster.grpc("gateway-1"), QUIET, 0, "still\nhere\n", ago(1));
    WORKERS.iter().for_each(|name| cluster.spawn(name));
    let lost = until_kept(&kafka, "\"lost\":true");
    // Without a book of it there would be no stream, and nothing wrong either.
    until_says(&cluster, &["audit"], 0, "1 stream, 2 documents: no gap, no double");
    assert_eq!(cluster.client().count("*"), 2, "it came on another day, and was looked up");

    WORKERS.iter().for_each(|name| cluster.stop(name));
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &kafka).create().unwrap();
    for key in &lost {
        producer.send(BaseRecord::to("logmesh.jobs").key(key).payload("")).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    WORKERS.iter().for_each(|name| cluster.spawn(name));
    until_kept(&kafka, "\"lost\":false");
    grpcurl::push(&cluster.grpc("gateway-1"), QUIET, 11, "more\n", ago(0));
    cluster.client().wait_count("*", 3);
    cluster.client().audit();
    cluster.assert_alive();
}
