//! A config service on an embedded store behind a real gRPC server on a free loopback port.

#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use logmesh_config::{ConfigService, Settings};
use logmesh_grpc::{Registration, Routes};
use logmesh_proto::config::v1::Rule;
use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use logmesh_proto::fleet::v1::WatchConfigRequest;
use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_runtime::Tasks;
use logmesh_store::ConfigStore;
use logmesh_store_embedded::{EmbeddedStore, Options};
use tonic::transport::Channel;

pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Server {
    /// Its id among the config services.
    pub id: String,
    pub store: Arc<dyn ConfigStore>,
    pub channel: Channel,
    pub tasks: Tasks,
    pub folder: Arc<tempfile::TempDir>,
}

/// Waits until a server knows of so many config services.
pub async fn meet(server: &Server, count: usize) {
    let request = logmesh_proto::discovery::v1::WatchEndpointsRequest { kind: "config".into() };
    let mut watched = server.discovery().watch_endpoints(request).await.expect("a stream").into_inner();
    until(&mut watched, |state| state.endpoints.len() == count).await;
}

pub async fn start() -> Server {
    start_with(Settings::default()).await
}

pub async fn start_with(settings: Settings) -> Server {
    start_in(Arc::new(tempfile::tempdir().expect("a temp folder")), settings).await
}

pub async fn start_in(folder: Arc<tempfile::TempDir>, settings: Settings) -> Server {
    let file: PathBuf = folder.path().join("config.redb");
    let store: Arc<dyn ConfigStore> = Arc::new(EmbeddedStore::open(&file, Options::default()).expect("a store"));
    start_on(store, folder, settings).await
}

/// A further config service on the same store.
pub async fn start_beside(first: &Server, settings: Settings) -> Server {
    start_on(first.store.clone(), first.folder.clone(), settings).await
}

async fn start_on(store: Arc<dyn ConfigStore>, folder: Arc<tempfile::TempDir>, settings: Settings) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let tasks = Tasks::new();
    let registration = Registration::new("config", &address);
    let id = registration.endpoint().id.clone();
    let settings = Settings { server: Some(registration), ..settings };
    let service = ConfigService::start(store.clone(), settings, &tasks).expect("a service");
    let mut routes = Routes::new();
    service.add_to(&mut routes);
    let token = tasks.token();
    tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
    service.loaded().await.expect("rules");
    Server { id, store, channel: logmesh_grpc::channel(&address).expect("an address"), tasks, folder }
}

impl Server {
    pub fn rules(&self) -> RuleServiceClient<Channel> {
        RuleServiceClient::new(self.channel.clone())
    }

    pub fn agents(&self) -> AgentConfigServiceClient<Channel> {
        AgentConfigServiceClient::new(self.channel.clone())
    }

    pub fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone())
    }

    pub fn discovery(&self) -> DiscoveryServiceClient<Channel> {
        DiscoveryServiceClient::new(self.channel.clone())
    }

    /// Ends the server and gives its folder to a next one.
    pub async fn stop(self) -> Arc<tempfile::TempDir> {
        self.tasks.shutdown();
        self.tasks.finish(PATIENCE).await.expect("a clean end");
        self.folder
    }
}

pub fn rule(name: &str, selector: &str) -> Rule {
    let paths = vec![format!("/var/log/{name}/*.log")];
    Rule { name: format!("rules/{name}"), selector: selector.into(), paths, topic: "logs".into(), ..Rule::default() }
}

pub fn agent(id: &str, session: &str, labels: &[(&str, &str)]) -> WatchConfigRequest {
    WatchConfigRequest {
        agent_id: id.into(),
        session: session.into(),
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        version: "test".into(),
        ..WatchConfigRequest::default()
    }
}

/// The next message of a stream, which has to come in time.
pub async fn next<T>(stream: &mut tonic::Streaming<T>) -> T {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    next.expect("no message came in time").expect("the stream failed").expect("the stream ended")
}

/// Reads a stream of states until one is as wanted.
pub async fn until<T: std::fmt::Debug>(stream: &mut tonic::Streaming<T>, wanted: impl Fn(&T) -> bool) -> T {
    loop {
        let state = next(stream).await;
        if wanted(&state) {
            return state;
        }
    }
}

/// Waits until the state that `look` fetches is as wanted.
pub async fn wait_for<T: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let start = std::time::Instant::now();
    loop {
        let state = look().await;
        if wanted(&state) {
            return state;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {state:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
