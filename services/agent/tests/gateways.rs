//! An agent among real gateways on real buses: one is killed, one goes, one comes, one refuses.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

mod mesh;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use logmesh_bus::{Bus, NextOffset, TopicPartition};
use logmesh_bus_embedded::EmbeddedBus;
use logmesh_gateway::Settings;
use logmesh_grpc::Routes;
use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::StreamState;
use logmesh_proto::ingest::v1::Chunk;
use logmesh_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use logmesh_record::{Content, decode};
use logmesh_runtime::Tasks;
use logmesh_testing::wait_for_async;
use logmesh_types::{ByteSize, Span};
use tokio::runtime::Runtime;

use mesh::host::Host;
use mesh::{Centre, LIMIT, Server};

/// A gateway on a bus of its own, so that what it took can be told from what others took.
struct Gateway {
    address: SocketAddr,
    bus: Arc<EmbeddedBus>,
    tasks: Tasks,
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

impl Gateway {
    fn start(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bus = Arc::new(EmbeddedBus::open(folder.path(), Default::default()).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let gateway = logmesh_gateway::Gateway::start(bus.clone(), settings, &tasks).unwrap();
        let token = tasks.token();
        runtime.spawn(async move {
            let mut routes = Routes::new();
            gateway.add_to(&mut routes);
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            logmesh_grpc::serve(listener, routes, token).await.unwrap();
        });
        Self { address, bus, tasks, runtime: Some(runtime), _folder: folder }
    }

    /// Ends it as `kill -9` does: its connections close, and nothing more is said.
    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// What it acked, or was about to, of a topic.
    async fn chunks(&self, topic: &str) -> Vec<Chunk> {
        let topic = topic.parse().unwrap();
        let Some(spec) = self.bus.topic(&topic).await.unwrap() else { return Vec::new() };
        let mut chunks = Vec::new();
        for partition in 0..spec.partitions {
            let at = TopicPartition { topic: topic.clone(), partition };
            let mut next = NextOffset(0);
            loop {
                let records = self.bus.read(&at, next, 1 << 20).await.unwrap();
                let Some(last) = records.last() else { break };
                next = last.offset.next();
                chunks.extend(records.iter().map(|record| match decode(record).unwrap() {
                    Content::Chunk(chunk) => *chunk,
                    Content::Event(_) => panic!("an event"),
                }));
            }
        }
        chunks
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lines(numbers: Range<usize>) -> String {
    numbers.map(|number| format!("line {number:06}\n")).collect()
}

/// Waits until the gateways together hold this text of the one stream of a topic; answers how many bytes they hold twice.
async fn hold(gateways: &[&Gateway], topic: &str, text: &str) -> usize {
    wait_for_async("the lines at the gateways", LIMIT, || async {
        let chunks = join_all(gateways.iter().map(|gateway| gateway.chunks(topic))).await.concat();
        let sent: usize = chunks.iter().map(|chunk| chunk.data.len()).sum();
        let mut bytes = BTreeMap::new();
        for chunk in chunks {
            bytes.extend((chunk.start_offset..).zip(chunk.data.to_vec()));
        }
        let whole = bytes.keys().copied().eq(0..text.len() as u64);
        let held: Vec<u8> = bytes.into_values().collect();
        if whole && held == text.as_bytes() { Ok(sent - text.len()) } else { Err(format!("{} bytes", held.len())) }
    })
    .await
}

/// The one of two gateways that the agent uses, and the other.
async fn in_use(first: Gateway, second: Gateway) -> (Gateway, Gateway) {
    let uses_first = wait_for_async("a chunk at one of the gateways", LIMIT, || async {
        match (first.chunks("logs").await.is_empty(), second.chunks("logs").await.is_empty()) {
            (true, true) => Err("none".to_owned()),
            (first_is_idle, _) => Ok(!first_is_idle),
        }
    })
    .await;
    if uses_first { (first, second) } else { (second, first) }
}

fn rule(host: &Host) -> Rule {
    host.rule("a", 1, "a.log")
}

/// A centre that names these gateways, and a host with an agent that collects a file of this text.
async fn collecting(gateways: &[SocketAddr], text: &str) -> (Arc<Centre>, Server, Host) {
    let (centre, server) = Centre::start(gateways).await;
    let mut host = Host::new();
    host.append("a.log", text);
    host.start(&[&server]);
    centre.tell(vec![rule(&host)], &[]);
    (centre, server, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_is_replaced_and_nothing_is_lost() {
    let gateways = (Gateway::start(Settings::default()), Gateway::start(Settings::default()));
    let (_centre, _server, mut host) = collecting(&[gateways.0.address, gateways.1.address], &lines(0..1_000)).await;
    let (mut used, other) = in_use(gateways.0, gateways.1).await;
    for round in 1..20 {
        host.append("a.log", &lines(round * 1_000..(round + 1) * 1_000));
        if round == 10 {
            used.kill();
        }
    }
    hold(&[&used, &other], "logs", &lines(0..20_000)).await;
    assert!(!other.chunks("logs").await.is_empty());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_is_left_for_another_and_nothing_is_sent_twice() {
    let gateways = (Gateway::start(Settings::default()), Gateway::start(Settings::default()));
    let (_centre, _server, mut host) = collecting(&[gateways.0.address, gateways.1.address], &lines(0..1_000)).await;
    let (used, other) = in_use(gateways.0, gateways.1).await;
    for round in 1..20 {
        host.append("a.log", &lines(round * 1_000..(round + 1) * 1_000));
        if round == 10 {
            used.tasks.shutdown();
        }
    }
    let twice = hold(&[&used, &other], "logs", &lines(0..20_000)).await;
    assert_eq!(twice, 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_one_that_comes_first_is_gone_to_with_the_next_go_away() {
    let short = || Settings { max_stream_age: Span(Duration::from_millis(500)), ..Settings::default() };
    let (first, second) = (Gateway::start(short()), Gateway::start(short()));
    let addresses = [first.address, second.address];
    let (centre, _server, mut host) = collecting(&addresses, &lines(0..1)).await;
    let (best, other) = in_use(first, second).await;
    // The list without the best one: with the next go-away the other is used.
    let place = addresses.iter().position(|address| *address == best.address).unwrap();
    centre.gateways.send_modify(|endpoints| drop(endpoints.remove(place)));
    let mut written = 1;
    for gateway in [&other, &best] {
        let before = gateway.chunks("logs").await.len();
        loop {
            host.append("a.log", &lines(written..written + 1));
            written += 1;
            hold(&[&best, &other], "logs", &lines(0..written)).await;
            if gateway.chunks("logs").await.len() > before {
                break;
            }
        }
        // It's back.
        centre.set_gateways(&addresses);
    }
    assert_eq!(hold(&[&best, &other], "logs", &lines(0..written)).await, 0, "nothing is sent twice");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_no_room_is_left_for_another() {
    let full = || Gateway::start(Settings { max_streams: 1, ..Settings::default() });
    let gateways = [full(), full()];
    let mut clients = Vec::new();
    for gateway in &gateways {
        let mut client = IngestServiceClient::new(logmesh_grpc::channel(&gateway.address.to_string()).unwrap());
        let (requests, stream) = tokio::sync::mpsc::channel(1);
        let requests_stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        clients.push((client.push(requests_stream).await.unwrap(), requests));
    }
    let (_centre, _server, mut host) = collecting(&[gateways[0].address, gateways[1].address], &lines(0..100)).await;
    // Whichever the agent would rather use: the one that gets room is used.
    drop(clients.pop());
    hold(&[&gateways[1]], "logs", &lines(0..100)).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn little_credit_slows_and_loses_nothing() {
    let gateway = Gateway::start(Settings { max_in_flight: ByteSize(1 << 20), ..Settings::default() });
    let text = lines(0..400_000);
    let (_centre, _server, mut host) = collecting(&[gateway.address], &text).await;
    assert_eq!(hold(&[&gateway], "logs", &text).await, 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_blocks_nothing_else_and_is_taken_elsewhere() {
    let narrow = Gateway::start(Settings { max_topics: 1, ..Settings::default() });
    let (centre, _server, mut host) = collecting(&[narrow.address], &lines(0..100)).await;
    hold(&[&narrow], "logs", &lines(0..100)).await;
    centre.tell(vec![Rule { topic: "other".into(), ..host.rule("b", 2, "b.log") }], &[]);
    host.append("b.log", &lines(0..100));
    wait_for_async("the refusal", LIMIT, || async {
        let stream = centre.stream("b.log").filter(|stream| stream.state() == StreamState::Blocked);
        stream.map(drop).ok_or(format!("{:?}", centre.stream("b.log")))
    })
    .await;
    host.append("a.log", &lines(100..200));
    hold(&[&narrow], "logs", &lines(0..200)).await;

    let wide = Gateway::start(Settings::default());
    centre.set_gateways(&[wide.address]);
    narrow.tasks.shutdown();
    hold(&[&wide], "other", &lines(0..100)).await;
    host.stop().await;
}
