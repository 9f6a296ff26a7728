//! The writer thread: takes what is queued, commits it in one transaction, then answers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use logmesh_bus::{BusError, Cleanup, NewRecord, Offset, Position};
use logmesh_types::{UnixNanos, metric};
use metrics::{counter, histogram};
use redb::{ReadableTable, Table, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::catalog::{Catalog, PartitionState, Topic};
use crate::store::{COMMITS, KEYS, PARTITIONS, PartitionRow, RECORDS, Store, TIMES, TOMBSTONES};
use crate::{Reply, Settings, closed, codec, retention};

/// Bytes after which a transaction takes no more: its pages are held in memory until it is committed.
const MAX_TRANSACTION_BYTES: usize = 16 << 20;

/// The index by time gets an entry when the latest time grew by this much,
const INDEX_NANOS: i64 = 1_000_000_000;
/// or grew at all after so many records.
const INDEX_RECORDS: u64 = 256;

/// Something to be written.
pub(crate) enum Op {
    Append { topic: Arc<Topic>, partition: u32, record: NewRecord, reply: Reply<Position>, room: OwnedSemaphorePermit },
    Commit { group: String, offsets: Vec<((u32, u32), u64)>, reply: Reply<()> },
}

impl Op {
    fn size(&self) -> usize {
        match self {
            Op::Append { record, .. } => record.size(),
            Op::Commit { .. } => 0,
        }
    }

    fn fail(self, error: BusError) {
        // A caller that has gone away doesn't want the answer.
        match self {
            Op::Append { reply, .. } => drop(reply.send(Err(error))),
            Op::Commit { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// The way to the thread. Dropping it ends the thread after what is queued.
pub(crate) struct Writer {
    queue: Option<Sender<Op>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    pub(crate) fn start(
        store: Arc<Store>,
        catalog: Arc<Catalog>,
        settings: Settings,
        committed: watch::Sender<u64>,
    ) -> io::Result<Self> {
        let (queue, ops) = mpsc::channel();
        let thread = std::thread::Builder::new().name("bus-writer".to_owned()).spawn(move || {
            Thread { ops, store, catalog, settings, committed }.run();
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues an operation; its sender bounds how many there are.
    pub(crate) fn send(&self, op: Op) -> Result<(), BusError> {
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue.send(op).map_err(|_| closed())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the bus's writer panicked");
        }
    }
}

struct Thread {
    ops: Receiver<Op>,
    store: Arc<Store>,
    catalog: Arc<Catalog>,
    settings: Settings,
    committed: watch::Sender<u64>,
}

/// What a transaction makes of the partitions that it touches.
type Changes = HashMap<(u32, u32), (Arc<Topic>, PartitionState)>;

impl Thread {
    fn run(self) {
        let mut retention_due = Instant::now() + self.settings.retention_interval;
        loop {
            match self.ops.recv_timeout(retention_due.saturating_duration_since(Instant::now())) {
                Ok(first) => self.commit(self.gather(first)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if retention_due <= Instant::now() {
                retention_due = Instant::now() + self.remove_old();
            }
        }
    }

    /// All that is queued, up to the size of a transaction.
    fn gather(&self, first: Op) -> Vec<Op> {
        let mut bytes = first.size();
        let mut ops = vec![first];
        while bytes < MAX_TRANSACTION_BYTES
            && let Ok(op) = self.ops.try_recv()
        {
            bytes += op.size();
            ops.push(op);
        }
        ops
    }

    fn commit(&self, ops: Vec<Op>) {
        let (started, bytes) = (Instant::now(), ops.iter().map(Op::size).sum::<usize>());
        let result = self.check_doubt().and_then(|()| self.store.write(|transaction| apply(transaction, &ops)));
        match result {
            Ok((changes, positions)) => {
                histogram!(metric::BUS_COMMIT_SECONDS).record(started.elapsed());
                counter!(metric::BUS_APPENDED_RECORDS).increment(positions.len() as u64);
                counter!(metric::BUS_APPENDED_BYTES).increment(bytes as u64);
                publish(changes);
                answer(ops, positions);
                self.committed.send_modify(|commits| *commits += 1);
            }
            Err(error) => {
                counter!(metric::BUS_COMMIT_FAILURES).increment(1);
                self.fail(ops, &error);
            }
        }
    }

    /// Fails these and all that are queued behind them: were those written, a record that is tried again would come
    /// after its successors.
    fn fail(&self, ops: Vec<Op>, error: &BusError) {
        let queued = std::iter::from_fn(|| self.ops.try_recv().ok());
        for op in ops.into_iter().chain(queued) {
            op.fail(match error {
                BusError::Damaged { reason } => BusError::Damaged { reason: reason.clone() },
                other => BusError::Unavailable { reason: other.to_string() },
            });
        }
    }

    /// Reads the partitions' states again if a write failed, so that offsets go on from what is stored.
    fn check_doubt(&self) -> Result<(), BusError> {
        if !self.store.take_doubt() {
            return Ok(());
        }
        self.catalog.reload(&self.store).inspect_err(|_| self.store.doubt())?;
        self.committed.send_modify(|commits| *commits += 1);
        Ok(())
    }

    /// One bounded pass of retention; how long until the next.
    fn remove_old(&self) -> Duration {
        let pass = self.check_doubt().and_then(|()| {
            let topics = self.catalog.all();
            self.store.write(|transaction| retention::pass(transaction, &topics, self.settings.tombstone_age))
        });
        match pass {
            Ok(pass) => {
                publish(pass.changes);
                if pass.more { retention::PAUSE } else { self.settings.retention_interval }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot remove old records from the bus");
                self.settings.retention_interval
            }
        }
    }
}

pub(crate) fn publish(changes: Changes) {
    for ((_, partition), (topic, state)) in changes {
        topic.partitions[partition as usize].send_replace(state);
    }
}

fn answer(ops: Vec<Op>, positions: Vec<Position>) {
    let mut positions = positions.into_iter();
    for op in ops {
        match op {
            Op::Append { reply, room, .. } => {
                drop(room);
                drop(reply.send(positions.next().ok_or_else(closed)));
            }
            Op::Commit { reply, .. } => drop(reply.send(Ok(()))),
        }
    }
}

/// Writes the operations; the new states of the partitions and the position of each append.
fn apply(transaction: &WriteTransaction, ops: &[Op]) -> Result<(Changes, Vec<Position>), redb::Error> {
    let mut tables = Tables::open(transaction)?;
    let (mut changes, mut positions) = (Changes::new(), Vec::new());
    for op in ops {
        match op {
            Op::Append { topic, partition, record, .. } => {
                let state = match changes.entry((topic.id, *partition)) {
                    Entry::Occupied(entry) => &mut entry.into_mut().1,
                    Entry::Vacant(entry) => &mut entry.insert((Arc::clone(topic), topic.state(*partition))).1,
                };
                positions.push(Position { partition: *partition, offset: Offset(state.high) });
                tables.append(topic, *partition, record, state)?;
            }
            Op::Commit { group, offsets, .. } => tables.commit(group, offsets)?,
        }
    }
    for (place, (_, state)) in &changes {
        tables.partitions.insert(place, state.to_row())?;
    }
    Ok((changes, positions))
}

struct Tables<'t> {
    records: Table<'t, (u32, u32, u64), &'static [u8]>,
    times: Table<'t, (u32, u32, i64), u64>,
    keys: Table<'t, (u32, u32, &'static [u8]), u64>,
    tombstones: Table<'t, (i64, u32, u32, u64), ()>,
    partitions: Table<'t, (u32, u32), PartitionRow>,
    commits: Table<'t, (&'static str, u32, u32), u64>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            times: transaction.open_table(TIMES)?,
            keys: transaction.open_table(KEYS)?,
            tombstones: transaction.open_table(TOMBSTONES)?,
            partitions: transaction.open_table(PARTITIONS)?,
            commits: transaction.open_table(COMMITS)?,
        })
    }

    fn append(
        &mut self,
        topic: &Topic,
        partition: u32,
        record: &NewRecord,
        state: &mut PartitionState,
    ) -> Result<(), redb::Error> {
        let offset = state.high;
        let time = record.timestamp.unwrap_or_else(UnixNanos::now).0;
        let mut place = self.records.insert_reserve((topic.id, partition, offset), codec::encoded_len(record))?;
        codec::encode(record, time, place.as_mut());
        drop(place);
        if matches!(topic.cleanup(), Cleanup::Compact) {
            self.compact(topic.id, partition, record, state)?;
        }
        let first = offset == 0;
        let grown = first || time > state.latest;
        let far = first || time.saturating_sub(state.indexed_time) >= INDEX_NANOS;
        if grown && (far || offset - state.indexed_offset >= INDEX_RECORDS) {
            self.times.insert((topic.id, partition, time), offset)?;
            (state.indexed_time, state.indexed_offset) = (time, offset);
        }
        if grown {
            state.latest = time;
        }
        state.bytes += record.size() as u64;
        state.high += 1;
        Ok(())
    }

    /// Drops the record that this one of the same key replaces.
    fn compact(
        &mut self,
        topic: u32,
        partition: u32,
        record: &NewRecord,
        state: &mut PartitionState,
    ) -> Result<(), redb::Error> {
        let offset = state.high;
        let old = self.keys.insert((topic, partition, record.key.as_ref()), offset)?.map(|old| old.value());
        if let Some(old) = old
            && let Some(removed) = self.records.remove((topic, partition, old))?
        {
            state.bytes = state.bytes.saturating_sub(codec::size_of(removed.value()));
        }
        if record.value.is_empty() {
            self.tombstones.insert((UnixNanos::now().0, topic, partition, offset), ())?;
        }
        Ok(())
    }

    fn commit(&mut self, group: &str, offsets: &[((u32, u32), u64)]) -> Result<(), redb::Error> {
        for ((topic, partition), next) in offsets {
            let before = self.commits.get((group, *topic, *partition))?.map(|before| before.value());
            if before.is_none_or(|before| before < *next) {
                self.commits.insert((group, *topic, *partition), next)?;
            }
        }
        Ok(())
    }
}
