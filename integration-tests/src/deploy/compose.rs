//! The compose file, as compose itself reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::dockerfile::Image;
use super::{Alias, Container, Health, deploy, text, texts, tool};
use crate::program::{Done, command};

/// The compose file.
pub fn file() -> PathBuf {
    deploy("compose/compose.yaml")
}

/// Runs `docker compose -f FILE` with these arguments.
pub fn run(file: &Path, args: &[&str]) -> Done {
    let mut compose = command(&tool("docker-compose"));
    let output = compose.arg("-f").arg(file).args(args).output();
    output.expect("docker-compose can be run; ./dev tools installs it").into()
}

/// What runs in these profiles; none: what runs when nobody says anything.
#[track_caller]
pub fn config(file: &Path, profiles: &[&str]) -> Value {
    let args: Vec<&str> =
        profiles.iter().flat_map(|name| ["--profile", name]).chain(["config", "--format", "json"]).collect();
    let done = run(file, &args).expect(0);
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {}", done.stdout))
}

/// The containers that these words describe.
pub fn containers(config: &Value) -> Vec<Container> {
    let services = config["services"].as_object().expect("there are services");
    services.iter().map(|(name, service)| container(name, service, config)).collect()
}

/// Each service is reached by its name.
pub fn aliases(containers: &[Container]) -> BTreeMap<String, Alias> {
    let alias = |name: &str| Alias { container: name.to_owned(), ports: BTreeMap::new() };
    containers.iter().map(|container| (container.name.clone(), alias(&container.name))).collect()
}

fn container(name: &str, service: &Value, config: &Value) -> Container {
    let image = text(&service["image"]);
    let ours = Image::of(&image);
    let mut said = texts(&service["command"]);
    if said.is_empty() {
        said = ours.as_ref().map(Image::command).unwrap_or_default();
    }
    let entry = match texts(&service["entrypoint"]) {
        entry if entry.is_empty() => ours.as_ref().map(Image::entrypoint).unwrap_or_default(),
        entry => entry,
    };
    let mounts = service["volumes"].as_array().into_iter().flatten();
    Container {
        name: name.to_owned(),
        command: [entry, said].concat(),
        env: entries(&service["environment"]),
        files: files(service, config),
        mounts: mounts.map(|mount| (text(&mount["target"]), text(&mount["source"]))).collect(),
        health: health(service, ours.as_ref()),
        after: service["depends_on"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect(),
        read_only: service["read_only"] == true,
        rights: texts(&service["cap_add"]),
        image,
    }
}

fn entries(map: &Value) -> BTreeMap<String, String> {
    map.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// What `configs` mounts.
fn files(service: &Value, config: &Value) -> BTreeMap<String, String> {
    let used = service["configs"].as_array().into_iter().flatten();
    used.map(|used| {
        let path = text(&config["configs"][&text(&used["source"])]["file"]);
        let held = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        (text(&used["target"]), held)
    })
    .collect()
}

fn health(service: &Value, image: Option<&Image>) -> Vec<Health> {
    let test = texts(&service["healthcheck"]["test"]);
    match test.first().map(String::as_str) {
        Some("CMD") => vec![Health::Command(test[1..].to_vec())],
        Some(other) => panic!("a health check by {other}: images may have no shell"),
        // What runs something else than the image's own command isn't asked what that would be asked.
        None if service["command"].is_null() => {
            image.map(|image| Health::Command(image.health())).into_iter().collect()
        }
        None => Vec::new(),
    }
}
