//! What the lanes know together: who leads which partition, how to reach it, and the number of this producer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use logmesh_bus::TopicPartition;
use logmesh_types::TopicName;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::link::Link;
use super::load::{Failure, Trouble};
use super::wire::{self, Api, Code, INIT_PRODUCER_ID, METADATA, Meaning, Metadata, Request};
use crate::settings::Settings;

/// For how long an answer is good enough for whoever would ask again.
const FRESH: Duration = Duration::from_millis(50);

/// How long a broker may take for a small question before another one is asked, or less if requests may take less.
const ANSWER: Duration = Duration::from_secs(5);

/// The brokers, as far as appends need them.
#[derive(Debug)]
pub(super) struct Cluster {
    settings: Arc<Settings>,
    known: Mutex<Known>,
    /// One question at a time: who waits for another's answer finds it in `known`.
    asking: tokio::sync::Mutex<Asking>,
    /// The number and first epoch that new lanes begin with.
    producer: tokio::sync::Mutex<Option<(i64, i16)>>,
}

#[derive(Debug, Default)]
struct Known {
    topics: HashMap<TopicName, Topic>,
    /// `host:port` of each.
    brokers: HashMap<i32, String>,
    links: HashMap<i32, Link>,
    /// Dropping it ends them.
    running: JoinSet<()>,
}

#[derive(Debug)]
struct Topic {
    code: Code,
    /// Of each partition.
    leaders: HashMap<u32, i32>,
    learnt: Instant,
}

#[derive(Debug, Default)]
struct Asking {
    connection: Option<Connection>,
    /// Which broker is asked next; it changes when one doesn't answer.
    turn: usize,
}

impl Cluster {
    pub(super) fn new(settings: &Arc<Settings>) -> Self {
        Self {
            settings: Arc::clone(settings),
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            producer: tokio::sync::Mutex::default(),
        }
    }

    /// The link to the broker that leads the partition. If what was known at a time has led nowhere, it's asked for anew.
    pub(super) async fn leader(&self, at: &TopicPartition, failed: Option<Instant>) -> Result<Link, Trouble> {
        if let Some(found) = self.known().leader(at, failed, &self.settings) {
            return found;
        }
        let mut asking = self.asking.lock().await;
        if let Some(found) = self.known().leader(at, failed, &self.settings) {
            return found; // another lane has asked meanwhile
        }
        let ask = |request: &mut Request| {
            // Of this one topic, which isn't to be made by the way.
            request.count(1).string(at.topic.as_str()).bool(false);
        };
        let answer = self.ask(&mut asking, METADATA, ask).await.map_err(Trouble::passing)?;
        let metadata = wire::metadata(&answer).map_err(Trouble::passing)?;
        let mut known = self.known();
        known.learn(&at.topic, metadata);
        let lost = || Err(Trouble::passing("no leader"));
        let found = known.leader(at, None, &self.settings).unwrap_or_else(lost);
        if failed.is_some() || found.is_err() {
            // One that is cut off from the others goes on telling what was true once: next time another is asked.
            asking.connection = None;
            asking.turn = asking.turn.wrapping_add(1);
        }
        found
    }

    /// A producer's number and epoch, other than that of this number.
    pub(super) async fn producer(&self, other_than: Option<i64>) -> Result<(i64, i16), Trouble> {
        let mut producer = self.producer.lock().await;
        if let Some(known) = *producer
            && Some(known.0) != other_than
        {
            return Ok(known);
        }
        let mut asking = self.asking.lock().await;
        let ask = |request: &mut Request| {
            request.no_string().i32(0); // no transactions
        };
        let answer = self.ask(&mut asking, INIT_PRODUCER_ID, ask).await.map_err(Trouble::passing)?;
        let (code, number, epoch) = wire::producer(&answer).map_err(Trouble::passing)?;
        match code.meaning() {
            Meaning::Done => Ok(*producer.insert((number, epoch))),
            Meaning::Refused => Err(Trouble::Final(Failure::Refused(code.to_string().into()))),
            _ => Err(Trouble::passing(code)),
        }
    }

    /// Asks whichever broker answers, each once at most.
    async fn ask(&self, asking: &mut Asking, api: Api, fill: impl Fn(&mut Request)) -> anyhow::Result<Bytes> {
        let patience = ANSWER.min(self.settings.request_timeout.0);
        // Taken out: should the caller go away, nobody is to get the answer to its question.
        if let Some(mut connection) = asking.connection.take() {
            if let Ok(Ok(answer)) = timeout(patience, connection.ask(api, &fill)).await {
                asking.connection = Some(connection);
                return Ok(answer);
            }
            asking.turn = asking.turn.wrapping_add(1);
        }
        let brokers = self.addresses();
        let mut failed = anyhow!("no broker is known");
        for _ in 0..brokers.len() {
            let address = &brokers[asking.turn % brokers.len()];
            let asked = async {
                let mut connection = Connection::open(address, &self.settings).await?;
                let answer = timeout(patience, connection.ask(api, &fill)).await.context("no answer")?;
                anyhow::Ok((connection, answer?))
            };
            match asked.await.with_context(|| address.clone()) {
                Ok((connection, answer)) => {
                    asking.connection = Some(connection);
                    return Ok(answer);
                }
                Err(error) => failed = error,
            }
            asking.turn = asking.turn.wrapping_add(1);
        }
        Err(failed)
    }

    /// Those that were set, and those learnt.
    fn addresses(&self) -> Vec<String> {
        let mut all = self.settings.brokers.clone();
        for address in self.known().brokers.values() {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// What is known of a partition's leader; `None`: ask.
    fn leader(
        &mut self,
        at: &TopicPartition,
        failed: Option<Instant>,
        settings: &Arc<Settings>,
    ) -> Option<Result<Link, Trouble>> {
        let topic = self.topics.get(&at.topic)?;
        let leader = topic.leaders.get(&at.partition);
        let found = leader.and_then(|leader| Some((*leader, self.brokers.get(leader)?.clone())));
        let holds = found.is_some() && failed.is_none_or(|failed| topic.learnt > failed);
        if !holds && topic.learnt.elapsed() >= FRESH {
            return None;
        }
        let code = topic.code;
        Some(match (found, code.meaning()) {
            (Some((leader, address)), _) => Ok(self.link(leader, &address, settings)),
            (None, Meaning::Refused) => Err(Trouble::Final(Failure::Refused(code.to_string().into()))),
            (None, Meaning::Unknown) => Err(Trouble::Unknown),
            (None, Meaning::Done) if leader.is_none() => Err(Trouble::Unknown),
            (None, Meaning::Done) => Err(Trouble::passing("the partition has no leader")),
            (None, _) => Err(Trouble::passing(code)),
        })
    }

    /// The link to a broker: the one there is, if it still leads there.
    fn link(&mut self, broker: i32, address: &str, settings: &Arc<Settings>) -> Link {
        if let Some(link) = self.links.get(&broker).filter(|link| link.leads_to(address)) {
            return link.clone();
        }
        let (link, work) = Link::new(address, settings);
        while self.running.try_join_next().is_some() {} // forget those that ended
        self.running.spawn(work);
        self.links.insert(broker, link.clone());
        link
    }

    fn learn(&mut self, name: &TopicName, metadata: Metadata) {
        let Metadata { brokers, code, leaders } = metadata;
        self.brokers = brokers.into_iter().collect();
        let leaders = leaders.into_iter().filter_map(|(at, leader)| Some((u32::try_from(at).ok()?, leader))).collect();
        self.topics.insert(name.clone(), Topic { code, leaders, learnt: Instant::now() });
    }
}
