//! What is set on topics, and what that means.

use std::time::Duration;

use logmesh_bus::{Cleanup, TopicSpec};
use rdkafka::admin::ConfigEntry;

use crate::clients::MAX_BATCH_BYTES;
use crate::settings::Settings;

/// How long a removal stays visible in a compacted topic.
const TOMBSTONE_AGE: Duration = Duration::from_secs(24 * 3600);

/// The size of a compacted topic's files. Only those that are full are compacted, and who loads the books reads all.
const COMPACT_SEGMENT_BYTES: usize = 32 << 20;

/// The property that bounds a topic's batches.
pub(super) const LARGEST: &str = "max.message.bytes";

/// What is set on a new topic.
pub(super) fn configs(spec: &TopicSpec, min_in_sync: Option<u16>) -> Vec<(&'static str, String)> {
    let mut configs = vec![
        (LARGEST, MAX_BATCH_BYTES.to_string()),
        // As we send it: a broker that compresses everything with zstd would store what we can't read.
        ("compression.type", "producer".to_owned()),
        // Kafka refuses what is an hour ahead of its clock, for good; a gateway's clock must not stop its agents.
        ("message.timestamp.after.max.ms", i64::MAX.to_string()),
    ];
    configs.extend(min_in_sync.map(|min| ("min.insync.replicas", min.to_string())));
    match &spec.cleanup {
        Cleanup::Delete { .. } => configs.push(("cleanup.policy", "delete".to_owned())),
        Cleanup::Compact => configs.extend([
            ("cleanup.policy", "compact".to_owned()),
            ("delete.retention.ms", TOMBSTONE_AGE.as_millis().to_string()),
            ("segment.bytes", COMPACT_SEGMENT_BYTES.to_string()),
        ]),
    }
    configs.extend(retention(&spec.cleanup));
    configs
}

/// How many copies a new topic gets on a broker that is set so, and how many of them must have a record, if that is to
/// be set on it.
pub(super) fn safe(settings: &Settings, live: usize, broker: &[ConfigEntry]) -> (u16, Option<u16>) {
    let default = figure(broker, "default.replication.factor").unwrap_or(1) as u16;
    let copies = settings.replication.unwrap_or(default.max(live.min(3) as u16));
    let weak = figure(broker, "min.insync.replicas").is_none_or(|min| min < 2);
    (copies, settings.min_in_sync.or((copies >= 3 && weak).then_some(2)))
}

/// The largest batch that the topic takes, if our largest record may not fit.
pub(super) fn small(entries: &[ConfigEntry]) -> Option<u64> {
    figure(entries, LARGEST).filter(|bytes| *bytes < MAX_BATCH_BYTES as u64)
}

fn value<'a>(entries: &'a [ConfigEntry], name: &str) -> Option<&'a str> {
    entries.iter().find(|entry| entry.name == name)?.value.as_deref()
}

/// `None` if it isn't there or is -1, which means without limit.
fn figure(entries: &[ConfigEntry], name: &str) -> Option<u64> {
    value(entries, name)?.parse().ok()
}

/// Which records the topic keeps.
pub(super) fn cleanup_of(entries: &[ConfigEntry]) -> Cleanup {
    match value(entries, "cleanup.policy") {
        Some("compact") => Cleanup::Compact,
        // With both policies records go by age, too: that isn't what `Compact` promises.
        _ => Cleanup::Delete {
            max_age: figure(entries, "retention.ms").map(Duration::from_millis),
            max_bytes: figure(entries, "retention.bytes"),
        },
    }
}

pub(super) fn retention(cleanup: &Cleanup) -> Vec<(&'static str, String)> {
    let Cleanup::Delete { max_age, max_bytes } = cleanup else { return Vec::new() };
    let text = |figure: Option<u128>| figure.map_or("-1".to_owned(), |figure| figure.min(i64::MAX as u128).to_string());
    vec![
        ("retention.ms", text(max_age.map(|age| age.as_millis()))),
        ("retention.bytes", text(max_bytes.map(u128::from))),
    ]
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::ConfigSource;

    use super::*;

    fn entry(name: &str, value: &str) -> ConfigEntry {
        ConfigEntry {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            source: ConfigSource::StaticBroker,
            is_read_only: true,
            is_default: false,
            is_sensitive: false,
        }
    }

    #[test]
    fn new_topics_are_safe_unless_the_operator_says_otherwise() {
        let broker =
            |copies: &str, min: &str| [entry("default.replication.factor", copies), entry("min.insync.replicas", min)];
        let unset = Settings::default();
        assert_eq!(safe(&unset, 1, &broker("1", "1")), (1, None));
        assert_eq!(safe(&unset, 2, &broker("1", "1")), (2, None));
        assert_eq!(safe(&unset, 5, &broker("1", "1")), (3, Some(2)));
        assert_eq!(safe(&unset, 3, &broker("3", "2")), (3, None));
        // Also if a broker is away just now, or doesn't say.
        assert_eq!(safe(&unset, 2, &broker("3", "1")), (3, Some(2)));
        assert_eq!(safe(&unset, 3, &[]), (3, Some(2)));
        let copies = Settings { replication: Some(1), ..Settings::default() };
        assert_eq!(safe(&copies, 3, &broker("3", "1")), (1, None));
        let min = Settings { min_in_sync: Some(1), ..Settings::default() };
        assert_eq!(safe(&min, 3, &broker("1", "2")), (3, Some(1)));
    }
}
