//! The example clients, each generated, built and run in its language: what they say they do happens on a mesh.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::path::Path;

use logmesh_integration_tests::Mesh;
use logmesh_integration_tests::program::{Done, command};

/// Where nobody listens.
const NOBODY: &str = "127.0.0.1:1";

/// How many events an example writes.
const EVENTS: u64 = 3;

/// Runs a program of the repository.
fn run(program: &str, args: &[&str]) -> Done {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(program);
    command(&path).args(args).output().unwrap().into()
}

/// Takes a client's tour: it exits with 0 only if it has tailed and found what it wrote, and here that's looked for too.
fn tour(language: &str) {
    run("dev", &["clients", language]).expect(0);
    let mesh = Mesh::started();
    let agents = mesh.run(&["agents", "list", "--json"]).expect(0).stdout;
    let agent: serde_json::Value = serde_json::from_str(agents.lines().next().unwrap()).unwrap();

    let done = run("clients/run", &[language, mesh.grpc()]).expect(0);
    let all = ["tailed", "found"].map(|what| (0..EVENTS).map(move |number| format!("{what}: hello {number} from ")));
    let agent = format!("agent {}: online, 1 rules", agent["id"].as_str().unwrap());
    let others = ["  reason: INVALID_RULE", "  rule.paths[0]: ", "made rules/example-", "removed rules/example-", &agent];
    for text in all.into_iter().flatten().chain(others.map(str::to_owned)) {
        assert!(done.stdout.contains(&text), "{text:?} is not in {}", done.stdout);
    }
    assert_eq!(mesh.count("service.name:example"), EVENTS);
    assert!(!mesh.run(&["rules", "list"]).expect(0).stdout.contains("example"), "the rule is still there");

    let alone = run("clients/run", &[language, NOBODY]).expect(1);
    assert!(alone.stderr.to_lowercase().contains("unavailable"), "{alone:?}");
}

#[test]
fn python_client() {
    tour("python");
}

#[test]
fn go_client() {
    tour("go");
}

#[test]
fn typescript_client() {
    tour("typescript");
}

#[test]
fn java_client() {
    tour("java");
}
