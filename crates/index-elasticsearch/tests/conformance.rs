//! Elasticsearch does what every index must: the same suite as the embedded index's, on a real server.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use logmesh_index::conformance::Fixture;
use logmesh_index_elasticsearch::{ElasticIndex, Settings};
use logmesh_testing::servers;
use logmesh_types::Span;

/// Indices of one prefix on the server that all tests share.
struct Prefix(ElasticIndex);

impl Prefix {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let settings = Settings {
            urls: vec![format!("http://{}", servers::elasticsearch().address())],
            index_prefix: format!("c{}-", NEXT.fetch_add(1, Ordering::Relaxed)),
            replicas: 0,
            // The disk of a busy machine is slow now and then.
            request_timeout: Span(Duration::from_secs(120)),
            ..Settings::default()
        };
        Self(ElasticIndex::new(settings).unwrap())
    }
}

#[async_trait]
impl Fixture for Prefix {
    type Index = ElasticIndex;

    async fn open(&self) -> Arc<ElasticIndex> {
        // As a process that comes later: nothing of the first one's is in memory.
        let fresh = ElasticIndex::new(self.0.settings().clone()).unwrap();
        Arc::new(fresh)
    }

    async fn settle(&self) {
        self.0.refresh().await.unwrap();
    }
}

logmesh_index::conformance!(Prefix::new());
