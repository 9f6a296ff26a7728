//! The gateway: where events enter. It checks what comes, puts it on the bus, and acks what is durable there.
//!
//! Nothing is acked from memory. A stream's chunks are appended in the order in which they came, many at a time; when the
//! bus fails, they are tried again in that order, and the credit that isn't given back holds the agent off.

mod push;
mod settings;
mod topics;
mod write;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use logmesh_bus::Bus;
use logmesh_grpc::{Routes, Shed, resource_exhausted};
use logmesh_proto::ingest::v1::ingest_service_server::{IngestService, IngestServiceServer};
use logmesh_proto::ingest::v1::{PushRequest, PushResponse, WriteRequest, WriteResponse};
use logmesh_runtime::{CancellationToken, RetryPolicy, Tasks};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status, Streaming};

use push::Session;
use topics::TopicMaker;

pub use settings::Settings;

/// Answers that wait for a Push stream's reader; when it is full, acks wait.
const ANSWERS: usize = 64;

/// How a failing append is tried again. The bus is near and each stream tries one append at a time, so the longest wait is
/// short: it is what a recovered bus costs in freshness.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(100), max: Duration::from_secs(2) };

/// A running gateway.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
}

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Shared {
    bus: Arc<dyn Bus>,
    settings: Settings,
    topics: TopicMaker,
    retry: RetryPolicy,
    /// Bytes that may still be taken in, over all calls.
    room: Arc<Semaphore>,
    /// Push streams that may still be opened.
    streams: Arc<Semaphore>,
    tasks: Tasks,
}

impl Gateway {
    /// Checks the settings. The bus need not be reachable yet.
    pub fn start(bus: Arc<dyn Bus>, settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        settings.check()?;
        let shared = Shared {
            topics: TopicMaker::new(Arc::clone(&bus), settings.topics.clone(), settings.max_topics),
            bus,
            retry: RETRY,
            room: Arc::new(Semaphore::new(usize::try_from(settings.max_in_flight_total.0)?)),
            streams: Arc::new(Semaphore::new(settings.max_streams)),
            settings,
            tasks: tasks.clone(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Adds `IngestService` to a server. It serves while the component `bus` is ready, if there is one. Requests may be
    /// compressed with zstd; the bound on a message holds for what it's opened to. Calls beyond what the settings let in are
    /// turned away at once, with the time to come again.
    pub fn add_to(&self, routes: &mut Routes) {
        let service = IngestServiceServer::new(self.clone()).accept_compressed(CompressionEncoding::Zstd);
        let load = self.shared.settings.load();
        routes.add(Shed::new(service, load)).needs("bus");
    }
}

impl Shared {
    fn token(&self) -> CancellationToken {
        self.tasks.token()
    }
}

#[tonic::async_trait]
impl IngestService for Gateway {
    type PushStream = BoxStream<'static, Result<PushResponse, Status>>;

    async fn push(&self, request: Request<Streaming<PushRequest>>) -> Result<Response<Self::PushStream>, Status> {
        let Ok(slot) = Arc::clone(&self.shared.streams).try_acquire_owned() else {
            let most = self.shared.settings.max_streams;
            return Err(resource_exhausted("TOO_MANY_STREAMS", format!("there are {most} Push streams already")));
        };
        let (answers, stream) = mpsc::channel(ANSWERS);
        let session = Session::new(Arc::clone(&self.shared), answers);
        self.shared.tasks.spawn("push", async move {
            session.run(request.into_inner()).await;
            drop(slot);
            Ok(())
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        write::write(&self.shared, request.into_inner()).await.map(Response::new)
    }
}
