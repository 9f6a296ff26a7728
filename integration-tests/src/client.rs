//! The command line as a test's view of a mesh.

use std::time::Duration;

use logmesh_testing::wait_for;
use serde_json::Value;

use crate::program::{Done, command, logmesh};

/// How long a start, a stop, or an answer may take on a busy machine. Nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `logmesh --server ADDR`.
#[derive(Clone, Debug)]
pub struct Client {
    server: String,
}

impl Client {
    /// Talks to the server at `host:port`.
    pub fn new(server: &str) -> Self {
        Self { server: server.to_owned() }
    }

    /// Runs a command of `logmesh` to its end.
    pub fn run(&self, args: &[&str]) -> Done {
        let mut command = command(logmesh());
        command.env("LOGMESH_SERVER", &self.server).args(args);
        command.output().expect("logmesh can be run").into()
    }

    /// What `search --json` prints for the query, over all time and as many hits as there are.
    #[track_caller]
    pub fn search(&self, query: &str) -> Vec<Value> {
        let args = ["search", query, "--json", "--from", "2000-01-01T00:00:00Z", "--limit", "100000000"];
        json_lines(&self.run(&args).expect(0).stdout)
    }

    /// How many documents match the query, over all time.
    #[track_caller]
    pub fn count(&self, query: &str) -> u64 {
        let done = self.run(&["search", query, "--count", "--from", "2000-01-01T00:00:00Z"]).expect(0);
        done.stdout.trim().parse().unwrap_or_else(|_| panic!("--count printed {:?}", done.stdout))
    }

    /// Waits until so many documents match the query, for as long as their number still changes.
    #[track_caller]
    pub fn wait_count(&self, query: &str, count: u64) {
        let mut last = self.count(query);
        while last != count {
            last = wait_for(&format!("{count} hits of {query}"), PATIENCE, || match self.count(query) {
                found if found != last => Ok(found),
                found => Err(format!("{found} hits, and no change")),
            });
        }
    }

    /// Waits until `status` says that all is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_for("all services to be ready", PATIENCE, || {
            let status = self.run(&["status"]);
            if status.code == Some(0) { Ok(()) } else { Err(format!("{status:?}")) }
        });
    }

    /// Waits until nothing is on its way, then gives the last audit; panics if that isn't clean.
    #[track_caller]
    pub fn audit(&self) -> Done {
        wait_for("a clean audit", PATIENCE, || {
            let done = self.run(&["audit"]);
            if done.code == Some(0) { Ok(done) } else { Err(format!("{done:?}")) }
        })
    }
}

/// One JSON document a line.
#[track_caller]
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect()
}
