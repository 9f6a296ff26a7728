//! A member of a consumer group.
//!
//! Each member has a thread ([`member`]) that alone speaks with its Kafka client: it fetches, commits and takes part in
//! rebalances, so none of these can race. What its reader is to be told lies in [`inbox`], bounded in bytes.

mod inbox;
mod member;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use logmesh_bus::{BusError, Consumer, Event, NextOffset, TopicPartition};
use logmesh_types::TopicName;
use tokio::sync::oneshot;

use crate::context::{stopping, unavailable};
use crate::settings::Settings;
use inbox::Inbox;
use member::{Command, Member, RETRY_FOR};

/// Counts the members that were dropped and are about to leave their groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaving {
    count: Arc<(Mutex<isize>, Condvar)>,
}

impl Leaving {
    fn change(&self, by: isize) {
        let mut count = self.count.0.lock().unwrap_or_else(PoisonError::into_inner);
        *count += by;
        self.count.1.notify_all();
    }

    /// Waits until all have left, or for so long: a process that ends earlier keeps its partitions until they are
    /// missed.
    pub(crate) fn wait(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut count = self.count.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            count = self.count.1.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Told when a member's thread ends, be it by a panic: its reader must not wait for ever.
struct End {
    inbox: Arc<Inbox>,
    leaving: Leaving,
    half: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.inbox.fail(BusError::Unavailable { reason: "the consumer has ended".to_owned() });
        if self.half.swap(true, Ordering::SeqCst) {
            self.leaving.change(-1);
        }
    }
}

/// See [`Consumer`].
pub(crate) struct GroupConsumer {
    group: String,
    inbox: Arc<Inbox>,
    commands: mpsc::Sender<Command>,
    leaving: Leaving,
    /// True once one of the two, this and its thread, is gone: a member is leaving only if its thread is the later one.
    half: Arc<AtomicBool>,
    /// How long the thread may take to answer.
    patience: Duration,
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumer").field("group", &self.group).finish_non_exhaustive()
    }
}

impl GroupConsumer {
    pub(crate) fn join(
        settings: &Settings,
        group: &str,
        topics: &[TopicName],
        leaving: Leaving,
    ) -> Result<Self, BusError> {
        let inbox = Arc::new(Inbox::new(settings));
        let (commands, inputs) = mpsc::channel();
        let member = Member::join(settings, group, topics, Arc::clone(&inbox), inputs);
        let member = member.map_err(|error| unavailable(&error))?;
        let half = Arc::new(AtomicBool::new(false));
        let end = End { inbox: Arc::clone(&inbox), leaving: leaving.clone(), half: Arc::clone(&half) };
        let work = move || {
            let _end = end;
            member.run();
        };
        let thread = std::thread::Builder::new().name("kafka-consumer".to_owned()).spawn(work);
        thread.map_err(|error| BusError::Unavailable { reason: format!("no thread for a consumer: {error}") })?;
        let patience = 2 * settings.request_timeout.0 + RETRY_FOR;
        Ok(Self { group: group.to_owned(), inbox, commands, leaving, half, patience })
    }

    /// Has the thread do something, and waits until it is done.
    async fn tell(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), BusError>>) -> Command,
    ) -> Result<(), BusError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| stopping())?;
        self.inbox.wake_member();
        // librdkafka's commit waits without end for a coordinator that is frozen. What comes of it later does no harm: it says
        // what was done, and the group refuses it if this member no longer counts.
        let Ok(answer) = tokio::time::timeout(self.patience, answer).await else {
            let reason = format!("Kafka did not answer this member of group {} within {:?}", self.group, self.patience);
            return Err(BusError::Unavailable { reason });
        };
        answer.map_err(|_| stopping())?
    }
}

#[async_trait]
impl Consumer for GroupConsumer {
    async fn next(&mut self) -> Result<Event, BusError> {
        self.inbox.next().await
    }

    async fn commit(&mut self, offsets: &[(TopicPartition, NextOffset)]) -> Result<(), BusError> {
        if offsets.is_empty() {
            return Ok(());
        }
        self.tell(|reply| Command::Commit { offsets: offsets.to_vec(), reply }).await
    }

    async fn seek(&mut self, at: &TopicPartition, from: NextOffset) -> Result<(), BusError> {
        self.tell(|reply| Command::Seek { at: at.clone(), from, reply }).await
    }

    async fn release(&mut self, partitions: &[TopicPartition]) -> Result<(), BusError> {
        self.tell(|reply| Command::Release { partitions: partitions.to_vec(), reply }).await
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        // The thread sees that nobody can tell it anything any more, and leaves.
        if !self.half.swap(true, Ordering::SeqCst) {
            self.leaving.change(1);
        }
        self.inbox.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whichever of a member's two ends goes first, nothing is left to be waited for.
    #[test]
    fn a_member_whose_thread_ended_first_is_not_leaving() {
        for thread_first in [true, false] {
            let (leaving, half) = (Leaving::default(), Arc::new(AtomicBool::new(false)));
            let inbox = Arc::new(Inbox::new(&Settings::default()));
            let end = End { inbox: Arc::clone(&inbox), leaving: leaving.clone(), half: Arc::clone(&half) };
            let commands = mpsc::channel().0;
            let consumer = GroupConsumer {
                group: "g".to_owned(),
                inbox,
                commands,
                leaving: leaving.clone(),
                half,
                patience: Duration::from_secs(1),
            };
            let count = || *leaving.count.0.lock().unwrap();
            if thread_first {
                drop(end);
                assert_eq!(count(), 0);
                drop(consumer);
            } else {
                drop(consumer);
                assert_eq!(count(), 1);
                drop(end);
            }
            assert_eq!(count(), 0);
        }
    }
}
