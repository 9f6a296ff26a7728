//! The half of a Push stream that waits for the bus and acks.

use std::collections::VecDeque;
use std::ops::Range;

use logmesh_bus::{BusError, Position};
use logmesh_proto::ingest::v1::push_response::Response;
use metrics::{counter, histogram};
use tokio::sync::mpsc::Receiver;
use tracing::warn;

use super::pending::Pending;
use super::{End, Session};
use crate::metrics::{ACK_SECONDS, BYTES, CHUNKS, RETRIES};

impl Session {
    /// Acks chunks in their order as they become durable, until the reader has ended and all are acked.
    pub(super) async fn ack(&self, mut to_ack: Receiver<Pending>) -> Result<(), End> {
        while let Some(mut head) = to_ack.recv().await {
            match head.appended().await {
                Ok(position) => self.ack_one(head, &position).await?,
                Err(error) => self.retry(head, error, &mut to_ack).await?,
            }
        }
        Ok(())
    }

    async fn ack_one(&self, chunk: Pending, position: &Position) -> Result<(), End> {
        let bytes = chunk.bytes;
        counter!(CHUNKS, "outcome" => "acked").increment(1);
        counter!(BYTES).increment(bytes);
        histogram!(ACK_SECONDS).record(chunk.since.elapsed());
        self.answer(Response::Ack(chunk.into_ack(position))).await?;
        self.grant(bytes).await
    }

    /// Tries a chunk again, and behind it all that were appended since, until every one of them is durable. The reader
    /// stands still meanwhile; a later chunk may thus be on the bus twice, but never only before an earlier one.
    async fn retry(&self, head: Pending, mut error: BusError, to_ack: &mut Receiver<Pending>) -> Result<(), End> {
        let _order = self.order.lock().await;
        let mut queue = VecDeque::from([head]);
        queue.extend(std::iter::from_fn(|| to_ack.try_recv().ok()));
        let mut attempt = 0;
        loop {
            // Whatever the others came to, they are tried again too.
            for later in queue.iter_mut().skip(1) {
                drop(later.appended().await);
            }
            counter!(RETRIES).increment(1);
            warn!(%error, chunks = queue.len(), attempt, "the bus did not take chunks; trying again");
            tokio::time::sleep(self.shared.retry.delay(attempt)).await;
            attempt += 1;
            // The first alone shows whether the bus works again; were all sent, the last might be stored before it.
            self.append_again(&mut queue, 0..1).await;
            if let Some(failed) = self.ack_front(&mut queue, 1).await? {
                error = failed;
                continue;
            }
            attempt = 0;
            let rest = queue.len();
            self.append_again(&mut queue, 0..rest).await;
            match self.ack_front(&mut queue, rest).await? {
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

    /// Acks so many from the front; the error at which it stopped.
    async fn ack_front(&self, queue: &mut VecDeque<Pending>, count: usize) -> Result<Option<BusError>, End> {
        for _ in 0..count {
            let Some(mut head) = queue.pop_front() else { break };
            match head.appended().await {
                Ok(position) => self.ack_one(head, &position).await?,
                Err(error) => {
                    queue.push_front(head);
                    return Ok(Some(error));
                }
            }
        }
        Ok(None)
    }
}
