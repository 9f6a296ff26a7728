//! Moving in: an etcd tree of a logagent is served as it is, and imported while its files are collected.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::{Cluster, PATIENCE};
use logmesh_testing::wait_for;
use serde_json::{Value, json};

/// Runs etcdctl against the cluster's etcd.
fn etcdctl(address: &str, args: &[&str]) {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backends/etcd/run");
    let output = Command::new(run).arg("ctl").args(args).env("ETCDCTL_ENDPOINTS", address).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn shows(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

fn append(path: &Path, lines: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
}

/// Waits until the agent runs the rule as it is now.
fn wait_applied(cluster: &Cluster, name: &str) {
    let rule = cluster.client().run(&["rules", "get", name, "--json"]).expect(0);
    let revision = json_lines(&rule.stdout)[0]["revision"].clone();
    wait_for("the agent to run the rule", PATIENCE, || {
        let agents = cluster.client().run(&["agents", "list", "--json"]).expect(0).stdout;
        let is =
            |rule: &Value| rule["name"] == name && rule["state"] == "applied" && rule["running_revision"] == revision;
        let all = json_lines(&agents);
        let applied = all.iter().flat_map(|agent| agent["rules"].as_array().into_iter().flatten()).any(is);
        if applied { Ok(()) } else { Err(agents) }
    });
}

#[test]
fn a_tree_is_served_imported_and_collected_without_a_break() {
    let mut cluster = Cluster::started();
    let etcd = cluster.backend("etcd").address();
    let agents = cluster.client().run(&["agents", "list", "--json"]).expect(0).stdout;
    let ips = json_lines(&agents)[0]["labels"]["ip"].as_str().unwrap_or_default().to_owned();
    let ip = ips.split(',').next().filter(|ip| !ip.is_empty()).expect("the host has an address");
    let (key, log) = (format!("/logagent/{ip}/log_config"), cluster.log("app.log"));

    append(&log, "the seed sent this\n");
    let tree = json!([
        {"service": "shop", "log_path": log, "topic": "seed_log", "send_rate": 1000},
        {"service": "shop", "log_path": "not/absolute", "topic": "seed_log", "send_rate": 1000},
    ]);
    etcdctl(&etcd, &["put", &key, &tree.to_string()]);
    let name = wait_for("the rule of the tree", PATIENCE, || {
        let rules = cluster.client().run(&["rules", "list", "--filter", "exists(origin)", "--json"]).expect(0);
        let name = json_lines(&rules.stdout).first().map(|rule| rule["name"].as_str().unwrap_or_default().to_owned());
        name.filter(|_| rules.stderr.contains("log_config[1].log_path")).ok_or(format!("{rules:?}"))
    });
    wait_applied(&cluster, &name);
    append(&log, "one\n");
    cluster.client().wait_count("service.name:shop", 1);
    cluster.client().run(&["rules", "delete", &name]).expect(1).says(&["import", &key]);

    let import = ["rules", "import", "--etcd", &etcd, "--author", "ann"];
    let dry = cluster.client().run(&[&import[..], &["--dry-run"]].concat()).expect(1);
    shows(&dry.stdout, &[&format!("{key} log_config[0]: {name} to be created"), "log_config[1].log_path: broken"]);
    let done = cluster.client().run(&[&import[..], &["--json"]].concat()).expect(1);
    let results: Vec<Value> = json_lines(&done.stdout).iter().map(|line| line["result"].clone()).collect();
    assert_eq!(results, ["created", "broken"]);
    wait_applied(&cluster, &name);
    append(&log, "two\nthree\n");
    cluster.client().wait_count("service.name:shop", 3);

    // From here on the tree isn't needed: without the broken entry all is well, and without its key all goes on.
    etcdctl(&etcd, &["put", &key, &json!([tree[0]]).to_string()]);
    shows(&cluster.client().run(&import).expect(0).stdout, &["unchanged"]);
    etcdctl(&etcd, &["del", &key]);
    append(&log, "four\n");
    cluster.client().wait_count("service.name:shop", 4);
    let history = cluster.client().run(&["rules", "history", &name]).expect(0);
    shows(&history.stdout, &["created", "ann", &format!("imported from {key}")]);
    cluster.client().audit();
    cluster.assert_alive();
}
