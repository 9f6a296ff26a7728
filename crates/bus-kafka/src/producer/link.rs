//! The way to one broker: batches of the partitions that it leads go out, and what became of them comes back.
//!
//! A broker serves the requests of a connection one after the other, so batches that come while some are under way are gathered
//! into one request. Anything that isn't as it should be ends the link, and with it all that wait for an answer; the next batch
//! makes a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use logmesh_bus::TopicPartition;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;

use super::connection::Connection;
use super::wire::{self, PRODUCE, Request, Stored};
use crate::settings::Settings;

/// Requests that wait for their answers: the broker has the next one when it's done with one.
const UNDER_WAY: usize = 2;

/// Batches that share a request, and bytes of them after which it is full. One batch goes whatever its size.
const GATHERED: usize = 64;
const GATHERED_BYTES: usize = 4 << 20;

/// Batches that wait to be gathered, beyond which lanes wait to hand theirs over.
const QUEUE: usize = 1024;

/// How much longer than a broker may take we wait for it to say so.
const GRACE: Duration = Duration::from_secs(1);

/// How long after a connection that failed the next one is tried.
const REDIAL: Duration = Duration::from_millis(100);

/// What became of a batch, or why it isn't known; nothing if there's no connection any more.
pub(super) type Answer = oneshot::Receiver<Result<Stored, Arc<str>>>;

struct Errand {
    at: TopicPartition,
    batch: Bytes,
    reply: oneshot::Sender<Result<Stored, Arc<str>>>,
}

/// Hands batches to a broker. Dropping all of them ends the connection.
#[derive(Clone, Debug)]
pub(super) struct Link {
    address: String,
    errands: mpsc::Sender<Errand>,
}

impl Link {
    /// A link to `host:port`, and what must be run for it.
    pub(super) fn new(address: &str, settings: &Arc<Settings>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (errands, queue) = mpsc::channel(QUEUE);
        let work = Work { address: address.to_owned(), settings: Arc::clone(settings), queue, sent: VecDeque::new() };
        (Self { address: address.to_owned(), errands }, work.run())
    }

    /// True if batches can still be sent over it, to this address.
    pub(super) fn leads_to(&self, address: &str) -> bool {
        self.address == address && !self.errands.is_closed()
    }

    /// Sends a batch behind those that were given to it before; waits for room only. If the answer is an error, it may be stored or not.
    pub(super) async fn produce(&self, at: &TopicPartition, batch: Bytes) -> Answer {
        let (reply, answer) = oneshot::channel();
        // If nobody takes it, its end of the answer is dropped.
        drop(self.errands.send(Errand { at: at.clone(), batch, reply }).await);
        answer
    }
}

/// What a link does.
struct Work {
    address: String,
    settings: Arc<Settings>,
    queue: mpsc::Receiver<Errand>,
    /// Requests whose answers are to come, in this order.
    sent: VecDeque<Sent>,
}

struct Sent {
    number: i32,
    errands: Vec<Errand>,
}

impl Work {
    async fn run(mut self) {
        let ended = match Connection::open(&self.address, &self.settings).await {
            Ok(connection) => self.serve(connection).await,
            Err(error) => {
                sleep(REDIAL).await;
                Err(error)
            }
        };
        let Err(error) = ended else { return };
        let reason: Arc<str> = format!("{}: {error:#}", self.address).into();
        debug!(%reason, "lost a connection to Kafka");
        self.queue.close();
        let mut left: Vec<Errand> = self.sent.into_iter().flat_map(|sent| sent.errands).collect();
        while let Ok(errand) = self.queue.try_recv() {
            left.push(errand);
        }
        for errand in left {
            drop(errand.reply.send(Err(Arc::clone(&reason)))); // who has gone away doesn't want it
        }
    }

    /// Ends well when nobody has the link any more.
    async fn serve(&mut self, mut connection: Connection) -> anyhow::Result<()> {
        let patience = self.settings.request_timeout.0 + GRACE;
        let mut waiting = VecDeque::new();
        let mut gathered = Vec::new();
        // Since when the broker has had nothing to do but the first of what's under way.
        let mut since = Instant::now();
        loop {
            while self.sent.len() < UNDER_WAY && !waiting.is_empty() {
                if self.sent.is_empty() {
                    since = Instant::now();
                }
                if let Some(request) = self.gather(&mut connection, &mut waiting) {
                    let sent = timeout_at(since + patience, connection.send(&request)).await;
                    sent.context("the broker doesn't read")??;
                }
            }
            tokio::select! {
                answer = connection.answer() => {
                    let (number, answer) = answer?;
                    self.settle(number, &answer)?;
                    since = Instant::now();
                }
                () = sleep_until(since + patience), if !self.sent.is_empty() => {
                    bail!("no answer within {}", self.settings.request_timeout);
                }
                count = self.queue.recv_many(&mut gathered, GATHERED), if self.sent.len() < UNDER_WAY => {
                    if count == 0 {
                        return Ok(());
                    }
                    waiting.extend(gathered.drain(..));
                }
            }
        }
    }

    /// The next request, of what is still wanted; there can be only one batch of each partition in it.
    fn gather(&mut self, connection: &mut Connection, waiting: &mut VecDeque<Errand>) -> Option<Vec<u8>> {
        let (mut errands, mut later, mut bytes): (Vec<Errand>, Vec<Errand>, _) = (Vec::new(), Vec::new(), 0);
        while let Some(errand) =
            waiting.pop_front_if(|errand| bytes == 0 || bytes + errand.batch.len() <= GATHERED_BYTES)
        {
            if errands.iter().any(|other| other.at == errand.at) {
                later.push(errand);
            } else if !errand.reply.is_closed() {
                bytes += errand.batch.len();
                errands.push(errand);
            }
        }
        for errand in later.into_iter().rev() {
            waiting.push_front(errand);
        }
        if errands.is_empty() {
            return None;
        }
        errands.sort_unstable_by(|one, other| one.at.cmp(&other.at));
        let (number, mut request) = connection.request(PRODUCE);
        request.reserve(bytes + 300 * errands.len());
        fill(&mut request, &errands, self.settings.request_timeout.0);
        self.sent.push_back(Sent { number, errands });
        Some(request.finish())
    }

    /// Hands an answer to those it is for.
    fn settle(&mut self, number: i32, answer: &[u8]) -> anyhow::Result<()> {
        ensure!(self.sent.front().is_some_and(|sent| sent.number == number), "an answer to another question");
        let mut stored = wire::produced(answer)?;
        let Some(sent) = self.sent.front_mut() else { return Ok(()) };
        while let Some(errand) = sent.errands.pop() {
            let is_it = |stored: &Stored| {
                stored.topic == errand.at.topic.as_str() && stored.partition == errand.at.partition as i32
            };
            let Some(found) = stored.iter().position(is_it) else {
                sent.errands.push(errand);
                bail!("an answer that leaves a partition out");
            };
            drop(errand.reply.send(Ok(stored.swap_remove(found)))); // who has gone away doesn't want it
        }
        self.sent.pop_front();
        Ok(())
    }
}

/// Errands by topic and partition.
fn fill(request: &mut Request, errands: &[Errand], timeout: Duration) {
    let topics: Vec<&[Errand]> = errands.chunk_by(|one, next| one.at.topic == next.at.topic).collect();
    request.no_string().i16(-1).i32(timeout.as_millis() as i32); // no transaction, and all copies in sync
    request.count(topics.len());
    for errands in topics {
        request.string(errands[0].at.topic.as_str()).count(errands.len());
        for errand in errands {
            request.i32(errand.at.partition as i32).bytes(&errand.batch);
        }
    }
}
