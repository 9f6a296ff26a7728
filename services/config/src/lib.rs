//! The config service: the fleet's rules, the agents' sessions, and which servers there are, over a [`ConfigStore`].
//!
//! What must last lies in the store: rules as readable JSON beneath [`keys::RULES`], which agents there are and the labels
//! that the centre gave them beneath [`keys::AGENTS`], endpoints beneath [`keys::ENDPOINTS`] for as long as their lease
//! lives. What agents report is kept in memory only, bounded, and comes again with their next connection. Several config
//! services on one store answer for each other.

mod agents;
mod discovery;
mod error;
mod incarnation;
mod janitor;
pub mod keys;
mod limits;
mod paging;
mod peers;
mod push;
mod revision;
mod rules;
mod settings;

use std::sync::Arc;

use logmesh_grpc::Routes;
use logmesh_proto::config::v1::rule_service_server::RuleServiceServer;
use logmesh_proto::discovery::v1::discovery_service_server::DiscoveryServiceServer;
use logmesh_proto::fleet::v1::agent_config_service_server::AgentConfigServiceServer;
use logmesh_proto::fleet::v1::fleet_service_server::FleetServiceServer;
use logmesh_runtime::Tasks;
use logmesh_store::{ConfigStore, Revision, StoreError};

pub use settings::Settings;

/// The config service's four gRPC services.
#[derive(Clone, Debug)]
pub struct ConfigService {
    rules: rules::RuleApi,
    agents: agents::AgentConfigApi,
    fleet: agents::FleetApi,
    discovery: discovery::DiscoveryApi,
    rule_view: rules::RuleView,
}

impl ConfigService {
    /// Checks the settings and begins to follow the store, which need not be reachable yet. Streams end when the tasks
    /// are asked to. A logagent's tree is looked for in the same store.
    pub fn start(store: Arc<dyn ConfigStore>, settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        Self::start_with_tree(store.clone(), store, settings, tasks)
    }

    /// The same, where the tree of a logagent lies in another store, or in another part of the same.
    pub fn start_with_tree(
        store: Arc<dyn ConfigStore>,
        tree: Arc<dyn ConfigStore>,
        settings: Settings,
        tasks: &Tasks,
    ) -> anyhow::Result<Self> {
        settings.check()?;
        let settings = Arc::new(settings);
        let tree = rules::SeedView::start(tree, &settings.seed_prefix, tasks);
        let rule_view = rules::RuleView::start(store.clone(), tree, tasks);
        let registry = agents::Registry::new(&settings, agents::follow_rules(&rule_view, tasks));
        let kept = agents::Keeper::start(store.clone(), registry.clone(), &settings, tasks);
        let push = push::Push::new(tasks.token());
        let discovery = discovery::DiscoveryApi::start(store.clone(), &settings, push.clone(), tasks);
        let own = settings.server.as_ref().map(|server| server.endpoint().clone());
        if let Some(own) = own.clone() {
            let kept = peers::keep_registered(store.clone(), own, settings.endpoint_ttl.0, tasks.token());
            tasks.spawn("config-registration", kept);
        }
        let peers = peers::Peers::new(own, discovery.endpoints());
        agents::follow_sessions(peers.clone(), registry.clone(), tasks);
        let commands = agents::Commands::new(registry.clone());
        let previews = agents::Previews::new(registry.clone(), commands.clone(), peers.clone());
        let name = settings.server.as_ref().map_or("config", |server| &server.endpoint().id);
        janitor::Janitor::start(store.clone(), name.to_owned(), settings.clone(), tasks);
        // No agent is told anything before the labels are known that the centre gave it.
        let labels_known = kept.clone();
        let labels_known = async move { labels_known.wait(Revision(1)).await };
        let incarnations = incarnation::follow(store.clone(), labels_known, tasks);
        let fleet = agents::Fleet { store: store.clone(), registry: registry.clone(), peers, kept };
        Ok(Self {
            rules: rules::RuleApi::new(store, rule_view.clone(), previews, push.clone()),
            agents: agents::AgentConfigApi::new(
                registry,
                commands.clone(),
                rule_view.clone(),
                incarnations,
                settings,
                push.clone(),
            ),
            fleet: agents::FleetApi::new(fleet, commands, push),
            discovery,
            rule_view,
        })
    }

    /// Adds the services to a server. What needs the rules serves while the component `config` is ready, if there is one.
    pub fn add_to(&self, routes: &mut Routes) {
        routes
            .add(RuleServiceServer::new(self.rules.clone()))
            .needs("config")
            .add(AgentConfigServiceServer::new(self.agents.clone()))
            .needs("config")
            .add(FleetServiceServer::new(self.fleet.clone()))
            .add(DiscoveryServiceServer::new(self.discovery.clone()))
            .needs("config");
    }

    /// Waits until the rules were read from the store, and those of a logagent's tree: from then on agents get theirs.
    pub async fn loaded(&self) -> Result<(), StoreError> {
        self.rule_view.loaded().await
    }
}
