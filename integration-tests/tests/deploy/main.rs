//! What `deploy/` says is what runs: its files are read by the tools that they are made for, and the commands, settings, ports
//! and health checks in them are run as they stand, on real servers, carrying lines to search.

#![allow(clippy::unwrap_used)] // a test, its helpers too

mod chart;
mod units;

use std::collections::BTreeSet;
use std::process::Command;

use logmesh_integration_tests::deploy::dockerfile::Image;
use logmesh_integration_tests::deploy::{Container, Health, Machine, compose, deploy, root, tool};
use logmesh_integration_tests::{PATIENCE, cluster, grpcurl, program};
use logmesh_testing::{Folder, wait_for};
use serde_json::Value;

/// The profiles of the compose file.
const PROFILES: [&str; 3] = ["mesh", "kibana", "standalone"];

fn containers(profiles: &[&str]) -> Vec<Container> {
    compose::containers(&compose::config(&compose::file(), profiles))
}

fn machine(profiles: &[&str]) -> Machine {
    let containers = containers(profiles);
    let aliases = compose::aliases(&containers);
    Machine::new(containers, aliases)
}

fn names(containers: &[Container]) -> BTreeSet<&str> {
    containers.iter().map(|container| container.name.as_str()).collect()
}

/// What is in the names of images and files that stand for ours.
fn is_ours(container: &Container) -> bool {
    Image::of(&container.image).is_some()
}

/// Writes lines to the host's `/var/log/app.log`, and waits until all of them are found and an audit is clean.
fn carries_lines(machine: &Machine, door: &str, lines: u64) {
    let log = machine.host_path("/var/log").join("app.log");
    let text: String = (0..lines).map(|n| format!("parcel {n}\n")).collect();
    std::fs::write(log, text).unwrap();
    let client = machine.client(door, 7400);
    client.wait_count("parcel", lines);
    client.audit();
}

#[test]
fn images_are_made_as_a_linter_wants() {
    for file in ["logmesh.Dockerfile", "agent.Dockerfile"] {
        let linted = Command::new(tool("hadolint")).arg(deploy("container").join(file)).output();
        let linted = linted.expect("hadolint can be run; ./dev tools installs it");
        assert!(linted.status.success(), "{}", String::from_utf8_lossy(&linted.stdout));
        let image = Image::read(file);
        let program = image.entrypoint().remove(0);
        assert_eq!(image.health()[0], program);
        assert!(image.get("COPY").ends_with(&program), "{}", image.get("COPY"));
        assert_eq!(image.get("STOPSIGNAL"), "SIGTERM");
        for label in ["title", "description", "version", "revision", "licenses"] {
            assert!(image.get("LABEL").contains(&format!("org.opencontainers.image.{label}=")), "{file}: {label}");
        }
    }
    assert_eq!(Image::read("logmesh.Dockerfile").get("USER"), "65532:65532");
}

/// Every library that a program wants is in the base of its image, or in a package that is put beside it.
#[test]
fn images_hold_the_libraries_of_their_programs() {
    let base = ["linux-vdso", "ld-linux", "libc.", "libm.", "libgcc_s.", "libpthread.", "libdl."];
    let packages = [("libcrypto.so.3", "libssl3t64"), ("libssl.so.3", "libssl3t64"), ("libz.so.1", "zlib1g")];
    for (file, path) in [("logmesh.Dockerfile", program::logmesh()), ("agent.Dockerfile", program::logmesh_agent())] {
        let found = Command::new("ldd").arg(path).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let image = Image::read(file);
        for library in found.lines().filter_map(|line| line.split_whitespace().next()?.rsplit('/').next()) {
            let package = packages.iter().find(|(name, _)| *name == library).map(|(_, package)| *package);
            let is_there = match package {
                Some(package) => image.get("RUN").contains(package),
                None => base.iter().any(|name| library.starts_with(name)),
            };
            assert!(is_there, "{file} lacks {library}");
        }
    }
}

/// The source that images are made of is whole: cargo finds every package in what `.dockerignore` lets in.
#[test]
fn nothing_that_is_built_is_left_out_of_the_images() {
    let folder = Folder::new();
    let ignore = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    for name in ignore.lines().filter_map(|line| line.strip_prefix('!')) {
        std::os::unix::fs::symlink(root().join(name), folder.join(name)).unwrap();
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--offline"]).current_dir(&*folder);
    let found = cargo.output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
}

#[test]
fn compose_reads_its_file_and_profiles_choose() {
    let by_default = containers(&[]);
    let mesh = ["agent", "config", "console", "elasticsearch", "etcd", "gateway", "kafka", "rules", "transfer"];
    assert_eq!(names(&by_default), BTreeSet::from(mesh));
    assert_eq!(names(&containers(&["standalone"])), BTreeSet::from(["standalone"]));
    assert_eq!(names(&containers(&["kibana"])), BTreeSet::from(["elasticsearch", "kibana", "kibana-view"]));
}

#[test]
fn what_is_scaled_takes_nothing_that_is_there_once() {
    let config = compose::config(&compose::file(), &["mesh"]);
    for name in ["gateway", "transfer", "config"] {
        let service = &config["services"][name];
        for only_once in ["ports", "container_name", "hostname", "mac_address", "volumes"] {
            assert!(service[only_once].is_null(), "{name} has {only_once}");
        }
        assert!(!service.to_string().contains("ADVERTISE"), "{name} is found by its own host name");
    }
    let all = compose::config(&compose::file(), &PROFILES);
    for (name, service) in all["services"].as_object().unwrap() {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name} would be open to other machines");
        }
    }
}

#[test]
fn containers_of_ours_have_no_more_rights_than_they_need() {
    let config = compose::config(&compose::file(), &PROFILES);
    for container in containers(&PROFILES).iter().filter(|container| is_ours(container)) {
        let service = &config["services"][&container.name];
        assert!(container.read_only, "{}", container.name);
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{}", container.name);
        assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]), "{}", container.name);
        let reads_the_host = container.mounts.contains_key("/var/log");
        assert_eq!(container.rights.is_empty(), !reads_the_host, "{}", container.name);
    }
}

/// Servers of the versions that all other tests run on.
#[test]
fn servers_are_of_the_versions_that_are_tested() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let between = |text: &str, before: &str, after: &str| {
        text.split_once(before).unwrap().1.split_once(after).unwrap().0.to_owned()
    };
    let etcd = between(&read("backends/etcd/go.mod"), "go.etcd.io/etcd/server/v3 ", "\n");
    let kafka = between(&read("backends/kafka/pom.xml"), "<kafka.version>", "<");
    let elasticsearch = between(&read("backends/elasticsearch/pom.xml"), "<es>", "<");
    let config = compose::config(&compose::file(), &PROFILES);
    for (service, version) in [
        ("etcd", &etcd),
        ("kafka", &kafka),
        ("elasticsearch", &elasticsearch),
        ("kibana", &elasticsearch),
        ("kibana-view", &elasticsearch),
    ] {
        let image = config["services"][service]["image"].as_str().unwrap();
        assert_eq!(image.rsplit_once(':').unwrap().1, version, "{image}");
    }
}

#[test]
fn each_setting_in_the_compose_file_is_one() {
    let machine = machine(&PROFILES);
    for container in containers(&PROFILES).iter().filter(|container| is_ours(container) && container.name != "rules") {
        let shown = machine.run_with(&container.name, &["--print-config"]).expect(0).stdout;
        assert!(shown.contains("insecure = true  # the command line"), "{}: {shown}", container.name);
    }
}

#[test]
fn a_setting_that_does_not_exist_is_refused() {
    let mut all = containers(&["mesh"]);
    let aliases = compose::aliases(&all);
    let gateway = all.iter_mut().find(|container| container.name == "gateway").unwrap();
    gateway.files.get_mut("/etc/logmesh/mesh.toml").unwrap().push_str("shrads = 2\n");
    let agent = all.iter_mut().find(|container| container.name == "agent").unwrap();
    agent.env.insert("LOGMESH_LISTEN_ADMINN".into(), "127.0.0.1:7499".into());
    let machine = Machine::new(all, aliases);
    machine.run_with("gateway", &["--print-config"]).expect(64).says(&["shrads"]);
    machine.run_with("agent", &["--print-config"]).expect(64).says(&["listen_adminn"]);

    let folder = Folder::new();
    let text = std::fs::read_to_string(compose::file()).unwrap();
    std::fs::write(folder.join("compose.yaml"), text.replace("restart: on-failure", "restrat: on-failure")).unwrap();
    let done = compose::run(&folder.join("compose.yaml"), &["--profile", "mesh", "config", "--quiet"]);
    assert!(done.code != Some(0) && done.stderr.contains("restrat"), "{done:?}");
}

#[test]
fn the_mesh_of_the_compose_file_carries_lines_to_search() {
    let mut machine = machine(&["mesh"]);
    machine.up(&[("gateway", 3), ("transfer", 2)]);
    carries_lines(&machine, "console", 1_000);

    // Each of those that were scaled serves.
    let door = machine.address("console", 0, 7400);
    wait_for("three gateways and two workers", PATIENCE, || {
        let count = |kind: &str| {
            let request = format!("{{\"kind\": \"{kind}\"}}");
            let said = grpcurl::call(&door, "logmesh.discovery.v1.DiscoveryService/WatchEndpoints", &request, 2).stdout;
            said.matches("\"address\"").count()
        };
        let found = (count("gateway"), count("transfer"));
        if found == (3, 2) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    the_data_view_shows_the_documents(&machine);
    machine.stop();
}

/// What Kibana is given finds what the mesh stored, with a time to order it by.
fn the_data_view_shows_the_documents(machine: &Machine) {
    let view: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("compose/data-view.json")).unwrap()).unwrap();
    let (title, time) =
        (view["data_view"]["title"].as_str().unwrap(), view["data_view"]["timeFieldName"].as_str().unwrap());
    let elasticsearch = machine.address("elasticsearch", 0, 9200);
    let get = |path: String| cluster::http(&elasticsearch, "GET", &path, "").unwrap();
    let counted = get(format!("/{title}/_count"));
    assert!(counted.contains("\"count\":1000"), "{counted}");
    let fields = get(format!("/{title}/_field_caps?fields={time}"));
    assert!(fields.contains("\"date_nanos\"") || fields.contains("\"date\""), "{fields}");
}

#[test]
fn the_standalone_of_the_compose_file_carries_lines_to_search() {
    let mut machine = machine(&["standalone"]);
    machine.up(&[]);
    carries_lines(&machine, "standalone", 100);
    machine.stop();
}

#[test]
fn an_image_s_own_command_and_health_check_are_right() {
    let image = Image::read("logmesh.Dockerfile");
    let volume = image.get("VOLUME").to_owned();
    let standalone = Container {
        name: "standalone".into(),
        command: [image.entrypoint(), image.command()].concat(),
        mounts: [(volume, "data".to_owned())].into(),
        health: vec![Health::Command(image.health())],
        read_only: true,
        ..Container::default()
    };
    let mut machine = Machine::new(vec![standalone], [].into());
    machine.up(&[]);
    machine.client("standalone", 7400).run(&["status"]).expect(0);
    machine.stop();
}
