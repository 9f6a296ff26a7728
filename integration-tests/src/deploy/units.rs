//! The systemd units, as containers: what they start, with which environment, files and folders.

use std::collections::BTreeMap;

use super::{Container, Health, deploy};

/// A unit of `deploy/systemd`.
#[derive(Clone, Debug)]
pub struct Unit {
    lines: Vec<(String, String)>,
    instance: String,
}

impl Unit {
    /// A unit of `deploy/systemd`; the instance is what stands for `%i`.
    pub fn read(name: &str, instance: &str) -> Self {
        let path = deploy("systemd").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        let lines = lines.map(|(key, value)| (key.to_owned(), value.replace("%i", instance))).collect();
        Self { lines, instance: instance.to_owned() }
    }

    /// The values of a key.
    pub fn values(&self, key: &str) -> Vec<&str> {
        self.lines.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect()
    }

    /// What it runs, with these files in `/etc/logmesh`; health is asked for by the same command.
    pub fn container(&self, files: &BTreeMap<String, String>) -> Container {
        let command: Vec<String> = self.values("ExecStart")[0].split_whitespace().map(str::to_owned).collect();
        let folders =
            self.values("StateDirectory").into_iter().map(|name| (format!("/var/lib/{name}"), name.to_owned()));
        let logs = ("/var/log".to_owned(), "/var/log".to_owned());
        Container {
            name: self.instance.clone(),
            health: vec![Health::Command([command.clone(), vec!["--ready".to_owned()]].concat())],
            command,
            env: self.environment(files),
            files: files.clone(),
            mounts: folders.chain([logs]).collect(),
            read_only: self.values("ProtectSystem") == ["strict"],
            rights: self
                .values("CapabilityBoundingSet")
                .iter()
                .filter_map(|set| set.strip_prefix("CAP_"))
                .map(str::to_owned)
                .collect(),
            ..Container::default()
        }
    }

    /// The lines of its `EnvironmentFile`, where there is one.
    fn environment(&self, files: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let named =
            self.values("EnvironmentFile").into_iter().filter_map(|name| files.get(name.trim_start_matches('-')));
        let lines = named.flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}
