//! The systemd units.

use std::collections::BTreeMap;
use std::process::Command;

use logmesh_integration_tests::cluster;
use logmesh_integration_tests::deploy::units::Unit;
use logmesh_integration_tests::deploy::{Alias, Container, Machine, deploy};
use logmesh_testing::Folder;

use crate::{carries_lines, containers};

/// The files that the units find in `/etc/logmesh`: the samples, and for each service an environment like the gateway's.
fn files_of_units() -> BTreeMap<String, String> {
    let sample = |name: &str| std::fs::read_to_string(deploy("systemd").join(name)).unwrap();
    let mut files = BTreeMap::from([("/etc/logmesh/mesh.toml".to_owned(), sample("mesh.toml"))]);
    for (service, port) in [("config", "7401"), ("gateway", "7402"), ("transfer", "7403"), ("console", "7400")] {
        files.insert(format!("/etc/logmesh/{service}.env"), sample("gateway.env").replace("7402", port));
    }
    files
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let folder = Folder::new();
    for (name, placed) in
        [("logmesh@.service", "logmesh@gateway.service"), ("logmesh-standalone.service", "logmesh-standalone.service")]
    {
        let unit = Unit::read(name, "gateway");
        assert_eq!(unit.values("Restart"), ["always"], "config ends to be started again");
        assert_eq!(unit.values("DynamicUser"), ["yes"]);
        // It wants the program to be there.
        let text = std::fs::read_to_string(deploy("systemd").join(name)).unwrap();
        let file = folder.join(placed);
        std::fs::write(&file, text.replace("/usr/local/bin/logmesh", "/bin/sh")).unwrap();
        // A machine without systemd can't say; the other tests hold there too.
        let Ok(found) = Command::new("systemd-analyze").arg("verify").arg(&file).output() else { return };
        let said = String::from_utf8_lossy(&found.stderr);
        assert!(found.status.success() && !said.contains(placed), "{said}");
        let mut exposure = Command::new("systemd-analyze");
        let exposure = exposure.args(["security", "--offline=yes", "--threshold=25"]).arg(&file).output().unwrap();
        assert!(exposure.status.success(), "{}", String::from_utf8_lossy(&exposure.stdout));
    }
}

#[test]
fn each_setting_of_the_sample_of_the_units_is_one() {
    let mut files = files_of_units();
    files.insert("/etc/logmesh/ca.pem".into(), "a certificate".into());
    // Those that are commented out are lines `# key = value`, or `# NAME=value`; the words around them aren't.
    let is_setting = |line: &str| line.split_once('=').is_some_and(|(key, _)| !key.trim_end().contains(' '));
    let uncomment =
        |line: &str| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line).to_owned() + "\n";
    for text in files.values_mut() {
        *text = text.lines().map(uncomment).collect::<String>().replace("http://", "https://");
    }
    for (_, env) in files.iter_mut().filter(|(path, _)| path.ends_with(".env")) {
        env.push_str("LOGMESH_ETCD__PASSWORD=secret\nLOGMESH_ELASTICSEARCH__API_KEY=secret\n");
    }
    for service in ["config", "gateway", "transfer", "console"] {
        let container = Unit::read("logmesh@.service", service).container(&files);
        let machine = Machine::new(vec![container], [].into());
        let shown = machine.run_with(service, &["--print-config"]).expect(0).stdout;
        for key in
            ["etcd.user", "kafka.tls.enabled", "elasticsearch.replicas", "topics.default.partitions", "log.level"]
        {
            let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
            assert!(line.contains("mesh.toml"), "{line}");
        }
        assert!(shown.contains("LOGMESH_ADVERTISE") && shown.contains("LOGMESH_LISTEN"), "{shown}");
    }
}

#[test]
fn the_mesh_of_the_units_carries_lines_to_search() {
    let mut files = files_of_units();
    let agent =
        std::fs::read_to_string(deploy("systemd/agent.toml")).unwrap().replace("127.0.0.1:7400", "config-1:7401");
    let agent =
        agent.replace("[log]", "listen_admin = \"127.0.0.1:7499\"\nstate_dir = \"/var/lib/logmesh-agent\"\n[log]");
    files.insert("/etc/logmesh/agent.toml".into(), agent);
    let servers = ["etcd", "kafka", "elasticsearch"];
    let mut all: Vec<Container> =
        containers(&["mesh"]).into_iter().filter(|one| servers.contains(&one.name.as_str())).collect();
    for service in ["config", "gateway", "transfer", "console"] {
        all.push(Unit::read("logmesh@.service", service).container(&files));
    }
    all.push(Unit::read("logmesh-agent.service", "agent").container(&files));
    let alias = |container: &str| Alias { container: container.to_owned(), ports: BTreeMap::new() };
    let hosts = [("etcd", "etcd"), ("kafka", "kafka"), ("es", "elasticsearch"), ("config", "config")];
    let hosts = hosts
        .iter()
        .flat_map(|(host, container)| (1..=3).map(|n| (format!("{host}-{n}"), alias(container))).collect::<Vec<_>>());
    let named = [("kafka".to_owned(), alias("kafka")), ("etcd".to_owned(), alias("etcd"))];
    let mut machine = Machine::new(all, hosts.chain(named).collect());
    machine.up(&[]);
    let file = machine.folder.join("rule.yaml");
    std::fs::write(&file, cluster::rule("all", &[&machine.host_path("/var/log").join("*.log")])).unwrap();
    machine.client("console", 7400).run(&["rules", "apply", "-f", file.to_str().unwrap()]).expect(0);
    carries_lines(&machine, "console", 100);
    machine.stop();
}

#[test]
fn the_standalone_of_the_unit_carries_lines_to_search() {
    let container = Unit::read("logmesh-standalone.service", "standalone").container(&BTreeMap::new());
    let mut machine = Machine::new(vec![container], [].into());
    // The unit leaves the port to the default.
    machine.set_env("standalone", "LOGMESH_LISTEN", "127.0.0.1:7400");
    machine.up(&[]);
    carries_lines(&machine, "standalone", 100);
    machine.stop();
}
