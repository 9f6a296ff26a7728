//! `logmesh config|gateway|transfer|console`: one service as a process of its own, on etcd, Kafka and Elasticsearch.

mod backends;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use logmesh_config::ConfigService;
use logmesh_console::Console;
use logmesh_gateway::Gateway;
use logmesh_grpc::{Candidate, Registration, Routes};
use logmesh_runtime::{Readiness, Tasks, admin, files, settings as loader, telemetry};
use logmesh_transfer::{RETENTION, Transfer};
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::info;

use crate::address::advertised;
use crate::ctl::{self, Exit};
use backends::Backends;
pub(crate) use settings::Settings;

/// How long everything may take to end, before the process ends all the same. Nothing durable is lost by that.
const GRACE: Duration = Duration::from_secs(15);

/// The services that can run apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Config,
    Gateway,
    Transfer,
    Console,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Gateway => "gateway",
            Self::Transfer => "transfer",
            Self::Console => "console",
        }
    }

    /// The port of its gRPC, unless told otherwise.
    fn port(self) -> u16 {
        match self {
            Self::Console => 7400,
            Self::Config => 7401,
            Self::Gateway => 7402,
            Self::Transfer => 7403,
        }
    }
}

/// The options of a service. What isn't given comes from the environment, the file, or the defaults.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A TOML file with settings; one file can serve all services of a mesh.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where gRPC is served [default: 127.0.0.1 and the port of the service].
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are [default: the gRPC port + 100].
    #[arg(long, value_name = "ADDR")]
    listen_admin: Option<SocketAddr>,
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
struct Given {
    listen: Option<SocketAddr>,
    listen_admin: Option<SocketAddr>,
    insecure: Option<bool>,
}

/// Runs until it's told to stop, or until something fails for good.
pub(crate) async fn run(kind: Kind, args: Args) -> ExitCode {
    let given = Given { listen: args.listen, listen_admin: args.listen_admin, insecure: args.insecure.then_some(true) };
    let loaded = match loader::load::<Settings>(args.config.as_deref(), given) {
        Ok(loaded) => loaded,
        Err(error) => return ctl::fail(Exit::Usage, &telemetry::chain(&error)),
    };
    let printed = args.print_config.then(|| ctl::print(&loaded.print()));
    // Also what was only to be printed is checked.
    let settings = match loaded.value.complete(kind) {
        Ok(settings) => settings,
        Err(error) => return ctl::fail(Exit::Usage, &format!("{error:#}")),
    };
    if let Some(printed) = printed {
        return printed;
    }
    if args.ready {
        return ctl::ask_ready(settings.admin(kind)).await;
    }
    files::allow_open_files();
    let process = match Process::prepare(kind, settings).await {
        Ok(process) => process,
        Err(error) => return ctl::fail(Exit::Usage, &format!("{error:#}")),
    };
    match process.serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ctl::fail(Exit::Internal, &format!("{error:#}")),
    }
}

/// A service with everything that can fail because of what the user asked for.
struct Process {
    kind: Kind,
    settings: Settings,
    grpc: TcpListener,
    admin: TcpListener,
    tasks: Tasks,
    readiness: Readiness,
    routes: Routes,
}

impl Process {
    async fn prepare(kind: Kind, settings: Settings) -> anyhow::Result<Self> {
        let grpc = logmesh_runtime::listen("gRPC", settings.listen(kind), settings.insecure).await?;
        let admin = logmesh_runtime::listen("metrics", settings.admin(kind), settings.insecure).await?;
        let (tasks, readiness) = (Tasks::new(), Readiness::new());
        let mut routes = Routes::new();
        routes.follow(readiness.clone());
        Ok(Self { kind, settings, grpc, admin, tasks, readiness, routes })
    }

    /// Starts everything, and runs to the end. No backend need be there: the service says that it's waiting.
    async fn serve(mut self) -> anyhow::Result<()> {
        let metrics = telemetry::init(&self.settings.log)?;
        self.tasks.stop_on_signals()?;
        let address = self.grpc.local_addr()?;
        let (service, admin_address) = (self.kind.name(), self.admin.local_addr()?);
        match self.kind {
            Kind::Config => self.config(address)?,
            Kind::Gateway => self.gateway()?,
            Kind::Transfer => self.transfer(address)?,
            Kind::Console => self.console()?,
        }
        self.register(address);
        let Self { grpc, admin, tasks, readiness, routes, .. } = self;
        tasks.spawn("admin", admin::serve(admin, metrics, readiness, tasks.token()));
        let token = tasks.token();
        tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(grpc, routes, token).await?) });
        info!(service, grpc = %address, admin = %admin_address, "serves");
        tasks.finish(GRACE).await
    }

    fn config(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let store = self.backends().store()?;
        // A logagent's tree knows nothing of the mesh's prefix.
        let tree = Arc::new(store.at(""));
        // Config services find each other in the store, without asking one of them.
        let server = Some(self.registration(address));
        let settings = logmesh_config::Settings { server, ..self.settings.config.clone() };
        let config = ConfigService::start_with_tree(store, tree, settings, &self.tasks)?;
        config.add_to(&mut self.routes);
        let (readiness, token) = (self.readiness.clone(), self.tasks.token());
        readiness.set("config", false, "the rules are not read yet");
        self.tasks.spawn("config-loaded", async move {
            tokio::select! {
                loaded = config.loaded() => if loaded.is_ok() { readiness.set("config", true, "") },
                () = token.cancelled() => {}
            }
            Ok(())
        });
        Ok(())
    }

    fn gateway(&mut self) -> anyhow::Result<()> {
        let bus = self.backends().bus()?;
        Gateway::start(bus, self.settings.gateway.clone(), &self.tasks)?.add_to(&mut self.routes);
        Ok(())
    }

    fn transfer(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let (bus, index) = (self.backends().bus()?, self.backends().index()?);
        let candidate = Candidate {
            office: RETENTION.to_owned(),
            id: self.registration(address).endpoint().id.clone(),
            config_servers: self.settings.config_servers.clone(),
        };
        let settings = logmesh_transfer::Settings { candidate: Some(candidate), ..self.settings.transfer.clone() };
        Transfer::start(bus, index, settings, self.readiness.clone(), &self.tasks).add_to(&mut self.routes);
        Ok(())
    }

    fn console(&mut self) -> anyhow::Result<()> {
        let (bus, index) = (self.backends().bus()?, self.backends().index()?);
        let console = Console::start(bus, index, &self.settings.console, &self.tasks)?;
        console.add_to(&mut self.routes);
        console.add_front_door_to(&mut self.routes);
        Ok(())
    }

    fn backends(&self) -> Backends<'_> {
        Backends { settings: &self.settings, readiness: &self.readiness, tasks: &self.tasks }
    }

    /// Lets others find this service. A config service registers itself, without asking one.
    fn register(&self, address: SocketAddr) {
        if self.kind == Kind::Config {
            return;
        }
        let registration = self.registration(address);
        self.tasks.spawn("registration", registration.keep(self.settings.config_servers.clone(), self.tasks.token()));
    }

    /// What this service is called, and where others reach it.
    fn registration(&self, address: SocketAddr) -> Registration {
        let found_at = || advertised(address, &logmesh_runtime::reachable(address).to_string());
        Registration::new(self.kind.name(), &self.settings.advertise.clone().unwrap_or_else(found_at))
    }
}
