//! The harness of the end-to-end tests. They drive only what a user has: the built programs, the command line, gRPC by
//! `grpcurl`, and files.

pub mod compare;
pub mod grpcurl;
pub mod mesh;
pub mod oracle;
pub mod program;

pub use mesh::Mesh;
