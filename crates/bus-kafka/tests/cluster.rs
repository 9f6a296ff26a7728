//! Three brokers, of which one is killed, and then another.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "these are tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{at, bus, check_stored, record, soon, topic, write};
use logmesh_bus::{Bus, NextOffset};
use logmesh_testing::Folder;
use logmesh_testing::servers::{self, Server};
use logmesh_types::unit::Span;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;

/// Three ready nodes. Their own defaults are those of a bare Kafka.
fn start(config: &str) -> Vec<Server> {
    let mut nodes = servers::Kafka::spawn_nodes(3, &[("KAFKA_CONFIG", config)]);
    nodes.iter_mut().for_each(Server::wait_ready);
    nodes
}

async fn kill(mut node: Server) -> Server {
    let kill = move || {
        node.kill();
        node
    };
    tokio::task::spawn_blocking(kill).await.unwrap()
}

/// How many copies the topic has, and how many of them must have a record.
async fn copies(address: &str, topic: &str) -> (usize, String) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", address).create().unwrap();
    let answer = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new()).await.unwrap();
    let min = answer[0].as_ref().unwrap().get("min.insync.replicas").unwrap().value.clone().unwrap();
    let metadata = admin.inner().fetch_metadata(Some(topic), common::PATIENCE).unwrap();
    (metadata.topics()[0].partitions()[0].replicas().len(), min)
}

/// With three copies, two of them needed, as topics get them if nothing is set: a killed broker costs nothing; with two killed, appends fail in bounded time,
/// and work again when they are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_without_one_and_waits_without_two() {
    let folder = Folder::new();
    let config = folder.join("server.properties");
    std::fs::write(&config, "default.replication.factor=1\nmin.insync.replicas=1\n").unwrap();
    let config = config.display().to_string();
    let mut nodes = tokio::task::spawn_blocking(move || start(&config)).await.unwrap();
    let addresses: Vec<_> = nodes.iter().map(Server::address).collect();
    let open = |delivery: u64| {
        bus(&addresses[0], |settings| {
            settings.brokers = addresses.clone();
            settings.delivery_timeout = Span(Duration::from_secs(delivery));
        })
    };
    let bus = Arc::new(open(120));
    let topic = topic(&bus, "t", 3).await;
    assert_eq!(copies(&addresses[0], "t").await, (3, "2".to_owned()));
    let stop = Arc::new(AtomicBool::new(false));
    let keys = ["a", "b", "c", "d", "e"];
    let writers: Vec<_> = keys
        .map(|key| {
            let (bus, topic, stop) = (Arc::clone(&bus), topic.clone(), Arc::clone(&stop));
            tokio::spawn(async move { write(&bus, &topic, key, &stop).await })
        })
        .into();
    let more = |count: u64| {
        let (bus, topic) = (Arc::clone(&bus), topic.clone());
        async move {
            for place in (0..3).map(|partition| at(&topic, partition)) {
                let end = Instant::now() + common::PATIENCE;
                let high = loop {
                    match bus.watermarks(&place).await {
                        Ok(marks) => break marks.high.0,
                        Err(error) => assert!(error.retryable() && Instant::now() < end, "{error}"),
                    }
                };
                // Nobody may write to this partition.
                if high > 0 {
                    soon("more records", bus.wait(&place, NextOffset(high + count), common::PATIENCE)).await.ok();
                }
            }
        }
    };
    more(300).await;
    let first = kill(nodes.pop().unwrap()).await;
    more(300).await;
    stop.store(true, Ordering::Relaxed);
    for (writer, key) in writers.into_iter().zip(keys) {
        let (stored, failed) = soon("writing", writer).await.unwrap();
        assert_eq!(failed, 0, "an append failed though two of three were there");
        assert_eq!(check_stored(&bus, &topic, key, &stored).await, stored.len(), "doubled");
    }

    let hasty = open(5);
    let mut gone = [first, kill(nodes.pop().unwrap()).await];
    let append = async {
        let append = hasty.append(&topic, record("a", "last")).await?;
        append.await
    };
    let error = soon("a failure", append).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    let _back = tokio::task::spawn_blocking(move || {
        gone.iter_mut().for_each(Server::spawn_again);
        gone.iter_mut().for_each(Server::wait_ready);
        gone
    })
    .await
    .unwrap();
    let end = Instant::now() + common::PATIENCE;
    loop {
        match hasty.append(&topic, record("a", "last")).await {
            Ok(append) => match append.await {
                Ok(_) => break,
                Err(error) => assert!(error.retryable() && Instant::now() < end, "{error}"),
            },
            Err(error) => assert!(error.retryable() && Instant::now() < end, "{error}"),
        }
    }
}
