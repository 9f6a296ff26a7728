//! The command-line client: talks gRPC to a standalone, or to the console of a mesh, and holds no state.
//!
//! Exit codes are part of the contract: see [`failure`]. What is said to people goes through [`output`], so that no log
//! line can steer a terminal.

mod agents;
mod audit;
mod context;
mod deadletters;
mod failure;
mod output;
mod replay;
mod rules;
mod search;
mod status;
mod transfer;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tonic::transport::Channel;

use failure::{Failure, Outcome};
use output::Output;

pub(crate) use failure::{Exit, fail, print, usage, write};
pub(crate) use transfer::TransferCommand;

/// How long one call may take. Servers bound their work well below it.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The items of one page of a list, the most that servers give.
const LIST_PAGE: i32 = 1_000;

/// The client's commands.
#[derive(Debug, clap::Args)]
pub(crate) struct CtlArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the client can do; each is also a command of its own, without `ctl`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Declare and show rules: what to collect where
    Rules(rules::RulesArgs),
    /// Show agents and what they do
    Agents(agents::AgentsArgs),
    /// Find log lines
    Search(search::SearchArgs),
    /// Show the lines around one line of a file
    Context(context::ContextArgs),
    /// Show log lines as they arrive
    Tail(search::TailArgs),
    /// Prove that no line is missing and none is there twice, or show where
    Audit(audit::AuditArgs),
    /// Show events that could not be stored, and send them through again
    Deadletters(deadletters::DeadlettersArgs),
    /// Write what the bus still holds into the index again
    Replay(replay::ReplayArgs),
    /// Show whether every service is ready, and how far it is behind
    Status,
}

/// The heading of [`Common`] in the help.
const COMMON: &str = "Options of all commands";

/// The options of all commands.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// The server: a standalone, or the console of a mesh
    #[arg(help_heading = COMMON, long, value_name = "ADDR", env = "LOGMESH_SERVER", default_value = "127.0.0.1:7400", global = true)]
    server: String,
    /// Print one JSON document a line
    #[arg(help_heading = COMMON, long, global = true)]
    json: bool,
    /// Print text as it is, control characters and all; without it they are shown escaped
    #[arg(help_heading = COMMON, long, global = true)]
    raw: bool,
}

/// What every command works with.
struct Session {
    channel: Channel,
    out: Output,
}

/// Runs a command to its end and says how it went.
pub(crate) async fn run(command: Command, common: Common) -> ExitCode {
    run_with(common, async |session| execute(command, session).await).await
}

/// The same for what is said to the transfer workers.
pub(crate) async fn run_transfer(command: TransferCommand, common: Common) -> ExitCode {
    run_with(common, async |session| transfer::run(command, session).await).await
}

async fn run_with(common: Common, command: impl AsyncFnOnce(&mut Session) -> Outcome) -> ExitCode {
    let result = match logmesh_grpc::channel(&common.server) {
        Err(error) => Err(Failure::Usage(format!("--server: {error}"))),
        Ok(channel) => {
            let mut session = Session { channel, out: Output::stdout(common.json, common.raw) };
            let done = command(&mut session).await;
            // What was found before a failure is still worth showing.
            let flushed = session.out.flush();
            done.and_then(|done| flushed.map(|()| done))
        }
    };
    failure::finish(result, &common.server, common.raw)
}

/// Shows what the service with this operator's port says of its readiness; the exit code says it too.
pub(crate) async fn ask_ready(admin: SocketAddr) -> ExitCode {
    match logmesh_runtime::admin::ask_ready(admin).await {
        Ok((ready, text)) => {
            let printed = print(&text);
            if ready { printed } else { Exit::Wanting.into() }
        }
        Err(error) => fail(Exit::Unreachable, &format!("nothing answers for readiness on {admin}: {error}")),
    }
}

async fn execute(command: Command, session: &mut Session) -> Outcome {
    match command {
        Command::Rules(args) => rules::run(args, session).await,
        Command::Agents(args) => agents::run(args, session).await,
        Command::Search(args) => search::run(args, session).await,
        Command::Context(args) => context::run(args, session).await,
        Command::Tail(args) => search::tail(args, session).await,
        Command::Audit(args) => audit::run(args, session).await,
        Command::Deadletters(args) => deadletters::run(args, session).await,
        Command::Replay(args) => replay::run(args, session).await,
        Command::Status => status::run(session).await,
    }
}

/// A request that is given up when no answer comes.
fn request<T>(message: T) -> tonic::Request<T> {
    request_within(CALL_TIMEOUT, message)
}

fn request_within<T>(timeout: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

#[cfg(test)]
mod tests;
