//! The connection to a gateway: chunks go over it, acks come back.
//!
//! One gateway at a time, chosen so that agents spread over all of them; another when that one fails. A process that
//! ends waits for the acks of what is on its way, for a bounded time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::{Stream, StreamExt};
use logmesh_proto::discovery::v1::Endpoint;
use logmesh_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use logmesh_proto::ingest::v1::push_response::Response as Answer;
use logmesh_proto::ingest::v1::{self as message, DataFormat, PushRequest, PushResponse};
use logmesh_proto::time::{std_duration, timestamp};
use logmesh_runtime::{CancellationToken, RetryPolicy};
use logmesh_tail::Chunk;
use logmesh_types::ByteRange;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::DropGuard;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::collect::Handle;
use crate::host::Identity;
use crate::settings::Settings;

/// How long a gateway may take to open the stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long acks are waited for after a go-away.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait that a go-away can ask for.
const MAX_AWAY: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct Push {
    pub settings: watch::Receiver<Arc<Settings>>,
    pub identity: Arc<Identity>,
    pub collector: Handle,
    pub gateways: watch::Receiver<Vec<Endpoint>>,
    pub connected: watch::Sender<bool>,
    /// Lets the collector end, however this task does.
    pub drained: DropGuard,
}

/// How a connection ended, other than by a failure.
#[derive(Clone, Copy)]
enum End {
    GoAway(Duration),
    Stopped,
}

impl Push {
    /// Runs until the token is cancelled and what is on its way then is acked, or the time for that is over.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let retry = RetryPolicy::default();
        // The place of the gateway in the order, and how many connections failed since one served.
        let (mut place, mut failures) = (0, 0);
        while let Some((gateway, others)) = self.choose(place, &token).await {
            let mut served = false;
            let end = self.serve(&gateway, &mut served, &token).await;
            self.connected.send_replace(false);
            if self.collector.disconnected().await.is_err() {
                // The process is ending.
                return Ok(());
            }
            match end {
                Ok(End::Stopped) => break,
                // It goes on itself: perhaps a new gateway is nearer now.
                Ok(End::GoAway(pause)) if pause.is_zero() => place = 0,
                // It is ending: the next one is there, and its other agents come to that too.
                Ok(End::GoAway(_)) if others => {
                    place += 1;
                    if !retry.pause(0, &token).await {
                        break;
                    }
                }
                Ok(End::GoAway(pause)) => {
                    tokio::select! { () = token.cancelled() => break, () = tokio::time::sleep(pause) => {} }
                }
                Err(error) => {
                    tracing::warn!(gateway = %gateway.address, error = format!("{error:#}"),
                        "no connection to the gateway; what isn't acked will be sent again");
                    (place, failures) = (place + 1, if served { 0 } else { failures + 1 });
                    if !retry.pause(failures, &token).await {
                        break;
                    }
                }
            }
        }
        self.say_what_is_left().await;
        drop(self.drained);
        Ok(())
    }

    async fn say_what_is_left(&self) {
        if let Ok(snapshot) = self.collector.snapshot().await
            && snapshot.totals.in_flight_bytes > 0
        {
            let bytes = snapshot.totals.in_flight_bytes;
            tracing::info!(bytes, "ends before all was acked; the rest is sent again after the next start");
        }
    }

    /// The gateway at this place, and whether there are others: each agent has an order of its own, and goes on in it
    /// while connections fail.
    async fn choose(&mut self, place: usize, token: &CancellationToken) -> Option<(Endpoint, bool)> {
        let mut order = tokio::select! {
            () = token.cancelled() => return None,
            known = self.gateways.wait_for(|known| !known.is_empty()) => known.ok()?.clone(),
        };
        order.sort_by_cached_key(|gateway| rank(self.identity.id.as_str(), &gateway.id));
        let (index, others) = (place % order.len(), order.len() > 1);
        Some((order.swap_remove(index), others))
    }

    async fn serve(&self, gateway: &Endpoint, served: &mut bool, token: &CancellationToken) -> anyhow::Result<End> {
        let opened = tokio::select! {
            opened = self.open(&gateway.address) => opened,
            () = token.cancelled() => return Ok(End::Stopped),
        };
        let mut answers = opened?;
        tracing::info!(gateway = %gateway.address, id = %gateway.id, "connected to a gateway");
        let mut leaving: Option<(End, Instant)> = None;
        loop {
            let stopping = matches!(leaving, Some((End::Stopped, _)));
            let deadline = leaving.map_or_else(Instant::now, |(_, deadline)| deadline);
            let answer = tokio::select! {
                answer = answers.message() => answer.map_err(refused),
                () = token.cancelled(), if !stopping => {
                    self.collector.disconnected().await?;
                    leaving = Some((End::Stopped, Instant::now() + self.settings.borrow().drain.0));
                    continue;
                }
                () = tokio::time::sleep_until(deadline), if leaving.is_some() => Ok(None),
            };
            match (answer, leaving) {
                (Ok(Some(answer)), _) => {
                    *served = true;
                    self.connected.send_if_modified(|connected| !std::mem::replace(connected, true));
                    if let Some(pause) = self.take(answer).await?
                        && !stopping
                    {
                        leaving = Some((End::GoAway(pause), Instant::now() + DRAIN_TIMEOUT));
                    }
                }
                (_, Some((end, _))) => return Ok(end),
                (Ok(None), None) => return Err(anyhow!("the gateway ended the stream")),
                (Err(error), None) => return Err(error),
            }
        }
    }

    /// Opens the stream, with compressed chunks if the settings say so and the gateway can open them.
    async fn open(&self, address: &str) -> anyhow::Result<Streaming<PushResponse>> {
        let settings = self.settings.borrow().clone();
        settings.check_server(address)?;
        let client = IngestServiceClient::new(logmesh_grpc::channel(address)?);
        if settings.compression.applies_to(address) {
            let compressing = client.clone().send_compressed(CompressionEncoding::Zstd);
            match self.ask(compressing).await? {
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::warn!(gateway = %address, "the gateway takes no zstd: chunks are sent as they are");
                }
                answer => return answer.map_err(refused),
            }
        }
        self.ask(client).await?.map_err(refused)
    }

    async fn ask(
        &self,
        mut client: IngestServiceClient<Channel>,
    ) -> anyhow::Result<Result<Streaming<PushResponse>, Status>> {
        // Without credit no chunk comes yet.
        let requests = self.requests(self.collector.connected().await?);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.push(requests)).await.context("no answer")?;
        Ok(answer.map(Response::into_inner))
    }

    /// Takes an answer; a go-away gives the time to wait.
    ///
    /// The next stream isn't opened before this one has ended: an ack speaks for everything before it in its file, so
    /// the acks of two gateways at a time would vouch for each other's chunks.
    async fn take(&self, answer: PushResponse) -> anyhow::Result<Option<Duration>> {
        match answer.response {
            Some(Answer::Ack(ack)) => self.collector.ack(ack.stream_id.parse()?, ack.end_offset).await?,
            Some(Answer::Credit(credit)) => self.collector.credit(credit.bytes).await?,
            Some(Answer::Reject(reject)) => {
                let range = ByteRange::new(reject.start_offset, reject.end_offset);
                tracing::debug!(stream = %reject.stream_id, %range, reason = %reject.reason, "the gateway refused a chunk");
                let reason = format!("{}: {}", reject.reason, reject.detail);
                self.collector.reject(reject.stream_id.parse()?, range, reason).await?;
            }
            Some(Answer::GoAway(away)) => {
                tracing::debug!(reason = %away.reason, "the gateway asks to connect again");
                // The end of the requests: the gateway acks what it has, and ends.
                self.collector.disconnected().await?;
                let pause = away.retry_after.as_ref().and_then(std_duration).unwrap_or_default();
                return Ok(Some(pause.min(MAX_AWAY)));
            }
            None => {}
        }
        Ok(None)
    }

    fn requests(&self, chunks: mpsc::Receiver<Chunk>) -> impl Stream<Item = PushRequest> + Send + 'static {
        let (identity, collector, settings) = (self.identity.clone(), self.collector.clone(), self.settings.clone());
        ReceiverStream::new(chunks).map(move |chunk| {
            collector.chunk_taken();
            PushRequest { chunk: Some(to_message(chunk, &identity, &settings.borrow().labels)) }
        })
    }
}

fn to_message(chunk: Chunk, identity: &Identity, labels: &BTreeMap<String, String>) -> message::Chunk {
    let source = &chunk.source;
    message::Chunk {
        stream_id: chunk.stream.to_string(),
        topic: source.topic.to_string(),
        rule: source.rule.to_string(),
        rule_revision: source.revision,
        start_offset: chunk.range.start,
        end_offset: chunk.range.end,
        event_lengths: chunk.lengths.as_deref().map(<[u32]>::to_vec).unwrap_or_default(),
        crc32c: chunk.crc32c,
        read_time: Some(timestamp(chunk.read_time)),
        written_time: chunk.written_time.map(timestamp),
        source: Some(message::Source {
            agent_id: identity.id.to_string(),
            host_name: identity.host.clone(),
            host_ips: identity.ips.clone(),
            path: source.path.clone(),
            service: source.service.clone().unwrap_or_default(),
            labels: labels.clone(),
        }),
        continuations: chunk.continuations.to_vec(),
        encoding: if chunk.charset.is_utf8() { String::new() } else { chunk.charset.name().to_owned() },
        format: if chunk.container { DataFormat::Container } else { DataFormat::Unspecified }.into(),
        omitted_bytes: chunk.omitted(),
        repeated: chunk.again,
        data: chunk.data,
    }
}

/// Where a gateway stands in an agent's order: spread evenly, and changed least when gateways come and go.
fn rank(agent: &str, gateway: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(agent.as_bytes()).update(&[0]).update(gateway.as_bytes());
    *hasher.finalize().as_bytes()
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("{}", logmesh_grpc::describe(&status))
}
