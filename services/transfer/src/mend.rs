//! The topics beside a topic, its books and its dead letters: made again where somebody removed them.
//!
//! A topic with books is the mesh's own. That it is stays known (`topic/T` in `logmesh.jobs`) when its books are gone. What was removed
//! comes back as far as somebody knows it: that it was is written down (`removed/TOPIC`), the worker that holds a partition has its
//! books in memory and writes them again ([`crate::books`]). Where no worker lived to do that, what has no book is looked up in the
//! index by its id before it is written; and of letters that are gone the books say no more that they are somewhere, so that the
//! audit names their bytes.

use std::collections::{BTreeMap, HashSet};

use logmesh_bus::{BusError, TopicSpec};
use logmesh_types::{TopicName, UnixNanos};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::jobs::Jobs;
use crate::store::Backends;

/// What the keys of topics begin with that are the mesh's own.
const OWN: &str = "topic/";
/// What the keys of removals begin with, of books and of letters.
const REMOVED: &str = "removed/";

/// A topic that was read.
#[derive(Debug, Serialize, Deserialize)]
struct Own {
    since: UnixNanos,
}

/// The topics of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) topics: Vec<TopicName>,
    /// Those beside which a topic is missing that the bus refuses to make, and why.
    pub(crate) refused: Vec<(TopicName, String)>,
    pub(crate) removed: Removed,
}

/// When it was seen last that books, or dead letters, were removed.
#[derive(Debug, Default)]
pub(crate) struct Removed(BTreeMap<String, UnixNanos>);

impl Removed {
    pub(crate) async fn read(jobs: &Jobs) -> Result<Self, BusError> {
        Ok(Self(jobs.all(REMOVED).await?))
    }

    pub(crate) fn get(&self, beside: &TopicName) -> Option<UnixNanos> {
        self.0.get(&format!("{REMOVED}{beside}")).copied()
    }
}

impl Backends {
    /// The mesh's topics, those that were read once although their books are gone. What is missing beside them is made again.
    pub(crate) async fn topics(&self) -> Result<Found, BusError> {
        let all = self.bus.topics().await?;
        let own: BTreeMap<String, Own> = self.jobs.all(OWN).await?;
        let names: HashSet<&TopicName> = all.iter().map(|spec| &spec.name).collect();
        let mut found = Found::default();
        for spec in all.iter().filter(|spec| !spec.name.is_internal()) {
            if !names.contains(&spec.name.books()) && !own.contains_key(&format!("{OWN}{}", spec.name)) {
                continue; // of others on the same bus
            }
            match self.mend_all(spec, &names).await {
                Ok(()) => found.topics.push(spec.name.clone()),
                Err(error) if error.retryable() => return Err(error),
                Err(error) => found.refused.push((spec.name.clone(), error.to_string())),
            }
        }
        found.removed = Removed::read(&self.jobs).await?;
        Ok(found)
    }

    /// Remembers that this topic is the mesh's own.
    pub(crate) async fn own(&self, topic: &TopicName) -> Result<(), BusError> {
        let key = format!("{OWN}{topic}");
        if self.jobs.get::<Own>(&key).await?.is_some() {
            return Ok(());
        }
        self.jobs.put(&key, &Own { since: UnixNanos::now() }).await
    }

    /// Makes these books or dead letters again if their topic is there and they aren't; false if the topic is gone as well.
    pub(crate) async fn mend_named(&self, beside: &TopicName) -> Result<bool, BusError> {
        let Some(topic) = beside.owner() else { return Ok(false) };
        let Some(spec) = self.bus.topic(&topic).await? else { return Ok(false) };
        self.mend(&spec, beside).await?;
        Ok(true)
    }

    async fn mend_all(&self, of: &TopicSpec, names: &HashSet<&TopicName>) -> Result<(), BusError> {
        let missing = [of.name.books(), of.name.dead_letters()].into_iter().filter(|name| !names.contains(name));
        for beside in missing {
            self.mend(of, &beside).await?;
        }
        Ok(())
    }

    async fn mend(&self, of: &TopicSpec, beside: &TopicName) -> Result<(), BusError> {
        if self.bus.topic(beside).await?.is_some() {
            return Ok(()); // a broker hadn't heard of it, or another worker was first
        }
        let lost = match *beside == of.name.books() {
            true => "what workers know of them is written again; `logmesh audit --repair` mends the rest",
            false => "the audit names what they held as gaps, and `logmesh audit --repair` mends them",
        };
        error!(topic = %of.name, removed = %beside, "somebody removed a topic of the mesh's; it is made again: {lost}");
        // First, so that no worker takes the new one for the old one.
        self.jobs.put(&format!("{REMOVED}{beside}"), &UnixNanos::now()).await?;
        for mut spec in self.specs.specs(&of.name).into_iter().filter(|spec| spec.name == *beside) {
            spec.partitions = of.partitions;
            self.bus.ensure_topic(&spec).await?;
        }
        Ok(())
    }
}
