//! The console: search, live tail and audit, for people and programs.
//!
//! It keeps nothing: [`search`] and [`context`] ask the index, [`tail`] reads the bus, [`audit`] compares both with what agents told the
//! config service. Run alone it's the mesh's front door as well: [`front`] passes every other service on.

mod audit;
mod context;
mod front;
mod request;
mod search;
mod tail;
mod topics;

use std::sync::Arc;

use anyhow::Context;
use logmesh_bus::Bus;
use logmesh_grpc::{Choice, Routes, Upstream};
use logmesh_index::IndexRepair;
use logmesh_proto::audit::v1::audit_service_server::AuditServiceServer;
use logmesh_proto::search::v1::search_service_server::SearchServiceServer;
use logmesh_runtime::Tasks;

/// How the console works.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Config services, `host:port`: they know what agents report and which servers there are. The mesh's own setting, which
    /// others need too: never part of this section.
    #[serde(skip)]
    pub config_servers: Vec<String>,
    /// Searches that run at a time; more are refused.
    pub max_searches: usize,
    /// Live tails at a time; more are refused.
    pub max_tails: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { config_servers: vec!["127.0.0.1:7401".to_owned()], max_searches: 32, max_tails: 256 }
    }
}

/// The console's gRPC services.
#[derive(Clone, Debug)]
pub struct Console {
    search: search::Search,
    audit: audit::Audit,
    config: Upstream,
    tasks: Tasks,
}

impl Console {
    /// Sets the services up. Nothing needs to be reachable yet; live tails end when the tasks are asked to.
    pub fn start(
        bus: Arc<dyn Bus>,
        index: Arc<dyn IndexRepair>,
        settings: &Settings,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        let config = Upstream::new("config", Choice::First);
        config.set_servers(&settings.config_servers).context("config_servers")?;
        tasks.spawn("console-config", config.clone().follow(tasks.token()));
        let tails = tail::Tails::new(bus.clone(), index.clone(), settings.max_tails, tasks.clone());
        let topics = topics::Topics::new(index.clone(), bus.clone(), config.clone());
        Ok(Self {
            search: search::Search::new(index.clone(), settings.max_searches, tails, topics),
            audit: audit::Audit::new(bus, index, config.clone()),
            config,
            tasks: tasks.clone(),
        })
    }

    /// Passes all services of the mesh that aren't its own on to those who serve them.
    pub fn add_front_door_to(&self, routes: &mut Routes) {
        front::open(&self.config, &self.tasks, routes);
    }

    /// Adds the services to a server. They serve while its components `index` and `bus` are ready, if it has them.
    pub fn add_to(&self, routes: &mut Routes) {
        routes.add(SearchServiceServer::new(self.search.clone())).needs("index");
        routes.add(AuditServiceServer::new(self.audit.clone())).needs("index").needs("bus");
    }
}
