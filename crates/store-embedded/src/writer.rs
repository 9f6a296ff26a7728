//! The one thread that writes. It commits the requests that wait together, ends leases, and keeps history bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use logmesh_store::{Lease, LeaseId, Revision, StoreError, Txn};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::{is_full, storage};
use crate::write::{Answer, Batch, commit};
use crate::{Options, Shared};

/// Requests that one commit answers at most.
const MAX_BATCH: usize = 64;

/// The pause before leases that ended are tried again after the file failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The longest sleep without a request, when no lease runs.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What a caller wants, with where to answer.
pub(crate) enum Command {
    Txn { txn: Txn, answer: Reply<Revision> },
    Compact { revision: Revision, answer: Reply<()> },
    Grant { ttl: Duration, answer: Reply<Lease> },
    KeepAlive { lease: LeaseId, answer: Reply<Duration> },
    Revoke { lease: LeaseId, answer: Reply<()> },
}

/// A command that takes up room in the queue until it's done.
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) _room: OwnedSemaphorePermit,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    options: Options,
    /// Each lease's time to live and its end, by the monotonic clock.
    leases: HashMap<LeaseId, (Duration, Instant)>,
    /// The last write found no room; the file has to be opened again.
    full: bool,
    /// The last write failed.
    failed: bool,
}

/// An answer that waits for the commit; it's told the file's error if that failed.
type Waiting = Box<dyn FnOnce(Result<(), &Arc<redb::Error>>)>;

/// What a batch changes in the writer's memory once it's committed.
#[derive(Default)]
struct Outcome {
    granted: Vec<Lease>,
    ended: Vec<LeaseId>,
    answers: Vec<Waiting>,
}

impl Outcome {
    fn answer<T: 'static>(&mut self, reply: Reply<T>, value: Result<T, StoreError>) {
        self.answers.push(Box::new(move |committed| {
            let value = match committed {
                Ok(()) => value,
                Err(error) => Err(storage(error.clone())),
            };
            // A caller that has gone wants no answer.
            drop(reply.send(value));
        }));
    }
}

impl Writer {
    /// The writer, with the leases that the file holds: their time begins anew.
    pub(crate) fn new(shared: Arc<Shared>, options: Options) -> Result<Self, redb::Error> {
        let mut writer = Self { shared, options, leases: HashMap::new(), full: false, failed: false };
        writer.read_leases()?;
        Ok(writer)
    }

    /// Takes over the leases of the file. The time of those that weren't known begins now.
    fn read_leases(&mut self) -> Result<(), redb::Error> {
        let (stored, _) = self.shared.disk.with(|database| commit(database, |batch| batch.leases()))?;
        let now = Instant::now();
        let lease = |(id, ttl)| (id, self.leases.get(&id).copied().unwrap_or((ttl, now + ttl)));
        self.leases = stored.into_iter().map(lease).collect();
        Ok(())
    }

    /// Works until the store is dropped.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let first = match requests.recv_timeout(self.sleep()) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let batch: Vec<Request> = first.into_iter().chain(requests.try_iter()).take(MAX_BATCH).collect();
            self.work(batch);
        }
    }

    fn sleep(&self) -> Duration {
        if self.failed {
            return RETRY_PAUSE;
        }
        let next = self.leases.values().map(|(_, end)| *end).min();
        next.map_or(LONGEST_SLEEP, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Does a batch. Keep-alives come before the end of leases is looked at, so that a process which stood still for a while
    /// doesn't end leases whose keep-alives wait.
    fn work(&mut self, batch: Vec<Request>) {
        let (writes, _rooms): (Vec<Command>, Vec<OwnedSemaphorePermit>) =
            batch.into_iter().filter_map(|request| Some((self.keep_alive(request.command)?, request._room))).unzip();
        if self.full {
            self.reopen();
        }
        let now = Instant::now();
        let ended = self.leases.iter().filter(|(_, (_, end))| *end <= now);
        let ended: Vec<LeaseId> = ended.map(|(id, _)| *id).collect();
        if writes.is_empty() && ended.is_empty() {
            return;
        }
        let mut outcome = Outcome { ended, ..Outcome::default() };
        let history = self.options.history;
        let work = |batch: &mut Batch<'_>| {
            for lease in outcome.ended.clone() {
                batch.revoke(lease)?;
            }
            for command in writes {
                execute(batch, command, &mut outcome)?;
            }
            batch.bound_history(history)
        };
        let committed = self.shared.disk.with(|database| commit(database, work));
        self.failed = committed.is_err();
        match committed {
            Ok(((), revision)) => self.committed(outcome, revision),
            Err(error) => self.failed(outcome, Arc::new(error)),
        }
    }

    fn failed(&mut self, outcome: Outcome, error: Arc<redb::Error>) {
        tracing::error!(%error, "the config store failed to write");
        if is_full(&error) {
            self.full = true;
            self.reopen();
        }
        outcome.answers.into_iter().for_each(|answer| answer(Err(&error)));
    }

    /// Opens the file again after its disk was full, so that reads go on, and writes once there's room.
    fn reopen(&mut self) {
        match self.shared.disk.reopen() {
            Ok(revision) => {
                self.full = self.read_leases().is_err();
                // A write whose commit failed may be there nevertheless.
                self.shared.revision.send_if_modified(|last| std::mem::replace(last, revision) != revision);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "cannot open the config store again");
            }
        }
    }

    fn committed(&mut self, outcome: Outcome, revision: Revision) {
        for lease in outcome.ended {
            self.leases.remove(&lease);
        }
        let now = Instant::now();
        self.leases.extend(outcome.granted.into_iter().map(|lease| (lease.id, (lease.ttl, now + lease.ttl))));
        self.shared.revision.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        outcome.answers.into_iter().for_each(|answer| answer(Ok(())));
    }

    /// Answers a keep-alive, which touches no disk; hands back any other command.
    fn keep_alive(&mut self, command: Command) -> Option<Command> {
        let Command::KeepAlive { lease, answer } = command else { return Some(command) };
        let kept = self.leases.get_mut(&lease).map(|(ttl, end)| {
            *end = Instant::now() + *ttl;
            *ttl
        });
        drop(answer.send(kept.ok_or(StoreError::LeaseNotFound(lease))));
        None
    }
}

/// Does one command within the batch. On a failing file the caller is answered by the drop of its reply or by the batch.
fn execute(batch: &mut Batch<'_>, command: Command, outcome: &mut Outcome) -> Result<(), redb::Error> {
    match command {
        Command::Txn { txn, answer } => reply(outcome, answer, batch.apply(&txn)),
        Command::Compact { revision, answer } => reply(outcome, answer, batch.compact(revision)),
        Command::Grant { ttl, answer } => {
            let granted = batch.grant(ttl);
            outcome.granted.extend(granted.as_ref().ok());
            reply(outcome, answer, granted.map(Ok))
        }
        Command::Revoke { lease, answer } => {
            outcome.ended.push(lease);
            reply(outcome, answer, batch.revoke(lease).map(Ok))
        }
        Command::KeepAlive { .. } => Ok(()),
    }
}

/// Queues the answer for after the commit. If the file failed, the caller hears of it by the batch's error.
fn reply<T: 'static>(outcome: &mut Outcome, reply: Reply<T>, answer: Answer<T>) -> Result<(), redb::Error> {
    match answer {
        Ok(value) => {
            outcome.answer(reply, value);
            Ok(())
        }
        Err(error) => {
            outcome.answer(reply, Err(StoreError::unavailable("the write was given up")));
            Err(error)
        }
    }
}
