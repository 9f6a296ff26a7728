//! The bus's conformance suite on a real Kafka, which all its tests share.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use logmesh_bus::Bus;
use logmesh_bus::conformance::Fixture;
use logmesh_bus_kafka::{KafkaBus, Settings};
use logmesh_testing::servers;

struct Kafka {
    number: u32,
}

impl Kafka {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }
}

#[async_trait]
impl Fixture for Kafka {
    async fn open(&self) -> Arc<dyn Bus> {
        let server = tokio::task::spawn_blocking(servers::kafka).await.unwrap();
        Arc::new(KafkaBus::new(Settings { brokers: vec![server.address()], ..Settings::default() }).unwrap())
    }

    async fn reopen(&self, bus: Arc<dyn Bus>) -> Arc<dyn Bus> {
        drop(bus);
        self.open().await
    }

    fn unique(&self, name: &str) -> String {
        format!("{name}-{}", self.number)
    }
}

logmesh_bus::conformance_tests!(Kafka::new());
