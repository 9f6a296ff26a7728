//! The bus's conformance suite on the embedded bus.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use logmesh_bus::Bus;
use logmesh_bus::conformance::Fixture;
use logmesh_bus_embedded::{EmbeddedBus, OpenError, Settings};
use tempfile::TempDir;

struct Embedded {
    folder: TempDir,
}

impl Embedded {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }
}

#[async_trait]
impl Fixture for Embedded {
    async fn open(&self) -> Arc<dyn Bus> {
        Arc::new(EmbeddedBus::open(self.folder.path(), Settings::default()).unwrap())
    }

    async fn reopen(&self, bus: Arc<dyn Bus>) -> Arc<dyn Bus> {
        drop(bus);
        // A read whose future was dropped may hold the file for a moment more.
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match EmbeddedBus::open(self.folder.path(), Settings::default()) {
                Ok(bus) => return Arc::new(bus),
                Err(OpenError::AlreadyOpen { .. }) if Instant::now() < end => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

logmesh_bus::conformance_tests!(Embedded::new());
