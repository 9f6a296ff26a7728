//! The centre alone: config services on an etcd of three members, and what registers there. Each is a process that can be
//! killed, frozen and started again, and etcd can be asked by its own client what it holds.

mod log;
mod writer;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use logmesh_testing::servers::{Etcd, Server, free_port};
use logmesh_testing::{Folder, wait_for};
use rustix::process::Signal;
use serde_json::Value;

pub use log::{EtcdLog, Event, RuleLog, Rules, StoredRule};
pub use writer::RuleWriter;

use self::log::text;
use crate::client::PATIENCE;
use crate::cluster::http_get;
use crate::program::{self, command, logmesh, logmesh_agent};

/// How many members etcd has.
const MEMBERS: usize = 3;

/// The config services.
pub const CONFIGS: [&str; 2] = ["config-1", "config-2"];

/// What may run beside them: the part before the `-` is the kind.
const OTHERS: [&str; 2] = ["gateway-1", "agent-1"];

/// See the module.
#[derive(Debug)]
pub struct Centre {
    /// Holds `said/` with what each process wrote to stderr, and each agent's state beneath its name.
    pub folder: Folder,
    /// The members of etcd.
    pub members: Vec<Server>,
    processes: BTreeMap<&'static str, Process>,
    settings: PathBuf,
}

#[derive(Debug)]
struct Process {
    port: u16,
    child: Option<Child>,
}

impl Centre {
    /// etcd is ready, and both config services are. `extra` is put at the end of the settings.
    pub fn started(extra: &str) -> Self {
        Self::started_on(&[], extra)
    }

    /// The same with options of etcd's, `ETCD_…`.
    pub fn started_on(etcd: &[(&str, &str)], extra: &str) -> Self {
        let mut centre = Self::new(etcd, extra);
        for name in CONFIGS {
            centre.spawn(name);
        }
        for name in CONFIGS {
            centre.wait_ready(name);
        }
        centre
    }

    fn new(etcd: &[(&str, &str)], extra: &str) -> Self {
        let members = Etcd::members(MEMBERS, etcd);
        let folder = Folder::new();
        std::fs::create_dir(folder.join("said")).expect("a folder can be made in a new one");
        let process = |name| (name, Process { port: free_port(), child: None });
        let processes: BTreeMap<_, _> = CONFIGS.into_iter().chain(OTHERS).map(process).collect();
        let quoted = |addresses: Vec<String>| format!("{addresses:?}");
        let configs = quoted(CONFIGS.iter().map(|name| format!("127.0.0.1:{}", processes[name].port)).collect());
        let endpoints = quoted(members.iter().map(Server::address).collect());
        // No Kafka: a gateway registers all the same.
        let text = format!(
            "config_servers = {configs}\n[kafka]\nbrokers = [\"127.0.0.1:9\"]\n[etcd]\nendpoints = {endpoints}\n{extra}"
        );
        let settings = folder.join("centre.toml");
        std::fs::write(&settings, text).expect("settings can be written");
        Self { folder, members, processes, settings }
    }

    /// Starts a process.
    pub fn spawn(&mut self, name: &'static str) {
        let log = OpenOptions::new().create(true).append(true).open(self.said_path(name)).expect("a log can be made");
        let port = self.processes[name].port;
        let kind = name.split('-').next().unwrap_or(name);
        let mut command = if kind == "agent" {
            let mut command = command(logmesh_agent());
            for config in CONFIGS {
                command.args(["--server", &self.grpc(config)]);
            }
            command.args(["--label", "role=real", "--state-dir"]).arg(self.folder.join(name));
            command.env("LOGMESH_LISTEN_ADMIN", format!("127.0.0.1:{}", port + 1)).env("LOGMESH_ID", name);
            command
        } else {
            let mut command = command(logmesh());
            command.args([kind, "--config"]).arg(&self.settings).args(["--listen", &self.grpc(name)]);
            command.args(["--listen-admin", &self.admin(name)]);
            command
        };
        command.stdout(Stdio::null()).stderr(log);
        let child = &mut self.processes.get_mut(name).unwrap_or_else(|| panic!("there is no {name}")).child;
        assert!(child.is_none(), "{name} runs already");
        *child = Some(command.spawn().expect("the program can be started"));
    }

    /// Waits until a service says that it is ready.
    #[track_caller]
    pub fn wait_ready(&self, name: &str) {
        wait_for(&format!("{name} to be ready"), PATIENCE, || match http_get(&self.admin(name), "/readyz") {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
            other => Err(format!("{other:?}; it said {}", self.said(name))),
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.child(name).take().expect("it runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// SIGTERM; panics unless it ends in order.
    pub fn stop(&mut self, name: &str) {
        self.signal(name, Signal::TERM);
        let child = self.child(name).take().expect("it runs");
        let status = program::wait_end(name, child);
        assert!(status.success(), "{name} ended with {status}: {}", self.said(name));
    }

    /// Sends a process a signal.
    pub fn signal(&mut self, name: &str, signal: Signal) {
        program::signal(self.child(name).as_ref().expect("it runs"), signal);
    }

    /// `host:port` of a process's gRPC.
    pub fn grpc(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.processes[name].port)
    }

    fn admin(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.processes[name].port + 1)
    }

    /// `host:port` of the config services.
    pub fn servers(&self) -> Vec<String> {
        CONFIGS.iter().map(|name| self.grpc(name)).collect()
    }

    /// What a process said, over all its starts.
    pub fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.said_path(name)).unwrap_or_default()
    }

    fn said_path(&self, name: &str) -> PathBuf {
        self.folder.join("said").join(format!("{name}.log"))
    }

    /// Puts an empty etcd in the place of this one, whose revisions begin anew. The config services have to be started again.
    pub fn replace_etcd(&mut self) {
        self.members.iter_mut().for_each(Server::kill);
        for member in &mut self.members {
            std::fs::remove_dir_all(member.folder().join("data")).expect("its data can be removed");
            member.spawn_again();
        }
        self.members.iter_mut().for_each(Server::wait_ready);
    }

    /// Which member leads etcd.
    pub fn leader(&self) -> usize {
        wait_for("etcd to have a leader", PATIENCE, || {
            let leads = |member: &Server| {
                http_get(&member.address(), "/metrics").is_ok_and(|page| page.contains("\netcd_server_is_leader 1"))
            };
            self.members.iter().position(leads).ok_or_else(|| "no member says that it leads".to_owned())
        })
    }

    /// etcd's own client, with all members.
    pub fn etcdctl(&self, args: &[&str]) -> Command {
        let addresses: Vec<String> = self.members.iter().map(Server::address).collect();
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../backends/etcd/run"));
        command.arg("ctl").args(args).env("ETCDCTL_ENDPOINTS", addresses.join(","));
        command
    }

    /// What etcd's own client answers, as JSON.
    #[track_caller]
    pub fn ask_etcd(&self, args: &[&str]) -> Value {
        let output = self.etcdctl(&[args, &["-w", "json"]].concat()).output().expect("etcdctl can be run");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("etcdctl prints JSON")
    }

    /// Runs etcd's own client, which has to succeed.
    #[track_caller]
    pub fn tell_etcd(&self, args: &[&str]) {
        let output = self.etcdctl(args).output().expect("etcdctl can be run");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Gives up all history that etcd has.
    #[track_caller]
    pub fn compact(&self) {
        let revision = self.ask_etcd(&["get", "nothing"])["header"]["revision"].as_i64().expect("a revision");
        self.tell_etcd(&["compact", &revision.to_string()]);
    }

    /// Makes etcd refuse to write because its space is used up. It has to have a quota of some MiB.
    pub fn fill_etcd(&self) {
        let large = self.folder.join("large");
        std::fs::write(&large, vec![b'x'; 1 << 20]).expect("a file can be written");
        for _ in 0..100 {
            let value = std::fs::File::open(&large).expect("it is there");
            let output = self.etcdctl(&["put", "/of-somebody-else"]).stdin(value).output().expect("etcdctl can be run");
            if String::from_utf8_lossy(&output.stderr).contains("database space exceeded") {
                return;
            }
        }
        panic!("etcd never was full");
    }

    /// The keys beneath a prefix.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let answer = self.ask_etcd(&["get", "--prefix", "--keys-only", prefix]);
        answer["kvs"].as_array().into_iter().flatten().map(|entry| text(&entry["key"])).collect()
    }

    /// The config service that holds an office now, and the revision at which it was elected.
    pub fn holder(&self, office: &str) -> Option<(&'static str, i64)> {
        let answer = self.ask_etcd(&["get", &format!("/logmesh/v1/leaders/{office}")]);
        let held = answer["kvs"].get(0)?;
        Some((self.config_of(&text(&held["value"])), held["mod_revision"].as_i64()?))
    }

    /// The config service of this id, which is made from its address.
    pub fn config_of(&self, id: &str) -> &'static str {
        let is = |name: &&&'static str| id.ends_with(&self.processes[**name].port.to_string());
        CONFIGS.iter().find(is).unwrap_or_else(|| panic!("{id} is no config service"))
    }

    /// The rules that an agent keeps on its disk: name to revision and rule.
    pub fn rules_of_agent(&self, name: &str) -> BTreeMap<String, (i64, Value)> {
        let text = std::fs::read_to_string(self.folder.join(name).join("rules.json")).unwrap_or("{}".to_owned());
        let kept: Value = serde_json::from_str(&text).expect("JSON");
        let named = |rule: &Value| {
            let name = rule["rule"]["name"].as_str().expect("a name").to_owned();
            (name, (rule["revision"].as_i64().expect("a revision"), rule["rule"].clone()))
        };
        kept["rules"].as_array().into_iter().flatten().map(named).collect()
    }

    /// Panics if a process that should run has ended, or any has panicked.
    pub fn assert_alive(&mut self) {
        for name in CONFIGS.into_iter().chain(OTHERS) {
            let said = self.said(name);
            if let Some(Ok(Some(status))) = self.child(name).as_mut().map(Child::try_wait) {
                panic!("{name} ended with {status}: {said}");
            }
            assert!(!said.contains("panicked"), "{name} panicked: {said}");
        }
    }

    fn child(&mut self, name: &str) -> &mut Option<Child> {
        &mut self.processes.get_mut(name).unwrap_or_else(|| panic!("there is no {name}")).child
    }
}

impl Drop for Centre {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            if let Some(mut child) = process.child.take() {
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}
