//! Transfer: from the bus into the index.
//!
//! The way of a record, in [`worker`]: read in a consumer group, opened into documents, written to the index in bulks
//! ([`bulk`]), booked ([`books`]), and only then is its offset committed. Killed between any two of these steps, the next
//! worker reads the record again and finds its documents by their ids. [`service`] shows all this over gRPC.

mod books;
mod bulk;
mod service;
mod status;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::Bus;
use logmesh_grpc::Routes;
use logmesh_index::IndexWriter;
use logmesh_proto::transfer::v1::transfer_service_server::TransferServiceServer;
use logmesh_record::Topics;
use logmesh_runtime::{Readiness, Tasks};
use logmesh_types::unit::{ByteSize, Span};

use crate::service::Service;
use crate::status::Shared;
use crate::worker::Worker;

pub use logmesh_record::TRANSFER_GROUP as GROUP;

/// How transfer works.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What topics are. The mesh's own setting, which the gateway needs too: never part of this section.
    #[serde(skip)]
    pub topics: Topics,
    /// A bulk is written when its documents reach this size,
    pub bulk_bytes: ByteSize,
    /// or this number,
    pub bulk_documents: usize,
    /// or when its first document has waited so long.
    pub bulk_wait: Span,
    /// How often to look for new topics.
    pub topic_refresh: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            topics: Topics::default(),
            bulk_bytes: ByteSize(16 << 20),
            bulk_documents: 20_000,
            bulk_wait: Span(Duration::from_millis(100)),
            topic_refresh: Span(Duration::from_millis(500)),
        }
    }
}

/// A running transfer worker.
#[derive(Clone, Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    bus: Arc<dyn Bus>,
}

impl Transfer {
    /// Starts a worker. It runs until the tasks are told to stop, and tries for ever what the backends can't do now.
    pub fn start(
        bus: Arc<dyn Bus>,
        index: Arc<dyn IndexWriter>,
        settings: Settings,
        readiness: Readiness,
        tasks: &Tasks,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(bus.clone(), index, settings, shared.clone(), readiness, tasks.token());
        tasks.spawn("transfer", worker.run());
        Self { shared, bus }
    }

    /// Adds the gRPC service.
    pub fn add_to(&self, routes: &mut Routes) {
        let service = Service::new(self.bus.clone(), self.shared.clone());
        routes.add(TransferServiceServer::new(service)).needs(worker::COMPONENT).needs(worker::TOPICS);
    }
}
