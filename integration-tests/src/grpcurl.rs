//! `grpcurl`, which knows nothing of our proto files: it asks the server by reflection.

use std::path::{Path, PathBuf};

use crate::program::{Done, command};

/// The program that `./dev tools` installed, else the one on the path.
fn program() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/grpcurl");
    if ours.exists() { ours } else { PathBuf::from("grpcurl") }
}

/// Runs `grpcurl -plaintext OPTIONS ADDR ARGS`.
pub fn grpcurl(options: &[&str], addr: &str, args: &[&str]) -> Done {
    let output = command(&program()).arg("-plaintext").args(options).arg(addr).args(args).output();
    output.expect("grpcurl can be run; ./dev tools installs it").into()
}

/// Calls a method with a request in JSON. Streams are read for at most `seconds`.
pub fn call(addr: &str, method: &str, request: &str, seconds: u32) -> Done {
    grpcurl(&["-max-time", &seconds.to_string(), "-d", request], addr, &[method])
}
