//! The half of a Push stream that waits for the bus and acks, or rejects what the bus will never take.

use std::collections::VecDeque;
use std::ops::Range;

use logmesh_bus::{BusError, Position};
use logmesh_proto::ingest::v1::push_response::Response;
use logmesh_types::metric;
use metrics::{counter, histogram};
use tokio::sync::mpsc::Receiver;
use tracing::warn;

use super::pending::Pending;
use super::rejected::{Refusal, Rejected};
use super::{End, Session};
use crate::topics::refusal;

impl Session {
    /// Acks chunks in their order as they become durable, until the reader has ended and all are acked.
    pub(super) async fn ack(&self, mut to_ack: Receiver<Pending>) -> Result<(), End> {
        let mut rejected = Rejected::default();
        while let Some(head) = to_ack.recv().await {
            if let Some((head, error)) = self.settle(head, &mut rejected).await? {
                self.retry(head, error, &mut to_ack, &mut rejected).await?;
            }
        }
        Ok(())
    }

    /// Waits for a chunk's append and answers; gives the chunk back if it is to be tried again.
    async fn settle(&self, mut chunk: Pending, rejected: &mut Rejected) -> Result<Option<(Pending, BusError)>, End> {
        let outcome = chunk.appended().await;
        let mut apart = Rejected::default();
        let rejected = if chunk.is_repeated() { &mut apart } else { rejected };
        if let Some(refusal) = rejected.refusal(chunk.stream_id(), chunk.start_offset()) {
            self.reject(chunk.to_reject(refusal), chunk.bytes(), rejected).await?;
            return Ok(None);
        }
        match outcome {
            Ok(position) => {
                rejected.forget(chunk.stream_id());
                self.ack_one(chunk, &position).await?;
            }
            Err(error) => match refusal(&error) {
                Some(reason) => {
                    let refusal = Refusal { reason, detail: error.to_string() };
                    self.reject(chunk.to_reject(refusal), chunk.bytes(), rejected).await?;
                }
                None => return Ok(Some((chunk, error))),
            },
        }
        Ok(None)
    }

    async fn ack_one(&self, chunk: Pending, position: &Position) -> Result<(), End> {
        let bytes = chunk.bytes();
        counter!(metric::GATEWAY_CHUNKS, "outcome" => "acked").increment(1);
        counter!(metric::GATEWAY_ACKED_BYTES).increment(bytes);
        histogram!(metric::GATEWAY_ACK_SECONDS).record(chunk.since.elapsed());
        self.answer(Response::Ack(chunk.into_ack(position))).await?;
        self.grant(bytes).await
    }

    /// Tries a chunk again, and behind it all that were appended since, until every one of them is durable. The reader
    /// stands still meanwhile; a later chunk may thus be on the bus twice, but never only before an earlier one.
    async fn retry(
        &self,
        head: Pending,
        mut error: BusError,
        to_ack: &mut Receiver<Pending>,
        rejected: &mut Rejected,
    ) -> Result<(), End> {
        let _order = self.order.lock().await;
        let mut queue = VecDeque::from([head]);
        queue.extend(std::iter::from_fn(|| to_ack.try_recv().ok()));
        let mut attempt = 0;
        loop {
            // Whatever the others came to, they are tried again too.
            for later in queue.iter_mut().skip(1) {
                drop(later.appended().await);
            }
            counter!(metric::GATEWAY_APPEND_RETRIES).increment(1);
            warn!(%error, chunks = queue.len(), attempt, "the bus did not take chunks; trying again");
            tokio::time::sleep(self.shared.retry.delay(attempt)).await;
            attempt += 1;
            // The first alone shows whether the bus works again; were all sent, the last might be stored before it.
            self.append_again(&mut queue, 0..1).await;
            if let Some(failed) = self.settle_front(&mut queue, 1, rejected).await? {
                error = failed;
                continue;
            }
            attempt = 0;
            let rest = queue.len();
            self.append_again(&mut queue, 0..rest).await;
            match self.settle_front(&mut queue, rest, rejected).await? {
                None => return Ok(()),
                Some(failed) => error = failed,
            }
        }
    }

    async fn append_again(&self, queue: &mut VecDeque<Pending>, which: Range<usize>) {
        for chunk in queue.range_mut(which) {
            self.shared.topics.forget(&chunk.topic);
            // Should it fail, so will the append, and that is where it's noticed.
            drop(self.shared.topics.ensure(&chunk.topic).await);
            chunk.append(&*self.shared.bus).await;
        }
    }

    /// Settles so many from the front; the error at which it stopped.
    async fn settle_front(
        &self,
        queue: &mut VecDeque<Pending>,
        count: usize,
        rejected: &mut Rejected,
    ) -> Result<Option<BusError>, End> {
        for _ in 0..count {
            let Some(head) = queue.pop_front() else { break };
            if let Some((head, error)) = self.settle(head, rejected).await? {
                queue.push_front(head);
                return Ok(Some(error));
            }
        }
        Ok(None)
    }
}
