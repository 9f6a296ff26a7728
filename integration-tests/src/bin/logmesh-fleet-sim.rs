//! `logmesh-fleet-sim`: simulated agents against running config servers, and what a rule's change takes.
//!
//! It takes commands on stdin, one a line, and answers each with one JSON object a line. It ends with stdin.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use clap::Parser;
use logmesh_integration_tests::fleet::{Fleet, Options};
use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{Rule, UpdateRuleRequest};
use serde_json::{Value, json};

/// How long agents may take to connect, or to ack.
const PATIENCE: Duration = Duration::from_secs(300);

/// Simulated agents. Commands on stdin:
///   wait     until all are connected
///   change   write a rule that is for all of them, wait until all have acked it, and say how long it took
///   figures  how many are connected, how often they connected, and what came to them that should not
#[derive(Debug, Parser)]
#[command(name = "logmesh-fleet-sim", version, verbatim_doc_comment)]
struct Args {
    /// The config servers, host:port.
    #[arg(long, value_delimiter = ',', required = true)]
    server: Vec<String>,
    /// How many agents.
    #[arg(long, default_value_t = 1_000)]
    agents: usize,
    /// Their ids are NAME-0, NAME-1, ….
    #[arg(long, default_value = "sim")]
    name: String,
    /// A label that all of them have; may be given more than once.
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written k=v")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut labels: BTreeMap<String, String> = args.labels.into_iter().collect();
    labels.insert("fleet".to_owned(), args.name.clone());
    let fleet = Fleet::start(Options { servers: args.server.clone(), agents: args.agents, name: args.name, labels });
    let mut writer = Writer::new(&args.server[0])?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = match line?.trim() {
            "wait" => wait(&fleet),
            "change" => writer.change(&fleet)?,
            "figures" => figures(&fleet),
            "" => continue,
            other => json!({"error": format!("{other:?} is not wait, change or figures")}),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn wait(fleet: &Fleet) -> Value {
    let begin = Instant::now();
    fleet.wait_connected(PATIENCE);
    json!({"connected": fleet.connected(), "seconds": begin.elapsed().as_secs_f64()})
}

fn figures(fleet: &Fleet) -> Value {
    let disorder = fleet.disorder();
    json!({
        "connected": fleet.connected(),
        "connections": fleet.connections(),
        "disorder": disorder.len(),
        "first_disorder": disorder.first(),
        "problem": fleet.problem(),
    })
}

/// Writes a rule for all agents, each time another one.
struct Writer {
    runtime: tokio::runtime::Runtime,
    client: RuleServiceClient<tonic::transport::Channel>,
}

impl Writer {
    fn new(server: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = runtime.block_on(async { logmesh_grpc::channel(server) })?;
        Ok(Self { runtime, client: RuleServiceClient::new(channel) })
    }

    fn change(&mut self, fleet: &Fleet) -> anyhow::Result<Value> {
        let rule = Rule {
            name: "rules/fleet-sim".to_owned(),
            // A number that no former run has written.
            paths: vec![format!("/var/log/fleet-sim/{:016x}/*.log", rand::random::<u64>())],
            topic: "fleet-sim".to_owned(),
            ..Rule::default()
        };
        let request = UpdateRuleRequest { rule: Some(rule), allow_missing: true, ..UpdateRuleRequest::default() };
        let begin = Instant::now();
        let written = self.runtime.block_on(self.client.update_rule(request))?.into_inner();
        let took = begin.elapsed();
        let mut answer = fleet.wait_acked(&written.name, written.revision, begin, PATIENCE).json();
        answer["write_ms"] = json!((took.as_secs_f64() * 10_000.0).round() / 10.0);
        answer["revision"] = json!(written.revision);
        Ok(answer)
    }
}
