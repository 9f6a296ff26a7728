//! `logmesh standalone`: every service in one process, on embedded stores, talking over its own gRPC port.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use logmesh_agent::{Agent, parse_label};
use logmesh_bus::Bus;
use logmesh_bus_embedded::EmbeddedBus;
use logmesh_config::ConfigService;
use logmesh_console::Console;
use logmesh_gateway::Gateway;
use logmesh_grpc::{Candidate, Registration, Routes};
use logmesh_index_embedded::EmbeddedIndex;
use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{Rule, UpdateRuleRequest};
use logmesh_record::Format;
use logmesh_runtime::{Readiness, Tasks, admin, files, settings as loader, telemetry};
use logmesh_store_embedded::EmbeddedStore;
use logmesh_transfer::{RETENTION, Transfer};
use logmesh_types::ByteSize;
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::info;

use crate::address::{advertised, host_name};
use crate::ctl::{self, Exit};
use crate::data_dir::DataDir;
use crate::settings::Settings;

/// How long everything may take to end, before the process ends all the same. Nothing durable is lost by that.
const GRACE: Duration = Duration::from_secs(15);

/// What the embedded bus keeps of a partition, unless a topic says otherwise.
const RETENTION_BYTES: ByteSize = ByteSize(8 << 30);

/// What the command line asks unless told otherwise.
const DEFAULT_SERVER: &str = "127.0.0.1:7400";

/// The rule that `--collect` makes.
const COLLECT: &str = "rules/collect";

/// The options of `logmesh standalone`. What isn't given comes from the environment, the file, or the defaults.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A TOML file with settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder that keeps all data [default: /var/lib/logmesh for root, else ~/.local/state/logmesh].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where every gRPC service is served [default: 127.0.0.1:7400].
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are [default: the gRPC port + 100].
    #[arg(long, value_name = "ADDR")]
    listen_admin: Option<SocketAddr>,
    /// Collect the files that match into topic `logs`; may be given more than once.
    #[arg(long, value_name = "GLOB")]
    collect: Vec<String>,
    /// What this host's agent may read, beside what --collect says; may be given more than once [default: /var/log/**].
    #[arg(long, value_name = "GLOB")]
    allow: Vec<String>,
    /// A label of this host's agent; may be given more than once.
    #[arg(long = "label", value_name = "K=V", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Allow an address that other machines can reach, without TLS and authentication.
    #[arg(long)]
    insecure: bool,
    /// Show the settings in force, each with where it came from, and end.
    #[arg(long)]
    print_config: bool,
    /// Ask the one that runs with these settings whether it's ready, and end: 0 if it is, 1 if not, 69 if it doesn't answer.
    #[arg(long)]
    ready: bool,
}

/// The options that were given, in the shape of the settings.
#[derive(Serialize)]
struct Given<'a> {
    data_dir: Option<&'a Path>,
    listen: Option<SocketAddr>,
    listen_admin: Option<SocketAddr>,
    collect: Option<&'a [String]>,
    allow: Option<&'a [String]>,
    labels: Option<BTreeMap<&'a str, &'a str>>,
    insecure: Option<bool>,
}

/// Runs until it's told to stop, or until something fails for good.
pub(crate) async fn run(args: Args) -> ExitCode {
    let given = Given {
        data_dir: args.data_dir.as_deref(),
        listen: args.listen,
        listen_admin: args.listen_admin,
        collect: (!args.collect.is_empty()).then_some(args.collect.as_slice()),
        allow: (!args.allow.is_empty()).then_some(args.allow.as_slice()),
        labels: (!args.labels.is_empty())
            .then(|| args.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()),
        insecure: args.insecure.then_some(true),
    };
    let loaded = match loader::load::<Settings>(args.config.as_deref(), given) {
        Ok(loaded) => loaded,
        Err(error) => return ctl::fail(Exit::Usage, &telemetry::chain(&error)),
    };
    if args.print_config {
        return ctl::print(&loaded.print());
    }
    let settings = loaded.value;
    if args.ready {
        return ctl::ask_ready(settings.admin()).await;
    }
    let ready = match prepare(&settings).await {
        Ok(ready) => ready,
        Err(error) => return ctl::fail(Exit::Usage, &format!("{error:#}")),
    };
    match serve(settings, ready).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ctl::fail(Exit::Internal, &format!("{error:#}")),
    }
}

/// What can fail because of what the user asked for: taken before anything is started.
struct Prepared {
    data: DataDir,
    grpc: TcpListener,
    admin: TcpListener,
}

async fn prepare(settings: &Settings) -> anyhow::Result<Prepared> {
    settings.check()?;
    let grpc = logmesh_runtime::listen("gRPC", settings.listen, settings.insecure).await?;
    let admin = logmesh_runtime::listen("metrics", settings.admin(), settings.insecure).await?;
    let data = DataDir::open(&settings.data_dir)?;
    Ok(Prepared { data, grpc, admin })
}

/// Where the process can be reached; written to `addresses.json` in the data folder once it's ready.
#[derive(Debug, Serialize)]
struct Addresses {
    grpc: SocketAddr,
    admin: SocketAddr,
}

async fn serve(settings: Settings, prepared: Prepared) -> anyhow::Result<()> {
    let Prepared { data, grpc, admin } = prepared;
    let topics = settings.topics.clone().or_defaults(Format::Chunks, Some(RETENTION_BYTES));
    let settings = Settings { topics, ..settings };
    let addresses = Addresses { grpc: grpc.local_addr()?, admin: admin.local_addr()? };
    let metrics = telemetry::init(&settings.log)?;
    let tasks = Tasks::new();
    tasks.stop_on_signals()?;
    let readiness = Readiness::new();
    let token = tasks.token();
    tasks.spawn("admin", admin::serve(admin, metrics, readiness.clone(), token.clone()));

    let stores = Stores::open(data.path()).await?;
    let server = logmesh_runtime::reachable(addresses.grpc).to_string();
    let routes = start_services(&settings, stores, &server, &readiness, &tasks).await?;
    tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(grpc, routes, token).await?) });
    if !settings.collect.is_empty() {
        declare_collect(&settings, &server).await?;
    }
    start_agent(&settings, data.path(), &server, &readiness, &tasks)?;

    data.write("addresses.json", &serde_json::to_vec(&addresses)?)?;
    info!(grpc = %addresses.grpc, admin = %addresses.admin, data = %data.path().display(), "standalone serves");
    ctl::print(&welcome(&addresses, data.path()));
    tasks.finish(GRACE).await
}

/// The embedded stores.
struct Stores {
    config: Arc<EmbeddedStore>,
    bus: Arc<dyn Bus>,
    index: Arc<EmbeddedIndex>,
}

impl Stores {
    async fn open(data: &Path) -> anyhow::Result<Self> {
        let (config, bus, index) = (data.join("config.redb"), data.join("bus"), data.join("index"));
        let was_indexed = index.exists();
        let opened = tokio::task::spawn_blocking(move || {
            // The config store is made before the bus, and that before the index: only what was lost is missing beside one.
            if (bus.exists() || was_indexed) && files::is_lost(&config) {
                tracing::error!(path = %config.display(),
                    "the config store is missing or empty in a data folder that isn't new: all rules and labels are gone; \
                     stop, put back a copy of the file, or declare them again with `logmesh rules apply`");
            }
            let records = bus.join("bus.redb");
            if was_indexed && files::is_lost(&records) {
                tracing::error!(path = %records.display(),
                    "the bus is missing or empty in a data folder that isn't new: its records that aren't indexed yet, all \
                     books, dead letters, replays and pauses are gone; stop and put back a copy of the file, or run \
                     `logmesh audit --repair` and pause again what was paused");
            }
            let config = EmbeddedStore::open(&config, Default::default())?;
            anyhow::Ok((config, EmbeddedBus::open(&bus, Default::default())?))
        });
        let (config, bus) = opened.await??;
        let index = EmbeddedIndex::open(&index, Default::default()).await?;
        Ok(Self { config: Arc::new(config), bus: Arc::new(bus), index: Arc::new(index) })
    }
}

/// Starts every service that serves gRPC. They find each other at `server`.
async fn start_services(
    settings: &Settings,
    stores: Stores,
    server: &str,
    readiness: &Readiness,
    tasks: &Tasks,
) -> anyhow::Result<Routes> {
    let Stores { config, bus, index } = stores;
    let mut routes = Routes::new();
    routes.follow(readiness.clone());
    // The same ids after a restart on another port: the address of the process that was killed is replaced at once.
    let registration = |kind| Registration::new(kind, &advertised(settings.listen, server)).with_id("standalone");
    // There's no etcd in which a logagent's tree could lie.
    let seed_prefix = String::new();
    let own = logmesh_config::Settings { server: Some(registration("config")), seed_prefix, ..Default::default() };
    let config = ConfigService::start(config, own, tasks)?;
    config.add_to(&mut routes);
    let gateway = logmesh_gateway::Settings { topics: settings.topics.clone(), ..Default::default() };
    Gateway::start(bus.clone(), gateway, tasks)?.add_to(&mut routes);
    tasks.spawn("registration", registration("gateway").keep(vec![server.to_owned()], tasks.token()));
    // The embedded index writes one bulk at a time: parts would only be more commits.
    let config_servers = vec![server.to_owned()];
    let candidate = Candidate { office: RETENTION.to_owned(), id: "standalone".to_owned(), config_servers };
    let transfer = logmesh_transfer::Settings {
        topics: settings.topics.clone(),
        bulk_requests: 1,
        candidate: Some(candidate),
        ..Default::default()
    };
    Transfer::start(bus.clone(), index.clone(), transfer, readiness.clone(), tasks).add_to(&mut routes);
    let console = logmesh_console::Settings { config_servers: vec![server.to_owned()], ..Default::default() };
    Console::start(bus, index, &console, tasks)?.add_to(&mut routes);
    config.loaded().await.context("cannot read the rules from the store")?;
    readiness.set("config", true, "");
    Ok(routes)
}

/// Makes or updates the rule of `--collect`, over gRPC like anybody.
async fn declare_collect(settings: &Settings, server: &str) -> anyhow::Result<()> {
    let rule = Rule {
        name: COLLECT.to_owned(),
        selector: format!("host={}", host_name()),
        paths: settings.collect.clone(),
        topic: "logs".to_owned(),
        ..Default::default()
    };
    let request = UpdateRuleRequest { rule: Some(rule), allow_missing: true, ..Default::default() };
    let mut client = RuleServiceClient::new(logmesh_grpc::channel(server)?);
    match client.update_rule(request).await {
        Ok(_) => Ok(()),
        Err(status) => anyhow::bail!("--collect: {}", logmesh_grpc::describe(&status)),
    }
}

fn start_agent(
    settings: &Settings,
    data: &Path,
    server: &str,
    readiness: &Readiness,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let agent = logmesh_agent::Settings {
        servers: vec![server.to_owned()],
        allow: [&settings.allow[..], &settings.collect[..]].concat(),
        labels: settings.labels.clone(),
        state_dir: data.join("agent"),
        own_dirs: vec![data.to_owned()],
        insecure: settings.insecure,
        ..Default::default()
    };
    Agent::start(agent, tasks)?.show_readiness(readiness, tasks);
    Ok(())
}

/// What people are told when all runs: where to look, and three commands that work as they stand.
fn welcome(addresses: &Addresses, data: &Path) -> String {
    let logmesh = std::env::args().next().unwrap_or_else(|| "logmesh".to_owned());
    let Addresses { grpc, admin } = addresses;
    let server = if grpc.to_string() == DEFAULT_SERVER { String::new() } else { format!(" --server {grpc}") };
    let data = data.display();
    format!(
        "logmesh is running; Ctrl-C stops it, and started again it goes on where it was\n\
         \x20 gRPC      {grpc}  (grpcurl -plaintext {grpc} list)\n\
         \x20 metrics   http://{admin}/metrics\n\
         \x20 data      {data}\n\
         try, in another terminal\n\
         \x20 {logmesh} search '*' --limit 5{server}\n\
         \x20 {logmesh} tail '*'{server}\n\
         \x20 {logmesh} audit{server}\n"
    )
}
