//! Elasticsearch as the index: version 8, or 9.
//!
//! One index for each day of each topic, made from our own mapping, never by a bulk that happens to come first. A document
//! is found by the same queries, and comes in the same order, as in the embedded index; `tests/parity.rs` holds them side
//! by side. The server isn't needed to make an [`ElasticIndex`]: while it's away, calls answer
//! [`IndexError::Unavailable`] within the request time-out, and it's asked again with each call.

mod bulk;
mod catalog;
mod client;
mod complex;
mod facets;
mod form;
mod mapping;
mod names;
mod page;
mod plain;
mod repair;
mod scope;
mod search;
mod settings;
mod sum;
mod template;
mod topic;
mod translate;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use logmesh_index::{
    Bar, EventSpan, Facets, FieldTypes, IndexError, IndexReader, IndexRepair, IndexWriter, NewDoc, Order, Outcome,
    Page, PageLimit, Place, Selection, Slice, StoredPage, StreamSum,
};
use logmesh_types::{ByteRange, DocId, StreamId, TopicName};
use reqwest::Method;
use tokio::sync::Mutex;

pub use settings::Settings;

use crate::catalog::CachedCatalog;
use crate::client::{Body, Client};
use crate::names::Names;

/// How long [`ElasticIndex::ping`] may take.
const PING: Duration = Duration::from_secs(5);

/// The index in Elasticsearch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ElasticIndex {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    client: Client,
    names: Names,
    catalog: CachedCatalog,
    /// The fields of the topics that this process declared or wrote to.
    declared: Mutex<HashMap<TopicName, FieldTypes>>,
}

impl ElasticIndex {
    /// An index with these settings. Doesn't ask the server for anything.
    ///
    /// # Errors
    /// A setting that can't work, or a file of certificates that can't be read.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        settings.check()?;
        let inner = Inner {
            client: Client::new(&settings)?,
            names: Names::new(&settings.index_prefix),
            catalog: CachedCatalog::default(),
            declared: Mutex::default(),
            settings,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Asks within 5 s whether the server is there and has a copy of each shard of our indices: without one of them a
    /// search has no answer.
    pub async fn ping(&self) -> Result<(), IndexError> {
        #[derive(serde::Deserialize)]
        struct Health {
            status: String,
            unassigned_shards: u64,
        }
        let path = format!("_cluster/health/{}?timeout=1s", self.inner.names.all_indices());
        let answer = self.inner.client.call_within(PING, Method::GET, &path, Body::None).await?;
        let health: Health = answer.json()?;
        if health.status == "red" {
            let missing = health.unassigned_shards;
            return Err(client::unavailable(format!(
                "shards of indices are not there (yet): {missing} are not assigned"
            )));
        }
        Ok(())
    }

    /// Makes everything written so far findable at once. For tests.
    pub async fn refresh(&self) -> Result<(), IndexError> {
        self.inner.refresh(&self.inner.names.all_indices()).await
    }
}

/// What tells two texts of ours from each other, short.
fn digest(bytes: &[u8]) -> String {
    let hash = blake3::hash(bytes);
    data_encoding::HEXLOWER.encode(&hash.as_bytes()[..8])
}

/// Elasticsearch's own `index.refresh_interval`, which our templates leave as it is.
const REFRESH: Duration = Duration::from_secs(1);

#[async_trait]
impl IndexWriter for ElasticIndex {
    async fn ensure_topic(&self, topic: &TopicName, fields: &FieldTypes) -> Result<(), IndexError> {
        self.inner.ensure_topic(topic, fields).await.map(drop)
    }

    async fn write(&self, docs: Vec<NewDoc>) -> Result<Vec<Outcome>, IndexError> {
        bulk::write(&self.inner, docs).await
    }

    async fn contains(&self, topic: &TopicName, ids: &[DocId]) -> Result<Vec<bool>, IndexError> {
        self.inner.contains(topic, ids).await
    }

    async fn slices(&self, topic: &TopicName) -> Result<Vec<String>, IndexError> {
        self.inner.slices(topic).await
    }

    async fn delete_slice(&self, slice: &Slice) -> Result<(), IndexError> {
        self.inner.delete_slice(slice).await
    }

    fn searchable_within(&self) -> Duration {
        REFRESH
    }
}

#[async_trait]
impl IndexReader for ElasticIndex {
    async fn search(
        &self,
        selection: &Selection,
        order: Order,
        limit: PageLimit,
        page_token: Option<&str>,
    ) -> Result<Page, IndexError> {
        self.inner.search(selection, order, limit, page_token).await
    }

    async fn count(&self, selection: &Selection) -> Result<u64, IndexError> {
        self.inner.count(selection).await
    }

    async fn histogram(&self, selection: &Selection, interval: Duration) -> Result<Vec<Bar>, IndexError> {
        self.inner.histogram(selection, interval).await
    }

    async fn facets(&self, selection: &Selection, field: &str, limit: usize) -> Result<Facets, IndexError> {
        self.inner.facets(selection, field, limit).await
    }

    async fn spans(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<EventSpan>, IndexError> {
        self.inner.spans(topic, stream, from, limit).await
    }

    async fn sums(&self, topic: &TopicName, streams: &[(StreamId, u64)]) -> Result<Vec<Vec<StreamSum>>, IndexError> {
        self.inner.sums(topic, streams).await
    }

    async fn topics(&self) -> Result<Vec<TopicName>, IndexError> {
        self.inner.topics().await
    }

    async fn field_types(&self, topic: &TopicName) -> Result<FieldTypes, IndexError> {
        Ok(self.inner.held_template(topic).await?.unwrap_or_default().fields)
    }
}

#[async_trait]
impl IndexRepair for ElasticIndex {
    async fn stored(
        &self,
        topic: &TopicName,
        stream: &StreamId,
        starts: ByteRange,
        limit: PageLimit,
    ) -> Result<StoredPage, IndexError> {
        self.inner.stored(topic, stream, starts, limit).await
    }

    async fn delete(&self, topic: &TopicName, places: &[Place]) -> Result<Vec<bool>, IndexError> {
        self.inner.delete(topic, places).await
    }
}
