//! Rules, agents and labels against a model: whatever is edited, whoever disconnects, whichever store it is, each agent
//! comes to hold exactly the rules that the model gives it, and no message says what the agent holds already.

#![allow(clippy::unwrap_used)] // a test, its helpers too

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{PATIENCE, Server, agent, rule, start_in};
use logmesh_config::Settings;
use logmesh_proto::config::v1::{DeleteRuleRequest, Rule, UpdateRuleRequest};
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{Delta, UpdateAgentRequest, WatchConfigResponse};
use logmesh_types::Span;
use proptest::prelude::*;
use tonic::{Code, Streaming};

/// Selectors, and what each means for a role and an environment, written by hand.
type Meaning = fn(&str, Option<&str>) -> bool;
const SELECTORS: [(&str, Meaning); 7] = [
    ("", |_, _| true),
    ("role=web", |role, _| role == "web"),
    ("role!=web", |role, _| role != "web"),
    ("env=prod", |_, env| env == Some("prod")),
    ("role=web OR env=prod", |role, env| role == "web" || env == Some("prod")),
    ("!exists(env)", |_, env| env.is_none()),
    ("NOT env=prod, role in (db, web)", |_, env| env != Some("prod")),
];
const ROLES: [&str; 2] = ["web", "db"];
const ENVS: [Option<&str>; 3] = [None, Some("prod"), Some("test")];
const AGENTS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Action {
    /// Makes or changes a rule.
    Write {
        rule: usize,
        selector: usize,
    },
    Delete {
        rule: usize,
    },
    /// The host restarts its agent with another role.
    Restart {
        agent: usize,
        role: usize,
    },
    /// The centre sets the label `env`, or takes it away.
    Label {
        agent: usize,
        env: usize,
    },
    Disconnect {
        agent: usize,
    },
    Connect {
        agent: usize,
    },
    /// The config service restarts on its store, or on a new one.
    Server {
        new_store: bool,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let (rule, agent) = (0..4usize, 0..AGENTS.len());
    prop_oneof![
        6 => (rule.clone(), 0..SELECTORS.len()).prop_map(|(rule, selector)| Action::Write { rule, selector }),
        2 => rule.prop_map(|rule| Action::Delete { rule }),
        2 => (agent.clone(), 0..ROLES.len()).prop_map(|(agent, role)| Action::Restart { agent, role }),
        3 => (agent.clone(), 0..ENVS.len()).prop_map(|(agent, env)| Action::Label { agent, env }),
        2 => agent.clone().prop_map(|agent| Action::Disconnect { agent }),
        2 => agent.prop_map(|agent| Action::Connect { agent }),
        1 => any::<bool>().prop_map(|new_store| Action::Server { new_store }),
    ]
}

/// An agent as the test plays it: it takes messages in as a real one does.
#[derive(Default)]
struct Host {
    role: usize,
    env: usize,
    session: u32,
    held: BTreeMap<String, Rule>,
    incarnation: String,
    revision: i64,
    stream: Option<Streaming<WatchConfigResponse>>,
}

struct World {
    server: Option<Server>,
    hosts: Vec<Host>,
    /// Name to the rule as it was written, and its selector.
    rules: BTreeMap<String, (Rule, usize)>,
    revision: i64,
    writes: i32,
}

fn settings() -> Settings {
    Settings { bookmark_interval: Span(Duration::from_millis(10)), ..Settings::default() }
}

impl Host {
    fn take(&mut self, message: WatchConfigResponse) {
        let same = message.incarnation == self.incarnation;
        assert!(!same || message.revision >= self.revision, "revisions are seen in order");
        self.revision = message.revision;
        let Some(Update::Delta(delta)) = message.update else { return };
        assert_eq!(delta.snapshot, !same, "all is told of another store, and only then");
        self.incarnation = message.incarnation;
        self.apply(delta);
    }

    fn apply(&mut self, delta: Delta) {
        for name in &delta.removed {
            assert!(self.held.remove(name).is_some(), "{name} is not held");
            assert!(delta.upserted.iter().all(|rule| rule.name != *name));
        }
        if delta.snapshot {
            self.held.clear();
        }
        for rule in delta.upserted {
            let before = self.held.insert(rule.name.clone(), rule.clone());
            assert_ne!(before.map(|before| before.revision), Some(rule.revision), "{} is held already", rule.name);
        }
    }
}

impl World {
    async fn new() -> Self {
        let server = start_in(folder(), settings()).await;
        let hosts = AGENTS.iter().map(|_| Host::default()).collect();
        Self { server: Some(server), hosts, rules: BTreeMap::new(), revision: 0, writes: 0 }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Write { rule, selector } => self.write(rule, selector).await,
            Action::Delete { rule } => self.delete(rule).await,
            Action::Restart { agent, role } => {
                let host = &mut self.hosts[agent];
                (host.role, host.stream) = (role, None);
                host.session += 1;
                self.connect(agent).await;
            }
            Action::Label { agent, env } => self.label(agent, env).await,
            Action::Disconnect { agent } => self.hosts[agent].stream = None,
            Action::Connect { agent } => self.connect(agent).await,
            Action::Server { new_store } => self.restart(new_store).await,
        }
    }

    async fn write(&mut self, number: usize, selector: usize) {
        self.writes += 1;
        let changed = Rule { priority: self.writes, ..rule(&format!("r{number}"), SELECTORS[selector].0) };
        let request = UpdateRuleRequest { rule: Some(changed), allow_missing: true, ..Default::default() };
        let written = self.server().rules().update_rule(request).await.unwrap().into_inner();
        self.revision = written.revision;
        self.rules.insert(written.name.clone(), (written, selector));
    }

    async fn delete(&mut self, number: usize) {
        let name = format!("rules/r{number}");
        let request = DeleteRuleRequest { name: name.clone(), ..Default::default() };
        let deleted = self.server().rules().delete_rule(request).await;
        assert_eq!(deleted.is_ok(), self.rules.remove(&name).is_some());
    }

    async fn label(&mut self, agent: usize, env: usize) {
        let mut request = UpdateAgentRequest { id: AGENTS[agent].into(), ..Default::default() };
        match ENVS[env] {
            Some(value) => drop(request.set_labels.insert("env".into(), value.into())),
            None => request.remove_labels.push("env".into()),
        }
        match self.server().fleet().update_agent(request).await {
            Ok(_) => self.hosts[agent].env = env,
            Err(status) => assert_eq!(status.code(), Code::NotFound, "one that was never there: {status}"),
        }
    }

    async fn connect(&mut self, number: usize) {
        let host = &self.hosts[number];
        let mut request = agent(AGENTS[number], &format!("s{}", host.session), &[("role", ROLES[host.role])]);
        request.held = host.held.iter().map(|(name, rule)| (name.clone(), rule.revision)).collect();
        request.incarnation.clone_from(&host.incarnation);
        request.revision = host.revision;
        // Until the server has seen the end of a former session's stream it refuses the next one.
        let stream = loop {
            match self.server().agents().watch_config(request.clone()).await {
                Ok(stream) => break stream.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.hosts[number].stream = Some(stream);
    }

    async fn restart(&mut self, new_store: bool) {
        self.hosts.iter_mut().for_each(|host| host.stream = None);
        let folder_of_old = self.server.take().unwrap().stop().await;
        if new_store {
            self.rules.clear();
            self.revision = 0;
            self.hosts.iter_mut().for_each(|host| host.env = 0);
        }
        let folder = if new_store { folder() } else { folder_of_old };
        self.server = Some(start_in(folder, settings()).await);
        for agent in 0..AGENTS.len() {
            self.connect(agent).await;
        }
    }

    /// What the model gives an agent.
    fn expected(&self, host: &Host) -> BTreeMap<String, Rule> {
        let meant = |selector: usize| SELECTORS[selector].1(ROLES[host.role], ENVS[host.env]);
        let rules = self.rules.iter().filter(|(_, (_, selector))| meant(*selector));
        rules.map(|(name, (rule, _))| (name.clone(), rule.clone())).collect()
    }

    /// Reads every connected agent's stream until it holds what the model gives it.
    async fn settle(&mut self, after: &Action) {
        for (number, id) in AGENTS.iter().enumerate() {
            let expected = self.expected(&self.hosts[number]);
            let host = &mut self.hosts[number];
            let Some(mut stream) = host.stream.take() else { continue };
            let reading = async {
                let mut first = true;
                while first || host.held != expected || host.revision < self.revision {
                    first = false;
                    host.take(stream.message().await.expect("it goes on").expect("it goes on"));
                }
            };
            let settled = tokio::time::timeout(PATIENCE, reading).await.is_ok();
            assert!(settled, "after {after:?}: {id} holds {:?}, not {expected:?}", host.held);
            host.stream = Some(stream);
        }
    }
}

fn folder() -> std::sync::Arc<tempfile::TempDir> {
    std::sync::Arc::new(tempfile::tempdir().expect("a temp folder"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn every_agent_comes_to_hold_what_the_model_gives_it(actions in prop::collection::vec(action(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for agent in 0..AGENTS.len() {
                world.connect(agent).await;
            }
            for action in actions {
                world.act(action.clone()).await;
                world.settle(&action).await;
            }
            world.hosts.clear();
            world.server.take().unwrap().stop().await;
        });
    }
}
