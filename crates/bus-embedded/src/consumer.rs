//! A member of a consumer group.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use logmesh_bus::{BusError, Consumer, Event, NextOffset, TopicPartition};
use logmesh_types::TopicName;
use tokio::sync::{Notify, oneshot, watch};

use crate::group::Change;
use crate::writer::Op;
use crate::{Shared, closed};

/// The most bytes of records in one event.
const FETCH_BYTES: usize = 4 << 20;

/// A partition that this consumer was told it holds.
#[derive(Debug, Default)]
struct Held {
    /// What to read next; `None`: the commit decides, which is looked up at the first read.
    next: Option<u64>,
    /// True after it was asked to release it: nothing more is read.
    revoking: bool,
}

/// See [`Consumer`].
#[derive(Debug)]
pub(crate) struct GroupConsumer {
    shared: Arc<Shared>,
    group: String,
    member: u64,
    wake: Arc<Notify>,
    commits: watch::Receiver<u64>,
    held: BTreeMap<TopicPartition, Held>,
    /// The partition read last; the others have their turn before it.
    last: Option<TopicPartition>,
}

impl GroupConsumer {
    pub(crate) fn join(shared: Arc<Shared>, group: &str, topics: &[TopicName]) -> Self {
        let (member, wake) = shared.groups.join(group, topics);
        let commits = shared.commits.clone();
        Self { shared, group: group.to_owned(), member, wake, commits, held: BTreeMap::new(), last: None }
    }

    fn take(&mut self, change: Change) -> Event {
        match change {
            Change::Assigned(partitions) => {
                self.held.extend(partitions.iter().map(|at| (at.clone(), Held::default())));
                Event::Assigned(partitions)
            }
            Change::Revoking(partitions) => {
                for at in &partitions {
                    self.held.entry(at.clone()).or_default().revoking = true;
                }
                Event::Revoking(partitions)
            }
            Change::Lost(partitions) => {
                self.held.retain(|at, _| !partitions.contains(at));
                Event::Lost(partitions)
            }
        }
    }

    /// The held partitions, those after the last one read first.
    fn in_turn(&self) -> Vec<TopicPartition> {
        let mut all: Vec<_> = self.held.iter().filter(|(_, held)| !held.revoking).map(|(at, _)| at.clone()).collect();
        let start = self.last.as_ref().map_or(0, |last| all.partition_point(|at| at <= last));
        all.rotate_left(start);
        all
    }

    /// Records of the first partition in turn that has any. Safe to drop: a position moves only with its records.
    async fn fetch(&mut self) -> Result<Option<Event>, BusError> {
        for at in self.in_turn() {
            let next = self.position(&at).await?;
            let state = self.shared.topic_of(&at)?.state(at.partition);
            if state.high <= next.max(state.low) {
                continue;
            }
            let records = self.shared.read(&at, NextOffset(next), FETCH_BYTES).await?;
            // What was asked back while it was read isn't handed out.
            if !self.shared.groups.holds(&self.group, self.member, &at, true) {
                continue;
            }
            // Everything below the `high` seen before the read is there or gone for good.
            let after = records.last().map_or(state.high, |last| last.offset.next().0);
            self.held.entry(at.clone()).or_default().next = Some(after);
            if !records.is_empty() {
                self.last = Some(at.clone());
                return Ok(Some(Event::Records { at, records }));
            }
        }
        Ok(None)
    }

    async fn position(&mut self, at: &TopicPartition) -> Result<u64, BusError> {
        if let Some(next) = self.held.get(at).and_then(|held| held.next) {
            return Ok(next);
        }
        let committed = self.shared.committed(&self.group, at).await?;
        let state = self.shared.topic_of(at)?.state(at.partition);
        let next = committed.map_or(state.low, |next| next.0).clamp(state.low, state.high);
        self.held.entry(at.clone()).or_default().next = Some(next);
        Ok(next)
    }

    fn check_held(&self, at: &TopicPartition) -> Result<(), BusError> {
        if self.held.contains_key(at) && self.shared.groups.holds(&self.group, self.member, at, false) {
            return Ok(());
        }
        Err(BusError::NotOwner { topic: at.topic.clone(), partition: at.partition })
    }
}

#[async_trait]
impl Consumer for GroupConsumer {
    async fn next(&mut self) -> Result<Event, BusError> {
        loop {
            self.commits.borrow_and_update();
            if let Some(change) = self.shared.groups.next_change(&self.group, self.member) {
                return Ok(self.take(change));
            }
            if let Some(event) = self.fetch().await? {
                return Ok(event);
            }
            let deadline = self.shared.groups.next_deadline(&self.group);
            let expired = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                changed = self.commits.changed() => changed.map_err(|_| closed())?,
                () = expired => {}
            }
        }
    }

    async fn commit(&mut self, offsets: &[(TopicPartition, NextOffset)]) -> Result<(), BusError> {
        let mut rows = Vec::with_capacity(offsets.len());
        for (at, next) in offsets {
            self.check_held(at)?;
            rows.push(((self.shared.topic_of(at)?.id, at.partition), next.0));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.shared.writer.send(Op::Commit { group: self.group.clone(), offsets: rows, reply })?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    async fn seek(&mut self, at: &TopicPartition, from: NextOffset) -> Result<(), BusError> {
        self.check_held(at)?;
        self.held.entry(at.clone()).or_default().next = Some(from.0);
        Ok(())
    }

    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BusError> {
        self.held.retain(|at, _| !partitions.contains(at));
        self.shared.groups.release(&self.group, self.member, partitions);
        Ok(())
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.shared.groups.leave(&self.group, self.member);
    }
}
