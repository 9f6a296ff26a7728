//! The workspace keeps its structure: who may use whom, lints everywhere, sorted dependency lists.
//!
//! `DESIGN.md` draws the parts; this is the table that a build can't argue with. A new crate gets a line here.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Each package and the packages of ours that it may use outside its tests. No service uses another or a backend crate;
/// only the `logmesh` program puts them together.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("proto", &["types"]),
    ("glob", &["types"]),
    ("text", &[]),
    ("rules", &["glob", "proto", "text", "types"]),
    ("tail", &["glob", "text", "types"]),
    ("record", &["bus", "index", "proto", "text", "types"]),
    ("store", &["runtime", "types"]),
    ("bus", &["types"]),
    ("index", &["types"]),
    ("store-embedded", &["runtime", "store", "types"]),
    ("store-etcd", &["runtime", "store", "types"]),
    ("bus-embedded", &["bus", "runtime", "types"]),
    ("bus-kafka", &["bus", "runtime", "types"]),
    ("index-elasticsearch", &["index", "runtime", "types"]),
    ("index-embedded", &["index", "runtime", "types"]),
    ("runtime", &["types"]),
    ("grpc", &["proto", "runtime", "types"]),
    ("testing", &[]),
    ("agent", &["grpc", "proto", "record", "rules", "runtime", "tail", "types"]),
    ("config", &["grpc", "proto", "rules", "runtime", "store", "types"]),
    ("gateway", &["bus", "grpc", "proto", "record", "rules", "runtime", "types"]),
    ("transfer", &["bus", "grpc", "index", "proto", "record", "rules", "runtime", "types"]),
    ("console", &["bus", "grpc", "index", "proto", "record", "rules", "runtime", "types"]),
    (
        "logmesh",
        &[
            "agent",
            "bus",
            "bus-embedded",
            "bus-kafka",
            "config",
            "console",
            "gateway",
            "glob",
            "grpc",
            "index",
            "index-elasticsearch",
            "index-embedded",
            "proto",
            "record",
            "rules",
            "runtime",
            "store",
            "store-embedded",
            "store-etcd",
            "transfer",
            "types",
        ],
    ),
    ("integration-tests", &["proto", "types"]),
];

/// Used by tests only.
const TESTS_ONLY: &[&str] = &["testing"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The packages of the workspace, as `cargo metadata` tells them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn short(name: &str) -> &str {
    name.strip_prefix("logmesh-").unwrap_or(name)
}

fn manifest(package: &Value) -> String {
    std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap()
}

#[test]
fn every_dependency_points_the_right_way() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = short(package["name"].as_str().unwrap());
        let Some(allowed) = arrows.get(name) else {
            wrong.push(format!("{name} is not in the table of integration-tests/tests/structure.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"] == "dev" || name == "integration-tests";
            if ours.contains(used) && !is_allowed(short(used), allowed, for_tests) {
                wrong.push(format!("{name} must not use {}", short(used)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Tests may use the testing crate and, to run against something, any library.
fn is_allowed(used: &str, allowed: &[&str], for_tests: bool) -> bool {
    for_tests || (allowed.contains(&used) && !TESTS_ONLY.contains(&used))
}

#[test]
fn the_table_names_only_what_there_is() {
    let packages = packages();
    let there: BTreeSet<&str> = packages.iter().map(|package| short(package["name"].as_str().unwrap())).collect();
    let named: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(there, named);
}

#[test]
fn no_service_knows_an_engine() {
    let engines = ["redb", "tantivy", "rdkafka", "etcd-client", "elasticsearch", "reqwest"];
    for package in packages() {
        let path = package["manifest_path"].as_str().unwrap();
        // The agent keeps its own state in a file of its own.
        if !path.contains("/services/") || path.contains("/services/agent/") {
            continue;
        }
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            assert!(!engines.contains(&name), "{path} uses {name}, which belongs into a backend crate");
        }
    }
}

#[test]
fn every_crate_takes_lints_and_versions_from_the_root() {
    for package in packages() {
        let path = package["manifest_path"].as_str().unwrap();
        let text = manifest(&package);
        assert!(text.contains("[lints]\nworkspace = true\n"), "{path} has no `[lints] workspace = true`");
        for (section, lines) in dependency_sections(&text) {
            for line in lines.iter().filter(|line| !line.is_empty()) {
                assert!(line.contains("workspace = true"), "{path} [{section}]: {line} names its own version");
            }
        }
    }
}

#[test]
fn dependency_lists_are_sorted() {
    let manifests = packages().iter().map(|package| package["manifest_path"].as_str().unwrap().to_owned()).collect();
    let all: Vec<String> = [vec![root().join("Cargo.toml").display().to_string()], manifests].concat();
    let mut unsorted = Vec::new();
    for path in all {
        for (section, lines) in dependency_sections(&std::fs::read_to_string(&path).unwrap()) {
            for block in lines.split(|line| line.is_empty()) {
                let names: Vec<&str> = block.iter().map(|line| line.split(['.', ' ', '=']).next().unwrap()).collect();
                let mut sorted = names.clone();
                sorted.sort_unstable();
                if names != sorted {
                    unsorted.push(format!("{path} [{section}]"));
                }
            }
        }
    }
    assert!(unsorted.is_empty(), "not sorted: {unsorted:#?}");
}

/// The lines of each `[…dependencies]` section, comments left out; ends of blocks stay as empty lines.
/// So that the reference of metrics holds them all.
#[test]
fn metrics_are_named_in_one_place() {
    let mut sources = Command::new("git");
    sources.args(["grep", "-lE", "\"logmesh_[a-z_]+\"", "--", "*/src/*.rs"]).current_dir(root());
    let found = String::from_utf8(sources.output().unwrap().stdout).unwrap();
    let others = ["crates/types/src/metric.rs", "crates/runtime/src/"];
    let stray: Vec<&str> = found.lines().filter(|path| !others.iter().any(|other| path.starts_with(other))).collect();
    assert!(found.contains("metric.rs") && stray.is_empty(), "put these into crates/types/src/metric.rs: {stray:?}");
}

fn dependency_sections(text: &str) -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.ends_with("dependencies");
            if inside {
                sections.push((name.to_owned(), Vec::new()));
            }
        } else if inside && !line.starts_with('#') {
            sections.last_mut().unwrap().1.push(line.to_owned());
        }
    }
    for (_, lines) in &mut sections {
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
    }
    sections
}
