//! `logmesh`: the one command. `standalone` runs every service in one process; `config`, `gateway`, `transfer` and `console`
//! run one each; the others are the command line.

mod address;
mod ctl;
mod data_dir;
#[cfg(test)]
mod reference;
mod service;
mod settings;
mod standalone;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service::Kind;

/// Records are allocated in one thread and freed in another, by the million. glibc's allocator takes locks for that, and keeps what
/// was freed; librdkafka's memory comes from here too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Logs of thousands of machines, collected in real time into one searchable place, with proof that none is missing.
#[derive(Debug, Parser)]
#[command(name = "logmesh", version, max_term_width = 120)]
struct Args {
    #[command(flatten)]
    common: ctl::Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all of logmesh in this process, on stores of its own.
    Standalone(standalone::Args),
    /// Runs the config service, on etcd.
    Config(service::Args),
    /// Runs a gateway, on Kafka.
    Gateway(service::Args),
    /// Runs a transfer worker, from Kafka to Elasticsearch; or pauses and resumes the workers of a mesh.
    Transfer(TransferArgs),
    /// Runs the console, the front door of a mesh.
    Console(service::Args),
    /// Writes the descriptors of every service to stdout: what reflection tells, for tools that can't ask.
    Descriptors,
    /// The command line: `logmesh ctl search` is `logmesh search`.
    Ctl(ctl::CtlArgs),
    #[command(flatten)]
    Short(ctl::Command),
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
struct TransferArgs {
    #[command(subcommand)]
    command: Option<ctl::TransferCommand>,
    #[command(flatten)]
    service: service::Args,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return ctl::usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ctl::fail(ctl::Exit::Internal, &format!("cannot start: {error}")),
    };
    let Args { common, command } = args;
    runtime.block_on(async {
        match command {
            Command::Standalone(args) => standalone::run(args).await,
            Command::Config(args) => service::run(Kind::Config, args).await,
            Command::Gateway(args) => service::run(Kind::Gateway, args).await,
            Command::Transfer(TransferArgs { command: Some(command), .. }) => ctl::run_transfer(command, common).await,
            Command::Transfer(args) => service::run(Kind::Transfer, args.service).await,
            Command::Console(args) => service::run(Kind::Console, args).await,
            Command::Descriptors => ctl::write(logmesh_proto::FILE_DESCRIPTOR_SET),
            Command::Ctl(args) => ctl::run(args.command, common).await,
            Command::Short(command) => ctl::run(command, common).await,
        }
    })
}
