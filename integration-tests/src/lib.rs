//! The harness of the end-to-end tests. They drive only what a user has: the built programs, the command line, gRPC by
//! `grpcurl`, and files.

pub mod centre;
pub mod client;
pub mod cluster;
pub mod compare;
pub mod deploy;
pub mod documents;
pub mod fleet;
pub mod gaps;
pub mod grpcurl;
pub mod mesh;
pub mod oracle;
pub mod program;
pub mod proxy;
pub mod torture;
pub mod writer;

pub use centre::Centre;
pub use client::{Client, PATIENCE};
pub use cluster::Cluster;
pub use mesh::Mesh;

/// The seed of a run and how long it lasts: what `MESH_SEED` and `MESH_MINUTES` say, else a random one and `time`.
pub fn run_from_env(time: std::time::Duration) -> (u64, std::time::Duration) {
    let number = |name: &str| std::env::var(name).ok();
    let seed = number("MESH_SEED").and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let minutes: Option<f64> = number("MESH_MINUTES").and_then(|minutes| minutes.parse().ok());
    (seed, minutes.map_or(time, |minutes| std::time::Duration::from_secs_f64(minutes * 60.0)))
}
