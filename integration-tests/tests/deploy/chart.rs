//! The helm chart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use logmesh_integration_tests::deploy::{Container, Machine, chart, tool};
use logmesh_testing::Folder;
use serde_json::Value;

use crate::is_ours;

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
            assert!(shown.contains("insecure = true  # the command line"), "{}: {shown}", container.name);
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
        ("transfer", &[("config", 7401), ("transfer", 7403), ("kafka", 9092), ("elasticsearch", 9200)]),
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
