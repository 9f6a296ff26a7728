//! The thread of a member: the only one that speaks with its Kafka client.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use logmesh_bus::{BusError, NextOffset, TopicPartition};
use logmesh_types::TopicName;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::inbox::Inbox;
use crate::context::{at_partition, is_passing, log, report, unavailable};
use crate::ends::list;
use crate::read::{BUFFER_BYTES, to_record};
use crate::settings::Settings;

/// How long one poll waits, and so how long a command may wait when there are no records.
const POLL: Duration = Duration::from_millis(10);

/// The most records that are taken before commands are looked at.
const TAKE: usize = 10_000;

/// How long a full inbox is waited for before fetching is paused. What was fetched and not taken is fetched again then,
/// but a client that isn't asked for so long could not take part in rebalances.
const PAUSE_AFTER: Duration = Duration::from_millis(500);

/// How often a command is tried again that can't be carried out in the midst of a rebalance, and for how long.
const RETRY: Duration = Duration::from_millis(50);
pub(super) const RETRY_FOR: Duration = Duration::from_secs(10);

pub(crate) type Reply = oneshot::Sender<Result<(), BusError>>;

/// What the reader wants.
pub(crate) enum Command {
    Commit { offsets: Vec<(TopicPartition, NextOffset)>, reply: Reply },
    Seek { at: TopicPartition, from: NextOffset, reply: Reply },
    Release { partitions: Vec<TopicPartition>, reply: Reply },
}

/// Why a command isn't done.
enum Failure {
    /// A rebalance is under way; it may be soon.
    NotNow(KafkaError),
    /// It won't be.
    Final(BusError),
}

/// Takes part in rebalances.
struct Context {
    inbox: Arc<Inbox>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        report(&error, reason);
    }
}

impl ConsumerContext for Context {
    /// Runs on the member's thread, from within a poll. Kafka waits for `incremental_unassign`, which comes only when
    /// the reader has released the partitions.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, changed: &mut TopicPartitionList) {
        let partitions = partitions_of(changed);
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let assigned = consumer.incremental_assign(changed);
            noted("take partitions", assigned);
            if self.inbox.is_paused() {
                noted("pause partitions", consumer.pause(changed));
            }
            self.inbox.assigned(partitions);
            return;
        }
        if consumer.assignment_lost() {
            self.inbox.lost(&partitions);
        } else if self.inbox.revoking(partitions) {
            return;
        }
        noted("give partitions back", consumer.incremental_unassign(changed));
    }
}

/// What must not fail, or only since it is superfluous.
fn noted(what: &str, result: Result<(), KafkaError>) {
    if let Err(error) = result {
        warn!(%error, "a kafka consumer cannot {what}");
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    let partitions = list.elements().into_iter().filter_map(|element| {
        Some(TopicPartition { topic: element.topic().parse().ok()?, partition: element.partition() as u32 })
    });
    partitions.collect()
}

/// See the module.
pub(crate) struct Member {
    consumer: BaseConsumer<Context>,
    inbox: Arc<Inbox>,
    inputs: Receiver<Command>,
    /// What can't be done yet: since when, and when it was tried last.
    waiting: VecDeque<(Command, Instant, Instant)>,
    /// Since when the inbox is full.
    full_since: Option<Instant>,
    topics: Vec<TopicName>,
    timeout: Duration,
    /// What the bytes of the next records lie in.
    buffer: BytesMut,
}

impl Member {
    pub(crate) fn join(
        settings: &Settings,
        group: &str,
        topics: &[TopicName],
        inbox: Arc<Inbox>,
        inputs: Receiver<Command>,
    ) -> Result<Self, KafkaError> {
        let context = Context { inbox: Arc::clone(&inbox) };
        let consumer: BaseConsumer<Context> = settings.joining(group).create_with_context(context)?;
        let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
        if !names.is_empty() {
            consumer.subscribe(&names)?;
        }
        let timeout = settings.request_timeout.0;
        Ok(Self {
            consumer,
            inbox,
            inputs,
            waiting: VecDeque::new(),
            full_since: None,
            topics: topics.to_vec(),
            timeout,
            buffer: BytesMut::with_capacity(BUFFER_BYTES),
        })
    }

    /// Runs until the reader is gone, and leaves the group.
    pub(crate) fn run(mut self) {
        while self.obey() {
            let lost = self.inbox.is_revoking() && self.consumer.assignment_lost();
            if let Some(revoked) = self.inbox.take_revoked(lost) {
                noted("give partitions back", self.give_back(&revoked));
            }
            if self.may_poll() {
                self.poll();
            }
        }
        if let Some(revoked) = self.inbox.take_revoked(true) {
            noted("give partitions back", self.give_back(&revoked));
        }
        // Dropping the client leaves the group.
    }

    fn give_back(&self, revoked: &[TopicPartition]) -> Result<(), KafkaError> {
        self.consumer.incremental_unassign(&list(revoked, Offset::Invalid)?)
    }

    /// True unless the inbox is full; it's waited for a moment. If it stays full, fetching is paused, and the client is
    /// polled for rebalances alone.
    fn may_poll(&mut self) -> bool {
        if self.inbox.wait_for_room(POLL) {
            self.full_since = None;
            if self.inbox.is_paused() {
                let held = self.inbox.set_paused(false);
                noted("go on fetching", list(&held, Offset::Invalid).and_then(|held| self.consumer.resume(&held)));
            }
            return true;
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if self.inbox.is_paused() {
            return true;
        }
        if since.elapsed() < PAUSE_AFTER {
            return false;
        }
        let held = self.inbox.set_paused(true);
        noted("pause fetching", list(&held, Offset::Invalid).and_then(|held| self.consumer.pause(&held)));
        true
    }

    /// Takes what there is.
    fn poll(&mut self) {
        let mut wait = POLL;
        for _ in 0..TAKE {
            match self.consumer.poll(wait) {
                Some(Ok(message)) => {
                    let record = to_record(&message, &mut self.buffer);
                    if !self.inbox.push(message.topic(), message.partition() as u32, record) {
                        return;
                    }
                }
                Some(Err(error)) => self.trouble(&error),
                None => return,
            }
            wait = Duration::ZERO;
        }
    }

    /// Tells the reader of what doesn't mend by itself, or not soon.
    fn trouble(&self, error: &KafkaError) {
        let lasting = match error {
            KafkaError::MessageConsumptionFatal(_) => true,
            _ => match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    // A record that can't be read stops its partition.
                    | RDKafkaErrorCode::BadCompression
                    | RDKafkaErrorCode::BadMessage
                    | RDKafkaErrorCode::NotImplemented,
                ) => true,
                // Said as well when connections that nobody used were closed.
                Some(RDKafkaErrorCode::AllBrokersDown) => !self.reachable(),
                _ => false, // a topic that isn't made yet, too
            },
        };
        debug!(%error, lasting, "a kafka consumer's trouble");
        if lasting {
            self.inbox.fail(unavailable(error));
        }
    }

    fn reachable(&self) -> bool {
        let Some(topic) = self.topics.first() else { return true };
        self.consumer.fetch_metadata(Some(topic.as_str()), self.timeout).is_ok()
    }

    /// Carries out what the reader wants; false if the reader is gone.
    fn obey(&mut self) -> bool {
        if self.inbox.is_closing() {
            return false;
        }
        if let Some((_, _, tried)) = self.waiting.front() {
            // One after another: what comes later may build on it.
            if tried.elapsed() < RETRY {
                return true;
            }
            if let Some((command, since, _)) = self.waiting.pop_front() {
                self.carry_out(command, since);
            }
        }
        while self.waiting.is_empty() {
            match self.inputs.try_recv() {
                Ok(command) => self.carry_out(command, Instant::now()),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn carry_out(&mut self, command: Command, since: Instant) {
        let result = match &command {
            Command::Commit { offsets, .. } => self.commit(offsets),
            Command::Seek { at, from, .. } => self.seek(at, *from),
            Command::Release { partitions, .. } => {
                self.inbox.release(partitions);
                Ok(())
            }
        };
        let result = match result {
            Ok(()) => Ok(()),
            Err(Failure::NotNow(_)) if since.elapsed() < RETRY_FOR => {
                self.waiting.push_front((command, since, Instant::now()));
                return;
            }
            Err(Failure::NotNow(error)) => Err(unavailable(&error)),
            Err(Failure::Final(error)) => Err(error),
        };
        match command {
            Command::Commit { reply, .. } | Command::Seek { reply, .. } | Command::Release { reply, .. } => {
                drop(reply.send(result)); // who has gone away doesn't want it
            }
        }
    }

    /// Commits; durable when it returns. Kafka refuses what a member commits that the group has given up.
    fn commit(&self, offsets: &[(TopicPartition, NextOffset)]) -> Result<(), Failure> {
        self.check_held(offsets.iter().map(|(at, _)| at))?;
        self.learn_committed(offsets).map_err(|error| match error.rdkafka_error_code() {
            Some(code) if is_passing(code) => Failure::NotNow(error),
            _ => Failure::Final(unavailable(&error)),
        })?;
        let mut forward = TopicPartitionList::new();
        let ahead = |at: &TopicPartition, next: u64| self.inbox.committed(at).is_none_or(|before| before < next);
        for (at, next) in offsets.iter().filter(|(at, next)| ahead(at, next.0)) {
            let offset = Offset::Offset(next.0 as i64);
            let added = forward.add_partition_offset(at.topic.as_str(), at.partition as i32, offset);
            added.map_err(|error| Failure::Final(unavailable(&error)))?;
        }
        if forward.count() == 0 {
            return Ok(());
        }
        match self.consumer.commit(&forward, CommitMode::Sync) {
            Ok(()) => {
                offsets.iter().filter(|(at, next)| ahead(at, next.0)).for_each(|(at, next)| {
                    self.inbox.set_committed(at, next.0);
                });
                Ok(())
            }
            Err(error) => Err(self.refused(error, &offsets[0].0)),
        }
    }

    fn refused(&self, error: KafkaError, at: &TopicPartition) -> Failure {
        debug!(%error, "kafka refused a commit");
        match error.rdkafka_error_code() {
            // The group has gone on without this member: it holds nothing.
            Some(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::FencedInstanceId) => {
                self.inbox.lost_all();
                Failure::Final(not_owner(at))
            }
            // The group goes on with this member, or has gone on without it; the next poll tells.
            Some(RDKafkaErrorCode::RebalanceInProgress | RDKafkaErrorCode::IllegalGeneration) => Failure::NotNow(error),
            Some(code) if is_passing(code) => Failure::NotNow(error),
            _ => Failure::Final(at_partition(&error, at)),
        }
    }

    /// Asks what was committed before this member held the partitions, so that no commit goes back.
    fn learn_committed(&self, offsets: &[(TopicPartition, NextOffset)]) -> Result<(), KafkaError> {
        let new = offsets.iter().map(|(at, _)| at).filter(|at| self.inbox.committed(at).is_none());
        let new: Vec<TopicPartition> = new.cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let answer = self.consumer.committed_offsets(list(&new, Offset::Invalid)?, self.timeout)?;
        for element in answer.elements() {
            element.error()?;
            let next = match element.offset() {
                Offset::Offset(next) => u64::try_from(next).unwrap_or(0),
                _ => 0,
            };
            if let Ok(topic) = element.topic().parse() {
                self.inbox.set_committed(&TopicPartition { topic, partition: element.partition() as u32 }, next);
            }
        }
        Ok(())
    }

    fn seek(&self, at: &TopicPartition, from: NextOffset) -> Result<(), Failure> {
        self.check_held([at])?;
        let target = list(std::slice::from_ref(at), Offset::Offset(from.0 as i64));
        let answer = target.and_then(|target| self.consumer.seek_partitions(target, self.timeout));
        let answer = answer.map_err(|error| Failure::Final(at_partition(&error, at)))?;
        for element in answer.elements() {
            match element.error() {
                Ok(()) => {}
                // The partition is new, and not fetched from yet.
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::State) => {
                    return Err(Failure::NotNow(error));
                }
                Err(error) => return Err(Failure::Final(at_partition(&error, at))),
            }
        }
        self.inbox.seek(at, from.0);
        Ok(())
    }

    fn check_held<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Result<(), Failure> {
        let lost = self.consumer.assignment_lost();
        match partitions.into_iter().find(|at| lost || !self.inbox.holds(at)) {
            Some(at) => Err(Failure::Final(not_owner(at))),
            None => Ok(()),
        }
    }
}

fn not_owner(at: &TopicPartition) -> BusError {
    BusError::NotOwner { topic: at.topic.clone(), partition: at.partition }
}
