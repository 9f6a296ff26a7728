//! Topics: what there is, what each is, and making them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use logmesh_bus::{BusError, Cleanup, TopicSpec};
use logmesh_types::TopicName;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigSource, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;

use crate::clients::MAX_BATCH_BYTES;
use crate::context::{Quiet, is_unknown, stopping, unavailable};
use crate::settings::Settings;

/// How long what was asked about a topic's configuration is believed. Whether a topic is there is always asked.
const FRESH: Duration = Duration::from_secs(30);

/// How long brokers may take to hear of a new topic, and how often they are asked meanwhile.
const SPREAD: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// How long a removal stays visible in a compacted topic.
const TOMBSTONE_AGE: Duration = Duration::from_secs(24 * 3600);

/// The size of a compacted topic's files. Only those that are full are compacted, and who loads the books reads all.
const COMPACT_SEGMENT_BYTES: usize = 32 << 20;

/// Asks Kafka about its topics and makes them.
pub(crate) struct Topics {
    settings: Settings,
    admin: AdminClient<Quiet>,
    asking: Arc<BaseConsumer<Quiet>>,
    /// How many partitions each topic has that was seen.
    partitions: RwLock<HashMap<TopicName, u32>>,
    cleanups: Mutex<HashMap<TopicName, (Instant, Cleanup)>>,
}

/// Topics and how many partitions they have.
type Found = Vec<(TopicName, u32)>;

impl Topics {
    pub(crate) fn new(settings: &Settings, asking: Arc<BaseConsumer<Quiet>>) -> Result<Self, KafkaError> {
        Ok(Self {
            settings: settings.clone(),
            admin: settings.asking().create_with_context(Quiet::default())?,
            asking,
            partitions: RwLock::default(),
            cleanups: Mutex::default(),
        })
    }

    /// How many partitions the topic has; `None` if there is no such topic. Asked once, since it is fixed.
    pub(crate) async fn partitions(&self, name: &TopicName) -> Result<Option<u32>, BusError> {
        let known = self.partitions.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        if known.is_some() {
            return Ok(known);
        }
        let found = self.find(Some(name)).await?.first().map(|(_, partitions)| *partitions);
        if let Some(partitions) = found {
            self.partitions.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), partitions);
        }
        Ok(found)
    }

    /// Forgets a topic that turned out not to be there.
    pub(crate) fn forget(&self, name: &TopicName) {
        self.partitions.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.cleanups.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(crate) async fn topic(&self, name: &TopicName) -> Result<Option<TopicSpec>, BusError> {
        let found = self.find(Some(name)).await?;
        if found.is_empty() {
            self.forget(name);
        }
        Ok(self.specs(found).await?.pop())
    }

    pub(crate) async fn all(&self) -> Result<Vec<TopicSpec>, BusError> {
        let found = self.find(None).await?;
        // None is taken out: a broker may not have heard yet of what another has made.
        self.partitions.write().unwrap_or_else(PoisonError::into_inner).extend(found.iter().cloned());
        self.specs(found).await
    }

    pub(crate) async fn ensure(&self, spec: &TopicSpec) -> Result<(), BusError> {
        self.forget(&spec.name);
        let found = match self.topic(&spec.name).await? {
            Some(found) => found,
            None => {
                self.make(spec).await?;
                self.made(&spec.name).await? // perhaps by another, and otherwise
            }
        };
        if found.partitions != spec.partitions || kind(&found.cleanup) != kind(&spec.cleanup) {
            let text = |spec: &TopicSpec| format!("{} partitions, cleanup {}", spec.partitions, kind(&spec.cleanup));
            return Err(BusError::TopicDiffers { topic: spec.name.clone(), found: text(&found), wanted: text(spec) });
        }
        if found.cleanup != spec.cleanup {
            self.alter(spec).await?;
            self.forget(&spec.name);
        }
        // So that no broker that hasn't heard of it yet is asked.
        self.partitions.write().unwrap_or_else(PoisonError::into_inner).insert(spec.name.clone(), spec.partitions);
        Ok(())
    }

    async fn make(&self, spec: &TopicSpec) -> Result<(), BusError> {
        let configs = self.configs(spec);
        let replication = TopicReplication::Fixed(self.settings.replication.map_or(-1, i32::from));
        let mut topic = NewTopic::new(spec.name.as_str(), spec.partitions as i32, replication);
        topic.config = configs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let results = self.admin.create_topics([&topic], &self.options()).await.map_err(|error| unavailable(&error))?;
        match results.into_iter().next() {
            Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            // Kafka takes `a.b` and `a_b` for the same name in its metrics, and refuses the second.
            Some(Err((_, RDKafkaErrorCode::InvalidTopic))) => Err(BusError::TopicDiffers {
                topic: spec.name.clone(),
                found: "a name that Kafka cannot tell from it, with `_` for `.` or the other way round".to_owned(),
                wanted: "this name".to_owned(),
            }),
            Some(Err((_, code))) => Err(unavailable(&KafkaError::AdminOp(code))),
            None => Err(not_yet(&spec.name)),
        }
    }

    /// What is set on a new topic.
    fn configs(&self, spec: &TopicSpec) -> Vec<(&'static str, String)> {
        let mut configs = vec![
            ("max.message.bytes", MAX_BATCH_BYTES.to_string()),
            // Kafka refuses what is an hour ahead of its clock, for good; a gateway's clock must not stop its agents.
            ("message.timestamp.after.max.ms", i64::MAX.to_string()),
        ];
        if let Some(min) = self.settings.min_in_sync {
            configs.push(("min.insync.replicas", min.to_string()));
        }
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

    /// The topic as it was made. Brokers hear of it one after another.
    async fn made(&self, name: &TopicName) -> Result<TopicSpec, BusError> {
        let end = Instant::now() + SPREAD;
        loop {
            match self.topic(name).await? {
                Some(spec) => return Ok(spec),
                None if Instant::now() >= end => return Err(not_yet(name)),
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Takes retention figures over. Kafka forgets what it isn't told again, so what else was set is said too.
    async fn alter(&self, spec: &TopicSpec) -> Result<(), BusError> {
        let described = self.describe(std::slice::from_ref(&spec.name)).await?;
        let set = described.into_iter().flat_map(|(_, entries)| entries);
        let set = set.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let mut configs: HashMap<String, String> = set.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        configs.extend(retention(&spec.cleanup).into_iter().map(|(name, value)| (name.to_owned(), value)));
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(spec.name.as_str()));
        change.entries = configs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let results =
            self.admin.alter_configs([&change], &self.options()).await.map_err(|error| unavailable(&error))?;
        match results.into_iter().next() {
            Some(Ok(_)) => Ok(()),
            Some(Err((_, code))) => Err(unavailable(&KafkaError::AdminOp(code))),
            None => Err(not_yet(&spec.name)),
        }
    }

    /// The topics that there are, or the one asked for if there is one.
    async fn find(&self, name: Option<&TopicName>) -> Result<Found, BusError> {
        let (asking, name) = (Arc::clone(&self.asking), name.cloned());
        let timeout = self.settings.request_timeout.0;
        let find = move || {
            drain(&asking);
            let metadata = asking.fetch_metadata(name.as_ref().map(TopicName::as_str), timeout);
            let metadata = metadata.map_err(|error| explain(&asking, &error))?;
            let mut found = Vec::new();
            for topic in metadata.topics() {
                // Others' topics may have names that ours can't have.
                let Ok(name) = topic.name().parse::<TopicName>() else { continue };
                found.extend(partitions_of(topic)?.map(|partitions| (name, partitions)));
            }
            found.sort_unstable();
            Ok(found)
        };
        tokio::task::spawn_blocking(find).await.map_err(|_| stopping())?
    }

    /// What these topics are.
    async fn specs(&self, found: Found) -> Result<Vec<TopicSpec>, BusError> {
        let stale: Vec<TopicName> = {
            let cleanups = self.cleanups.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |name: &TopicName| cleanups.get(name).is_some_and(|(since, _)| since.elapsed() < FRESH);
            found.iter().filter(|(name, _)| !fresh(name)).map(|(name, _)| name.clone()).collect()
        };
        let described = if stale.is_empty() { Vec::new() } else { self.describe(&stale).await? };
        let mut cleanups = self.cleanups.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, entries) in described {
            cleanups.insert(name, (Instant::now(), cleanup_of(&entries)));
        }
        if cleanups.len() > 2 * found.len() + 100 {
            cleanups.retain(|name, _| found.iter().any(|(there, _)| there == name)); // those of topics that are gone
        }
        let specs = found.into_iter().filter_map(|(name, partitions)| {
            let cleanup = cleanups.get(&name)?.1;
            Some(TopicSpec { name, partitions, cleanup })
        });
        Ok(specs.collect())
    }

    /// What is set on these topics. A broker that hasn't heard of one yet tells nothing of it, so it's asked again.
    async fn describe(&self, names: &[TopicName]) -> Result<Vec<(TopicName, Vec<ConfigEntry>)>, BusError> {
        let (mut left, mut described) = (names.to_vec(), Vec::new());
        let end = Instant::now() + SPREAD;
        loop {
            let resources: Vec<_> = left.iter().map(|name| ResourceSpecifier::Topic(name.as_str())).collect();
            let answers = self.admin.describe_configs(&resources, &self.options()).await;
            for answer in answers.map_err(|error| unavailable(&error))? {
                let resource = answer.map_err(|code| unavailable(&KafkaError::AdminOp(code)))?;
                let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
                if resource.entries.is_empty() {
                    continue;
                }
                if let Some(place) = left.iter().position(|wanted| wanted.as_str() == name) {
                    described.push((left.swap_remove(place), resource.entries));
                }
            }
            let Some(silent) = left.first() else { return Ok(described) };
            if Instant::now() >= end {
                let why = "it was just removed, or this user may not describe it";
                let reason = format!("Kafka does not tell what is set on topic {silent}: {why}");
                return Err(BusError::Unavailable { reason });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn options(&self) -> AdminOptions {
        let timeout = Some(self.settings.request_timeout.0);
        AdminOptions::new().request_timeout(timeout).operation_timeout(timeout)
    }
}

/// Empties the client's queue of what it reports on its own.
pub(crate) fn drain(client: &BaseConsumer<Quiet>) {
    while client.poll(Duration::ZERO).is_some() {}
}

/// The bus's error for a call of this client that failed.
pub(crate) fn explain(client: &BaseConsumer<Quiet>, error: &KafkaError) -> BusError {
    drain(client);
    client.context().explain(error)
}

/// How many partitions it has, if it is there.
fn partitions_of(topic: &MetadataTopic) -> Result<Option<u32>, BusError> {
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(code) if is_unknown(code) => Ok(None),
        Some(RDKafkaErrorCode::InvalidTopic) => Ok(None),
        None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
            let partitions = topic.partitions().len() as u32;
            Ok((partitions > 0).then_some(partitions)) // none: a moment after it was made
        }
        Some(code) => Err(unavailable(&KafkaError::MetadataFetch(code))),
    }
}

/// Which records the topic keeps.
fn cleanup_of(entries: &[ConfigEntry]) -> Cleanup {
    let value = |name: &str| entries.iter().find(|entry| entry.name == name)?.value.as_deref();
    let figure = |name: &str| value(name)?.parse::<u64>().ok(); // -1: for ever
    match value("cleanup.policy") {
        Some("compact") => Cleanup::Compact,
        // With both policies records go by age, too: that isn't what `Compact` promises.
        _ => Cleanup::Delete {
            max_age: figure("retention.ms").map(Duration::from_millis),
            max_bytes: figure("retention.bytes"),
        },
    }
}

fn retention(cleanup: &Cleanup) -> Vec<(&'static str, String)> {
    let Cleanup::Delete { max_age, max_bytes } = cleanup else { return Vec::new() };
    let text = |figure: Option<u128>| figure.map_or("-1".to_owned(), |figure| figure.min(i64::MAX as u128).to_string());
    vec![
        ("retention.ms", text(max_age.map(|age| age.as_millis()))),
        ("retention.bytes", text(max_bytes.map(u128::from))),
    ]
}

fn kind(cleanup: &Cleanup) -> &'static str {
    match cleanup {
        Cleanup::Delete { .. } => "delete",
        Cleanup::Compact => "compact",
    }
}

fn not_yet(name: &TopicName) -> BusError {
    BusError::Unavailable { reason: format!("Kafka has not made topic {name} yet") }
}
