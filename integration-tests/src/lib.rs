//! The harness of the end-to-end tests. They drive only what a user has: the built programs, the command line, gRPC by
//! `grpcurl`, and files.

pub mod centre;
pub mod client;
pub mod cluster;
pub mod compare;
pub mod fleet;
pub mod grpcurl;
pub mod mesh;
pub mod oracle;
pub mod program;
pub mod torture;
pub mod writer;

pub use centre::Centre;
pub use client::{Client, PATIENCE};
pub use cluster::Cluster;
pub use mesh::Mesh;
