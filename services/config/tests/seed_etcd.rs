//! A logagent's tree in a real etcd, outside of the prefix of the mesh's own keys.

mod common;

use std::sync::Arc;

use common::{PATIENCE, agent, next, wait_for};
use logmesh_config::{ConfigService, Settings};
use logmesh_grpc::Routes;
use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{CreateRuleRequest, ListRulesRequest, ListRulesResponse};
use logmesh_proto::fleet::v1::WatchConfigRequest;
use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_runtime::Tasks;
use logmesh_store::{ConfigStore, Precondition};
use logmesh_store_etcd::EtcdStore;
use logmesh_testing::servers::{Etcd, Server};
use tonic::transport::Channel;

const KEY: &str = "/logagent/10.0.0.7/log_config";

struct Mesh {
    etcd: EtcdStore,
    channel: Channel,
    tasks: Tasks,
}

async fn start(server: &Server, user: Option<(&str, &str)>) -> Mesh {
    let (user, password) = user.map(|(user, password)| (user.to_owned(), password.to_owned())).unzip();
    let settings = logmesh_store_etcd::Settings {
        endpoints: vec![server.address()],
        prefix: "/staging".into(),
        user,
        password,
        ..Default::default()
    };
    let store = EtcdStore::new(&settings).expect("a store");
    let etcd = store.at("");
    let tasks = Tasks::new();
    let tree = Arc::new(store.at(""));
    let service =
        ConfigService::start_with_tree(Arc::new(store), tree, Settings::default(), &tasks).expect("a service");
    let mut routes = Routes::new();
    service.add_to(&mut routes);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let token = tasks.token();
    tasks.spawn("grpc", async move { Ok(logmesh_grpc::serve(listener, routes, token).await?) });
    service.loaded().await.expect("rules");
    Mesh { etcd, channel: logmesh_grpc::channel(&address).expect("an address"), tasks }
}

impl Mesh {
    async fn write(&self, value: &str) {
        self.etcd.put(KEY, value.to_owned().into(), Precondition::None).await.expect("written");
    }

    async fn list(&self) -> ListRulesResponse {
        let mut rules = RuleServiceClient::new(self.channel.clone());
        rules.list_rules(ListRulesRequest::default()).await.expect("a list").into_inner()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_tree_works_unchanged_beside_a_mesh_with_a_prefix() {
    let mut server = Etcd::start(&[]);
    let mesh = start(&server, None).await;
    mesh.write(r#"[{"service": "nginx", "log_path": "/var/log/a.log", "topic": "web", "send_rate": 10}]"#).await;
    let mut agents = AgentConfigServiceClient::new(mesh.channel.clone());
    let mut stream = agents.watch_config(agent("a", "1", &[("ip", "10.0.0.7")])).await.unwrap().into_inner();
    let rule = loop {
        if let Some(Update::Delta(delta)) = next(&mut stream).await.update
            && let [rule] = &delta.upserted[..]
        {
            break rule.clone();
        }
    };
    assert_eq!((rule.origin.as_str(), rule.paths[0].as_str()), (KEY, "/var/log/a.log"));

    // etcd is killed and comes back: what is edited then takes effect.
    server.kill();
    server.start_again();
    mesh.write(r#"[{"log_path": "/var/log/b.log", "topic": "web"}]"#).await;
    let edited = wait_for(
        "the edit",
        async || mesh.list().await,
        |list| list.rules.first().is_some_and(|rule| rule.paths == ["/var/log/b.log"]),
    )
    .await;
    let create = CreateRuleRequest { rule: Some(edited.rules[0].clone()), ..Default::default() };
    let made = RuleServiceClient::new(mesh.channel.clone()).create_rule(create).await.unwrap().into_inner();
    let key = format!("/staging/logmesh/v1/{}", made.name);
    assert!(mesh.etcd.get(&key).await.unwrap().is_some(), "what is made lies beneath the mesh's prefix");
    mesh.tasks.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_the_tree_works_without_it() {
    let server = Etcd::start(&[]);
    let etcdctl = |args: &[&str]| {
        let run = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../backends/etcd/run");
        let mut command = std::process::Command::new(run);
        command.arg("ctl").args(args).env("ETCDCTL_ENDPOINTS", server.address());
        let output = command.output().expect("etcdctl can be run");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    etcdctl(&["user", "add", "root:secret"]);
    etcdctl(&["user", "grant-role", "root", "root"]);
    etcdctl(&["user", "add", "mesh:word"]);
    etcdctl(&["role", "add", "mesh"]);
    etcdctl(&["role", "grant-permission", "mesh", "--prefix=true", "readwrite", "/staging/"]);
    etcdctl(&["user", "grant-role", "mesh", "mesh"]);
    etcdctl(&["put", KEY, r#"[{"log_path": "/var/log/a.log", "topic": "web"}]"#]);
    etcdctl(&["auth", "enable"]);
    let mesh = start(&server, Some(("mesh", "word"))).await;
    let shown = mesh.list().await;
    assert_eq!((shown.rules.len(), shown.problems[0].key.as_str()), (0, "/logagent/"));
    assert!(shown.problems[0].message.contains("config.seed_prefix"), "{}", shown.problems[0].message);
    // An agent that holds a rule of the tree, from when it could be read, keeps it.
    let mut agents = AgentConfigServiceClient::new(mesh.channel.clone());
    let host = || agent("a", "1", &[("ip", "10.0.0.7")]);
    let incarnation = next(&mut agents.watch_config(host()).await.unwrap().into_inner()).await.incarnation;
    let held = ["rules/seed-10.0.0.7-b.log-01234567", "rules/gone"].map(|name| (name.to_owned(), 1));
    let request = WatchConfigRequest { held: held.into(), incarnation, ..host() };
    let mut stream = agents.watch_config(request).await.unwrap().into_inner();
    let Some(Update::Delta(first)) = next(&mut stream).await.update else { panic!("no delta") };
    assert_eq!((first.removed, first.snapshot), (vec!["rules/gone".to_owned()], false));
    etcdctl(&["--user=root:secret", "role", "grant-permission", "mesh", "--prefix=true", "read", "/logagent/"]);
    wait_for("the tree", async || mesh.list().await, |list| list.rules.len() == 1 && list.problems.is_empty()).await;
    let read = loop {
        if let Some(Update::Delta(delta)) = next(&mut stream).await.update {
            break delta;
        }
    };
    assert_eq!((read.upserted.len(), read.removed), (1, vec!["rules/seed-10.0.0.7-b.log-01234567".to_owned()]));
    mesh.tasks.shutdown();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_made_anew_under_a_running_service_is_noticed() {
    let mut server = Etcd::start(&[]);
    let mesh = start(&server, None).await;
    for n in 0..30 {
        mesh.write(&format!(r#"[{{"log_path": "/var/log/{n}.log", "topic": "web"}}]"#)).await;
    }
    wait_for("the tree", async || mesh.list().await, |list| list.rules.len() == 1).await;
    server.kill();
    std::fs::remove_dir_all(server.folder().join("data")).unwrap();
    server.start_again();
    let ended = tokio::time::timeout(PATIENCE, mesh.tasks.finish(PATIENCE)).await.expect("it's noticed").unwrap_err();
    assert!(ended.to_string().contains("made anew"), "{ended}");
    // The next process knows nothing of the former store.
    let mesh = start(&server, None).await;
    assert_eq!(mesh.list().await.rules, []);
    mesh.tasks.shutdown();
}
