//! One Push stream: chunks in, acks out.
//!
//! Two halves work side by side. The reader checks chunks and appends them without waiting for the bus; the
//! [`acker`] waits for each append in turn and answers. What lies between them is bounded by the credit, and by number.

mod acker;
mod pending;
mod rejected;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use logmesh_proto::ingest::v1::push_response::Response;
use logmesh_proto::ingest::v1::{Chunk, Credit, GoAway, PushRequest, PushResponse, Reject};
use logmesh_proto::time::duration;
use logmesh_record::{Format, Times, chunk};
use logmesh_types::{TopicName, UnixNanos, metric};
use metrics::{counter, gauge};
use prost::Message;
use rand::Rng;
use tokio::sync::{Mutex, mpsc};
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use crate::Shared;
use crate::topics::TopicError;

use pending::Pending;
use rejected::{MAX_REJECTED, Refusal, Rejected};

pub(crate) use pending::{InFlight, bus_position};

/// The most chunks of one stream that wait for their acks; the credit alone would let millions of one byte in.
const MAX_PENDING: usize = 8_192;

/// What a chunk counts for beyond its message in the room of all connections: what is kept of it until it is acked.
const CHUNK_COST: usize = 1_024;

/// The end of a session, with what to tell the agent if it is still there.
type End = Option<Status>;

/// See the module.
pub(crate) struct Session {
    shared: Arc<Shared>,
    answers: mpsc::Sender<Result<PushResponse, Status>>,
    /// Bytes that the agent was allowed to send, in all.
    granted: AtomicU64,
    /// Held while something is appended, so that what is tried again isn't overtaken.
    order: Mutex<()>,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, answers: mpsc::Sender<Result<PushResponse, Status>>) -> Self {
        Self { shared, answers, granted: AtomicU64::new(0), order: Mutex::new(()) }
    }

    /// Serves the stream until the agent ends it, is gone, or was asked to go and had its time.
    pub(crate) async fn run(&self, chunks: Streaming<PushRequest>) {
        gauge!(metric::GATEWAY_PUSH_STREAMS).increment(1.0);
        let (pending, to_ack) = mpsc::channel(MAX_PENDING);
        let work = async { tokio::try_join!(self.read(chunks, pending), self.ack(to_ack)) };
        tokio::select! {
            () = self.answers.closed() => debug!("the agent is gone"),
            () = self.until_over() => debug!("the agent was cut off after a go-away"),
            end = work => {
                if let Err(Some(status)) = end {
                    // It fails if the agent is gone, which is as well.
                    drop(self.answers.send(Err(status)).await);
                }
            }
        }
        gauge!(metric::GATEWAY_PUSH_STREAMS).decrement(1.0);
    }

    /// Resolves when the stream was asked to end and its time for that is over.
    async fn until_over(&self) {
        let token = self.shared.token();
        let (reason, retry_after) = tokio::select! {
            () = token.cancelled() => ("SHUTTING_DOWN", Duration::from_millis(500)),
            () = tokio::time::sleep(self.age()) => ("STREAM_AGE", Duration::ZERO),
        };
        let go_away = GoAway { reason: reason.to_owned(), retry_after: Some(duration(retry_after)) };
        // Not awaited for ever: the drain below is the bound.
        let drain = tokio::time::sleep(self.shared.settings.drain.0);
        let send = self.answer(Response::GoAway(go_away));
        tokio::pin!(drain);
        tokio::select! {
            _ = send => drain.await,
            () = &mut drain => {}
        }
    }

    /// The stream's greatest age, a fifth more or less so that those that came together don't go together.
    fn age(&self) -> Duration {
        self.shared.settings.max_stream_age.0.mul_f64(rand::rng().random_range(0.8..1.2))
    }

    async fn answer(&self, response: Response) -> Result<(), End> {
        self.answers.send(Ok(PushResponse { response: Some(response) })).await.map_err(|_| None)
    }

    /// Allows the agent to send so many more bytes.
    async fn grant(&self, bytes: u64) -> Result<(), End> {
        self.granted.fetch_add(bytes, Ordering::SeqCst);
        self.answer(Response::Credit(Credit { bytes })).await
    }

    /// Takes chunks until the agent has no more.
    async fn read(&self, mut chunks: Streaming<PushRequest>, pending: mpsc::Sender<Pending>) -> Result<(), End> {
        self.grant(self.shared.settings.max_in_flight.0).await?;
        let (mut received, mut rejected) = (0, Rejected::default());
        while let Some(request) = chunks.message().await.map_err(|_| None)? {
            let Some(mut chunk) = request.chunk else { continue };
            received += chunk.data.len() as u64;
            if received > self.granted.load(Ordering::SeqCst) {
                let message = "more bytes were sent than the credit allowed";
                return Err(Some(logmesh_grpc::resource_exhausted("CREDIT_EXCEEDED", message)));
            }
            let received = UnixNanos::now();
            let mut times = Times::of_chunk(&chunk, received);
            if chunk::clamp_read_time(&mut chunk, received) {
                counter!(metric::GATEWAY_CLAMPED_READ_TIMES).increment(1);
                // By a clock that is so far off nothing can be measured.
                times = Times::of_event(received);
            }
            let in_flight = InFlight::new(&self.shared.room, chunk.encoded_len() + CHUNK_COST).await;
            // What is sent once more stands apart from the order of what is new.
            let mut apart = Rejected::default();
            let rejected = if chunk.repeated { &mut apart } else { &mut rejected };
            match self.take(&chunk, rejected).await {
                Ok((topic, format)) => {
                    rejected.forget(&chunk.stream_id);
                    let mut item = Pending::new(chunk, times, topic, format, in_flight);
                    // A place first: waiting for one with the lock held would be for ever, since a retry wants the lock.
                    let place = pending.reserve().await.map_err(|_| None)?;
                    let _order = self.order.lock().await;
                    item.append(&*self.shared.bus).await;
                    place.send(item);
                }
                Err(refusal) => {
                    let reject = refusal.of(&chunk.stream_id, chunk.start_offset..chunk.end_offset);
                    self.reject(reject, chunk.data.len() as u64, rejected).await?;
                }
            }
        }
        Ok(())
    }

    /// Checks a chunk, and sees to its topic.
    async fn take(&self, chunk: &Chunk, rejected: &Rejected) -> Result<(TopicName, Format), Refusal> {
        chunk::check(chunk).map_err(|error| Refusal { reason: error.reason, detail: error.detail })?;
        let topic = chunk.topic.parse().map_err(|error| Refusal { reason: "BAD_NAME", detail: format!("{error}") })?;
        if let Some(refusal) = rejected.refusal(&chunk.stream_id, chunk.start_offset) {
            return Err(refusal);
        }
        let format = self.ensure_topic(&topic).await?;
        Ok((topic, format))
    }

    /// Sees to the topic, for as long as it takes.
    async fn ensure_topic(&self, topic: &TopicName) -> Result<Format, Refusal> {
        let mut attempt = 0;
        loop {
            match self.shared.topics.ensure(topic).await {
                Ok(format) => return Ok(format),
                Err(TopicError::Refused { reason, detail }) => return Err(Refusal { reason, detail }),
                Err(TopicError::Bus(error)) => warn!(%topic, %error, "cannot make the topic; trying again"),
            }
            tokio::time::sleep(self.shared.retry.delay(attempt)).await;
            attempt += 1;
        }
    }

    /// Says that a chunk was refused, and gives the credit of its bytes back.
    async fn reject(&self, reject: Reject, bytes: u64, rejected: &mut Rejected) -> Result<(), End> {
        counter!(metric::GATEWAY_CHUNKS, "outcome" => "rejected").increment(1);
        debug!(stream = ?reject.stream_id, reason = reject.reason, detail = ?reject.detail, "chunk rejected");
        if !rejected.note(&reject.stream_id, reject.start_offset) {
            let message = format!("chunks of {MAX_REJECTED} streams were rejected");
            return Err(Some(logmesh_grpc::resource_exhausted("TOO_MANY_REJECTED", message)));
        }
        self.answer(Response::Reject(reject)).await?;
        self.grant(bytes).await
    }
}
