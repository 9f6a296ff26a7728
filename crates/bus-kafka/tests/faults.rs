//! A broker that is killed, frozen or away, under load.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "these are tests")]

mod common;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{at, bus, check_stored, record, soon, topic, write};
use futures::FutureExt;
use logmesh_bus::{Bus, BusError, Event, NextOffset};
use logmesh_bus_kafka::{KafkaBus, Settings};
use logmesh_testing::servers;
use logmesh_types::unit::Span;
use logmesh_types::{TopicName, UnixNanos};
use rustix::process::Signal;

fn span(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}

fn impatient(settings: &mut Settings) {
    settings.delivery_timeout = span(3);
    settings.request_timeout = span(2);
    settings.session_timeout = span(6);
}

/// A broker that is killed with SIGKILL twice under load: what was acknowledged is there, once, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_and_doubles_nothing() {
    let mut server = tokio::task::spawn_blocking(|| servers::Kafka::start(&[])).await.unwrap();
    let bus = Arc::new(bus(&server.address(), |settings| settings.delivery_timeout = span(120)));
    let topic = topic(&bus, "t", 2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["a", "b", "c"]
        .map(|key| {
            let (bus, topic, stop) = (Arc::clone(&bus), topic.clone(), Arc::clone(&stop));
            tokio::spawn(async move { write(&bus, &topic, key, &stop).await })
        })
        .into();
    for _ in 0..2 {
        let before = bus.watermarks(&at(&topic, 0)).await.unwrap().high;
        soon("records to come", bus.wait(&at(&topic, 0), NextOffset(before.0 + 500), common::PATIENCE)).await.unwrap();
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start_again();
            server
        })
        .await
        .unwrap();
        // The same bus finds it again by itself.
        let end = Instant::now() + common::PATIENCE;
        while let Err(error) = bus.ping().await {
            assert!(error.retryable() && Instant::now() < end, "{error}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for (writer, key) in writers.into_iter().zip(["a", "b", "c"]) {
        let (stored, failed) = soon("writing", writer).await.unwrap();
        assert_eq!(failed, 0, "longer away than the delivery timeout?");
        assert!(stored.len() > 100, "{}", stored.len());
        assert_eq!(check_stored(&bus, &topic, key, &stored).await, stored.len(), "doubled");
    }
}

/// A frozen broker makes every call fail in bounded time; when it goes on, all works again, and what was tried again
/// isn't followed by what was given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_is_unavailable_until_it_goes_on() {
    let server = tokio::task::spawn_blocking(|| servers::Kafka::start(&[])).await.unwrap();
    let bus = Arc::new(bus(&server.address(), impatient));
    let topic = topic(&bus, "t", 1).await;
    let place = at(&topic, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (bus, topic, stop) = (Arc::clone(&bus), topic.clone(), Arc::clone(&stop));
        tokio::spawn(async move { write(&bus, &topic, "a", &stop).await })
    };
    let wait_for = |count: u64| {
        let (bus, place) = (Arc::clone(&bus), place.clone());
        let wait = async move {
            // A client that was cut off may need a moment more.
            while let Err(error) = bus.wait(&place, NextOffset(count), common::PATIENCE).await {
                assert!(error.retryable(), "{error}");
            }
        };
        soon("records", wait)
    };
    let mut group = bus.subscribe("g", std::slice::from_ref(&topic)).await.unwrap();
    assert!(matches!(soon("a partition", group.next()).await.unwrap(), Event::Assigned(_)));
    group.commit(&[(place.clone(), NextOffset(1))]).await.unwrap();
    for round in 1..=2 {
        wait_for(round * 1_000).await;
        server.signal(Signal::STOP);
        while bus.ping().await.is_ok() {} // it takes a moment to freeze
        let commit = [(place.clone(), NextOffset(10 * round))];
        let failed = async {
            tokio::join!(
                bus.topics().map(Result::unwrap_err),
                bus.watermarks(&place).map(Result::unwrap_err),
                bus.read(&place, NextOffset(0), 1).map(Result::unwrap_err),
                bus.committed("g", &place).map(Result::unwrap_err),
                bus.offset_at(&place, UnixNanos(0)).map(Result::unwrap_err),
                async { bus.append(&topic, record("other", "x")).await.unwrap().await.unwrap_err() },
                group.commit(&commit).map(Result::unwrap_err),
            )
        };
        let failed = soon("refusals", failed).await;
        let (a, b, c, d, e, f, commit) = failed;
        assert!([&a, &b, &c, &d, &e, &f].iter().all(|error| error.retryable()), "{a} {b} {c} {d} {e} {f}");
        // A member that hears nothing of its group for long enough knows that it's given up.
        assert!(commit.retryable() || matches!(commit, BusError::NotOwner { .. }), "{commit}");
        server.signal(Signal::CONT);
        let high = loop {
            if let Ok(marks) = bus.watermarks(&place).await {
                break marks.high.0;
            }
        };
        wait_for(high + 1_000).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (stored, failed) = soon("writing", writer).await.unwrap();
    assert!(failed > 0, "nothing was under way when it froze");
    check_stored(&bus, &topic, "a", &stored).await;
}

/// Without any broker a bus can be made, and its calls fail in bounded time; it works when one comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_may_come_later() {
    let port = servers::free_port();
    let bus = bus(&format!("127.0.0.1:{port}"), impatient);
    let absent: TopicName = "t".parse().unwrap();
    let failed = [
        bus.ping().await.unwrap_err(),
        bus.topic(&absent).await.unwrap_err(),
        bus.topics().await.unwrap_err(),
        bus.append(&absent, record("k", "v")).await.err().unwrap(),
        bus.read(&at(&absent, 0), NextOffset(0), 1).await.unwrap_err(),
        bus.wait(&at(&absent, 0), NextOffset(0), common::PATIENCE).await.unwrap_err(),
    ];
    assert!(failed.iter().all(BusError::retryable), "{failed:?}");
    let mut group = bus.subscribe("g", std::slice::from_ref(&absent)).await.unwrap();
    let error = soon("the consumer to say so", group.next()).await.unwrap_err();
    assert!(error.retryable(), "{error}");

    let env = port.to_string();
    let _server = tokio::task::spawn_blocking(move || servers::Kafka::start(&[("KAFKA_PORT", &env)])).await.unwrap();
    let end = Instant::now() + common::PATIENCE;
    while let Err(error) = bus.ping().await {
        assert!(error.retryable() && Instant::now() < end, "{error}");
    }
    let topic = topic(&bus, "t", 1).await;
    bus.append(&topic, record("k", "v")).await.unwrap().await.unwrap();
    let records = async {
        loop {
            match group.next().await {
                Ok(Event::Records { records, .. }) => return records,
                Ok(_) => {}
                Err(error) => assert!(error.retryable(), "{error}"),
            }
        }
    };
    assert_eq!(soon("the record", records).await[0].value, "v");
}

/// Members of a group come and go under load: no partition has two owners at a time, and since each commits before it
/// lets go, every record is handled once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_without_two_owners_or_repetition() {
    let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
    let bus = Arc::new(bus(&server.address(), |_| {}));
    let topic = topic(&bus, "moves", 6).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..12)
        .map(|key| {
            let (bus, topic, stop) = (Arc::clone(&bus), topic.clone(), Arc::clone(&stop));
            tokio::spawn(async move { write(&bus, &topic, &format!("key-{key}"), &stop).await.0.len() })
        })
        .collect();
    let ledger = Arc::new(Ledger::default());
    let mut members = VecDeque::new();
    for number in 0..6 {
        members.push_back(Running::start(&bus, &topic, &ledger, number));
        let before = ledger.handled();
        soon("records after a member came", ledger.wait_for(before + 2_000)).await;
        if members.len() == 3 {
            members.pop_front().unwrap().end().await;
            let before = ledger.handled();
            soon("records after a member went", ledger.wait_for(before + 2_000)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += soon("writing", writer).await.unwrap();
    }
    soon("the rest", ledger.wait_for(written)).await;
    for member in members {
        member.end().await;
    }
    assert_eq!(ledger.lost.load(Ordering::Relaxed), 0, "partitions were lost");
    assert!(ledger.moved.load(Ordering::Relaxed) >= 6, "hardly anything moved");
    assert_eq!((ledger.handled(), ledger.repeated.load(Ordering::Relaxed)), (written, 0));
}

/// Who owns what, and what was handled, of all members.
#[derive(Default)]
struct Ledger {
    owners: std::sync::Mutex<HashMap<u32, usize>>,
    seen: std::sync::Mutex<BTreeSet<(u32, u64)>>,
    repeated: AtomicUsize,
    moved: AtomicUsize,
    lost: AtomicUsize,
}

impl Ledger {
    fn handled(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn wait_for(&self, count: usize) {
        while self.handled() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn take(&self, partition: u32, member: usize) {
        let before = self.owners.lock().unwrap().insert(partition, member);
        assert_eq!(before, None, "partition {partition} has two owners");
    }

    fn give(&self, partition: u32, member: usize) {
        assert_eq!(self.owners.lock().unwrap().remove(&partition), Some(member));
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    fn handle(&self, partition: u32, offset: u64, member: usize) {
        assert_eq!(self.owners.lock().unwrap().get(&partition), Some(&member), "handed to another than the owner");
        if !self.seen.lock().unwrap().insert((partition, offset)) {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Running {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(bus: &Arc<KafkaBus>, topic: &TopicName, ledger: &Arc<Ledger>, number: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (bus, topic, ledger, stopped) = (Arc::clone(bus), topic.clone(), Arc::clone(ledger), Arc::clone(&stop));
        let task = tokio::spawn(async move { member(&bus, &topic, &ledger, number, &stopped).await });
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        soon("a member's end", self.task).await.unwrap();
    }
}

async fn member(bus: &KafkaBus, topic: &TopicName, ledger: &Ledger, number: usize, stop: &AtomicBool) {
    let mut consumer = bus.subscribe("movers", std::slice::from_ref(topic)).await.unwrap();
    let mut next = HashMap::new();
    let mut held = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(event) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await else { continue };
        match event.unwrap() {
            Event::Assigned(partitions) => {
                for at in partitions {
                    ledger.take(at.partition, number);
                    held.insert(at);
                }
            }
            Event::Records { at, records } => {
                for record in &records {
                    ledger.handle(at.partition, record.offset.0, number);
                }
                next.insert(at.clone(), records.last().unwrap().offset.next());
                consumer.commit(&[(at.clone(), next[&at])]).await.unwrap();
            }
            Event::Revoking(partitions) => {
                for at in &partitions {
                    ledger.give(at.partition, number);
                    held.remove(at);
                }
                consumer.release(&partitions).await.unwrap();
                // What was released is another's: it can't be committed any more.
                for at in &partitions {
                    let error = consumer.commit(&[(at.clone(), NextOffset(1 << 40))]).await.unwrap_err();
                    assert!(matches!(error, BusError::NotOwner { .. }), "{error}");
                }
            }
            Event::Lost(partitions) => {
                ledger.lost.fetch_add(partitions.len(), Ordering::Relaxed);
                for at in partitions {
                    ledger.give(at.partition, number);
                    held.remove(&at);
                }
            }
        }
    }
    for at in held {
        ledger.give(at.partition, number);
    }
}
