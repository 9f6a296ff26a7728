//! A real etcd, Kafka and Elasticsearch for tests: on free loopback ports, in temporary folders, and gone with the test.
//!
//! The scripts in `backends/` put them together; `./dev test` fetches and builds them before the tests, and a test that
//! comes first does so itself. Each server runs under `backends/guard`, which kills it when the pipe from this process
//! closes: also when the test is killed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{Folder, wait_for};

/// The ports that servers get.
const LOWEST: u16 = 10_000;
const HIGHEST: u16 = 32_000;

/// How long a start may take, a first build on a busy machine included.
const PATIENCE: Duration = Duration::from_secs(300);

/// etcd. Every `ETCD_…` variable is etcd's own option.
#[derive(Debug)]
pub struct Etcd;

/// Kafka in KRaft mode. `backends/kafka/run` tells its variables.
#[derive(Debug)]
pub struct Kafka;

/// Elasticsearch. `backends/elasticsearch/run` tells its variables.
#[derive(Debug)]
pub struct Elasticsearch;

impl Etcd {
    /// A ready server.
    pub fn start(env: &[(&str, &str)]) -> Server {
        Self::spawn(env).ready()
    }

    /// A server that isn't ready yet: one of several members.
    pub fn spawn(env: &[(&str, &str)]) -> Server {
        // At `info` it logs when it is ready, whatever its TLS and authentication.
        Server::spawn(ETCD, &[&[("ETCD_LOG_LEVEL", "info")], env].concat(), &[])
    }

    /// The ready members of one cluster, all with these options.
    pub fn members(count: usize, env: &[(&str, &str)]) -> Vec<Server> {
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let peers = ports.iter().enumerate().map(|(n, port)| format!("n{n}=http://127.0.0.1:{}", port + 1));
        let cluster = peers.collect::<Vec<_>>().join(",");
        let spawn = |(n, port): (usize, &u16)| {
            let (name, port) = (format!("n{n}"), port.to_string());
            let own = [("ETCD_NAME", &name[..]), ("ETCD_PORT", &port), ("ETCD_INITIAL_CLUSTER", &cluster)];
            Self::spawn(&[&own, env].concat())
        };
        let mut members: Vec<Server> = ports.iter().enumerate().map(spawn).collect();
        members.iter_mut().for_each(Server::wait_ready);
        members
    }
}

impl Kafka {
    /// A ready server.
    pub fn start(env: &[(&str, &str)]) -> Server {
        Self::spawn(env).ready()
    }

    /// Nodes of one cluster, each broker and controller, all with these variables. None is ready before most of them run.
    pub fn spawn_nodes(count: usize, env: &[(&str, &str)]) -> Vec<Server> {
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let voters = ports.iter().enumerate().map(|(n, port)| format!("{}@127.0.0.1:{}", n + 1, port + 1));
        let quorum = voters.collect::<Vec<_>>().join(",");
        let spawn = |(n, port): (usize, &u16)| {
            let (id, port) = ((n + 1).to_string(), port.to_string());
            let own = [("KAFKA_NODE_ID", &id[..]), ("KAFKA_PORT", &port), ("KAFKA_QUORUM", &quorum)];
            Self::spawn(&[&own[..], &[("KAFKA_HEAP", "320m")], env].concat())
        };
        ports.iter().enumerate().map(spawn).collect()
    }

    /// A server that isn't ready yet: one of several nodes.
    pub fn spawn(env: &[(&str, &str)]) -> Server {
        Server::spawn(KAFKA, env, &[])
    }
}

impl Elasticsearch {
    /// A ready server.
    pub fn start(env: &[(&str, &str)]) -> Server {
        Self::start_with(env, &[])
    }

    /// A ready server with arguments of its own: `-Esetting=value`.
    pub fn start_with(env: &[(&str, &str)], args: &[&str]) -> Server {
        Server::spawn(ELASTICSEARCH, env, args).ready()
    }
}

/// The etcd that all tests of this process share. Use keys of your own.
pub fn etcd() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::shared(ETCD, &[("ETCD_LOG_LEVEL", "info"), ("ETCD_UNSAFE_NO_FSYNC", "true")]))
}

/// The Kafka that all tests of this process share. Use topics and groups of your own.
pub fn kafka() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::shared(KAFKA, &[]))
}

/// The Elasticsearch that all tests of this process share. Use indices of your own.
pub fn elasticsearch() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::shared(ELASTICSEARCH, &[]))
}

/// A loopback port with a free one after it, not given to another test of this process before. Below those that the system
/// gives to connections and to port 0, so that nobody takes it by chance before its server does.
pub fn free_port() -> u16 {
    free_port_with(1)
}

/// The same with one more free port, this far above it.
pub fn free_port_with(above: u16) -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = LOWEST + (random() % u64::from(HIGHEST - LOWEST)) as u16;
        let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
        let ports = [port, port + 1, port + above];
        let is_given = |port: &u16| given.iter().any(|other| other.abs_diff(*port) <= 1);
        if ports.iter().all(is_free) && !ports.iter().any(is_given) {
            given.extend(ports);
            return port;
        }
    }
}

/// A number that another process doesn't draw as well.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What differs between the servers.
struct Kind {
    name: &'static str,
    port: &'static str,
    data: &'static str,
    ready: &'static str,
}

const ETCD: Kind = Kind { name: "etcd", port: "ETCD_PORT", data: "ETCD_DATA", ready: "ready to serve client requests" };
const KAFKA: Kind =
    Kind { name: "kafka", port: "KAFKA_PORT", data: "KAFKA_DATA", ready: "Kafka Server started (KafkaRaftServer)" };
const ELASTICSEARCH: Kind = Kind { name: "elasticsearch", port: "ES_PORT", data: "ES_DATA", ready: " ready on " };

/// A server that runs, or ran: it can be killed and started again on the same port and data.
pub struct Server {
    kind: Kind,
    folder: Folder,
    port: u16,
    env: Vec<(String, String)>,
    args: Vec<String>,
    running: Option<Running>,
}

struct Running {
    guard: Child,
    server: Pid,
    /// Where this start begins in the log.
    log_from: u64,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} in {}", self.kind.name, self.address(), self.folder.display())
    }
}

impl Server {
    /// A ready server for a `static`, which is never dropped: its guard removes the folder.
    fn shared(kind: Kind, env: &[(&str, &str)]) -> Self {
        Self::spawn(kind, &[&[("GUARD_REMOVE", "yes")], env].concat(), &[]).ready()
    }

    fn spawn(kind: Kind, env: &[(&str, &str)], args: &[&str]) -> Self {
        let port = env.iter().find(|(name, _)| *name == kind.port).map(|(_, port)| port.parse().expect("a port"));
        let mut server = Self {
            port: port.unwrap_or_else(free_port),
            kind,
            folder: Folder::new(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            running: None,
        };
        server.spawn_again();
        server
    }

    /// Starts the process, without waiting until it's ready.
    pub fn spawn_again(&mut self) {
        assert!(self.running.is_none(), "{self:?} runs already");
        let backends = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../backends");
        let log = OpenOptions::new().create(true).append(true).open(self.log()).expect("a log file can be made");
        let log_from = log.metadata().expect("a log file has a size").len();
        let mut command = Command::new(backends.join("guard"));
        command.arg(backends.join(self.kind.name).join("run")).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.env(self.kind.port, self.port.to_string()).env(self.kind.data, self.folder.join("data"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).current_dir(&*self.folder);
        let mut guard = command.spawn().expect("backends/guard can be run");
        let mut line = String::new();
        let stdout = guard.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the guard says the server's process id");
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let server = pid.unwrap_or_else(|| panic!("the guard said {line:?} instead of a process id"));
        self.running = Some(Running { guard, server, log_from });
    }

    /// Waits until it's ready.
    pub fn wait_ready(&mut self) {
        let what = format!("{self:?} to be ready");
        wait_for(&what, PATIENCE, || {
            let said = self.said_since_start();
            if said.contains(self.kind.ready) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.running().guard.try_wait() {
                panic!("{self:?} ended with {status}: {said}");
            }
            Err(said)
        });
    }

    fn ready(mut self) -> Self {
        self.wait_ready();
        self
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder that holds the data and the log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the server writes, over all its starts.
    pub fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// The process id.
    ///
    /// Panics if it doesn't run.
    pub fn pid(&self) -> Pid {
        self.running.as_ref().expect("it runs").server
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_end();
    }

    /// SIGTERM, and SIGKILL if that isn't heard in 20 s.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        for _ in 0..200 {
            if matches!(self.running().guard.try_wait(), Ok(Some(_))) {
                self.running = None;
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.kill();
    }

    /// Sends the server's process a signal.
    pub fn signal(&self, signal: Signal) {
        // One that has ended by itself is what the next step sees.
        kill_process(self.pid(), signal).unwrap_or_default();
    }

    /// Starts it again on the same port and data, and waits until it's ready.
    pub fn start_again(&mut self) {
        self.spawn_again();
        self.wait_ready();
    }

    fn wait_end(&mut self) {
        let mut running = self.running.take().expect("it runs");
        running.guard.wait().expect("a child can be waited for");
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("it runs")
    }

    fn said_since_start(&self) -> String {
        let from = self.running.as_ref().map_or(0, |running| running.log_from);
        let mut text = Vec::new();
        let read = File::open(self.log()).and_then(|mut log| {
            log.seek(SeekFrom::Start(from))?;
            log.read_to_end(&mut text)
        });
        read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running.is_some() {
            // One that was frozen dies all the same.
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_killed_and_started_again_on_its_port() {
        let mut server = Etcd::start(&[]);
        let (address, pid) = (server.address(), server.pid());
        assert!(std::net::TcpStream::connect(&address).is_ok());
        server.kill();
        assert!(std::net::TcpStream::connect(&address).is_err());
        server.start_again();
        assert_ne!(server.pid(), pid);
        assert!(std::net::TcpStream::connect(&address).is_ok());
        server.stop();
        assert!(std::net::TcpStream::connect(&address).is_err());
    }

    #[test]
    fn the_guard_ends_its_server_when_nobody_holds_it() {
        let mut server = Etcd::start(&[]);
        let address = server.address();
        drop(server.running().guard.stdin.take());
        wait_for("the server to be gone", PATIENCE, || match std::net::TcpStream::connect(&address) {
            Ok(_) => Err("it still listens".to_owned()),
            Err(_) => Ok(()),
        });
    }
}
