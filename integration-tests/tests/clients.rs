//! Programs that others write: the example clients do on a mesh what they say, each generated, built and run in its
//! language; the descriptors that `logmesh descriptors` writes are true, and those of the last release still serve.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use logmesh_integration_tests::Mesh;
use logmesh_integration_tests::grpcurl::grpcurl;
use logmesh_integration_tests::program::{Done, command, logmesh};
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// Where nobody listens.
const NOBODY: &str = "127.0.0.1:1";

/// How many events an example writes.
const EVENTS: u64 = 3;

/// A file of the repository.
fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs a program of the repository.
fn run(program: &str, args: &[&str]) -> Done {
    command(&root(program)).args(args).output().unwrap().into()
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
    let others =
        ["  reason: INVALID_RULE", "  rule.paths[0]: ", "made rules/example-", "removed rules/example-", &agent];
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

/// The files of a set by name, without what only says where in a source something stands.
fn files(set: &[u8]) -> BTreeMap<String, FileDescriptorProto> {
    let name =
        |file: FileDescriptorProto| (file.name().to_owned(), FileDescriptorProto { source_code_info: None, ..file });
    FileDescriptorSet::decode(set).unwrap().file.into_iter().map(name).collect()
}

#[test]
fn descriptors_are_those_of_the_sources() {
    run("dev", &["clients", "python"]).expect(0); // installs buf
    let printed = command(logmesh()).arg("descriptors").output().unwrap();
    assert!(printed.status.success());
    // Another compiler than the one that the build uses.
    let args = ["build", "--as-file-descriptor-set", "-o", "-#format=binpb"];
    let built = command(&root(".tools/venv/bin/buf")).args(args).current_dir(root("")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert_eq!(files(&printed.stdout), files(&built.stdout));
}

#[test]
fn grpcurl_works_without_reflection() {
    let mesh = Mesh::started();
    let written = mesh.folder.join("logmesh.binpb");
    let printed = command(logmesh()).arg("descriptors").output().unwrap().stdout;
    std::fs::write(&written, printed).unwrap();
    for set in [written, root("proto/released.binpb")] {
        let options = ["-use-reflection=false", "-protoset", set.to_str().unwrap()];
        let list = grpcurl(&options, mesh.grpc(), &["list"]).expect(0).stdout;
        assert!(list.contains("logmesh.search.v1.SearchService\n") && !list.contains("reflection"), "{list}");
        let method = "logmesh.fleet.v1.FleetService/ListAgents";
        let answer = grpcurl(&options, mesh.grpc(), &[method]).expect(0).stdout;
        assert!(answer.contains(r#""online": true"#), "{answer}");
    }
}
