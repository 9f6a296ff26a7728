//! The few things that a Dockerfile says of what it makes.

use std::collections::BTreeMap;

use super::deploy;

/// What a Dockerfile makes: its last stage.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Instructions by their name, the last of each.
    instructions: BTreeMap<String, String>,
}

impl Image {
    /// A file of `deploy/container`.
    pub fn read(name: &str) -> Self {
        let path = deploy("container").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let text: String =
            text.lines().filter(|line| !line.trim_start().starts_with('#')).map(|line| format!("{line}\n")).collect();
        let mut instructions = BTreeMap::new();
        for line in text.replace("\\\n", " ").lines() {
            let Some((name, rest)) = line.trim().split_once(' ') else { continue };
            if name == "FROM" {
                instructions.clear();
            }
            instructions.insert(name.to_owned(), rest.trim().to_owned());
        }
        Self { instructions }
    }

    /// The image that one of our names stands for, with or without registry and tag.
    pub fn of(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next().unwrap_or(name);
        match name.split([':', '@']).next() {
            Some("logmesh") => Some(Self::read("logmesh.Dockerfile")),
            Some("logmesh-agent") => Some(Self::read("agent.Dockerfile")),
            _ => None,
        }
    }

    /// What follows an instruction's name.
    #[track_caller]
    pub fn get(&self, instruction: &str) -> &str {
        self.instructions.get(instruction).unwrap_or_else(|| panic!("no {instruction} in the last stage"))
    }

    /// The words of `ENTRYPOINT`.
    #[track_caller]
    pub fn entrypoint(&self) -> Vec<String> {
        words(self.get("ENTRYPOINT"))
    }

    /// The words of `CMD`, if there is one.
    pub fn command(&self) -> Vec<String> {
        self.instructions.get("CMD").map(|text| words(text)).unwrap_or_default()
    }

    /// The words of `HEALTHCHECK`'s command.
    #[track_caller]
    pub fn health(&self) -> Vec<String> {
        let (_, command) = self.get("HEALTHCHECK").split_once("CMD ").expect("HEALTHCHECK has a CMD");
        words(command)
    }
}

/// No shell is in between: each is a list.
#[track_caller]
fn words(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?} isn't a list of words: {error}"))
}
