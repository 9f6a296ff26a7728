//! Simulated agents by the thousand: each with a connection and streams of its own, as real agents have, and without files.
//!
//! Each holds what it was told, acks it by `ReportStatus`, comes back with back-off when its server is gone, and goes to the
//! next one. It notes what it was told in the order of its coming, and what should never come: a state older than the one
//! before, a change that it has already.

mod agent;
mod figures;
mod record;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use logmesh_runtime::files::allow_open_files;
use logmesh_testing::wait_for;
use tokio::runtime::Runtime;

pub use figures::{Latencies, Spread};
pub use record::{Progress, Record, Step};

use agent::Agent;

/// First connections are begun at this pace: a few thousand a second are what a network that comes back brings.
const BEGUN_PER_SECOND: f64 = 2_000.0;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Options {
    /// The config servers, `host:port`. Agents begin with one after the other.
    pub servers: Vec<String>,
    /// How many agents.
    pub agents: usize,
    /// Their ids are `{name}-{number}`.
    pub name: String,
    /// Labels that all of them have, beside their own `host`, `os`, `ip` and `group` (0 to 3).
    pub labels: BTreeMap<String, String>,
}

/// Simulated agents that run until this is dropped.
#[derive(Debug)]
pub struct Fleet {
    agents: Vec<Arc<Agent>>,
    /// `None` only while it's dropped.
    runtime: Option<Runtime>,
}

impl Fleet {
    /// Starts them, without waiting until they are connected.
    pub fn start(options: Options) -> Self {
        allow_open_files();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime can be started");
        let options = Arc::new(options);
        let agents: Vec<_> = (0..options.agents).map(|number| Arc::new(Agent::new(options.clone(), number))).collect();
        for (number, agent) in agents.iter().cloned().enumerate() {
            runtime.spawn(async move {
                tokio::time::sleep(Duration::from_secs_f64(number as f64 / BEGUN_PER_SECOND)).await;
                agent.run().await;
            });
        }
        Self { agents, runtime: Some(runtime) }
    }

    /// How many are connected and have heard from their server.
    pub fn connected(&self) -> usize {
        self.agents.iter().filter(|agent| agent.record().connected).count()
    }

    /// Waits until all are connected.
    #[track_caller]
    pub fn wait_connected(&self, patience: Duration) {
        wait_for("all simulated agents to be connected", patience, || match self.connected() {
            all if all == self.agents.len() => Ok(()),
            some => Err(format!("{some} of {}; the last problem: {:?}", self.agents.len(), self.problem())),
        });
    }

    /// Waits until each has acked this revision of the rule, or a later one. The times count from `begin`.
    #[track_caller]
    pub fn wait_acked(&self, rule: &str, revision: i64, begin: Instant, patience: Duration) -> Latencies {
        let mut missing = self.agents.len();
        wait_for(&format!("all to ack {rule} of revision {revision}"), patience, || {
            // Who has acked once has acked for good: only the first that hasn't yet is looked at again.
            while missing > 0 && self.agents[missing - 1].record().has_acked(rule, revision) {
                missing -= 1;
            }
            if missing == 0 { Ok(()) } else { Err(format!("{missing} may be missing: {:?}", self.problem())) }
        });
        let times = |time: fn(&Progress) -> Option<Instant>| {
            let of = |agent: &Arc<Agent>| agent.record().progress.get(rule).and_then(time);
            Spread::new(self.agents.iter().filter_map(of).map(|at| at.saturating_duration_since(begin)).collect())
        };
        Latencies { agents: self.agents.len(), told: times(|one| Some(one.told)), acked: times(|one| one.acked) }
    }

    /// What each has seen and holds, by id.
    pub fn records(&self) -> BTreeMap<String, Record> {
        self.agents.iter().map(|agent| (agent.id.clone(), agent.record().clone())).collect()
    }

    /// The labels of each, by id.
    pub fn labels(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        self.agents.iter().map(|agent| (agent.id.clone(), agent.labels.clone())).collect()
    }

    /// What should never have come, with the agent's id.
    pub fn disorder(&self) -> Vec<String> {
        let of = |agent: &Arc<Agent>| -> Vec<String> {
            agent.record().disorder.iter().map(|what| format!("{}: {what}", agent.id)).collect()
        };
        self.agents.iter().flat_map(of).collect()
    }

    /// How often an agent has connected, all of them together.
    pub fn connections(&self) -> u64 {
        self.agents.iter().map(|agent| agent.record().connections).sum()
    }

    /// Why an agent isn't connected, if one isn't.
    pub fn problem(&self) -> Option<String> {
        self.agents.iter().find_map(|agent| {
            let record = agent.record();
            let problem = record.problem.as_ref().filter(|_| !record.connected);
            problem.map(|problem| format!("{}: {problem}", agent.id))
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
