//! Transfer: from the bus into the index.
//!
//! The way of a record, in [`worker`]: read in a consumer group, opened into documents, written to the index in bulks
//! ([`bulk`], [`writing`]), booked ([`books`]), and only then is its offset committed. Killed between any two of these steps, the next
//! worker reads the record again and finds its documents by their ids. [`service`] shows all this over gRPC. Dead letters go
//! the same way once more ([`redrive`]); what the bus still holds is written again by a [`replay`]. One worker of all takes days of
//! the index away that are old enough ([`retention`]); topics that are [`paused`] aren't read. How long all that takes is measured as
//! [`freshness`].

mod books;
mod bulk;
mod freshness;
mod jobs;
mod letters;
mod mend;
mod operate;
mod pace;
mod paused;
mod redrive;
mod replay;
mod retention;
mod retired;
mod service;
mod status;
mod store;
mod worker;
mod workers;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use logmesh_bus::Bus;
use logmesh_grpc::{Candidate, Choice, Routes, Term, Upstream};
use logmesh_index::IndexWriter;
use logmesh_proto::transfer::v1::transfer_service_server::TransferServiceServer;
use logmesh_record::Topics;
use logmesh_runtime::{Readiness, RetryPolicy, Tasks};
use logmesh_types::unit::{ByteSize, Span};
use tokio::sync::watch;

use crate::jobs::Jobs;
use crate::letters::Letters;
use crate::pace::Pace;
use crate::replay::api::Api;
use crate::retention::Retention;
use crate::service::Service;
use crate::status::Shared;
use crate::store::Backends;
use crate::worker::Worker;
use crate::workers::Workers;

pub use logmesh_record::TRANSFER_GROUP as GROUP;

/// The office of the worker that takes old days of the index away.
pub const RETENTION: &str = "retention";

/// How transfer works.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What topics are. The mesh's own setting, which the gateway needs too: never part of this section.
    #[serde(skip)]
    pub topics: Topics,
    /// A bulk is written when its documents reach this size.
    pub bulk_bytes: ByteSize,
    /// A bulk is written when it has so many documents; less is asked at a time while the index is busy, slow or away.
    pub bulk_documents: usize,
    /// A bulk is written when its first document has waited so long.
    pub bulk_wait: Span,
    /// The most bulks that are written side by side, while one more is filled.
    pub bulk_requests: usize,
    /// An answer that takes longer says that less is to be asked at a time.
    pub bulk_slow: Span,
    /// How often to look for new topics, and for those that are paused.
    pub topic_refresh: Span,
    /// How often the leader looks for days of the index that are older than their topic's `index_retention`.
    pub retention_interval: Span,
    /// This worker as a candidate for the office of the one that does it, and how it finds the others; unset: it's the only worker. The process's own: never part of
    /// this section.
    #[serde(skip)]
    pub candidate: Option<Candidate>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            topics: Topics::default(),
            bulk_bytes: ByteSize(16 << 20),
            bulk_documents: 10_000,
            bulk_wait: Span(Duration::from_millis(100)),
            bulk_requests: 2,
            bulk_slow: Span(Duration::from_secs(10)),
            topic_refresh: Span(Duration::from_millis(500)),
            retention_interval: Span(Duration::from_secs(60)),
            candidate: None,
        }
    }
}

/// A running transfer worker.
#[derive(Clone, Debug)]
pub struct Transfer {
    shared: Arc<Shared>,
    letters: Letters,
    replays: Api,
    workers: Arc<Workers>,
    searchable_within: Duration,
    readiness: Readiness,
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
        let (alone, candidate) = (Term::Some(1), settings.candidate.clone());
        let (term, elected) = watch::channel(if candidate.is_none() { alone } else { None });
        let jobs = Arc::new(Jobs::new(bus.clone()));
        let topics = settings.topics.clone();
        let retention = Retention {
            bus: bus.clone(),
            index: index.clone(),
            jobs: jobs.clone(),
            topics: topics.clone(),
            interval: settings.retention_interval.0,
            term: elected,
        };
        let token = tasks.token();
        tasks.spawn("transfer-candidate", async move {
            match candidate {
                Some(candidate) => candidate.campaign(term, token).await,
                None => {
                    token.cancelled().await;
                    drop(term);
                    Ok(())
                }
            }
        });
        tasks.spawn("transfer-retention", retention.run(tasks.token()));
        let workers = Arc::new(Workers::new(settings.candidate.clone()));
        let config = Upstream::new("config", Choice::First);
        let servers = settings.candidate.as_ref().map(|candidate| &candidate.config_servers[..]).unwrap_or_default();
        if let Err(error) = config.set_servers(servers) {
            tracing::warn!(%error, "topics that are only a rule's aren't known");
        }
        tasks.spawn("transfer-config", config.clone().follow(tasks.token()));
        let searchable_within = index.searchable_within();
        let letters = Letters { bus: bus.clone(), jobs: jobs.clone(), config };
        let replays =
            Api { bus: bus.clone(), index: index.clone(), jobs: jobs.clone(), topics, letters: letters.clone() };
        let to = Backends {
            bus: bus.clone(),
            index,
            jobs,
            specs: settings.topics.clone(),
            shared: shared.clone(),
            pace: Arc::new(Pace::new(&settings)),
            readiness: readiness.clone(),
            retry: RetryPolicy::default(),
            token: tasks.token(),
        };
        tasks.spawn("transfer", Worker::new(to, settings).run());
        Self { shared, letters, replays, workers, searchable_within, readiness }
    }

    /// Adds the gRPC service.
    pub fn add_to(&self, routes: &mut Routes) {
        let service = Service::new(self.clone());
        routes.add(TransferServiceServer::new(service)).needs(worker::COMPONENT).needs(worker::TOPICS);
    }
}
