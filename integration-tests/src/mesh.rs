//! A standalone mesh in a temporary folder: started, killed, stopped and asked.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use logmesh_testing::{Folder, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::client::{Client, PATIENCE};
use crate::program::{self, Done, command, logmesh};

/// A standalone with its own data, and a folder of logs that it collects.
#[derive(Debug)]
pub struct Mesh {
    /// Holds everything: `logs/`, `data/`, and what the process said in `standalone.log`.
    pub folder: Folder,
    /// The globs that it collects.
    pub collect: Vec<String>,
    /// The data folder.
    pub data: PathBuf,
    /// Further settings, in TOML.
    pub settings: String,
    /// Where its gRPC services listen; port 0 is another one at each start.
    pub listen: String,
    /// The program, if it isn't the built one in its place.
    pub program: PathBuf,
    /// The user to run as, if it isn't this one.
    pub uid: Option<u32>,
    /// Settings that it is given by its environment.
    pub env: Vec<(&'static str, String)>,
    /// Whether its log may hold errors.
    pub errors_expected: bool,
    child: Option<Child>,
    grpc: String,
    admin: String,
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Mesh {
    /// Folders, and no process yet. `logs/**/*.log*` will be collected.
    pub fn new() -> Self {
        let folder = Folder::new();
        std::fs::create_dir(folder.join("logs")).expect("a folder can be made in a new one");
        Self {
            collect: vec![format!("{}/logs/**/*.log*", folder.display())],
            data: folder.join("data"),
            settings: String::new(),
            listen: "127.0.0.1:0".to_owned(),
            program: logmesh().to_owned(),
            uid: None,
            env: Vec::new(),
            errors_expected: false,
            child: None,
            grpc: String::new(),
            admin: String::new(),
            folder,
        }
    }

    /// A mesh that runs and is ready.
    pub fn started() -> Self {
        let mut mesh = Self::new();
        mesh.start();
        mesh
    }

    /// The path of a log file, which needn't be there.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(name)
    }

    /// `host:port` of the gRPC services.
    pub fn grpc(&self) -> &str {
        &self.grpc
    }

    /// `host:port` of metrics and readiness.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Starts the process, and waits until it's ready.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// Starts the process.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        // The addresses of the last start must not be taken for those of this one.
        drop(std::fs::remove_file(self.data.join("addresses.json")));
        let mut command = command(&self.program);
        command.arg("standalone").arg("--data-dir").arg(&self.data).args(["--listen", &self.listen]);
        command.args(self.collect.iter().flat_map(|glob| ["--collect", glob]));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let settings = self.folder.join("standalone.toml");
        std::fs::write(&settings, &self.settings).expect("settings can be written");
        command.arg("--config").arg(settings);
        command.stdout(Stdio::null()).stderr(self.output());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        self.child = Some(command.spawn().expect("logmesh can be started"));
    }

    /// Waits until the process has said where it listens and every service is ready.
    pub fn wait_ready(&mut self) {
        let path = self.data.join("addresses.json");
        let addresses: Value = wait_for("addresses.json", PATIENCE, || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("standalone ended with {status} at its start: {}", self.said());
            }
            let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        });
        let field = |name: &str| addresses[name].as_str().expect("an address").to_owned();
        (self.grpc, self.admin) = (field("grpc"), field("admin"));
        self.client().wait_ready();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Ctrl-C, and what became of it.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.wait_end()
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        program::signal(self.child.as_ref().expect("it runs"), signal);
    }

    /// Waits until the process has ended by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        program::wait_end("the process", self.child.take().expect("it runs"))
    }

    /// True while the process runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The command line against this mesh.
    pub fn client(&self) -> Client {
        Client::new(&self.grpc)
    }

    /// See [`Client::run`].
    pub fn run(&self, args: &[&str]) -> Done {
        self.client().run(args)
    }

    /// See [`Client::search`].
    #[track_caller]
    pub fn search(&self, query: &str) -> Vec<Value> {
        self.client().search(query)
    }

    /// See [`Client::count`].
    #[track_caller]
    pub fn count(&self, query: &str) -> u64 {
        self.client().count(query)
    }

    /// See [`Client::wait_count`].
    #[track_caller]
    pub fn wait_count(&self, query: &str, count: u64) {
        self.client().wait_count(query, count);
    }

    /// See [`Client::audit`].
    #[track_caller]
    pub fn audit(&self) -> Done {
        self.client().audit()
    }

    /// Everything that the process wrote to stderr, over all its starts.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.join("standalone.log")).unwrap_or_default()
    }

    /// The log is part of the contract: an error in it means that something was lost or that somebody must act.
    fn assert_calm(&self) {
        let said = self.said();
        let alarm =
            said.lines().find(|line| line.contains("panicked") || (!self.errors_expected && line.contains(" ERROR ")));
        assert!(alarm.is_none(), "{alarm:?} in the log: {said}");
    }

    fn output(&self) -> File {
        let path = self.folder.join("standalone.log");
        OpenOptions::new().create(true).append(true).open(path).expect("a log file can be made")
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if !std::thread::panicking() {
            self.assert_calm();
        }
    }
}
