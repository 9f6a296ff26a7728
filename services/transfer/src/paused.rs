//! Pause and resume: which topics are not read, for all workers. Kept in `logmesh.jobs`, `paused/TOPIC` or `paused/*` for all.
//!
//! A worker leaves paused topics out of those that it reads, once what it has in hand is in the index, booked and committed; the
//! bus keeps the rest. Resumed, it reads on from what was committed: nothing is lost by it and nothing comes twice.

use std::collections::BTreeSet;

use logmesh_bus::BusError;
use logmesh_grpc::{bad_field, failed_precondition};
use logmesh_types::{TopicName, UnixNanos};
use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::jobs::Jobs;
use crate::letters::Letters;
use crate::service::bus_status;

/// What the keys begin with.
const PAUSED: &str = "paused/";

/// Stands for all topics, those that are made later among them. No topic can be called so.
const ALL: &str = "*";

/// Since when a topic is paused.
#[derive(Debug, Serialize, Deserialize)]
struct Since {
    since: UnixNanos,
}

/// What is paused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paused {
    pub(crate) all: bool,
    /// Those that are paused by themselves.
    pub(crate) topics: BTreeSet<String>,
}

impl Paused {
    /// What is paused now, whoever did it.
    pub(crate) async fn read(jobs: &Jobs) -> Result<Self, BusError> {
        let mut paused = Self::default();
        for key in jobs.all::<Since>(PAUSED).await?.into_keys() {
            match key.strip_prefix(PAUSED) {
                Some(ALL) => paused.all = true,
                Some(topic) => drop(paused.topics.insert(topic.to_owned())),
                None => {}
            }
        }
        Ok(paused)
    }

    /// Whether the topic is paused.
    pub(crate) fn holds(&self, topic: &TopicName) -> bool {
        self.all || self.topics.contains(topic.as_str())
    }
}

/// Refuses what is neither a topic of the bus nor any rule's.
async fn check(letters: &Letters, topic: &str) -> Result<(), Status> {
    let topic: TopicName = topic.parse().map_err(|error| bad_field("topic", error))?;
    letters.check_topic(&topic).await
}

/// Pauses a topic of the mesh, or all. One that is only a rule's so far is paused before its first line.
pub(crate) async fn pause(letters: &Letters, topic: &str) -> Result<Paused, Status> {
    if !topic.is_empty() {
        check(letters, topic).await?;
    }
    let (jobs, name) = (&letters.jobs, if topic.is_empty() { ALL } else { topic });
    let before = Paused::read(jobs).await.map_err(bus_status)?;
    let is_paused = if topic.is_empty() { before.all } else { before.topics.contains(topic) };
    if !is_paused {
        let since = Since { since: UnixNanos::now() };
        jobs.put(&format!("{PAUSED}{name}"), &since).await.map_err(bus_status)?;
    }
    Paused::read(jobs).await.map_err(bus_status)
}

/// Resumes a topic, or all.
pub(crate) async fn resume(letters: &Letters, topic: &str) -> Result<Paused, Status> {
    let jobs = &letters.jobs;
    let before = Paused::read(jobs).await.map_err(bus_status)?;
    // What is paused goes on, also when its rule and its topic are gone.
    if !topic.is_empty() && !before.topics.contains(topic) {
        check(letters, topic).await?;
    }
    let mut names: Vec<String> = before.topics.into_iter().filter(|one| topic.is_empty() || one == topic).collect();
    if topic.is_empty() && before.all {
        names.push(ALL.to_owned());
    } else if before.all {
        let text = format!("all topics are paused, not only {topic}: resume without a topic");
        return Err(failed_precondition("ALL_PAUSED", text));
    }
    for name in names {
        jobs.remove(&format!("{PAUSED}{name}")).await.map_err(bus_status)?;
    }
    Paused::read(jobs).await.map_err(bus_status)
}
