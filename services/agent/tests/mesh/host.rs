//! A host with an agent and files that it collects.

use std::io::Write;
use std::path::PathBuf;

use logmesh_agent::{Agent, Settings};
use logmesh_proto::config::v1::Rule;
use logmesh_runtime::Tasks;
use logmesh_testing::wait_for_async;

use super::{Gateway, LIMIT, Server};

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) tasks: Option<Tasks>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        Self { dir, tasks: None }
    }

    pub(crate) fn settings(&self, servers: &[&Server]) -> Settings {
        Settings {
            id: Some("host-1".parse().unwrap()),
            servers: servers.iter().map(|server| server.address.to_string()).collect(),
            allow: vec![format!("{}/logs/**", self.dir.path().display())],
            labels: [("role".to_owned(), "web".to_owned())].into(),
            state_dir: self.dir.path().join("state"),
            ..Settings::default()
        }
    }

    pub(crate) fn start(&mut self, servers: &[&Server]) {
        self.start_with(self.settings(servers));
    }

    pub(crate) fn start_with(&mut self, settings: Settings) -> Agent {
        let tasks = Tasks::new();
        let agent = Agent::start(settings, &tasks).unwrap();
        self.tasks = Some(tasks);
        agent
    }

    pub(crate) async fn stop(&mut self) {
        let tasks = self.tasks.take().unwrap();
        tasks.shutdown();
        tasks.finish(LIMIT).await.unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    pub(crate) fn append(&self, name: &str, text: &str) {
        let mut file = std::fs::File::options().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn rule(&self, name: &str, revision: i64, glob: &str) -> Rule {
        Rule {
            name: format!("rules/{name}"),
            revision,
            paths: vec![self.path(glob).display().to_string()],
            topic: "logs".into(),
            service: "shop".into(),
            ..Rule::default()
        }
    }
}

pub(crate) async fn arrived(gateway: &Gateway, texts: &[&str]) {
    wait_for_async("the lines at the gateway", LIMIT, || async {
        let mut there = gateway.texts();
        there.sort();
        if there == texts { Ok(()) } else { Err(format!("{there:?}")) }
    })
    .await;
}
