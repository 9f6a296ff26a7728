//! A centre and gateways as an agent sees them, in this process, that do what a test tells them.

#![allow(dead_code, reason = "not every test uses everything")]

pub(crate) mod host;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use logmesh_grpc::Routes;
use logmesh_proto::config::v1::Rule;
use logmesh_proto::discovery::v1::discovery_service_server::{DiscoveryService, DiscoveryServiceServer};
use logmesh_proto::discovery::v1::{
    CampaignRequest, CampaignResponse, Endpoint, ListLeadersRequest, ListLeadersResponse, RegisterRequest,
    RegisterResponse, WatchEndpointsRequest, WatchEndpointsResponse,
};
use logmesh_proto::fleet::v1::agent_config_service_server::{AgentConfigService, AgentConfigServiceServer};
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{
    AnswerCommandRequest, AnswerCommandResponse, Command, Delta, ReportStatusRequest, ReportStatusResponse, RuleStatus,
    StreamStatus, WatchConfigRequest, WatchConfigResponse,
};
use logmesh_proto::ingest::v1::ingest_service_server::{IngestService, IngestServiceServer};
use logmesh_proto::ingest::v1::push_response::Response as Answer;
use logmesh_proto::ingest::v1::{
    Ack, Chunk, Credit, GoAway, PushRequest, PushResponse, Reject, WriteRequest, WriteResponse,
};
use logmesh_runtime::CancellationToken;
use logmesh_types::limits::MAX_IN_FLIGHT_BYTES;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a gateway does with chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Acks each.
    Ack,
    /// The same, and takes nothing that is compressed.
    Plain,
    /// Takes them and says nothing.
    Silent,
    /// Acks each and keeps nothing.
    Discard,
    /// Acks them when the agent has no more.
    Late,
    /// Takes them and says nothing, even when the agent has no more.
    Deaf,
    /// Acks one chunk, then asks to go away.
    GoAway,
    /// Ends the stream with an error at the first chunk.
    Break,
    /// Refuses each.
    Refuse,
}

#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) mode: watch::Sender<Mode>,
    pub(crate) chunks: Mutex<Vec<Chunk>>,
    pub(crate) connections: Mutex<usize>,
    /// The bytes of all chunks that were acked at once.
    pub(crate) bytes: AtomicU64,
    /// How the last connection's requests are compressed.
    pub(crate) encoding: Mutex<Option<String>>,
    token: CancellationToken,
}

/// A server of its own port; it ends with its token.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) token: CancellationToken,
}

async fn serve(routes: Routes, token: CancellationToken) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server { address: listener.local_addr().unwrap(), token: token.clone() };
    #[allow(clippy::disallowed_methods)] // a test's server, ended by its token
    tokio::spawn(async move { logmesh_grpc::serve(listener, routes, token).await.unwrap() });
    server
}

impl Gateway {
    pub(crate) async fn start(mode: Mode) -> (Arc<Self>, Server) {
        let token = CancellationToken::new();
        let (chunks, connections, bytes, encoding) = Default::default();
        let mode_seen = watch::channel(mode).0;
        let gateway = Arc::new(Self { mode: mode_seen, chunks, connections, bytes, encoding, token: token.clone() });
        let mut routes = Routes::new();
        let service = IngestServiceServer::new(Ingest(gateway.clone()));
        routes.add(if mode == Mode::Plain { service } else { service.accept_compressed(CompressionEncoding::Zstd) });
        let server = serve(routes, token).await;
        (gateway, server)
    }

    /// The text of all chunks by stream, each byte at its offset; overlapping ranges must hold the same bytes.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut streams: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for chunk in self.chunks.lock().unwrap().iter() {
            assert_eq!(chunk.crc32c, crc32c::crc32c(&chunk.data));
            let text = streams.entry(chunk.stream_id.clone()).or_default();
            let (start, end) = (chunk.start_offset as usize, chunk.end_offset as usize);
            text.resize(text.len().max(end), 0);
            assert!(text[start..end].iter().zip(&chunk.data[..]).all(|(old, new)| *old == 0 || old == new));
            text[start..end].copy_from_slice(&chunk.data);
        }
        streams.into_values().map(|text| String::from_utf8(text).unwrap()).collect()
    }
}

struct Ingest(Arc<Gateway>);

#[tonic::async_trait]
impl IngestService for Ingest {
    type PushStream = ReceiverStream<Result<PushResponse, Status>>;

    async fn push(&self, request: Request<Streaming<PushRequest>>) -> Result<Response<Self::PushStream>, Status> {
        *self.0.connections.lock().unwrap() += 1;
        let encoding = request.metadata().get("grpc-encoding").map(|text| text.to_str().unwrap().to_owned());
        *self.0.encoding.lock().unwrap() = encoding;
        let (answers, stream) = mpsc::channel(64);
        let gateway = self.0.clone();
        #[allow(clippy::disallowed_methods)] // ends with the stream
        tokio::spawn(async move {
            tokio::select! {
                () = gateway.take(request.into_inner(), answers) => {}
                () = gateway.token.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn write(&self, _: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("agents don't write"))
    }
}

impl Gateway {
    async fn take(&self, mut chunks: Streaming<PushRequest>, answers: mpsc::Sender<Result<PushResponse, Status>>) {
        let say = async |answer| answers.send(Ok(PushResponse { response: Some(answer) })).await.is_ok();
        say(Answer::Credit(Credit { bytes: MAX_IN_FLIGHT_BYTES })).await;
        while let Ok(Some(PushRequest { chunk: Some(chunk) })) = chunks.message().await {
            let (stream_id, end_offset) = (chunk.stream_id.clone(), chunk.end_offset);
            let (bytes, start_offset) = (chunk.data.len() as u64, chunk.start_offset);
            let mode = *self.mode.borrow();
            if !matches!(mode, Mode::Break | Mode::Refuse | Mode::Discard) {
                self.chunks.lock().unwrap().push(chunk);
            }
            match mode {
                Mode::Silent | Mode::Late | Mode::Deaf => continue,
                Mode::Break => {
                    answers.send(Err(Status::unavailable("broken on purpose"))).await.ok();
                    return;
                }
                Mode::Refuse => {
                    let (reason, detail) = ("BAD_NAME".to_owned(), "refused on purpose".to_owned());
                    say(Answer::Reject(Reject { stream_id, start_offset, end_offset, reason, detail })).await;
                }
                Mode::Ack | Mode::Plain | Mode::Discard | Mode::GoAway => {
                    say(Answer::Ack(Ack { stream_id, end_offset, positions: vec![] })).await;
                    self.bytes.fetch_add(bytes, Ordering::Relaxed);
                }
            }
            if mode == Mode::GoAway {
                self.mode.send_replace(Mode::Ack);
                say(Answer::GoAway(GoAway { reason: "STREAM_AGE".into(), retry_after: None })).await;
            }
            say(Answer::Credit(Credit { bytes })).await;
        }
        let (mode, chunks) = (*self.mode.borrow(), self.chunks.lock().unwrap().clone());
        match mode {
            Mode::Late => {
                for Chunk { stream_id, end_offset, .. } in chunks {
                    say(Answer::Ack(Ack { stream_id, end_offset, positions: vec![] })).await;
                }
            }
            Mode::Deaf => std::future::pending().await,
            _ => {}
        }
    }
}

/// A centre: rules and gateways as the test sets them, reports as the agent sends them.
#[derive(Debug)]
pub(crate) struct Centre {
    /// Deltas that a watch sends, in order; a new watch begins at the first that the agent doesn't hold.
    pub(crate) deltas: watch::Sender<Vec<Delta>>,
    /// Commands that a watch sends, from the one after those that were there when it began.
    pub(crate) commands: watch::Sender<Vec<Command>>,
    pub(crate) answers: Mutex<Vec<AnswerCommandRequest>>,
    /// The store that it has.
    pub(crate) incarnation: Mutex<String>,
    pub(crate) gateways: watch::Sender<Vec<Endpoint>>,
    pub(crate) watches: Mutex<Vec<WatchConfigRequest>>,
    pub(crate) reports: Mutex<Vec<ReportStatusRequest>>,
    token: CancellationToken,
}

impl Centre {
    pub(crate) async fn start(gateways: &[SocketAddr]) -> (Arc<Self>, Server) {
        let token = CancellationToken::new();
        let centre = Arc::new(Self {
            deltas: watch::channel(Vec::new()).0,
            commands: watch::channel(Vec::new()).0,
            answers: Mutex::default(),
            incarnation: Mutex::default(),
            gateways: watch::channel(Vec::new()).0,
            watches: Mutex::default(),
            reports: Mutex::default(),
            token: token.clone(),
        });
        centre.set_gateways(gateways);
        let mut routes = Routes::new();
        routes.add(AgentConfigServiceServer::new(Fleet(centre.clone())));
        routes.add(DiscoveryServiceServer::new(Discovery(centre.clone())));
        let server = serve(routes, token).await;
        (centre, server)
    }

    pub(crate) fn set_gateways(&self, gateways: &[SocketAddr]) {
        let endpoints = gateways.iter().enumerate().map(|(number, address)| Endpoint {
            kind: "gateway".into(),
            id: format!("gateway-{number}"),
            address: address.to_string(),
        });
        self.gateways.send_replace(endpoints.collect());
    }

    pub(crate) fn tell(&self, upserted: Vec<Rule>, removed: &[&str]) {
        let removed = removed.iter().map(|name| format!("rules/{name}")).collect();
        self.deltas.send_modify(|deltas| deltas.push(Delta { upserted, removed, ..Delta::default() }));
    }

    /// The last that was reported of a rule.
    pub(crate) fn rule(&self, name: &str) -> Option<RuleStatus> {
        let reports = self.reports.lock().unwrap();
        reports.iter().rev().flat_map(|report| &report.rules).find(|rule| rule.name == format!("rules/{name}")).cloned()
    }

    /// The last that was reported of a file's streams.
    pub(crate) fn stream(&self, path: &str) -> Option<StreamStatus> {
        let reports = self.reports.lock().unwrap();
        reports.iter().rev().flat_map(|report| &report.streams).find(|stream| stream.path.ends_with(path)).cloned()
    }
}

struct Fleet(Arc<Centre>);

#[tonic::async_trait]
impl AgentConfigService for Fleet {
    type WatchConfigStream = Answers<WatchConfigResponse>;

    async fn watch_config(
        &self,
        request: Request<WatchConfigRequest>,
    ) -> Result<Response<Self::WatchConfigStream>, Status> {
        let request = request.into_inner();
        let held = request.held.clone();
        self.0.watches.lock().unwrap().push(request);
        let mut sent = 0;
        let centre = self.0.clone();
        let deltas = WatchStream::new(self.0.deltas.subscribe());
        let stream = deltas.flat_map(move |deltas| {
            let new: Vec<Delta> = deltas[sent..]
                .iter()
                .map(|delta| {
                    let news = |rule: &&Rule| held.get(&rule.name) != Some(&rule.revision);
                    Delta { upserted: delta.upserted.iter().filter(news).cloned().collect(), ..delta.clone() }
                })
                .collect();
            sent = deltas.len();
            let (nonce, revision) = (format!("n{sent}"), sent as i64);
            let incarnation = centre.incarnation.lock().unwrap().clone();
            let updates = match new.is_empty() {
                true => vec![Update::Bookmark(Default::default())],
                false => new.into_iter().map(Update::Delta).collect(),
            };
            futures::stream::iter(
                updates.into_iter().map(move |update| (update, nonce.clone(), incarnation.clone())).map(
                    move |(update, nonce, incarnation)| {
                        Ok(WatchConfigResponse { nonce, revision, incarnation, update: Some(update) })
                    },
                ),
            )
        });
        let mut told = self.0.commands.borrow().len();
        let commands = WatchStream::new(self.0.commands.subscribe()).flat_map(move |commands| {
            let new = commands[std::mem::replace(&mut told, commands.len())..].to_vec();
            futures::stream::iter(new.into_iter().map(|command| {
                Ok(WatchConfigResponse { update: Some(Update::Command(command)), ..Default::default() })
            }))
        });
        let stream = futures::stream::select(stream, commands);
        Ok(Response::new(stream.take_until(self.0.token.clone().cancelled_owned()).boxed()))
    }

    async fn answer_command(
        &self,
        request: Request<AnswerCommandRequest>,
    ) -> Result<Response<AnswerCommandResponse>, Status> {
        self.0.answers.lock().unwrap().push(request.into_inner());
        Ok(Response::new(AnswerCommandResponse {}))
    }

    async fn report_status(
        &self,
        request: Request<ReportStatusRequest>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        self.0.reports.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ReportStatusResponse { want_full: false }))
    }
}

struct Discovery(Arc<Centre>);

#[tonic::async_trait]
impl DiscoveryService for Discovery {
    type RegisterStream = Answers<RegisterResponse>;
    type WatchEndpointsStream = Answers<WatchEndpointsResponse>;

    async fn register(&self, _: Request<Streaming<RegisterRequest>>) -> Result<Response<Self::RegisterStream>, Status> {
        Err(Status::unimplemented("agents don't register"))
    }

    async fn watch_endpoints(
        &self,
        request: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        assert_eq!(request.into_inner().kind, "gateway");
        let stream = WatchStream::new(self.0.gateways.subscribe())
            .map(|endpoints| Ok(WatchEndpointsResponse { endpoints, revision: 1 }));
        Ok(Response::new(stream.take_until(self.0.token.clone().cancelled_owned()).boxed()))
    }

    async fn list_leaders(&self, _: Request<ListLeadersRequest>) -> Result<Response<ListLeadersResponse>, Status> {
        Err(Status::unimplemented("nobody leads here"))
    }

    type CampaignStream = Answers<CampaignResponse>;

    async fn campaign(&self, _: Request<Streaming<CampaignRequest>>) -> Result<Response<Self::CampaignStream>, Status> {
        Err(Status::unimplemented("agents don't campaign"))
    }
}

/// The longest that anything is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
