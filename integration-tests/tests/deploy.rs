//! What `deploy/` says is what runs: its files are read by the tools that they are made for, and the commands, settings, ports
//! and health checks in them are run as they stand, on real servers, carrying lines to search.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use logmesh_integration_tests::deploy::dockerfile::Image;
use logmesh_integration_tests::deploy::units::Unit;
use logmesh_integration_tests::deploy::{Alias, Container, Health, Machine, chart, compose, deploy, root, tool};
use logmesh_integration_tests::{PATIENCE, cluster, grpcurl};
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
        assert!(shown.contains("insecure = true  # option"), "{}: {shown}", container.name);
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
        let count = |service: &str| {
            let request = format!("{{\"service\": \"{service}\"}}");
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

/// The set of values of this name.
fn values(name: &str) -> PathBuf {
    chart::folder().join("ci").join(format!("{name}-values.yaml"))
}

#[test]
fn the_chart_is_what_helm_and_kubernetes_want() {
    let folder = Folder::new();
    for set in chart::value_sets() {
        let set = set.to_str().unwrap();
        chart::helm(&["lint", "--strict"], &["-f", set]).expect(0);
        let rendered = chart::template(&["-f", set]).expect(0).stdout;
        let file = folder.join("rendered.yaml");
        std::fs::write(&file, rendered).unwrap();
        for version in ["1.28", "1.37"] {
            let mut validate = Command::new(tool("kubernetes-validate"));
            let done = validate.args(["--strict", "-k", version]).arg(&file).output();
            let done = done.expect("kubernetes-validate can be run; ./dev tools installs it");
            let said = [done.stdout, done.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            // The operator's own kind, which Kubernetes doesn't know.
            let unknown = said.lines().find(|line| line.contains("find schema") && !line.contains("ServiceMonitor"));
            assert!(done.status.success() && unknown.is_none(), "{set} on {version}: {said}");
        }
    }
}

#[test]
fn values_that_cannot_work_are_refused_by_their_name() {
    let refused = |args: &[&str], word: &str| {
        let done = chart::template(&[&["-f", values("trial").to_str().unwrap()], args].concat());
        assert!(done.code != Some(0) && done.stderr.contains(word), "{args:?}: {done:?}");
    };
    refused(&["--set", "gatway.replicas=3"], "gatway");
    refused(&["--set", "agent.tolerationz=[]"], "tolerationz");
    refused(&["--set", "gateway.replicas=0"], "replicas");
    refused(&["--set", "agent.stateDir=var/lib"], "stateDir");
    refused(&["--set", "etcd.bundled=false"], "etcd.endpoints must name your servers");
    refused(&["--set", "kafka.brokers={http://kafka:9092}"], "brokers");
}

#[test]
fn each_setting_in_the_chart_is_one() {
    for set in chart::value_sets() {
        let manifests = chart::rendered(&set);
        let containers = chart::containers(&manifests).into_iter().map(|(container, _)| container);
        let containers: Vec<Container> = containers.filter(is_ours).collect();
        let machine = Machine::new(containers.clone(), chart::aliases(&manifests));
        for container in containers.iter().filter(|container| !container.name.contains("-rules-")) {
            let shown = machine.run_with(&container.name, &["--print-config"]).expect(0).stdout;
            assert!(shown.contains("insecure = true  # option"), "{}: {shown}", container.name);
        }
    }
    let mut wrong = chart::containers(&chart::rendered(&values("trial")));
    let (gateway, _) = wrong.iter_mut().find(|(container, _)| container.name == "logmesh-gateway").unwrap();
    gateway.env.insert("LOGMESH_CONSOLE_SERVICE_PORT".into(), "7400".into());
    let machine = Machine::new(vec![gateway.clone()], [].into());
    machine.run_with("logmesh-gateway", &["--print-config"]).expect(64).says(&["console_service_port"]);
}

#[test]
fn pods_have_no_more_rights_than_they_need() {
    for set in chart::value_sets() {
        for workload in chart::rendered(&set).iter().filter(|one| one["spec"]["template"].is_object()) {
            let (name, pod) = (&workload["metadata"]["name"], &workload["spec"]["template"]["spec"]);
            // Variables made of services' names, LOGMESH_GATEWAY_PORT, would be refused as settings.
            assert_eq!(pod["enableServiceLinks"], false, "{name}");
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            let security = &pod["containers"][0]["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
            let reads_the_host = workload["kind"] == "DaemonSet";
            assert_eq!(security["capabilities"]["add"].is_null(), !reads_the_host, "{name}");
        }
    }
}

#[test]
fn policies_let_in_who_must_call_and_nobody_else() {
    let manifests = chart::rendered(&values("trial"));
    let pod = |part: &str| {
        BTreeMap::from([("name", "logmesh"), ("instance", "logmesh"), ("component", part)])
            .into_iter()
            .map(|(key, value)| (format!("app.kubernetes.io/{key}"), value.to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let may_call = |from: &BTreeMap<String, String>, to: &str, port: u16| {
        let policies = chart::of_kind(&manifests, "NetworkPolicy");
        let of_it: Vec<_> = policies
            .iter()
            .filter(|one| chart::selects(&one["spec"]["podSelector"]["matchLabels"], &pod(to)))
            .collect();
        let rules = of_it.iter().flat_map(|one| one["spec"]["ingress"].as_array().into_iter().flatten());
        let lets_in = |rule: &Value| {
            let peers = rule["from"].as_array().into_iter().flatten();
            let open = rule["ports"].as_array().into_iter().flatten().any(|one| one["port"] == port);
            open && peers.into_iter().any(|peer| chart::selects(&peer["podSelector"]["matchLabels"], from))
        };
        of_it.is_empty() || rules.into_iter().any(lets_in)
    };
    let calls = [
        ("agent", &[("config", 7401), ("gateway", 7402)][..]),
        ("config", &[("etcd", 2379), ("config", 7401)]),
        ("gateway", &[("config", 7401), ("kafka", 9092)]),
        ("transfer", &[("config", 7401), ("kafka", 9092), ("elasticsearch", 9200)]),
        (
            "console",
            &[("config", 7401), ("gateway", 7402), ("transfer", 7403), ("kafka", 9092), ("elasticsearch", 9200)],
        ),
        ("rules", &[("console", 7400)]),
    ];
    for (from, called) in calls {
        for (to, port) in called {
            assert!(may_call(&pod(from), to, *port), "{from} must reach {to}");
        }
    }
    let stranger = BTreeMap::from([("app".to_owned(), "shop".to_owned())]);
    for (to, port) in [
        ("config", 7401),
        ("gateway", 7402),
        ("transfer", 7403),
        ("etcd", 2379),
        ("kafka", 9092),
        ("elasticsearch", 9200),
        ("agent", 7499),
        ("gateway", 7502),
    ] {
        assert!(!may_call(&stranger, to, port), "a stranger reaches {to}:{port}");
    }
    assert!(may_call(&stranger, "console", 7400), "the front door is open within the namespace");
}

#[test]
fn what_selects_pods_finds_them() {
    let manifests = chart::rendered(&values("external"));
    let pods: Vec<_> =
        manifests.iter().filter(|one| one["spec"]["template"].is_object()).map(chart::pod_labels).collect();
    let budgets = chart::of_kind(&manifests, "PodDisruptionBudget");
    let monitors = chart::of_kind(&manifests, "ServiceMonitor");
    assert_eq!((budgets.len(), monitors.len()), (4, 5));
    for budget in budgets {
        let selector = &budget["spec"]["selector"]["matchLabels"];
        assert_eq!(pods.iter().filter(|pod| chart::selects(selector, pod)).count(), 1, "{budget}");
    }
    let services = chart::of_kind(&manifests, "Service");
    for monitor in monitors {
        let selector = &monitor["spec"]["selector"]["matchLabels"];
        let labels = |service: &Value| {
            service["metadata"]["labels"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let found: Vec<_> = services.iter().filter(|service| chart::selects(selector, &labels(service))).collect();
        assert_eq!(found.len(), 1, "{monitor}");
        let port = &monitor["spec"]["endpoints"][0]["port"];
        assert!(found[0]["spec"]["ports"].as_array().unwrap().iter().any(|one| one["name"] == *port), "{monitor}");
    }
}

#[test]
fn the_mesh_of_the_chart_carries_lines_of_pods_to_search() {
    let manifests = chart::rendered(&values("trial"));
    let containers = chart::containers(&manifests);
    let scale: Vec<(String, usize)> = containers.iter().map(|(one, count)| (one.name.clone(), *count)).collect();
    let scale: Vec<(&str, usize)> = scale.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    let containers = containers.into_iter().map(|(container, _)| container).collect();
    let mut machine = Machine::new(containers, chart::aliases(&manifests));
    machine.up(&scale);

    let pod = machine.host_path("/var/log").join("pods/shop_web-5d_0a1b-2c/app");
    std::fs::create_dir_all(&pod).unwrap();
    let line = |n: u32| format!("2026-11-23T07:00:00.{n:09}Z stdout F parcel {n}\n");
    std::fs::write(pod.join("3.log"), (0..500).map(line).collect::<String>()).unwrap();
    let client = machine.client("logmesh-console", 7400);
    client.wait_count("parcel AND k8s.namespace.name:shop AND k8s.pod.name:web-5d AND k8s.container.name:app", 500);
    let hit = client.search("\"parcel 499\"").remove(0);
    assert_eq!(
        (&hit["message"], &hit["k8s.pod.uid"], &hit["k8s.container.restart_count"]),
        (&"parcel 499".into(), &"0a1b-2c".into(), &"3".into())
    );
    assert_eq!((&hit["host.name"], &hit["host.ip"]), (&"node-7".into(), &serde_json::json!(["127.0.0.1"])));
    client.audit();
    machine.stop();
}

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
