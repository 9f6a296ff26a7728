//! A member of a group that is frozen so long that its partitions go to another, and then goes on.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{at, bus, record, soon, topic};
use logmesh_bus::{Bus, BusError, Event, NextOffset};
use logmesh_testing::servers;
use logmesh_types::TopicName;
use logmesh_types::unit::Span;
use rustix::process::{Pid, Signal, kill_process};

const GROUP: &str = "zombies";

/// Where the frozen member's process finds Kafka; set by the test that starts it.
const ADDRESS: &str = "LOGMESH_TEST_ZOMBIE_OF";

fn open(address: &str) -> logmesh_bus_kafka::KafkaBus {
    bus(address, |settings| settings.session_timeout = Span(Duration::from_secs(6)))
}

/// Ends the child with the test.
struct Zombie(Child);

impl Zombie {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Zombie {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What it commits after the thaw, before it knows what has happened, Kafka refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_frozen_commits_nothing_of_others() {
    let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
    let bus = open(&server.address());
    let topic = topic(&bus, "t", 1).await;
    let place = at(&topic, 0);
    for number in 0..100 {
        bus.append(&topic, record("k", number.to_string())).await.unwrap().await.unwrap();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "frozen_member", "--ignored", "--nocapture"]).env(ADDRESS, server.address());
    let mut zombie = Zombie(command.stdout(Stdio::null()).spawn().unwrap());
    let committed = async {
        while bus.committed(GROUP, &place).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the member's first commit", committed).await;

    zombie.signal(Signal::STOP);
    let mut consumer = bus.subscribe(GROUP, std::slice::from_ref(&topic)).await.unwrap();
    while !matches!(soon("to take over", consumer.next()).await.unwrap(), Event::Assigned(_)) {}
    consumer.commit(&[(place.clone(), NextOffset(90))]).await.unwrap();
    zombie.signal(Signal::CONT);
    let end = tokio::task::spawn_blocking(move || zombie.0.wait().unwrap());
    assert!(soon("the member's end", end).await.unwrap().success(), "it was never told, or something else");
    assert_eq!(bus.committed(GROUP, &place).await.unwrap(), Some(NextOffset(90)));
    consumer.commit(&[(place, NextOffset(95))]).await.unwrap();
}

/// The other process: commits one offset after another until it is told that it isn't the owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_member_that_was_frozen_commits_nothing_of_others"]
async fn frozen_member() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    let bus = open(&address);
    let topic: TopicName = "t".parse().unwrap();
    let mut consumer = bus.subscribe(GROUP, std::slice::from_ref(&topic)).await.unwrap();
    while !matches!(soon("a partition", consumer.next()).await.unwrap(), Event::Assigned(_)) {}
    // Slowly, and short of where the other one commits: should one get through after the thaw, that goes back.
    for next in 1..80 {
        match consumer.commit(&[(at(&topic, 0), NextOffset(next))]).await {
            Ok(()) => {}
            Err(BusError::NotOwner { .. }) => return,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never told");
}
