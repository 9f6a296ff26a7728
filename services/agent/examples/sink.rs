//! What `benchmarks/agent.py` runs agents and other collectors against: a centre with one rule and a gateway that acks chunks
//! and keeps none, and a plain TCP port that reads and counts lines. It prints its addresses as JSON, then bytes acked and lines
//! counted whenever these have changed.
//!
//!     sink GLOB

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it ends when something is wrong, and its output is its answer"
)]

#[path = "../tests/mesh/mod.rs"]
mod mesh;

use std::io::Read;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use logmesh_proto::config::v1::Rule;
use mesh::{Centre, Gateway, Mode};

static LINES: AtomicU64 = AtomicU64::new(0);

#[tokio::main]
async fn main() {
    let glob = std::env::args().nth(1).unwrap();
    let (gateway, gateway_server) = Gateway::start(Mode::Discard).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    centre.tell(
        vec![Rule {
            name: "rules/all".into(),
            revision: 1,
            paths: vec![glob],
            topic: "logs".into(),
            ..Rule::default()
        }],
        &[],
    );
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    std::thread::spawn(move || count_lines(&plain));
    println!(r#"{{"centre": "{}", "plain": "{address}"}}"#, server.address);
    let mut told = (0, 0);
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let counted = (gateway.bytes.load(Ordering::Relaxed), LINES.load(Ordering::Relaxed));
        if counted != told {
            println!("{} {}", counted.0, counted.1);
            told = counted;
        }
    }
}

fn count_lines(listener: &TcpListener) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let lines = buffer[..length].iter().filter(|byte| **byte == b'\n').count();
                LINES.fetch_add(lines as u64, Ordering::Relaxed);
            }
        });
    }
}
