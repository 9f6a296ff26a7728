//! Topics: what there is, what each is, and making them.

mod configs;

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
use rdkafka::metadata::{Metadata, MetadataTopic};

use crate::clients::MAX_BATCH_BYTES;
use crate::context::{Quiet, is_refused, is_unknown, refused, stopping, unavailable};
use crate::settings::Settings;
use configs::{LARGEST, cleanup_of, configs, retention, safe, small};

/// How long what was asked about a topic's configuration is believed. Whether a topic is there is always asked.
const FRESH: Duration = Duration::from_secs(30);

/// How long brokers may take to hear of a new topic, and how often they are asked meanwhile.
const SPREAD: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// Asks Kafka about its topics and makes them.
pub(crate) struct Topics {
    settings: Settings,
    admin: AdminClient<Quiet>,
    asking: Arc<BaseConsumer<Quiet>>,
    /// How many partitions each topic has that was seen.
    partitions: RwLock<HashMap<TopicName, u32>>,
    /// What was told of each, and when; `None` if nothing was.
    cleanups: Mutex<HashMap<TopicName, (Instant, Option<Cleanup>)>>,
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
        Ok(self.specs(found, true).await?.pop())
    }

    /// All topics. One that cannot be described, as others' may be, must not hide the rest: it is taken to keep
    /// everything.
    pub(crate) async fn all(&self) -> Result<Vec<TopicSpec>, BusError> {
        let found = self.find(None).await?;
        // None is taken out: a broker may not have heard yet of what another has made.
        self.partitions.write().unwrap_or_else(PoisonError::into_inner).extend(found.iter().cloned());
        self.specs(found, false).await
    }

    pub(crate) async fn ensure(&self, spec: &TopicSpec) -> Result<(), BusError> {
        self.forget(&spec.name);
        let found = match self.topic(&spec.name).await? {
            Some(found) => found,
            None => {
                self.make(spec).await?;
                let made = self.made(&spec.name).await?; // perhaps by another, and otherwise
                self.served(&made).await?;
                made
            }
        };
        if found.partitions != spec.partitions || kind(&found.cleanup) != kind(&spec.cleanup) {
            let text = |spec: &TopicSpec| format!("{} partitions, cleanup {}", spec.partitions, kind(&spec.cleanup));
            return Err(BusError::TopicDiffers { topic: spec.name.clone(), found: text(&found), wanted: text(spec) });
        }
        let set = self.entries(&spec.name).await?;
        if found.cleanup != spec.cleanup || small(&set).is_some() {
            self.alter(spec, &set).await?;
            self.forget(&spec.name);
        }
        // So that no broker that hasn't heard of it yet is asked.
        self.partitions.write().unwrap_or_else(PoisonError::into_inner).insert(spec.name.clone(), spec.partitions);
        Ok(())
    }

    async fn make(&self, spec: &TopicSpec) -> Result<(), BusError> {
        let (copies, min_in_sync) = self.copies(&spec.name).await?;
        let configs = configs(spec, min_in_sync);
        let replication = TopicReplication::Fixed(i32::from(copies));
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
            Some(Err((_, code))) => Err(failed(&spec.name, KafkaError::AdminOp(code))),
            None => Err(not_yet(&spec.name)),
        }
    }

    /// How many copies a new topic gets, and how many of them must have a record, if that is to be set on it.
    async fn copies(&self, name: &TopicName) -> Result<(u16, Option<u16>), BusError> {
        if let (Some(copies), Some(min)) = (self.settings.replication, self.settings.min_in_sync) {
            return Ok((copies, Some(min)));
        }
        let take = |metadata: &Metadata| {
            let ids: Vec<i32> = metadata.brokers().iter().map(|broker| broker.id()).collect();
            let answered = ids.contains(&metadata.orig_broker_id()).then(|| metadata.orig_broker_id());
            (answered.or(ids.first().copied()), ids.len())
        };
        let (Some(broker), live) = self.ask(Some(name), take).await? else { return Err(not_yet(name)) };
        let answers = self.admin.describe_configs([&ResourceSpecifier::Broker(broker)], &self.options()).await;
        let answer = answers.map_err(|error| unavailable(&error))?.into_iter().next();
        let entries = answer.and_then(Result::ok).map(|resource| resource.entries);
        Ok(safe(&self.settings, live, &entries.unwrap_or_default())) // none: this user may not ask
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

    /// Waits until the leaders of a topic that was just made serve it. Of a producer that it doesn't know Kafka takes whatever
    /// batch comes first: were the first ones refused and a later one taken, their numbers would seem to be stored already, and
    /// they would be acknowledged and lost.
    async fn served(&self, spec: &TopicSpec) -> Result<(), BusError> {
        let (asking, name, partitions) = (Arc::clone(&self.asking), spec.name.clone(), spec.partitions);
        let timeout = self.settings.request_timeout.0;
        let wait = move || {
            let end = Instant::now() + timeout;
            (0..partitions).all(|partition| {
                while asking.fetch_watermarks(name.as_str(), partition as i32, timeout).is_err() {
                    if Instant::now() >= end {
                        return false;
                    }
                    std::thread::sleep(PAUSE);
                }
                true
            })
        };
        let served = tokio::task::spawn_blocking(wait).await.map_err(|_| stopping())?;
        if served { Ok(()) } else { Err(not_yet(&spec.name)) }
    }

    /// Takes retention figures over, and room for our largest record, on a topic on which this is set. Kafka forgets what
    /// it isn't told again, so what else was set is said too.
    async fn alter(&self, spec: &TopicSpec, set: &[ConfigEntry]) -> Result<(), BusError> {
        let own = set.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let own = own.filter_map(|entry| Some((entry.name.as_str(), entry.value.clone()?)));
        let mut configs: HashMap<&str, String> = own.collect();
        configs.extend(retention(&spec.cleanup));
        let small = small(set);
        if small.is_some() {
            configs.insert(LARGEST, MAX_BATCH_BYTES.to_string());
        }
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(spec.name.as_str()));
        change.entries = configs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let results =
            self.admin.alter_configs([&change], &self.options()).await.map_err(|error| unavailable(&error))?;
        match (results.into_iter().next(), small) {
            (Some(Ok(_)), None) => Ok(()),
            (Some(Ok(_)), Some(_)) => self.raised(&spec.name).await,
            (Some(Err((_, code))), Some(bytes)) if is_refused(code) => Err(BusError::TopicDiffers {
                topic: spec.name.clone(),
                found: format!("{LARGEST} {bytes}"),
                wanted: format!("{LARGEST} {MAX_BATCH_BYTES}"),
            }),
            (Some(Err((_, code))), _) => Err(failed(&spec.name, KafkaError::AdminOp(code))),
            (None, _) => Err(not_yet(&spec.name)),
        }
    }

    /// Waits until brokers have heard that the topic takes our largest record.
    async fn raised(&self, name: &TopicName) -> Result<(), BusError> {
        let end = Instant::now() + SPREAD;
        while small(&self.entries(name).await?).is_some() {
            if Instant::now() >= end {
                return Err(not_yet(name));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// The topics that there are, or the one asked for if there is one.
    async fn find(&self, name: Option<&TopicName>) -> Result<Found, BusError> {
        let strict = name.is_some();
        let take = move |metadata: &Metadata| {
            let mut found = Vec::new();
            for topic in metadata.topics() {
                // Others' topics may have names that ours can't have.
                let Ok(name) = topic.name().parse::<TopicName>() else { continue };
                let partitions = match partitions_of(&name, topic) {
                    Err(error) if strict => return Err(error),
                    partitions => partitions.ok().flatten(),
                };
                found.extend(partitions.map(|partitions| (name, partitions)));
            }
            found.sort_unstable();
            Ok(found)
        };
        self.ask(name, take).await?
    }

    /// What brokers know of this topic, or of all.
    async fn ask<T: Send + 'static>(
        &self,
        name: Option<&TopicName>,
        take: impl FnOnce(&Metadata) -> T + Send + 'static,
    ) -> Result<T, BusError> {
        let (asking, name) = (Arc::clone(&self.asking), name.cloned());
        let timeout = self.settings.request_timeout.0;
        let ask = move || {
            drain(&asking);
            let metadata = asking.fetch_metadata(name.as_ref().map(TopicName::as_str), timeout);
            Ok(take(&metadata.map_err(|error| explain(&asking, &error))?))
        };
        tokio::task::spawn_blocking(ask).await.map_err(|_| stopping())?
    }

    /// What these topics are. If strict, one that can't be described is an error.
    async fn specs(&self, found: Found, strict: bool) -> Result<Vec<TopicSpec>, BusError> {
        let stale: Vec<TopicName> = {
            let cleanups = self.cleanups.lock().unwrap_or_else(PoisonError::into_inner);
            let good = |since: Instant, known: bool| since.elapsed() < FRESH && (known || !strict);
            let fresh = |name| cleanups.get(name).is_some_and(|(since, cleanup)| good(*since, cleanup.is_some()));
            found.iter().filter(|(name, _)| !fresh(name)).map(|(name, _)| name.clone()).collect()
        };
        let described = if stale.is_empty() { Vec::new() } else { self.describe(&stale).await? };
        let mut cleanups = self.cleanups.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        cleanups.extend(stale.into_iter().map(|name| (name, (now, None))));
        cleanups.extend(described.into_iter().map(|(name, entries)| (name, (now, Some(cleanup_of(&entries))))));
        if cleanups.len() > 2 * found.len() + 100 {
            cleanups.retain(|name, _| found.iter().any(|(there, _)| there == name)); // those of topics that are gone
        }
        let specs = found.into_iter().filter_map(|(name, partitions)| {
            let cleanup = match cleanups.get(&name)?.1 {
                None if strict => return Some(Err(silent(&name))),
                cleanup => cleanup.unwrap_or(Cleanup::Delete { max_age: None, max_bytes: None }),
            };
            Some(Ok(TopicSpec { name, partitions, cleanup }))
        });
        specs.collect()
    }

    /// What is set on this topic.
    async fn entries(&self, name: &TopicName) -> Result<Vec<ConfigEntry>, BusError> {
        let described = self.describe(std::slice::from_ref(name)).await?.pop();
        described.map(|(_, entries)| entries).ok_or_else(|| silent(name))
    }

    /// What is set on these topics, without those of which Kafka tells nothing. A broker that hasn't heard of one yet
    /// tells nothing of it either, so it's asked again for a while.
    async fn describe(&self, names: &[TopicName]) -> Result<Vec<(TopicName, Vec<ConfigEntry>)>, BusError> {
        let (mut left, mut described) = (names.to_vec(), Vec::new());
        let end = Instant::now() + SPREAD;
        loop {
            let resources: Vec<_> = left.iter().map(|name| ResourceSpecifier::Topic(name.as_str())).collect();
            let answers = self.admin.describe_configs(&resources, &self.options()).await;
            for resource in answers.map_err(|error| unavailable(&error))?.into_iter().flatten() {
                let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
                if resource.entries.is_empty() {
                    continue;
                }
                if let Some(place) = left.iter().position(|wanted| wanted.as_str() == name) {
                    described.push((left.swap_remove(place), resource.entries));
                }
            }
            if left.is_empty() || Instant::now() >= end {
                return Ok(described);
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
fn partitions_of(name: &TopicName, topic: &MetadataTopic) -> Result<Option<u32>, BusError> {
    match topic.error().map(RDKafkaErrorCode::from) {
        Some(code) if is_unknown(code) => Ok(None),
        Some(RDKafkaErrorCode::InvalidTopic) => Ok(None),
        None | Some(RDKafkaErrorCode::LeaderNotAvailable) => {
            let partitions = topic.partitions().len() as u32;
            Ok((partitions > 0).then_some(partitions)) // none: a moment after it was made
        }
        Some(code) => Err(failed(name, KafkaError::MetadataFetch(code))),
    }
}

/// The bus's error for what went wrong with a topic.
fn failed(name: &TopicName, error: KafkaError) -> BusError {
    match error.rdkafka_error_code() {
        Some(code) if is_refused(code) => refused(name, &error),
        _ => unavailable(&error),
    }
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

fn silent(name: &TopicName) -> BusError {
    let why = "it was just removed, or this user may not describe it";
    BusError::Unavailable { reason: format!("Kafka does not tell what is set on topic {name}: {why}") }
}

#[cfg(test)]
mod tests {
    use logmesh_testing::wait_for_async;

    use super::*;

    /// Removed between being listed and described, or of another who lets nobody ask.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_topic_that_cannot_be_described_does_not_hide_the_rest() {
        let server = tokio::task::spawn_blocking(logmesh_testing::servers::kafka).await.unwrap();
        let settings = Settings { brokers: vec![server.address()], ..Settings::default() };
        let asking = Arc::new(settings.asking().create_with_context(Quiet::default()).unwrap());
        let topics = Topics::new(&settings, asking).unwrap();
        let there = TopicSpec { name: "there".parse().unwrap(), partitions: 1, cleanup: Cleanup::Compact };
        let patience = std::time::Duration::from_secs(60);
        // A broker that just started may take long for the first topic.
        wait_for_async("the topic to be there", patience, || async {
            topics.ensure(&there).await.map_err(|error| error.to_string())
        })
        .await;
        let gone: TopicName = "gone".parse().unwrap();
        let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
        let all = wait_for_async("both to be told of", patience, || async {
            let both = vec![(gone.clone(), 1), (there.name.clone(), 1)];
            topics.specs(both, false).await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(all, [TopicSpec { name: gone.clone(), partitions: 1, cleanup }, there]);
        // What was assumed then is not taken for an answer.
        let error = topics.specs(vec![(gone, 1)], true).await.unwrap_err();
        assert!(error.retryable() && error.to_string().contains("gone"), "{error}");
    }
}
