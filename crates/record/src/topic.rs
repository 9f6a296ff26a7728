//! What a topic is: the part of the settings that gateway, transfer and console share.

use std::collections::{BTreeMap, HashSet};

use logmesh_bus::{Cleanup, TopicSpec};
use logmesh_index::FieldTypes;
use logmesh_types::TopicName;
use logmesh_types::unit::{ByteSize, Span};

use crate::codec::Format;

/// The consumer group in which all transfer workers of a mesh share its topics: what it has committed is in the index, or
/// booked as rejected.
pub const TRANSFER_GROUP: &str = "logmesh-transfer";

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// Whole days: what was begun is kept to its end.
fn days(span: Span) -> u64 {
    span.0.as_secs().div_ceil(DAY.as_secs())
}

/// Of all topics of a bus those that have books, in their order: those of others on the same bus are none of ours.
pub fn with_books(all: Vec<TopicSpec>) -> Vec<TopicSpec> {
    let names: HashSet<TopicName> = all.iter().map(|spec| spec.name.clone()).collect();
    let ours = all.into_iter().filter(|spec| !spec.name.is_internal() && names.contains(&spec.name.books()));
    ours.collect()
}

/// The settings of one topic.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopicSettings {
    /// How many partitions it is made with. Fixed for its life.
    pub partitions: u32,
    /// What lies in it; unset: `chunks`, or what the backend's mesh is made for ([`Topics::or_defaults`]).
    pub format: Option<Format>,
    /// How long the bus keeps its records.
    pub retention_age: Span,
    /// How many bytes of each partition the bus keeps; unset: what the backend's mesh is made for ([`Topics::or_defaults`]).
    /// Kafka removes the oldest records beyond this though they aren't in the index yet.
    pub retention_bytes: Option<ByteSize>,
    /// How long the index keeps its documents, by the day on which they were read: whole days, at least one. Older days go as a whole,
    /// and nothing is written to them again. Unset: for ever.
    pub index_retention: Option<Span>,
    /// Typed fields under `attributes.`.
    pub fields: FieldTypes,
}

impl Default for TopicSettings {
    /// Few partitions, a week; format and bytes as the backend's mesh has them.
    fn default() -> Self {
        Self {
            partitions: 4,
            format: None,
            retention_age: Span(std::time::Duration::from_secs(7 * 86_400)),
            retention_bytes: None,
            index_retention: None,
            fields: FieldTypes::new(),
        }
    }
}

/// The settings of all topics.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// For topics that are not named.
    pub default: TopicSettings,
    /// For these topics.
    pub named: BTreeMap<TopicName, TopicSettings>,
}

impl Topics {
    /// The same, with this format and this bound for the topics whose settings name none; no bound keeps records until they
    /// are too old.
    pub fn or_defaults(mut self, format: Format, retention_bytes: Option<ByteSize>) -> Self {
        for settings in self.named.values_mut().chain([&mut self.default]) {
            settings.format.get_or_insert(format);
            settings.retention_bytes = settings.retention_bytes.or(retention_bytes);
        }
        self
    }

    /// The topic's format.
    pub fn format(&self, topic: &TopicName) -> Format {
        self.get(topic).format.unwrap_or(Format::Chunks)
    }

    /// The settings of this topic.
    pub fn get(&self, topic: &TopicName) -> &TopicSettings {
        self.named.get(topic).unwrap_or(&self.default)
    }

    /// For how many days the index keeps the topic's documents; `None`: for ever.
    pub fn index_days(&self, topic: &TopicName) -> Option<u64> {
        self.get(topic).index_retention.map(days)
    }

    /// Says which setting can't work.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        let named = self.named.iter().map(|(topic, settings)| (format!("topics.named.{topic}"), settings));
        for (place, settings) in named.chain([("topics.default".to_owned(), &self.default)]) {
            let short = settings.index_retention.is_some_and(|kept| kept.0 < DAY);
            if short {
                return Err(format!("{place}.index_retention must be at least 1d: the index is kept in days"));
            }
        }
        Ok(())
    }

    /// What to make on the bus for this topic: itself, its books and its dead letters.
    pub fn specs(&self, topic: &TopicName) -> [TopicSpec; 3] {
        let settings = self.get(topic);
        let max_bytes = settings.retention_bytes.map(|bytes| bytes.0);
        let delete = Cleanup::Delete { max_age: Some(settings.retention_age.0), max_bytes };
        let spec = |name, cleanup| TopicSpec { name, partitions: settings.partitions, cleanup };
        [
            spec(topic.clone(), delete),
            spec(topic.books(), Cleanup::Compact),
            spec(topic.dead_letters(), Cleanup::Delete { max_age: None, max_bytes }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_kept_in_whole_days_or_for_ever() {
        let mut topics = Topics::default();
        let logs: TopicName = "logs".parse().unwrap();
        assert_eq!((topics.index_days(&logs), topics.check()), (None, Ok(())));
        for (text, days) in [("1d", 1), ("36h", 2), ("30d", 30)] {
            topics.default.index_retention = Some(text.parse().unwrap());
            assert_eq!((topics.index_days(&logs), topics.check()), (Some(days), Ok(())));
        }
        let short = TopicSettings { index_retention: Some("1h".parse().unwrap()), ..TopicSettings::default() };
        topics.named.insert(logs, short);
        assert!(topics.check().unwrap_err().contains("topics.named.logs.index_retention"));
    }
}
