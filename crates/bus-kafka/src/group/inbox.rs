//! What a member's reader is to be told, and which partitions the member holds: shared by the reader and the thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use logmesh_bus::{BusError, Event, Record, TopicPartition};
use tokio::sync::Notify;

use crate::clients::RECORD_COST;
use crate::settings::Settings;

/// The most bytes of records in one event, one record more at most.
const EVENT_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// Tells the reader that there is something.
    filled: Notify,
    /// Tells the thread that there is room, or a command.
    room: Condvar,
    /// Bytes of records beyond which the thread fetches no more.
    limit: usize,
    release_timeout: Duration,
}

#[derive(Debug, Default)]
struct State {
    changes: VecDeque<Change>,
    records: VecDeque<Batch>,
    bytes: usize,
    failure: Option<BusError>,
    held: BTreeMap<TopicPartition, Held>,
    revoke: Option<Revoke>,
    paused: bool,
    closing: bool,
}

/// What the reader is told besides records. Changes come first: the records of a partition that went are gone.
#[derive(Debug)]
enum Change {
    Assigned(Vec<TopicPartition>),
    Revoking(Vec<TopicPartition>),
    Lost(Vec<TopicPartition>),
}

/// Consecutive records of a partition.
#[derive(Debug)]
struct Batch {
    at: TopicPartition,
    records: Vec<Record>,
    bytes: usize,
}

/// A partition that the member holds.
#[derive(Debug, Default)]
struct Held {
    /// True after it was asked to release it: its records aren't handed out any more.
    revoking: bool,
    /// The next offset to take; what is before it was handed out already.
    next: u64,
    /// What was committed last, once it was asked for.
    committed: Option<u64>,
}

/// Partitions that the group wants back.
#[derive(Debug)]
struct Revoke {
    all: Vec<TopicPartition>,
    /// Those that the reader has not released.
    left: BTreeSet<TopicPartition>,
    deadline: Instant,
}

impl Inbox {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            state: Mutex::default(),
            filled: Notify::new(),
            room: Condvar::new(),
            limit: (settings.fetch_bytes.0 / 2) as usize,
            release_timeout: settings.release_timeout.0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to tell. Safe to drop while it waits.
    pub(crate) async fn next(&self) -> Result<Event, BusError> {
        loop {
            if let Some(event) = self.take() {
                return event;
            }
            self.filled.notified().await;
        }
    }

    fn take(&self) -> Option<Result<Event, BusError>> {
        let mut state = self.lock();
        if let Some(change) = state.changes.pop_front() {
            return Some(Ok(match change {
                Change::Assigned(partitions) => Event::Assigned(partitions),
                Change::Revoking(partitions) => Event::Revoking(partitions),
                Change::Lost(partitions) => Event::Lost(partitions),
            }));
        }
        if let Some(batch) = state.records.pop_front() {
            state.bytes -= batch.bytes;
            self.room.notify_one();
            return Some(Ok(Event::Records { at: batch.at, records: batch.records }));
        }
        state.failure.take().map(Err)
    }

    /// Wakes the thread if it waits for room.
    pub(crate) fn wake_member(&self) {
        self.room.notify_one();
    }

    /// From now on a rebalance asks nobody.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.room.notify_one();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Waits until there is room for records, for so long; true if there is.
    pub(crate) fn wait_for_room(&self, timeout: Duration) -> bool {
        let state = self.lock();
        if state.bytes < self.limit {
            return true;
        }
        let state = self.room.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
        state.bytes < self.limit
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Notes that fetching is paused, or not; what it concerns.
    pub(crate) fn set_paused(&self, paused: bool) -> Vec<TopicPartition> {
        let mut state = self.lock();
        state.paused = paused;
        state.held.keys().cloned().collect()
    }

    /// Adds a record, unless it was handed out already or its partition is on its way to another; true if there is room for more.
    pub(crate) fn push(&self, topic: &str, partition: u32, record: Record) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        let is_it = |at: &TopicPartition| at.partition == partition && at.topic.as_str() == topic;
        let is_new = |held: &Held| !held.revoking && held.next <= record.offset.0;
        let Some((at, held)) = state.held.iter_mut().find(|(at, held)| is_it(at) && is_new(held)) else {
            return state.bytes < self.limit;
        };
        held.next = record.offset.next().0;
        let bytes = record.size() + RECORD_COST;
        state.bytes += bytes;
        match state.records.back_mut() {
            Some(batch) if batch.at == *at && batch.bytes < EVENT_BYTES => {
                batch.bytes += bytes;
                batch.records.push(record);
            }
            _ => state.records.push_back(Batch { at: at.clone(), records: vec![record], bytes }),
        }
        let room = state.bytes < self.limit;
        drop(guard);
        self.filled.notify_one();
        room
    }

    /// Tells the reader that the bus is not available.
    pub(crate) fn fail(&self, error: BusError) {
        self.lock().failure = Some(error);
        self.filled.notify_one();
    }

    /// The group gave these partitions to this member.
    pub(crate) fn assigned(&self, partitions: Vec<TopicPartition>) {
        if partitions.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.held.extend(partitions.iter().map(|at| (at.clone(), Held::default())));
        state.changes.push_back(Change::Assigned(partitions));
        self.filled.notify_one();
    }

    /// The group wants these partitions back. False if none of them has to be released first.
    pub(crate) fn revoking(&self, partitions: Vec<TopicPartition>) -> bool {
        let mut state = self.lock();
        let left: BTreeSet<_> = partitions.iter().filter(|at| state.held.contains_key(at)).cloned().collect();
        if state.closing || left.is_empty() {
            drop(state);
            self.lost(&partitions);
            return false;
        }
        for at in &left {
            state.held.entry(at.clone()).or_default().revoking = true;
            state.purge(at);
        }
        state.changes.push_back(Change::Revoking(left.iter().cloned().collect()));
        state.revoke = Some(Revoke { all: partitions, left, deadline: Instant::now() + self.release_timeout });
        self.filled.notify_one();
        true
    }

    /// These partitions, as far as they are held, are another's.
    pub(crate) fn lost(&self, partitions: &[TopicPartition]) {
        let mut state = self.lock();
        let lost: Vec<_> = partitions.iter().filter(|at| state.held.remove(at).is_some()).cloned().collect();
        if lost.is_empty() {
            return;
        }
        lost.iter().for_each(|at| state.purge(at));
        // What can't be done any more isn't asked for.
        for change in &mut state.changes {
            if let Change::Revoking(asked) = change {
                asked.retain(|at| !lost.contains(at));
            }
        }
        state.changes.retain(|change| !matches!(change, Change::Revoking(asked) if asked.is_empty()));
        state.changes.push_back(Change::Lost(lost));
        self.filled.notify_one();
    }

    /// All partitions are another's.
    pub(crate) fn lost_all(&self) {
        let all: Vec<_> = self.lock().held.keys().cloned().collect();
        self.lost(&all);
    }

    /// The reader gives these up; those that it wasn't asked for are passed over.
    pub(crate) fn release(&self, partitions: &[TopicPartition]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(revoke) = &mut state.revoke else { return };
        for at in partitions {
            if revoke.left.remove(at) {
                state.held.remove(at);
            }
        }
    }

    /// The partitions to give back to the group now: all are released, or taken since it took too long (`lost`: or
    /// since the group has given them away).
    pub(crate) fn take_revoked(&self, lost: bool) -> Option<Vec<TopicPartition>> {
        let mut state = self.lock();
        let revoke = state.revoke.as_ref()?;
        let over = lost || state.closing || revoke.deadline <= Instant::now();
        if !over && !revoke.left.is_empty() {
            return None;
        }
        let revoke = state.revoke.take()?;
        drop(state);
        self.lost(&revoke.left.into_iter().collect::<Vec<_>>());
        Some(revoke.all)
    }

    pub(crate) fn is_revoking(&self) -> bool {
        self.lock().revoke.is_some()
    }

    pub(crate) fn holds(&self, at: &TopicPartition) -> bool {
        self.lock().held.contains_key(at)
    }

    /// The partition is read from `next` on.
    pub(crate) fn seek(&self, at: &TopicPartition, next: u64) {
        let mut state = self.lock();
        state.purge(at);
        if let Some(held) = state.held.get_mut(at) {
            held.next = next;
        }
        self.room.notify_one();
    }

    /// What was committed last, if that is known.
    pub(crate) fn committed(&self, at: &TopicPartition) -> Option<u64> {
        self.lock().held.get(at)?.committed
    }

    pub(crate) fn set_committed(&self, at: &TopicPartition, next: u64) {
        if let Some(held) = self.lock().held.get_mut(at) {
            held.committed = Some(next);
        }
    }
}

impl State {
    /// Drops the records of a partition that the reader hasn't got.
    fn purge(&mut self, at: &TopicPartition) {
        let bytes: usize = self.records.iter().filter(|batch| batch.at == *at).map(|batch| batch.bytes).sum();
        self.records.retain(|batch| batch.at != *at);
        self.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use logmesh_bus::Offset;
    use logmesh_types::UnixNanos;

    use super::*;

    fn at(partition: u32) -> TopicPartition {
        TopicPartition { topic: "t".parse().unwrap(), partition }
    }

    fn record(offset: u64) -> Record {
        let timestamp = UnixNanos(0);
        Record { offset: Offset(offset), timestamp, key: "k".into(), value: "v".into(), headers: Vec::new() }
    }

    fn next(inbox: &Inbox) -> Option<Event> {
        inbox.next().now_or_never().map(Result::unwrap)
    }

    fn holding(partitions: &[u32]) -> Inbox {
        let inbox = Inbox::new(&Settings::default());
        inbox.assigned(partitions.iter().map(|partition| at(*partition)).collect());
        assert!(matches!(next(&inbox), Some(Event::Assigned(_))));
        inbox
    }

    #[test]
    fn records_come_once_and_only_of_held_partitions() {
        let inbox = holding(&[0]);
        for (partition, offset) in [(0, 5), (0, 6), (0, 6), (0, 5), (1, 0), (0, 9)] {
            inbox.push("t", partition, record(offset));
        }
        let Some(Event::Records { records, .. }) = next(&inbox) else { panic!("no records") };
        assert_eq!(records.iter().map(|record| record.offset.0).collect::<Vec<_>>(), [5, 6, 9]);
        inbox.seek(&at(0), 6);
        inbox.push("t", 0, record(6));
        assert!(matches!(next(&inbox), Some(Event::Records { records, .. }) if records[0].offset.0 == 6));
        assert!(next(&inbox).is_none());
    }

    #[test]
    fn a_revoked_partition_gives_no_records_and_waits_for_its_release() {
        let inbox = holding(&[0, 1]);
        inbox.push("t", 0, record(0));
        inbox.push("t", 1, record(0));
        assert!(inbox.revoking(vec![at(0)]));
        inbox.push("t", 0, record(1));
        assert!(matches!(next(&inbox), Some(Event::Revoking(partitions)) if partitions == [at(0)]));
        assert!(matches!(next(&inbox), Some(Event::Records { at: of, .. }) if of == at(1)));
        assert!(next(&inbox).is_none());
        assert!(inbox.take_revoked(false).is_none() && inbox.holds(&at(0)));
        inbox.release(&[at(0), at(1)]);
        assert_eq!(inbox.take_revoked(false), Some(vec![at(0)]));
        assert!(!inbox.holds(&at(0)) && inbox.holds(&at(1)));
    }

    #[test]
    fn what_is_lost_is_not_asked_for_any_more() {
        let inbox = holding(&[0, 1]);
        inbox.push("t", 0, record(0));
        assert!(inbox.revoking(vec![at(0)]));
        assert_eq!(inbox.take_revoked(true), Some(vec![at(0)]));
        assert!(matches!(next(&inbox), Some(Event::Lost(partitions)) if partitions == [at(0)]));
        assert!(next(&inbox).is_none());
        inbox.lost_all();
        assert!(matches!(next(&inbox), Some(Event::Lost(partitions)) if partitions == [at(1)]));
    }

    #[test]
    fn it_is_full_at_its_bytes() {
        let inbox = holding(&[0]);
        let value = bytes::Bytes::from(vec![0; 1 << 20]);
        let full = (0..).position(|offset| !inbox.push("t", 0, Record { value: value.clone(), ..record(offset) }));
        assert_eq!(full, Some(15));
        assert!(!inbox.push("t", 1, record(0)) && !inbox.wait_for_room(Duration::ZERO));
        assert!(next(&inbox).is_some());
        assert!(inbox.wait_for_room(Duration::ZERO));
    }
}
