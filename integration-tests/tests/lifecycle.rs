//! Starting, stopping and starting again.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::fs::OpenOptions;
use std::io::Write;

use logmesh_integration_tests::compare::{assert_equal, by_path};
use logmesh_integration_tests::{Mesh, PATIENCE};
use logmesh_testing::wait_for;
use rustix::process::Signal;

fn append(mesh: &Mesh, name: &str, lines: std::ops::Range<u32>) {
    let mut file = OpenOptions::new().create(true).append(true).open(mesh.log(name)).unwrap();
    for number in lines {
        writeln!(file, "line {number} of {name}").unwrap();
    }
}

#[test]
fn ctrl_c_stops_it_cleanly_and_it_goes_on_where_it_was() {
    let mut mesh = Mesh::new();
    append(&mesh, "a.log", 0..1_000);
    mesh.start();
    mesh.wait_count("*", 1_000);
    assert_eq!(mesh.stop().code(), Some(0), "{}", mesh.said());

    append(&mesh, "a.log", 1_000..1_500);
    mesh.start();
    mesh.wait_count("*", 1_500);
    mesh.audit();
    let documents = mesh.search("*");
    assert_equal(&mesh.log("a.log"), &by_path(&documents)[&mesh.log("a.log").display().to_string()]);
    assert_eq!(mesh.stop().code(), Some(0), "{}", mesh.said());
}

#[test]
fn sigterm_is_as_good_and_a_stop_under_load_loses_nothing() {
    let mut mesh = Mesh::started();
    append(&mesh, "b.log", 0..5_000);
    wait_for("the first lines", PATIENCE, || if mesh.count("*") > 0 { Ok(()) } else { Err("none".to_owned()) });
    mesh.signal(Signal::TERM);
    assert_eq!(mesh.wait_end().code(), Some(0), "{}", mesh.said());
    mesh.start();
    mesh.wait_count("*", 5_000);
    mesh.audit();
    assert!(mesh.stop().success());
}

#[test]
fn readiness_and_metrics_are_there() {
    let mesh = Mesh::started();
    // The services are; the agent, which a status doesn't ask, may still be connecting to them.
    wait_for("all components to be ready", PATIENCE, || match http_get(mesh.admin(), "/readyz") {
        ready if ready.starts_with("HTTP/1.1 200") => Ok(()),
        other => Err(other),
    });
    assert!(http_get(mesh.admin(), "/healthz").starts_with("HTTP/1.1 200"));
    let metrics = http_get(mesh.admin(), "/metrics");
    assert!(metrics.contains("# TYPE logmesh_"), "{metrics}");
}

fn http_get(addr: &str, path: &str) -> String {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
