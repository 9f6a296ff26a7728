//! This machine in place of a container engine: starts what the files describe, in their order, and asks for health as they say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use logmesh_testing::servers::{Elasticsearch, Etcd, Kafka, Server};
use logmesh_testing::{Folder, wait_for};
use rustix::process::Signal;

use super::place::Places;
use super::{Alias, Container, Health, root};
use crate::cluster::http_get;
use crate::program::{self, Done, command, logmesh, logmesh_agent};
use crate::{Client, PATIENCE, grpcurl};

/// What runs until it's told to stop; other commands of `logmesh` end by themselves.
const SERVICES: [&str; 5] = ["config", "gateway", "transfer", "console", "standalone"];

/// Puts a process where nothing can be written but what follows `sh`, up to `--`, without any right but those of the first word.
const ISOLATE: &str = "rights=$1; shift; while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$1\" || exit; shift; done; shift; \
    mount -o remount,bind,ro / && exec setpriv --bounding-set=\"$rights\" --inh-caps=-all --no-new-privs \"$@\"";

/// The n-th instance of a container, from 0.
pub(crate) fn instance(container: &str, number: usize) -> String {
    format!("{container}-{}", number + 1)
}

/// Processes of this machine in place of containers.
#[derive(Debug)]
pub struct Machine {
    /// Holds all folders of the containers and of their host, and `said/` with what each wrote to stderr.
    pub folder: Folder,
    containers: BTreeMap<String, Container>,
    places: Places,
    servers: BTreeMap<String, Server>,
    running: BTreeMap<String, Child>,
}

impl Machine {
    /// A machine on which nothing runs yet.
    pub fn new(containers: Vec<Container>, aliases: BTreeMap<String, Alias>) -> Self {
        let folder = Folder::new();
        let places = Places::new(&folder, &containers, aliases);
        std::fs::create_dir(folder.join("said")).expect("a folder can be made in a new one");
        let containers: BTreeMap<_, _> = containers.into_iter().map(|one| (one.name.clone(), one)).collect();
        let machine = Self { folder, containers, places, servers: BTreeMap::new(), running: BTreeMap::new() };
        machine.prepare_folders();
        machine
    }

    /// Starts everything, each container when those before it are healthy; of those in `scale` so many instances.
    pub fn up(&mut self, scale: &[(&str, usize)]) {
        let mut left: BTreeSet<String> = self.containers.keys().cloned().collect();
        while !left.is_empty() {
            let is_next = |name: &&String| !self.containers[*name].after.iter().any(|before| left.contains(before));
            let next: Vec<String> = left.iter().filter(is_next).cloned().collect();
            assert!(!next.is_empty(), "{left:?} wait for each other");
            let count = |name: &str| scale.iter().find(|(scaled, _)| *scaled == name).map_or(1, |(_, count)| *count);
            for name in &next {
                (0..count(name)).for_each(|number| self.start(name, number));
            }
            for name in &next {
                (0..count(name)).for_each(|number| self.wait_healthy(name, number));
                left.remove(name);
            }
        }
    }

    /// Says in the environment what a file leaves to a default that may be taken on this machine.
    pub fn set_env(&mut self, container: &str, name: &str, value: &str) {
        let container = self.containers.get_mut(container).unwrap_or_else(|| panic!("there is no {container}"));
        container.env.insert(name.to_owned(), value.to_owned());
    }

    /// The command line, at a container's port.
    pub fn client(&self, container: &str, port: u16) -> Client {
        Client::new(&self.address(container, 0, port))
    }

    /// `host:port` here of an instance's port.
    pub fn address(&self, container: &str, number: usize, port: u16) -> String {
        format!("127.0.0.1:{}", self.places.port(&instance(container, number), port))
    }

    /// Where a path of the host lies here.
    pub fn host_path(&self, path: &str) -> PathBuf {
        self.places.folder(path)
    }

    /// What an instance wrote to stderr.
    pub fn said(&self, container: &str, number: usize) -> String {
        std::fs::read_to_string(self.said_path(&instance(container, number))).unwrap_or_default()
    }

    /// SIGTERM to each process of ours; panics unless all end in order.
    pub fn stop(&mut self) {
        for (name, child) in std::mem::take(&mut self.running).into_iter().rev() {
            program::signal(&child, Signal::TERM);
            let status = program::wait_end(&name, child);
            let said = std::fs::read_to_string(self.said_path(&name)).unwrap_or_default();
            assert!(status.success() && !said.contains("panicked"), "{name} ended with {status}: {said}");
        }
    }

    /// Runs a container's command with one more argument to its end, such as `--print-config`.
    pub fn run_with(&self, container: &str, more: &[&str]) -> Done {
        let container = &self.containers[container];
        let name = instance(&container.name, 0);
        self.write_files(&name, container);
        let mut command = self.command(&name, container, &container.command);
        command.args(more).output().expect("the program can be run").into()
    }

    fn start(&mut self, name: &str, number: usize) {
        let container = self.containers[name].clone();
        let instance = instance(name, number);
        self.write_files(&instance, &container);
        if let Some(server) = self.server(&instance, &container) {
            self.servers.insert(instance, server);
            return;
        }
        for health in &container.health {
            assert!(self.is_healthy(&instance, &container, health).is_err(), "{instance} is healthy before it runs");
        }
        let mut command = self.isolated(&container, &self.command(&instance, &container, &container.command));
        if ends_by_itself(&container) {
            let done: Done = command.output().expect("the program can be run").into();
            done.expect(0);
            return;
        }
        let said = OpenOptions::new().create(true).append(true).open(self.said_path(&instance));
        command.stdout(Stdio::null()).stderr(said.expect("a log can be made"));
        self.running.insert(instance, command.spawn().expect("the program can be started"));
    }

    fn wait_healthy(&mut self, name: &str, number: usize) {
        let container = self.containers[name].clone();
        let instance = instance(name, number);
        for health in &container.health {
            wait_for(&format!("{instance} to be healthy by {health:?}"), PATIENCE * 3, || {
                if let Some(Ok(Some(status))) = self.running.get_mut(&instance).map(Child::try_wait) {
                    panic!("{instance} ended with {status}: {}", self.said(name, number));
                }
                self.is_healthy(&instance, &container, health)
            });
        }
    }

    fn is_healthy(&self, instance: &str, container: &Container, health: &Health) -> Result<(), String> {
        let address = |port: &u16| format!("127.0.0.1:{}", self.places.port(instance, *port));
        match health {
            Health::Command(words) => {
                let done: Done =
                    self.command(instance, container, words).output().expect("the check can be run").into();
                if done.code == Some(0) { Ok(()) } else { Err(format!("{done:?}")) }
            }
            Health::Grpc(port, service) => {
                let request = format!("{{\"service\": \"{service}\"}}");
                let done = grpcurl::call(&address(port), "grpc.health.v1.Health/Check", &request, 5);
                if done.stdout.contains("\"SERVING\"") { Ok(()) } else { Err(format!("{done:?}")) }
            }
            Health::Http(port, path) => match http_get(&address(port), path) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
                other => Err(format!("{other:?}")),
            },
            Health::Tcp(port) => {
                std::net::TcpStream::connect(address(port)).map(drop).map_err(|error| error.to_string())
            }
        }
    }

    /// The process that these words of a container start here.
    fn command(&self, instance: &str, container: &Container, words: &[String]) -> Command {
        let here = |text: &String| self.places.here(instance, container, text);
        let (program, args) = words.split_first().expect("a command has a program");
        let (program, before): (PathBuf, &[&str]) = match program.as_str() {
            "/usr/bin/logmesh" | "/usr/local/bin/logmesh" => (logmesh().to_owned(), &[]),
            "/usr/bin/logmesh-agent" | "/usr/local/bin/logmesh-agent" => (logmesh_agent().to_owned(), &[]),
            "/usr/local/bin/etcdctl" => (root().join("backends/etcd/run"), &["ctl"]),
            "/opt/kafka/bin/kafka-broker-api-versions.sh" => {
                (root().join("backends/kafka/run"), &["tool", "BrokerApiVersionsCommand"])
            }
            "curl" => (PathBuf::from("curl"), &[]),
            other => panic!("{instance} runs {other}, which none of the images has"),
        };
        let mut command = command(&program);
        command.args(before).args(args.iter().map(here));
        command.envs(container.env.iter().map(|(name, value)| (name, here(value))));
        if before == ["ctl"] {
            // It asks etcd's own port without being told.
            command.env("ETCD_PORT", self.places.port(instance, 2379).to_string());
        }
        command
    }

    /// The same command where the file system is what the container's would be, if this user can have that.
    fn isolated(&self, container: &Container, command: &Command) -> Command {
        let rights = container.rights.iter().map(|right| format!(",+{}", right.to_lowercase()));
        let rights: String = ["-all".to_owned()].into_iter().chain(rights).collect();
        let mut isolated = Command::new("unshare");
        if container.read_only && can_isolate() {
            let folders =
                container.mounts.values().map(|source| self.places.folder(source)).filter(|path| path.is_dir());
            isolated.args(["--mount", "sh", "-c", ISOLATE, "sh", &rights]).args(folders);
            isolated.arg("--").arg(command.get_program());
        } else {
            isolated = Command::new(command.get_program());
        }
        isolated.args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => isolated.env(name, value),
                None => isolated.env_remove(name),
            };
        }
        isolated
    }

    /// The real server of an image that isn't ours, with the settings that the file gives it.
    fn server(&self, instance: &str, container: &Container) -> Option<Server> {
        let env =
            container.env.iter().map(|(name, value)| (name.clone(), self.places.here(instance, container, value)));
        let env: BTreeMap<String, String> = env.collect();
        let port = |inside| self.places.port(instance, inside).to_string();
        if container.image.contains("/etcd:") {
            return Some(Etcd::spawn(
                &[&pairs(&env)[..], &[("ETCD_PORT", &port(2379)), ("ETCD_LOG_LEVEL", "info")]].concat(),
            ));
        }
        if container.image.contains("/kafka:") {
            let file = self.places.file(instance, "/server.properties");
            write(&file, &properties(&env));
            let file = file.display().to_string();
            return Some(Kafka::spawn(&[("KAFKA_PORT", &port(9092)), ("KAFKA_CONFIG", &file)]));
        }
        if container.image.contains("/elasticsearch:") {
            let settings = env.iter().filter(|(name, _)| name.contains('.'));
            let settings: Vec<String> = settings.map(|(name, value)| format!("-E{name}={value}")).collect();
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let java = env.get("ES_JAVA_OPTS").map_or("", String::as_str);
            return Some(Elasticsearch::start_with(&[("ES_PORT", &port(9200)), ("ES_JAVA_OPTS", java)], &settings));
        }
        None
    }

    fn prepare_folders(&self) {
        for container in self.containers.values() {
            for source in container.mounts.values().filter(|source| !Path::new(source).is_file()) {
                std::fs::create_dir_all(self.places.folder(source)).expect("a folder can be made");
            }
        }
    }

    fn write_files(&self, instance: &str, container: &Container) {
        for (path, text) in &container.files {
            write(&self.places.file(instance, path), &self.places.here(instance, container, text));
        }
    }

    fn said_path(&self, instance: &str) -> PathBuf {
        self.folder.join("said").join(format!("{instance}.log"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// True for a command of ours that isn't a service.
fn ends_by_itself(container: &Container) -> bool {
    let [program, command, ..] = &container.command[..] else { return false };
    program.ends_with("/logmesh") && !SERVICES.contains(&command.as_str())
}

/// Kafka's image takes `KAFKA_LOG_DIRS` for `log.dirs`; what isn't for the broker is for the JVM.
fn properties(env: &BTreeMap<String, String>) -> String {
    let names = env.iter().filter_map(|(name, value)| Some((name.strip_prefix("KAFKA_")?, value)));
    let of_broker = names.filter(|(name, _)| !name.ends_with("_OPTS"));
    of_broker.map(|(name, value)| format!("{}={value}\n", name.to_lowercase().replace('_', "."))).collect()
}

fn pairs(env: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("a folder can be made");
    std::fs::write(path, text).expect("a file can be written");
}

/// True if this user may make a file system of its own read-only.
pub fn can_isolate() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let mut tried = Command::new("unshare");
        tried.args(["--mount", "sh", "-c", "mount -o remount,bind,ro / && setpriv --no-new-privs true"]);
        tried.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}
