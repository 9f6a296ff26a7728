//! Topics, made on first use with their books and dead letters.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use logmesh_bus::{Bus, BusError};
use logmesh_record::{Format, Topics};
use logmesh_types::TopicName;
use tokio::sync::Mutex;
use tracing::{info, warn};

/// Why nothing can be written to a topic.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopicError {
    /// It can't be used, however often one tries.
    #[error("{detail}")]
    Refused {
        /// A stable name.
        reason: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The bus can't say now.
    #[error(transparent)]
    Bus(BusError),
}

impl From<BusError> for TopicError {
    fn from(error: BusError) -> Self {
        match refusal(&error) {
            Some(reason) => Self::Refused { reason, detail: error.to_string() },
            None => Self::Bus(error),
        }
    }
}

/// The stable name of an error that trying again won't mend.
pub(crate) fn refusal(error: &BusError) -> Option<&'static str> {
    match error {
        BusError::Refused { .. } => Some("TOPIC_REFUSED"),
        BusError::RecordTooLarge { .. } => Some("RECORD_TOO_LARGE"),
        _ => None,
    }
}

/// The topics that this process has seen to.
#[derive(Debug)]
pub(crate) struct TopicMaker {
    bus: Arc<dyn Bus>,
    settings: Topics,
    max_topics: usize,
    known: RwLock<HashMap<TopicName, Format>>,
    /// Held while a topic is made; those that are known don't wait for it.
    making: Mutex<()>,
}

impl TopicMaker {
    pub(crate) fn new(bus: Arc<dyn Bus>, settings: Topics, max_topics: usize) -> Self {
        Self { bus, settings, max_topics, known: RwLock::default(), making: Mutex::new(()) }
    }

    /// Sees to it that the topic, its books and its dead letters are there; the topic's format.
    pub(crate) async fn ensure(&self, topic: &TopicName) -> Result<Format, TopicError> {
        if let Some(format) = self.known(topic) {
            return Ok(format);
        }
        let _making = self.making.lock().await;
        if let Some(format) = self.known(topic) {
            return Ok(format);
        }
        self.make(topic).await?;
        let format = self.settings.format(topic);
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(topic.clone(), format);
        Ok(format)
    }

    fn known(&self, topic: &TopicName) -> Option<Format> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(topic).copied()
    }

    /// Forgets the topic, so that its next use makes it again should it be gone.
    pub(crate) fn forget(&self, topic: &TopicName) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }

    async fn make(&self, topic: &TopicName) -> Result<(), TopicError> {
        let found = self.bus.topic(topic).await?;
        if found.is_none() {
            let count = self.bus.topics().await?.iter().filter(|spec| !spec.name.is_internal()).count();
            if count >= self.max_topics {
                let detail = format!("topic {topic} is new and there are {count} topics already, which is the most");
                return Err(TopicError::Refused { reason: "TOO_MANY_TOPICS", detail });
            }
        }
        let specs = self.settings.specs(topic);
        let wanted = specs[0].partitions;
        let partitions = found.as_ref().map_or(wanted, |found| found.partitions);
        if partitions != wanted {
            // Order within a stream is by partition, so the number is fixed; the books have the same.
            warn!(%topic, partitions, wanted, "topic keeps the number of partitions it was made with");
        }
        // The topic comes last: whoever sees it finds its books.
        for mut spec in specs.into_iter().rev() {
            spec.partitions = partitions;
            self.bus.ensure_topic(&spec).await.map_err(|error| match error {
                BusError::TopicDiffers { .. } => {
                    TopicError::Refused { reason: "TOPIC_DIFFERS", detail: error.to_string() }
                }
                other => other.into(),
            })?;
        }
        if found.is_none() {
            info!(%topic, partitions, "topic made");
        }
        Ok(())
    }
}
