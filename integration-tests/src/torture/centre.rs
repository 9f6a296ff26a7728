//! What the tortured agent is connected to: a standalone, or services apart on real servers.

use std::path::Path;

use logmesh_testing::servers::free_port;
use rustix::process::Signal;

use crate::{Client, Cluster, Mesh};

/// See the module.
#[derive(Debug)]
pub enum Centre {
    /// One process on embedded stores; topics are in `chunks`.
    Standalone(Box<Mesh>),
    /// Each service a process, on etcd, Kafka and Elasticsearch; topics are in `events`.
    Apart(Box<Cluster>),
}

/// Where agents push to.
const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];

impl Centre {
    /// A standalone that runs, and keeps its port when it's started again.
    pub fn standalone() -> Self {
        let mut mesh = Mesh::new();
        mesh.collect = Vec::new();
        mesh.errors_expected = true;
        mesh.listen = format!("127.0.0.1:{}", free_port());
        mesh.start();
        Self::Standalone(Box::new(mesh))
    }

    /// Services that run, without the agent.
    pub fn apart() -> Self {
        let mut cluster = Cluster::new("");
        for name in cluster.names().into_iter().filter(|name| *name != crate::cluster::AGENT) {
            cluster.spawn(name);
        }
        cluster.client().wait_ready();
        Self::Apart(Box::new(cluster))
    }

    /// The folder of everything; `logs/` in it is there.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Standalone(mesh) => &mesh.folder,
            Self::Apart(cluster) => &cluster.folder,
        }
    }

    /// Where agents find their rules.
    pub fn server(&self) -> String {
        match self {
            Self::Standalone(mesh) => mesh.grpc().to_owned(),
            Self::Apart(cluster) => cluster.grpc("config"),
        }
    }

    /// The command line.
    pub fn client(&self) -> Client {
        match self {
            Self::Standalone(mesh) => mesh.client(),
            Self::Apart(cluster) => cluster.client(),
        }
    }

    /// `kill -9` of what takes the agent's events: one of two gateways, or all there is.
    pub fn kill(&mut self, which: usize) {
        match self {
            Self::Standalone(mesh) => mesh.kill(),
            Self::Apart(cluster) => cluster.kill(GATEWAYS[which % GATEWAYS.len()]),
        }
    }

    /// Starts it again.
    pub fn start_again(&mut self, which: usize) {
        match self {
            Self::Standalone(mesh) => mesh.start(),
            Self::Apart(cluster) => cluster.start_again(GATEWAYS[which % GATEWAYS.len()]),
        }
    }

    /// Sends a signal to everything that takes events.
    pub fn signal(&mut self, signal: Signal) {
        match self {
            Self::Standalone(mesh) => mesh.signal(signal),
            Self::Apart(cluster) => GATEWAYS.into_iter().for_each(|name| cluster.signal(name, signal)),
        }
    }
}
