//! `logmesh-agent`: the agent as a process of its own.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use logmesh_agent::{Agent, Reloader, Settings, SettingsFile, parse_label};
use logmesh_runtime::settings::Loaded;
use logmesh_runtime::{Readiness, Tasks, admin, listen, settings, telemetry};
use serde::Serialize;

/// How long the process may take to end, beyond the settings' `drain`.
const GRACE: Duration = Duration::from_secs(10);

/// Exit codes: bad usage or settings, and an internal failure.
const USAGE: u8 = 64;
const INTERNAL: u8 = 70;
/// Exit codes of `--ready`: not ready, and no answer.
const WANTING: u8 = 1;
const UNREACHABLE: u8 = 69;

/// Collects log files as the centre's rules say, and loses none of their lines.
#[derive(Debug, Parser, Serialize)]
#[command(name = "logmesh-agent", version)]
struct Options {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// A config service or a standalone, host:port; may be given more than once.
    #[arg(long = "server", value_name = "ADDR")]
    servers: Option<Vec<String>>,
    /// Files under this glob may be read, whatever the centre says; may be given more than once [default: /var/log/**].
    #[arg(long, value_name = "GLOB")]
    allow: Option<Vec<String>>,
    /// A label of this host for selectors; may be given more than once.
    #[arg(long = "label", value_name = "K=V", value_parser = parse_label)]
    #[serde(serialize_with = "as_map")]
    labels: Option<Vec<(String, String)>>,
    /// Where positions and the last good rules are kept [default: /var/lib/logmesh-agent].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Allow servers on other machines without TLS and authentication.
    #[arg(long)]
    #[serde(serialize_with = "if_set")]
    insecure: bool,
    /// Show the settings in force and where each came from, and end.
    #[arg(long)]
    #[serde(skip)]
    print_config: bool,
    /// Ask the agent that runs with these settings whether it's ready, and end: 0 if it is, 1 if not, 69 if it doesn't answer.
    #[arg(long)]
    #[serde(skip)]
    ready: bool,
}

fn as_map<S: serde::Serializer>(labels: &Option<Vec<(String, String)>>, serializer: S) -> Result<S::Ok, S::Error> {
    labels.as_ref().map(|labels| labels.iter().cloned().collect::<BTreeMap<_, _>>()).serialize(serializer)
}

fn if_set<S: serde::Serializer>(flag: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    flag.then_some(true).serialize(serializer)
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // Nobody is left to be told that the text can't be printed.
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    let file = SettingsFile::new(options.config.clone());
    let loaded = match load(&options) {
        Ok(loaded) => loaded,
        Err(error) => return fail(USAGE, &error),
    };
    let printed = options.print_config.then(|| std::io::stdout().write_all(loaded.print().as_bytes()));
    // Also what was only to be printed is checked.
    if let Err(error) = loaded.value.check() {
        return fail(USAGE, &format!("{error:#}"));
    }
    match printed {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(_)) => return ExitCode::from(INTERNAL),
        None => {}
    }
    if options.ready {
        return ask_ready(&loaded.value);
    }
    match run(loaded.value, file, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(INTERNAL, &format!("{error:#}")),
    }
}

fn load(options: &Options) -> Result<Loaded<Settings>, String> {
    settings::load(options.config.as_deref(), options).map_err(|error| telemetry::chain(&error))
}

fn run(settings: Settings, file: SettingsFile, options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let metrics = telemetry::init(&settings.log)?;
        let listener = listen("metrics", settings.listen_admin, settings.insecure).await?;
        let tasks = Tasks::new();
        tasks.stop_on_signals()?;
        let reloader = Reloader::new(file, move || Ok(load(&options)?.value))?;
        let readiness = Readiness::new();
        let grace = settings.drain.0 + GRACE;
        let agent = Agent::start(settings, &tasks)?;
        tracing::info!(agent = %agent.id(), metrics = %listener.local_addr()?, "agent runs");
        agent.show_readiness(&readiness, &tasks);
        tasks.spawn("reload", reloader.run(agent, readiness.clone(), tasks.token()));
        tasks.spawn("admin", admin::serve(listener, metrics, readiness, tasks.token()));
        tasks.finish(grace).await
    })
}

/// Shows what the agent that runs says of its readiness; the exit code says it too.
fn ask_ready(settings: &Settings) -> ExitCode {
    let asked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(admin::ask_ready(settings.listen_admin)));
    match asked {
        Ok((ready, text)) => {
            // The exit code is the answer; nobody may be reading the text.
            std::io::stdout().write_all(text.as_bytes()).ok();
            if ready { ExitCode::SUCCESS } else { ExitCode::from(WANTING) }
        }
        Err(error) => {
            fail(UNREACHABLE, &format!("nothing answers for readiness on {}: {error}", settings.listen_admin))
        }
    }
}

fn fail(code: u8, message: &str) -> ExitCode {
    // The log isn't set up before the settings are read.
    writeln!(std::io::stderr(), "logmesh-agent: {message}").ok();
    ExitCode::from(code)
}
