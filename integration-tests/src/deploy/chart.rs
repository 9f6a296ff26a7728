//! The chart, as helm renders it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use super::dockerfile::Image;
use super::{Alias, Container, Health, deploy, text, texts, tool};
use crate::program::{Done, command};

/// The name of the release that is rendered.
pub const RELEASE: &str = "logmesh";

/// YAML documents as a list in JSON, by the parser that comes with the validator of manifests.
const TO_JSON: &str = "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin) if d], sys.stdout)";

/// What this cluster says of pod and node.
const NODE: &str = "node-7";

/// The kinds that run containers.
const WORKLOADS: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "Job"];

/// The chart's folder.
pub fn folder() -> PathBuf {
    deploy("helm/logmesh")
}

/// Runs `helm COMMAND RELEASE CHART ARGS`.
pub fn helm(subcommand: &[&str], args: &[&str]) -> Done {
    let mut helm = command(&tool("helm"));
    let output = helm.args(subcommand).arg(folder()).args(args).output();
    output.expect("helm can be run; ./dev tools installs it").into()
}

/// What `helm template` prints with these arguments.
pub fn template(args: &[&str]) -> Done {
    helm(&["template", RELEASE], &[&["--kube-version", "1.34"], args].concat())
}

/// The manifests of a text in YAML.
#[track_caller]
pub fn manifests(yaml: &str) -> Vec<Value> {
    let mut python = command(&tool("python3"));
    let mut child =
        python.args(["-c", TO_JSON]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python runs");
    child.stdin.take().expect("stdin is piped").write_all(yaml.as_bytes()).expect("python reads");
    let output = child.wait_with_output().expect("python ends");
    serde_json::from_slice(&output.stdout).expect("python prints JSON; ./dev tools installs its YAML")
}

/// The manifests of a kind.
pub fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> Vec<&'a Value> {
    manifests.iter().filter(|manifest| manifest["kind"] == kind).collect()
}

/// Each workload's container, and how many there are of it.
pub fn containers(manifests: &[Value]) -> Vec<(Container, usize)> {
    let workloads = manifests.iter().filter(|one| WORKLOADS.iter().any(|kind| one["kind"] == *kind));
    let mut all: Vec<_> = workloads.map(|workload| container(workload, manifests)).collect();
    // A job is tried until the others are there.
    let others: Vec<String> =
        all.iter().map(|(one, _)| one.name.clone()).filter(|name| !name.contains("-rules-")).collect();
    for (job, _) in all.iter_mut().filter(|(one, _)| one.name.contains("-rules-")) {
        job.after = others.clone();
    }
    all
}

/// Where the names of services lead to. Panics where that is nowhere, or to a port that isn't there.
#[track_caller]
pub fn aliases(manifests: &[Value]) -> BTreeMap<String, Alias> {
    of_kind(manifests, "Service").into_iter().map(|service| (name_of(service), alias(service, manifests))).collect()
}

/// The labels of a workload's pods.
pub fn pod_labels(workload: &Value) -> BTreeMap<String, String> {
    labels(&workload["spec"]["template"]["metadata"]["labels"])
}

/// True if these labels are among those.
pub fn selects(selector: &Value, pod: &BTreeMap<String, String>) -> bool {
    labels(selector).iter().all(|(key, value)| pod.get(key) == Some(value))
}

fn alias(service: &Value, manifests: &[Value]) -> Alias {
    let found =
        manifests.iter().filter(|one| one["kind"] != "Job" && WORKLOADS.iter().any(|kind| one["kind"] == *kind));
    let found: Vec<_> = found.filter(|one| selects(&service["spec"]["selector"], &pod_labels(one))).collect();
    assert_eq!(found.len(), 1, "a service leads to one workload: {service}");
    let inside = &found[0]["spec"]["template"]["spec"]["containers"][0];
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports.map(|port| (number(&port["port"]), port_of(&port["targetPort"], inside)));
    Alias { container: name_of(found[0]), ports: ports.collect() }
}

fn container(workload: &Value, manifests: &[Value]) -> (Container, usize) {
    let pod = &workload["spec"]["template"]["spec"];
    let inside = &pod["containers"][0];
    let image = text(&inside["image"]);
    let ours = Image::of(&image);
    let env = environment(&inside["env"]);
    let program = ours.as_ref().map(Image::entrypoint).unwrap_or_default();
    let args = texts(&inside["args"]).iter().map(|arg| expand(arg, &env)).collect::<Vec<_>>();
    let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
    let security = &inside["securityContext"];
    let (files, mounts) = mounted(workload, inside, manifests);
    let container = Container {
        name: name_of(workload),
        command: [program, args].concat(),
        env,
        files,
        mounts,
        health: probes.iter().filter_map(|probe| health(&inside[*probe], inside)).collect(),
        after: Vec::new(),
        read_only: security["readOnlyRootFilesystem"] == true,
        rights: texts(&security["capabilities"]["add"]),
        image,
    };
    (container, workload["spec"]["replicas"].as_u64().unwrap_or(1) as usize)
}

/// Files that a pod gets, and folders.
type Mounted = (BTreeMap<String, String>, BTreeMap<String, String>);

fn mounted(workload: &Value, inside: &Value, manifests: &[Value]) -> Mounted {
    let (mut files, mut folders) = Mounted::default();
    let volumes = workload["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    for mount in inside["volumeMounts"].as_array().into_iter().flatten() {
        let (name, path) = (&mount["name"], text(&mount["mountPath"]));
        let volume = volumes.iter().find(|volume| volume["name"] == *name);
        match volume {
            Some(volume) if volume["configMap"].is_object() => {
                for (key, held) in config_map(&volume["configMap"]["name"], manifests) {
                    files.insert(format!("{path}/{key}"), held);
                }
            }
            Some(volume) if volume["hostPath"].is_object() => {
                folders.insert(path, text(&volume["hostPath"]["path"]));
            }
            Some(volume) => {
                let items = volume["secret"]["items"].as_array().into_iter().flatten();
                files.extend(items.map(|item| (format!("{path}/{}", text(&item["path"])), "a secret".to_owned())));
            }
            None => {
                let claims = workload["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
                assert!(claims.into_iter().any(|claim| claim["metadata"]["name"] == *name), "no volume {name}");
                folders.insert(path, format!("{}-{}", name_of(workload), text(name)));
            }
        }
    }
    (files, folders)
}

fn config_map(name: &Value, manifests: &[Value]) -> BTreeMap<String, String> {
    let maps = of_kind(manifests, "ConfigMap");
    let map = maps.into_iter().find(|map| map["metadata"]["name"] == *name);
    labels(&map.unwrap_or_else(|| panic!("no config map {name}"))["data"])
}

fn environment(env: &Value) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    for entry in env.as_array().into_iter().flatten() {
        let from = &entry["valueFrom"];
        let value = match from["fieldRef"]["fieldPath"].as_str() {
            Some("status.podIP" | "status.hostIP") => "127.0.0.1".to_owned(),
            Some("spec.nodeName") => NODE.to_owned(),
            Some(other) => panic!("{other} isn't known here"),
            None if from.is_object() => "secret".to_owned(),
            None => expand(entry["value"].as_str().expect("a value is a text"), &known),
        };
        known.insert(text(&entry["name"]), value);
    }
    known
}

/// Kubernetes puts variables for `$(NAME)`.
fn expand(value: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(value.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

fn health(probe: &Value, inside: &Value) -> Option<Health> {
    let port = |probe: &Value| port_of(&probe["port"], inside);
    match probe {
        Value::Null => None,
        probe if probe["grpc"].is_object() => Some(Health::Grpc(port(&probe["grpc"]), text(&probe["grpc"]["service"]))),
        probe if probe["httpGet"].is_object() => {
            Some(Health::Http(port(&probe["httpGet"]), text(&probe["httpGet"]["path"])))
        }
        probe if probe["tcpSocket"].is_object() => Some(Health::Tcp(port(&probe["tcpSocket"]))),
        other => panic!("a probe that isn't known here: {other}"),
    }
}

fn port_of(port: &Value, inside: &Value) -> u16 {
    let mut named = inside["ports"].as_array().into_iter().flatten();
    match port {
        Value::String(name) => {
            let found = named.find(|one| one["name"] == *name);
            number(&found.unwrap_or_else(|| panic!("no port {name} in {inside}"))["containerPort"])
        }
        other => number(other),
    }
}

fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or_else(|| panic!("{value} isn't a port"))
}

fn name_of(manifest: &Value) -> String {
    text(&manifest["metadata"]["name"])
}

fn labels(map: &Value) -> BTreeMap<String, String> {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// The value sets that the chart is checked with.
pub fn value_sets() -> Vec<PathBuf> {
    let mut sets: Vec<PathBuf> = std::fs::read_dir(folder().join("ci"))
        .expect("the chart has sets of values")
        .map(|entry| entry.expect("a folder can be read").path())
        .collect();
    sets.sort();
    sets
}

/// The manifests that a set of values makes.
#[track_caller]
pub fn rendered(values: &Path) -> Vec<Value> {
    manifests(&template(&["-f", values.to_str().expect("a path is text")]).expect(0).stdout)
}
