//! A mesh of processes apart, on a real etcd, Kafka and Elasticsearch: each started, killed and asked by its name.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use logmesh_testing::faults::unchunked;
use logmesh_testing::servers::{Elasticsearch, Etcd, Kafka, Server, free_port};
use logmesh_testing::{Folder, wait_for};
use rustix::process::Signal;
use serde_json::Value;

use crate::client::{Client, PATIENCE, json_lines};
use crate::program::{self, command, logmesh, logmesh_agent};
use crate::proxy::Proxy;

/// The services of a mesh in the order in which they are started; what stands before the `-` is the command.
const SERVICES: [&str; 6] = ["config", "gateway-1", "gateway-2", "transfer-1", "transfer-2", "console"];

/// The services of a mesh that has two of each that stores nothing.
const MANY: [&str; 7] = ["config-1", "config-2", "gateway-1", "gateway-2", "transfer-1", "transfer-2", "console"];

/// Three brokers.
const BROKERS: [&str; 3] = ["kafka-1", "kafka-2", "kafka-3"];

/// What a proxy can stand before.
const PROXIED: [&str; 4] = ["etcd", "elasticsearch", "gateway-1", "gateway-2"];

/// The agent's name here.
pub const AGENT: &str = "agent";

/// Real servers, services and one agent, each a process.
#[derive(Debug)]
pub struct Cluster {
    /// Holds `logs/`, which the agent may read, and `said/` with what each process wrote to stderr.
    pub folder: Folder,
    backends: BTreeMap<&'static str, Server>,
    /// In the order in which they are started, the agent last.
    names: Vec<&'static str>,
    services: BTreeMap<&'static str, Service>,
    /// What calls to a server or service go through, if they don't go straight to it.
    proxies: BTreeMap<&'static str, Proxy>,
    settings: PathBuf,
}

#[derive(Debug)]
struct Service {
    port: u16,
    child: Option<Child>,
}

impl Cluster {
    /// Servers that run and are ready, and no service yet. `extra` is put at the end of the services' settings.
    pub fn new(extra: &str) -> Self {
        // Slow starters first; all three are under way together.
        let kafka = Kafka::spawn(&[]);
        let etcd = Etcd::start(&[]);
        let elasticsearch = Elasticsearch::start(&[]);
        let mut backends = BTreeMap::from([("etcd", etcd), ("kafka", kafka), ("elasticsearch", elasticsearch)]);
        backends.get_mut("kafka").expect("it is there").wait_ready();
        Self::on(backends, &SERVICES, &[], extra)
    }

    /// The same with three brokers and two of most services; calls to etcd, Elasticsearch and the gateways go through
    /// proxies. Elasticsearch has little room for bulks, so that it turns some away.
    pub fn large(extra: &str) -> Self {
        let brokers = Kafka::spawn_nodes(BROKERS.len(), &[]);
        let etcd = Etcd::start(&[]);
        let elasticsearch = Elasticsearch::start_with(&[], &["-Ethread_pool.write.queue_size=4"]);
        let mut backends: BTreeMap<_, _> = BROKERS.into_iter().zip(brokers).collect();
        backends.values_mut().for_each(Server::wait_ready);
        backends.extend([("etcd", etcd), ("elasticsearch", elasticsearch)]);
        Self::on(backends, &MANY, &PROXIED, extra)
    }

    fn on(
        backends: BTreeMap<&'static str, Server>,
        services: &[&'static str],
        proxied: &[&'static str],
        extra: &str,
    ) -> Self {
        let folder = Folder::new();
        for name in ["logs", "said"] {
            std::fs::create_dir(folder.join(name)).expect("a folder can be made in a new one");
        }
        let names: Vec<_> = services.iter().copied().chain([AGENT]).collect();
        let service = |name: &&'static str| (*name, Service { port: free_port(), child: None });
        let services: BTreeMap<_, _> = names.iter().map(service).collect();
        let straight = |name| match backends.get(name) {
            Some(server) => server.address(),
            None => format!("127.0.0.1:{}", services[name].port),
        };
        let proxies = proxied.iter().map(|name| (*name, Proxy::before(&straight(*name)))).collect();
        let settings = folder.join("mesh.toml");
        let cluster = Self { folder, backends, names, services, proxies, settings };
        std::fs::write(&cluster.settings, cluster.settings_text(extra)).expect("settings can be written");
        cluster
    }

    /// Everything runs and is ready.
    pub fn started() -> Self {
        let mut cluster = Self::new("");
        cluster.start();
        cluster
    }

    /// Starts all services and the agent, and waits until they are ready.
    pub fn start(&mut self) {
        for name in self.names() {
            self.spawn(name);
        }
        self.client().wait_ready();
    }

    /// The names of the services and of the agent.
    pub fn names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    /// The names of the servers that the services run on.
    pub fn backends(&self) -> Vec<&'static str> {
        self.backends.keys().copied().collect()
    }

    /// What stands before servers and gateways.
    pub fn proxies(&self) -> Vec<&Proxy> {
        self.proxies.values().collect()
    }

    /// One of the servers.
    pub fn backend(&mut self, name: &str) -> &mut Server {
        self.backends.get_mut(name).unwrap_or_else(|| panic!("there is no server {name}"))
    }

    /// The command line, through the front door.
    pub fn client(&self) -> Client {
        Client::new(&self.grpc("console"))
    }

    /// The path of a log file, which needn't be there.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(name)
    }

    /// `host:port` of a service's gRPC.
    pub fn grpc(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.services[name].port)
    }

    /// `host:port` of a service's metrics and readiness.
    pub fn admin(&self, name: &str) -> String {
        format!("127.0.0.1:{}", self.services[name].port + 1)
    }

    /// What a process said, over all its starts.
    pub fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.said_path(name)).unwrap_or_default()
    }

    fn said_path(&self, name: &str) -> PathBuf {
        self.folder.join("said").join(format!("{name}.log"))
    }

    /// Starts a process.
    pub fn spawn(&mut self, name: &'static str) {
        let log = OpenOptions::new().create(true).append(true).open(self.said_path(name)).expect("a log can be made");
        let (grpc, admin) = (self.grpc(name), self.admin(name));
        let mut command = if name == AGENT {
            let mut command = command(logmesh_agent());
            for name in self.configs() {
                command.args(["--server", &self.grpc(name)]);
            }
            command.arg("--state-dir").arg(self.folder.join("agent"));
            command.arg("--allow").arg(self.folder.join("logs/**"));
            for server in self.backends.values() {
                command.arg("--allow").arg(server.log());
            }
            command.env("LOGMESH_LISTEN_ADMIN", &admin);
            command
        } else {
            let mut command = command(logmesh());
            command.arg(name.split('-').next().unwrap_or(name)).arg("--config").arg(&self.settings);
            command.args(["--listen", &grpc, "--listen-admin", &admin]);
            if let Some(proxy) = self.proxies.get(name) {
                command.env("LOGMESH_ADVERTISE", proxy.address());
            }
            command
        };
        command.stdout(Stdio::null()).stderr(log);
        let service = self.services.get_mut(name).unwrap_or_else(|| panic!("there is no service {name}"));
        assert!(service.child.is_none(), "{name} runs already");
        service.child = Some(command.spawn().expect("the program can be started"));
    }

    /// `kill -9` of a service, the agent or a server.
    pub fn kill(&mut self, name: &str) {
        if let Some(server) = self.backends.get_mut(name) {
            return server.kill();
        }
        let mut child = self.child(name).take().expect("it runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Starts what was killed; a server is ready then.
    pub fn start_again(&mut self, name: &'static str) {
        match self.backends.get_mut(name) {
            Some(server) => server.start_again(),
            None => self.spawn(name),
        }
    }

    /// Sends a service, the agent or a server a signal.
    pub fn signal(&mut self, name: &str, signal: Signal) {
        if let Some(server) = self.backends.get(name) {
            return server.signal(signal);
        }
        program::signal(self.child(name).as_ref().expect("it runs"), signal);
    }

    /// SIGTERM to a service or the agent; panics unless it ends in order.
    pub fn stop(&mut self, name: &str) {
        self.signal(name, Signal::TERM);
        let status = program::wait_end(name, self.child(name).take().expect("it runs"));
        assert!(status.success(), "{name} ended with {status}: {}", self.said(name));
    }

    /// The answer of a service's `/readyz`: its status line and body; empty while it doesn't answer.
    pub fn readyz(&self, name: &str) -> String {
        http_get(&self.admin(name), "/readyz").unwrap_or_default()
    }

    /// Panics if a process that should run has ended, or any has panicked.
    pub fn assert_alive(&mut self) {
        for name in self.names() {
            let said = self.said(name);
            if let Some(Ok(Some(status))) = self.child(name).as_mut().map(Child::try_wait) {
                panic!("{name} ended with {status}: {said}");
            }
            assert!(!said.contains("panicked"), "{name} panicked: {said}");
        }
    }

    fn configs(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().copied().filter(|name| name.starts_with("config"))
    }

    /// One settings file for all services.
    fn settings_text(&self, extra: &str) -> String {
        let address = |name: &str| match self.proxies.get(name) {
            Some(proxy) => proxy.address(),
            None => self.backends[name].address(),
        };
        let configs: Vec<String> = self.configs().map(|name| self.grpc(name)).collect();
        let brokers = self.backends.iter().filter(|(name, _)| name.starts_with("kafka"));
        let brokers: Vec<String> = brokers.map(|(_, server)| server.address()).collect();
        format!(
            "config_servers = {configs:?}\n[etcd]\nendpoints = [{:?}]\n[kafka]\nbrokers = {brokers:?}\n\
             [elasticsearch]\nurls = [\"http://{}\"]\nreplicas = 0\n{extra}",
            address("etcd"),
            address("elasticsearch"),
        )
    }

    fn child(&mut self, name: &str) -> &mut Option<Child> {
        &mut self.services.get_mut(name).unwrap_or_else(|| panic!("there is no service {name}")).child
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for service in self.services.values_mut() {
            if let Some(mut child) = service.child.take() {
                drop(child.kill());
                drop(child.wait());
            }
        }
    }
}

pub(crate) fn http_get(address: &str, path: &str) -> std::io::Result<String> {
    http(address, "GET", path, "")
}

/// Sends a request with a JSON body; the answer as it comes, status line and headers too, its body in one piece.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    use std::io::{Error, Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let (head, body) = answer.split_at(end);
    let chunked = head.to_ascii_lowercase().windows(7).any(|word| word == b"chunked");
    let body = if chunked { unchunked(body) } else { body.to_vec() };
    String::from_utf8([head, &body].concat()).map_err(Error::other)
}

/// Applies a rule that collects these globs of this host into a topic, by the command line at the front door, and waits until
/// the agent runs it.
#[track_caller]
pub fn apply(cluster: &Cluster, name: &str, globs: &[&Path], topic: &str) {
    let file = cluster.folder.join(format!("{name}.yaml"));
    let rule = rule(name, globs).replace("topic: logs", &format!("topic: {topic}"));
    std::fs::write(&file, rule).expect("a rule can be written");
    cluster.client().run(&["rules", "apply", "-f", &file.to_string_lossy()]).expect(0);
    wait_for("the agent to run the rule", PATIENCE, || {
        let agents = cluster.client().run(&["agents", "list", "--json"]).expect(0);
        let applied = |agent: &Value| {
            let mut rules = agent["rules"].as_array().into_iter().flatten();
            rules.any(|rule| rule["name"] == format!("rules/{name}") && rule["state"] == "applied")
        };
        if json_lines(&agents.stdout).iter().any(applied) { Ok(()) } else { Err(agents.stdout) }
    });
}

/// A rule in YAML that collects these globs of this host into topic `logs`.
pub fn rule(name: &str, globs: &[&Path]) -> String {
    let paths: Vec<String> = globs.iter().map(|glob| format!("{:?}", glob.display().to_string())).collect();
    format!("name: rules/{name}\nselector: \"os=linux\"\npaths: [{}]\ntopic: logs\n", paths.join(", "))
}
