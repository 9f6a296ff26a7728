//! What the tests share: a bus and an index in a temporary folder, and transfer between them, asked over gRPC.

#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use logmesh_bus::{Bus, Cleanup, Event, NewRecord, NextOffset, Position, Record, TopicPartition};
use logmesh_bus_embedded::EmbeddedBus;
use logmesh_grpc::Routes;
use logmesh_index::query::Query;
use logmesh_index::{IndexReader, IndexWriter, Order, PageLimit, Selection};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_proto::ingest::v1::{Chunk, Source};
use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_record::{Book, Topics};
use logmesh_runtime::{Readiness, Tasks};
use logmesh_testing::wait_for_async;
use logmesh_transfer::{GROUP, Settings, Transfer};
use logmesh_types::TopicName;
use tonic::transport::Channel;

pub(crate) const STREAM: &str = "217a55e0e277d86e24b960c80282a1c5";
pub(crate) const DAY: i64 = 86_400;

pub(crate) struct Mesh {
    pub(crate) bus: Arc<EmbeddedBus>,
    pub(crate) index: Arc<EmbeddedIndex>,
    pub(crate) topic: TopicName,
    pub(crate) tasks: Tasks,
    /// Where the newest worker serves gRPC.
    pub(crate) server: String,
    /// Of the workers that are started from now on.
    pub(crate) settings: Settings,
    folder: tempfile::TempDir,
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bus = Arc::new(EmbeddedBus::open(&folder.path().join("bus"), Default::default()).unwrap());
        let index = Arc::new(EmbeddedIndex::open(&folder.path().join("index"), Default::default()).await.unwrap());
        let topic: TopicName = "logs".parse().unwrap();
        for spec in Topics::default().specs(&topic) {
            bus.ensure_topic(&spec).await.unwrap();
        }
        let mut mesh = Self {
            bus,
            index,
            topic,
            tasks: Tasks::new(),
            server: String::new(),
            settings: Settings::default(),
            folder,
        };
        mesh.start_transfer().await;
        mesh
    }

    pub(crate) async fn start_transfer(&mut self) {
        self.start_transfer_into(self.index.clone()).await;
    }

    pub(crate) async fn start_transfer_into(&mut self, index: Arc<dyn IndexWriter>) {
        (self.tasks, self.server) = self.worker(index).await;
    }

    /// One more worker, with its tasks and its address.
    pub(crate) async fn worker(&self, index: Arc<dyn IndexWriter>) -> (Tasks, String) {
        let tasks = Tasks::new();
        let transfer = Transfer::start(self.bus.clone(), index, self.settings.clone(), Readiness::new(), &tasks);
        let mut routes = Routes::new();
        transfer.add_to(&mut routes);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let token = tasks.token();
        tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
        (tasks, address)
    }

    pub(crate) fn client(&self) -> TransferServiceClient<Channel> {
        client(&self.server)
    }

    pub(crate) async fn stop_transfer(&self) {
        self.tasks.shutdown();
        self.tasks.finish(Duration::from_secs(20)).await.unwrap();
    }

    /// Puts a bus in the place of the one that is there, with all that lies on that but these topics. No worker may run.
    pub(crate) async fn remove_topics(&mut self, removed: &[TopicName]) {
        let bus =
            EmbeddedBus::open(&tempfile::tempdir_in(self.folder.path()).unwrap().keep(), Default::default()).unwrap();
        let left = self.bus.topics().await.unwrap().into_iter().filter(|spec| !removed.contains(&spec.name));
        for spec in left {
            bus.ensure_topic(&spec).await.unwrap();
            let mut committed = Vec::new();
            for partition in 0..spec.partitions {
                let at = TopicPartition { topic: spec.name.clone(), partition };
                for record in self.bus.read(&at, NextOffset(0), usize::MAX).await.unwrap() {
                    let Record { key, value, headers, timestamp, offset } = record;
                    let same = NewRecord { key, value, headers, timestamp: Some(timestamp) };
                    let position = bus.append(&spec.name, same).await.unwrap().await.unwrap();
                    assert_eq!(position.partition, partition);
                    assert!(position.offset == offset || spec.cleanup == Cleanup::Compact);
                }
                let next = self.bus.committed(GROUP, &at).await.unwrap();
                committed.extend(next.map(|next| (at, next)));
            }
            let mut consumer = bus.subscribe(GROUP, std::slice::from_ref(&spec.name)).await.unwrap();
            while !matches!(consumer.next().await.unwrap(), Event::Assigned(_)) {}
            consumer.commit(&committed).await.unwrap();
        }
        self.bus = Arc::new(bus);
    }

    pub(crate) async fn append(&self, record: NewRecord) -> Position {
        self.bus.append(&self.topic, record).await.unwrap().await.unwrap()
    }

    /// Waits until what was appended at this place, and all before it, is done.
    pub(crate) async fn done(&self, at: &Position) {
        let partition = TopicPartition { topic: self.topic.clone(), partition: at.partition };
        wait_for_async("transfer commits", Duration::from_secs(20), || async {
            let committed = self.bus.committed(GROUP, &partition).await.unwrap();
            if committed >= Some(at.offset.next()) { Ok(()) } else { Err(format!("{committed:?}")) }
        })
        .await;
    }

    pub(crate) async fn messages(&self) -> Vec<String> {
        let selection =
            Selection { query: Query::parse("*").unwrap(), from: None, to: None, topics: vec![self.topic.clone()] };
        let page = self.index.search(&selection, Order::OldestFirst, PageLimit::hits(1_000), None).await.unwrap();
        page.hits
            .iter()
            .map(|hit| {
                let document: serde_json::Value = serde_json::from_slice(&hit.body).unwrap();
                document["message"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    pub(crate) async fn books(&self, partition: u32) -> Vec<Book> {
        let at = TopicPartition { topic: self.topic.books(), partition };
        let records = self.bus.read(&at, NextOffset(0), 1 << 20).await.unwrap();
        records.iter().map(|record| Book::decode(&at.topic, &record.value).unwrap()).collect()
    }
}

pub(crate) fn client(server: &str) -> TransferServiceClient<Channel> {
    TransferServiceClient::new(logmesh_grpc::channel(server).unwrap())
}

pub(crate) fn chunk(start: u64, text: &str, day: i64) -> Chunk {
    Chunk {
        stream_id: STREAM.to_owned(),
        topic: "logs".to_owned(),
        rule: "rules/collect".to_owned(),
        rule_revision: 1,
        start_offset: start,
        end_offset: start + text.len() as u64,
        data: Bytes::copy_from_slice(text.as_bytes()),
        crc32c: crc32c::crc32c(text.as_bytes()),
        read_time: Some(prost_types::Timestamp { seconds: 1_769_860_800 + day * DAY, nanos: 0 }),
        source: Some(Source { agent_id: "web-1".into(), path: "/var/log/app.log".into(), ..Source::default() }),
        ..Chunk::default()
    }
}
