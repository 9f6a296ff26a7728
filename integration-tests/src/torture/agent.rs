//! An agent as a process of its own.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::program::{self, command, logmesh_agent};

/// See the module.
#[derive(Debug)]
pub struct AgentProcess {
    /// A config service or a standalone.
    pub server: String,
    /// The glob under which it may read.
    pub allow: String,
    /// Where it keeps its state.
    pub state_dir: PathBuf,
    /// What it says goes here.
    pub log: PathBuf,
    /// The user to run as, if it isn't this one.
    pub uid: Option<u32>,
    child: Option<Child>,
}

impl AgentProcess {
    /// An agent that doesn't run yet.
    pub fn new(server: String, allow: String, state_dir: PathBuf, log: PathBuf, uid: Option<u32>) -> Self {
        Self { server, allow, state_dir, log, uid, child: None }
    }

    /// Starts it.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log can be made");
        let mut command = command(logmesh_agent());
        command.args(["--server", &self.server, "--allow", &self.allow, "--label", "role=tortured"]);
        command.arg("--state-dir").arg(&self.state_dir).env("LOGMESH_LISTEN_ADMIN", "127.0.0.1:0");
        command.env("LOGMESH_ID", "tortured").stdout(Stdio::null()).stderr(log);
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        self.child = Some(command.spawn().expect("the agent can be started"));
    }

    /// `kill -9`; it may have ended by itself.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().expect("a child can be waited for");
        }
    }

    /// SIGTERM; panics unless it ends in order.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = program::wait_end("the agent", self.child.take().expect("it runs"));
        assert!(status.success(), "the agent ended with {status}: {}", self.said());
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        program::signal(self.child.as_ref().expect("it runs"), signal);
    }

    /// True while it runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it said, over all its starts.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
