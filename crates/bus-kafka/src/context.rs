//! What clients report on their own, passed on to `tracing`, and how Kafka's errors become the bus's.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use logmesh_bus::{BusError, TopicPartition};
use logmesh_types::TopicName;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, error, warn};

/// Logs, and keeps what went wrong last: a call that fails says only that no broker could be reached.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    last: Mutex<Option<String>>,
}

impl Quiet {
    /// The bus's error for a call that failed, with what went wrong behind it.
    pub(crate) fn explain(&self, error: &KafkaError) -> BusError {
        match self.last.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(last) => BusError::Unavailable { reason: format!("Kafka: {error}; {last}") },
            None => unavailable(error),
        }
    }
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        report(&error, reason);
        // That all are down is what the call says, too.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Quiet {}

pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            error!(facility, message, "kafka client")
        }
        // Which a broker that is away causes as well: whoever needs it says so.
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => warn!(facility, message, "kafka client"),
        _ => debug!(facility, message, "kafka client"),
    }
}

pub(crate) fn report(error: &KafkaError, reason: &str) {
    debug!(%error, reason, "kafka client");
}

/// The bus's error for what went wrong with a partition.
pub(crate) fn at_partition(error: &KafkaError, at: &TopicPartition) -> BusError {
    match error.rdkafka_error_code() {
        Some(code) if is_unknown(code) => unknown(at),
        Some(code) if is_refused(code) => refused(&at.topic, error),
        _ => unavailable(error),
    }
}

/// True if Kafka has no such topic or partition.
pub(crate) fn is_unknown(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition
    )
}

/// True if Kafka will not do it, however often it is asked.
pub(crate) fn is_refused(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::InvalidConfig
    )
}

/// True if Kafka is moving or loading something, and the same question has an answer in a moment.
pub(crate) fn is_passing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::CoordinatorLoadInProgress
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::FencedLeaderEpoch
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::UnknownLeaderEpoch
    )
}

/// Asks again while Kafka is moving things, for so long. Blocks.
pub(crate) fn patiently<T>(timeout: Duration, mut ask: impl FnMut() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let end = Instant::now() + timeout;
    loop {
        match ask() {
            Err(error) if error.rdkafka_error_code().is_some_and(is_passing) && Instant::now() < end => {}
            result => return result,
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn unknown(at: &TopicPartition) -> BusError {
    BusError::UnknownPartition { topic: at.topic.clone(), partition: at.partition }
}

pub(crate) fn refused(topic: &TopicName, error: &KafkaError) -> BusError {
    BusError::Refused { topic: topic.clone(), reason: format!("Kafka: {error}") }
}

pub(crate) fn unavailable(error: &KafkaError) -> BusError {
    BusError::Unavailable { reason: format!("Kafka: {error}") }
}

pub(crate) fn stopping() -> BusError {
    BusError::Unavailable { reason: "the process is shutting down".to_owned() }
}
