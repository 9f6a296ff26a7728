//! A gateway on a free port over an embedded bus whose appends can be made to fail, and a client for it.

#![allow(clippy::unwrap_used, reason = "these are tests")]
#![allow(dead_code, reason = "not every test uses everything")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use logmesh_bus::{
    Append, Bus, BusError, Consumer, NewRecord, NextOffset, Record, TopicPartition, TopicSpec, Watermarks,
};
use logmesh_bus_embedded::EmbeddedBus;
use logmesh_gateway::{Gateway, Settings};
use logmesh_grpc::Routes;
use logmesh_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use logmesh_proto::ingest::v1::push_response::Response;
use logmesh_proto::ingest::v1::{Ack, Chunk, PushRequest, PushResponse, Source};
use logmesh_runtime::Tasks;
use logmesh_types::{TopicName, UnixNanos};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The embedded bus, which refuses appends while `broken`.
#[derive(Debug)]
pub(crate) struct Breakable {
    inner: EmbeddedBus,
    pub(crate) broken: AtomicBool,
    /// Refuses the append of this number, counted from 1 since it was set to 0.
    pub(crate) refuse: AtomicUsize,
    /// Doesn't even take the append of this number.
    pub(crate) refuse_at_once: AtomicUsize,
    /// Refuses for good whatever goes to this topic.
    pub(crate) forbidden: Mutex<Option<TopicName>>,
    /// Appends so far.
    pub(crate) appends: AtomicUsize,
    /// While true, no append comes to its end.
    pub(crate) held: watch::Sender<bool>,
}

#[async_trait]
impl Bus for Breakable {
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<(), BusError> {
        self.inner.ensure_topic(spec).await
    }
    async fn topic(&self, name: &TopicName) -> Result<Option<TopicSpec>, BusError> {
        self.inner.topic(name).await
    }
    async fn topics(&self) -> Result<Vec<TopicSpec>, BusError> {
        self.inner.topics().await
    }
    async fn append(&self, topic: &TopicName, record: NewRecord) -> Result<Append, BusError> {
        let number = self.appends.fetch_add(1, Ordering::SeqCst) + 1;
        if self.refuse_at_once.load(Ordering::SeqCst) == number {
            return Err(BusError::Unavailable { reason: "not taken by the test".to_owned() });
        }
        if self.forbidden.lock().unwrap().as_ref() == Some(topic) {
            let error = BusError::Refused { topic: topic.clone(), reason: "forbidden by the test".to_owned() };
            return Ok(Box::pin(async { Err(error) }));
        }
        if self.broken.load(Ordering::SeqCst) || self.refuse.load(Ordering::SeqCst) == number {
            let error = BusError::Unavailable { reason: "broken by the test".to_owned() };
            return Ok(Box::pin(async { Err(error) }));
        }
        let (append, mut held) = (self.inner.append(topic, record).await?, self.held.subscribe());
        Ok(Box::pin(async move {
            drop(held.wait_for(|held| !held).await);
            append.await
        }))
    }
    async fn read(&self, at: &TopicPartition, from: NextOffset, max_bytes: usize) -> Result<Vec<Record>, BusError> {
        self.inner.read(at, from, max_bytes).await
    }
    async fn wait(&self, at: &TopicPartition, from: NextOffset, timeout: Duration) -> Result<(), BusError> {
        self.inner.wait(at, from, timeout).await
    }
    async fn watermarks(&self, at: &TopicPartition) -> Result<Watermarks, BusError> {
        self.inner.watermarks(at).await
    }
    async fn offset_at(&self, at: &TopicPartition, time: UnixNanos) -> Result<NextOffset, BusError> {
        self.inner.offset_at(at, time).await
    }
    async fn committed(&self, group: &str, at: &TopicPartition) -> Result<Option<NextOffset>, BusError> {
        self.inner.committed(group, at).await
    }
    async fn subscribe(&self, group: &str, topics: &[TopicName]) -> Result<Box<dyn Consumer>, BusError> {
        self.inner.subscribe(group, topics).await
    }
}

pub(crate) struct Server {
    pub(crate) bus: Arc<Breakable>,
    pub(crate) tasks: Tasks,
    pub(crate) client: IngestServiceClient<Channel>,
    _folder: TempDir,
}

impl Server {
    pub(crate) async fn start(settings: Settings) -> Self {
        let folder = TempDir::new().unwrap();
        let inner = EmbeddedBus::open(folder.path(), logmesh_bus_embedded::Settings::default()).unwrap();
        let bus = Arc::new(Breakable {
            inner,
            broken: AtomicBool::new(false),
            refuse: AtomicUsize::new(0),
            refuse_at_once: AtomicUsize::new(0),
            forbidden: Mutex::default(),
            appends: AtomicUsize::new(0),
            held: watch::Sender::new(false),
        });
        let tasks = Tasks::new();
        let gateway = Gateway::start(bus.clone(), settings, &tasks).unwrap();
        let mut routes = Routes::new();
        gateway.add_to(&mut routes);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let token = tasks.token();
        tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
        let client = IngestServiceClient::new(logmesh_grpc::channel(&address).unwrap());
        Self { bus, tasks, client, _folder: folder }
    }

    pub(crate) async fn push(&self) -> Push {
        let (requests, stream) = mpsc::unbounded_channel();
        let opened = self.client.clone().push(UnboundedReceiverStream::new(stream)).await.unwrap();
        Push { requests: Some(requests), answers: opened.into_inner(), credit: 0 }
    }

    /// Everything that a topic holds, partition after partition.
    pub(crate) async fn records(&self, topic: &str) -> Vec<(u32, Record)> {
        let topic: TopicName = topic.parse().unwrap();
        let mut all = Vec::new();
        for partition in 0..self.bus.topic(&topic).await.unwrap().unwrap().partitions {
            let at = TopicPartition { topic: topic.clone(), partition };
            let mut next = NextOffset(0);
            loop {
                let records = self.bus.read(&at, next, 1 << 20).await.unwrap();
                let Some(last) = records.last() else { break };
                next = last.offset.next();
                all.extend(records.into_iter().map(|record| (partition, record)));
            }
        }
        all
    }
}

/// A Push stream as an agent sees it.
pub(crate) struct Push {
    pub(crate) requests: Option<mpsc::UnboundedSender<PushRequest>>,
    pub(crate) answers: Streaming<PushResponse>,
    /// Bytes granted so far.
    pub(crate) credit: u64,
}

impl Push {
    pub(crate) fn send(&self, chunk: Chunk) {
        self.requests.as_ref().unwrap().send(PushRequest { chunk: Some(chunk) }).unwrap();
    }

    /// Says that no more chunks come.
    pub(crate) fn end(&mut self) {
        self.requests = None;
    }

    /// The next answer that isn't credit; `None` at the end.
    pub(crate) async fn answer(&mut self) -> Result<Option<Response>, Status> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("no answer in time");
            match next?.map(|answer| answer.response.unwrap()) {
                Some(Response::Credit(credit)) => self.credit += credit.bytes,
                other => return Ok(other),
            }
        }
    }

    pub(crate) async fn ack(&mut self) -> Ack {
        match self.answer().await.unwrap() {
            Some(Response::Ack(ack)) => ack,
            other => panic!("not an ack: {other:?}"),
        }
    }

    /// Waits for the first credit.
    pub(crate) async fn open(&mut self) {
        let first = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("no credit in time");
        match first.unwrap().unwrap().response.unwrap() {
            Response::Credit(credit) => self.credit += credit.bytes,
            other => panic!("not credit: {other:?}"),
        }
    }
}

/// The chunk of these bytes at this offset of a stream.
pub(crate) fn chunk(stream: u8, start: u64, data: &str) -> Chunk {
    Chunk {
        stream_id: format!("{stream:032x}"),
        topic: "logs".to_owned(),
        rule: "rules/collect".to_owned(),
        rule_revision: 1,
        start_offset: start,
        end_offset: start + data.len() as u64,
        data: Bytes::copy_from_slice(data.as_bytes()),
        event_lengths: vec![],
        crc32c: crc32c::crc32c(data.as_bytes()),
        read_time: Some(prost_types::Timestamp { seconds: 1_769_860_800, nanos: 0 }),
        source: Some(Source { agent_id: "web-1".to_owned(), ..Source::default() }),
        continuations: vec![],
        encoding: String::new(),
        format: 0,
        omitted_bytes: 0,
        repeated: false,
        written_time: None,
    }
}
