//! Which topics there are: those that hold documents, those on the bus, and those of rules.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use logmesh_bus::Bus;
use logmesh_grpc::{Upstream, missing_topics, refuse_topics};
use logmesh_index::IndexReader;
use logmesh_types::TopicName;
use tokio::time::timeout;
use tonic::Status;

/// How long index, bus and config together may take to say which topics there are: no search waits longer for a better word.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who knows of topics.
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    index: Arc<dyn IndexReader>,
    bus: Arc<dyn Bus>,
    config: Upstream,
    /// Those that were there when somebody looked last: to list them asks every shard of an index that's large.
    known: Arc<Mutex<BTreeSet<TopicName>>>,
}

impl Topics {
    pub(crate) fn new(index: Arc<dyn IndexReader>, bus: Arc<dyn Bus>, config: Upstream) -> Self {
        Self { index, bus, config, known: Arc::default() }
    }

    /// Refuses topics that there aren't; see [`Topics::missing`].
    pub(crate) async fn check(&self, wanted: &[TopicName]) -> Result<(), Status> {
        refuse_topics(&self.missing(wanted).await)
    }

    /// Says of each topic that there isn't that it is none. A topic that is only a rule's so far is one; and so is every name while
    /// somebody who knows of topics is away.
    pub(crate) async fn missing(&self, wanted: &[TopicName]) -> Vec<String> {
        let are_known = |known: &BTreeSet<TopicName>| wanted.iter().all(|topic| known.contains(topic));
        if are_known(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Vec::new();
        }
        timeout(PATIENCE, self.look(wanted)).await.ok().flatten().unwrap_or_default()
    }

    /// `None`: it can't be said.
    async fn look(&self, wanted: &[TopicName]) -> Option<Vec<String>> {
        let mut there: BTreeSet<TopicName> = self.index.topics().await.ok()?.into_iter().collect();
        let specs = self.bus.topics().await.ok()?;
        there.extend(specs.into_iter().map(|spec| spec.name).filter(|name| !name.is_internal()));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&there);
        Some(missing_topics(wanted, &there, &self.config).await)
    }
}
