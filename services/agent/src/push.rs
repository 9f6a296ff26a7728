//! The connection to a gateway: chunks go over it, acks come back.
//!
//! One gateway at a time, chosen so that agents spread over all of them; another when that one fails.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::{Stream, StreamExt};
use logmesh_proto::discovery::v1::Endpoint;
use logmesh_proto::ingest::v1::ingest_service_client::IngestServiceClient;
use logmesh_proto::ingest::v1::push_response::Response;
use logmesh_proto::ingest::v1::{self as message, PushRequest, PushResponse};
use logmesh_proto::time::{std_duration, timestamp};
use logmesh_runtime::{CancellationToken, RetryPolicy};
use logmesh_tail::Chunk;
use logmesh_types::ByteRange;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

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
    pub settings: Arc<Settings>,
    pub identity: Arc<Identity>,
    pub collector: Handle,
    pub gateways: watch::Receiver<Vec<Endpoint>>,
    pub connected: watch::Sender<bool>,
}

enum End {
    GoAway(Duration),
    Stopped,
}

impl Push {
    /// Runs until the token is cancelled.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let retry = RetryPolicy::default();
        let mut attempt = 0;
        while let Some(gateway) = self.choose(attempt, &token).await {
            let mut served = false;
            let end = self.serve(&gateway, &mut served, &token).await;
            self.connected.send_replace(false);
            if self.collector.disconnected().await.is_err() {
                // The process is ending.
                return Ok(());
            }
            match end {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::GoAway(pause)) => {
                    attempt = 0;
                    tokio::select! { () = token.cancelled() => return Ok(()), () = tokio::time::sleep(pause) => {} }
                }
                Err(error) => {
                    tracing::warn!(gateway = %gateway.address, error = format!("{error:#}"),
                        "no connection to the gateway; what isn't acked will be sent again");
                    attempt = if served { 1 } else { attempt + 1 };
                    if !retry.pause(attempt - 1, &token).await {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// The gateway for this attempt: each agent has an order of its own, and goes on in it while connections fail.
    async fn choose(&mut self, attempt: u32, token: &CancellationToken) -> Option<Endpoint> {
        let mut order = tokio::select! {
            () = token.cancelled() => return None,
            known = self.gateways.wait_for(|known| !known.is_empty()) => known.ok()?.clone(),
        };
        order.sort_by_cached_key(|gateway| rank(self.identity.id.as_str(), &gateway.id));
        let index = attempt as usize % order.len();
        Some(order.swap_remove(index))
    }

    async fn serve(&self, gateway: &Endpoint, served: &mut bool, token: &CancellationToken) -> anyhow::Result<End> {
        self.settings.check_server(&gateway.address)?;
        let mut client = IngestServiceClient::new(logmesh_grpc::channel(&gateway.address)?);
        // Without credit no chunk comes yet.
        let requests = self.requests(self.collector.connected().await?);
        let opened = tokio::select! {
            opened = tokio::time::timeout(ANSWER_TIMEOUT, client.push(requests)) => opened,
            () = token.cancelled() => return Ok(End::Stopped),
        };
        let mut answers = opened.context("no answer")?.map_err(refused)?.into_inner();
        tracing::info!(gateway = %gateway.address, id = %gateway.id, "connected to a gateway");
        let mut away: Option<(Duration, Instant)> = None;
        loop {
            let deadline = away.map_or_else(Instant::now, |(_, deadline)| deadline);
            let answer = tokio::select! {
                answer = answers.message() => answer.map_err(refused),
                () = token.cancelled() => return Ok(End::Stopped),
                () = tokio::time::sleep_until(deadline), if away.is_some() => Ok(None),
            };
            match (answer, away) {
                (Ok(Some(answer)), _) => {
                    *served = true;
                    self.connected.send_if_modified(|connected| !std::mem::replace(connected, true));
                    if let Some(pause) = self.take(answer).await? {
                        away = Some((pause, Instant::now() + DRAIN_TIMEOUT));
                    }
                }
                (_, Some((pause, _))) => return Ok(End::GoAway(pause)),
                (Ok(None), None) => return Err(anyhow!("the gateway ended the stream")),
                (Err(error), None) => return Err(error),
            }
        }
    }

    /// Takes an answer; a go-away gives the time to wait.
    async fn take(&self, answer: PushResponse) -> anyhow::Result<Option<Duration>> {
        match answer.response {
            Some(Response::Ack(ack)) => self.collector.ack(ack.stream_id.parse()?, ack.end_offset).await?,
            Some(Response::Credit(credit)) => self.collector.credit(credit.bytes).await?,
            Some(Response::Reject(reject)) => {
                let range = ByteRange::new(reject.start_offset, reject.end_offset);
                tracing::debug!(stream = %reject.stream_id, %range, reason = %reject.reason, "the gateway refused a chunk");
                let reason = format!("{}: {}", reject.reason, reject.detail);
                self.collector.reject(reject.stream_id.parse()?, range, reason).await?;
            }
            Some(Response::GoAway(away)) => {
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
        let (identity, collector) = (self.identity.clone(), self.collector.clone());
        ReceiverStream::new(chunks).map(move |chunk| {
            collector.chunk_taken();
            PushRequest { chunk: Some(to_message(chunk, &identity)) }
        })
    }
}

fn to_message(chunk: Chunk, identity: &Identity) -> message::Chunk {
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
        source: Some(message::Source {
            agent_id: identity.id.to_string(),
            host_name: identity.host.clone(),
            host_ips: identity.ips.clone(),
            path: source.path.clone(),
            service: source.service.clone().unwrap_or_default(),
            labels: identity.own_labels.clone(),
        }),
        continuations: if chunk.continuation { vec![0] } else { Vec::new() },
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
