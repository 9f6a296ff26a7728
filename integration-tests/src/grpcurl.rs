//! `grpcurl`, which knows nothing of our proto files: it asks the server by reflection.

use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use logmesh_types::UnixNanos;
use serde_json::json;

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

/// Sends lines of topic `logs`, read at this time, as an agent would.
pub fn push(addr: &str, stream: &str, start: usize, text: &str, read_time: UnixNanos) {
    let chunk = json!({"chunk": {
        "stream_id": stream, "topic": "logs", "rule": "rules/old", "rule_revision": 1,
        "start_offset": start, "end_offset": start + text.len(),
        "data": BASE64.encode(text.as_bytes()), "crc32c": crc32c::crc32c(text.as_bytes()),
        "read_time": read_time.to_string(), "source": {"agent_id": "web-1", "path": "/var/log/old.log"},
    }});
    let done = call(addr, "logmesh.ingest.v1.IngestService/Push", &chunk.to_string(), 30).expect(0);
    assert!(done.stdout.contains("\"ack\""), "{done:?}");
}

/// Calls a method with a request in JSON. Streams are read for at most `seconds`.
pub fn call(addr: &str, method: &str, request: &str, seconds: u32) -> Done {
    grpcurl(&["-max-time", &seconds.to_string(), "-d", request], addr, &[method])
}
