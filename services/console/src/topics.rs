//! Which topics there are: those that hold documents, those on the bus, and those of rules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::Bus;
use logmesh_grpc::Upstream;
use logmesh_index::IndexReader;
use logmesh_types::TopicName;
use tokio::time::timeout;
use tonic::Status;

/// How long the bus may take to name its topics. A search needs no bus.
const BUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Who knows of topics.
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    index: Arc<dyn IndexReader>,
    bus: Arc<dyn Bus>,
    config: Upstream,
}

impl Topics {
    pub(crate) fn new(index: Arc<dyn IndexReader>, bus: Arc<dyn Bus>, config: Upstream) -> Self {
        Self { index, bus, config }
    }

    /// Refuses topics that there aren't. A topic that is only a rule's so far is one; and so is every name while somebody who
    /// knows of topics is away.
    pub(crate) async fn check(&self, wanted: &[TopicName]) -> Result<(), Status> {
        match self.there(wanted).await {
            Some(there) => logmesh_grpc::check_topics(wanted, &there, &self.config).await,
            None => Ok(()),
        }
    }

    /// Says of each topic that there isn't that it is none; as [`Topics::check`] does.
    pub(crate) async fn missing(&self, wanted: &[TopicName]) -> Vec<String> {
        match self.there(wanted).await {
            Some(there) => logmesh_grpc::missing_topics(wanted, &there, &self.config).await,
            None => Vec::new(),
        }
    }

    /// All topics that hold something; `None` if that isn't needed, as all that are wanted do, or can't be said.
    async fn there(&self, wanted: &[TopicName]) -> Option<BTreeSet<TopicName>> {
        let mut there = BTreeSet::new();
        if wanted.is_empty() {
            return None;
        }
        there.extend(self.index.topics().await.ok()?);
        if wanted.iter().all(|topic| there.contains(topic)) {
            return None;
        }
        let specs = timeout(BUS_TIMEOUT, self.bus.topics()).await.ok()?.ok()?;
        there.extend(specs.into_iter().map(|spec| spec.name).filter(|name| !name.is_internal()));
        Some(there)
    }
}
