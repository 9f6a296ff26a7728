//! Settings that change while an agent runs.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

mod mesh;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use logmesh_agent::Settings;
use logmesh_proto::fleet::v1::RuleState;
use logmesh_testing::{wait_for, wait_for_async};
use rustix::process::{Pid, Signal, kill_process};

use mesh::host::{Host, arrived};
use mesh::{Centre, Gateway, LIMIT, Mode, Server};

#[tokio::test]
async fn changed_labels_are_told_and_go_with_what_is_collected() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    host.append("a.log", "one\n");
    let settings = host.settings(&[&server]);
    let agent = host.start_with(settings.clone());
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["one\n"]).await;

    let labels = [("role".to_owned(), "db".to_owned())].into();
    let other = Settings { labels, id: Some("host-2".parse().unwrap()), ..settings };
    assert_eq!(agent.reload(other).await.unwrap(), ["id"]);
    wait_for_async("the new labels at the centre", LIMIT, || async {
        let watches = centre.watches.lock().unwrap();
        let last = watches.last().unwrap();
        assert_eq!(last.agent_id, "host-1", "an id is for life");
        if last.labels["role"] == "db" { Ok(()) } else { Err(format!("{:?}", last.labels)) }
    })
    .await;
    host.append("a.log", "two\n");
    arrived(&gateway, &["one\ntwo\n"]).await;
    let roles: Vec<String> = gateway
        .chunks
        .lock()
        .unwrap()
        .iter()
        .map(|chunk| chunk.source.as_ref().unwrap().labels["role"].clone())
        .collect();
    assert_eq!(roles, ["web", "db"]);
    assert_eq!(*gateway.connections.lock().unwrap(), 1, "the way to the gateway stays");
    host.stop().await;
}

#[tokio::test]
async fn what_is_allowed_no_more_is_let_go_and_goes_on_where_it_was_once_it_is_again() {
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    for folder in ["in", "out"] {
        std::fs::create_dir(host.path(folder)).unwrap();
        host.append(&format!("{folder}/a.log"), &format!("{folder} one\n"));
    }
    let settings = host.settings(&[&server]);
    let agent = host.start_with(settings.clone());
    let state = async |name: &str, wanted: RuleState| {
        wait_for_async("the rule's state", LIMIT, || async {
            centre.rule(name).filter(|rule| rule.state() == wanted).map(drop).ok_or(format!("{:?}", centre.rule(name)))
        })
        .await;
    };
    centre.tell(vec![host.rule("in", 1, "in/*.log"), host.rule("out", 1, "out/*.log")], &[]);
    arrived(&gateway, &["in one\n", "out one\n"]).await;
    state("out", RuleState::Applied).await;

    let narrow = Settings { allow: vec![host.path("in/**").display().to_string()], ..settings.clone() };
    agent.reload(narrow).await.unwrap();
    host.append("out/a.log", "out two\n");
    state("out", RuleState::Refused).await;
    host.append("in/a.log", "in two\n");
    arrived(&gateway, &["in one\nin two\n", "out one\n"]).await;
    let link =
        std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    assert!(!link.into_iter().any(|path| path == host.path("out/a.log")), "the file is held open");

    agent.reload(settings).await.unwrap();
    state("out", RuleState::Applied).await;
    arrived(&gateway, &["in one\nin two\n", "out one\nout two\n"]).await;
    assert_eq!(gateway.chunks.lock().unwrap().len(), 4, "nothing is sent twice");
    host.stop().await;
}

#[tokio::test]
async fn another_centre_is_gone_to() {
    let (_gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (_first, first_server) = Centre::start(&[gateway_server.address]).await;
    let (second, second_server) = Centre::start(&[gateway_server.address]).await;
    let mut host = Host::new();
    let agent = host.start_with(host.settings(&[&first_server]));
    agent.reload(host.settings(&[&second_server])).await.unwrap();
    wait_for_async("the other centre", LIMIT, || async {
        if second.watches.lock().unwrap().is_empty() { Err("no watch".to_owned()) } else { Ok(()) }
    })
    .await;
    host.stop().await;
}

#[tokio::test]
async fn settings_that_cannot_be_used_change_nothing() {
    let (centre, server) = Centre::start(&[]).await;
    let mut host = Host::new();
    let settings = host.settings(&[&server]);
    let agent = host.start_with(settings.clone());
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    let labels = [("role".to_owned(), "db".to_owned())].into();
    let bad = Settings { labels, allow: vec!["[".to_owned()], ..settings.clone() };
    let error = format!("{:#}", agent.reload(bad).await.unwrap_err());
    assert!(error.contains("allow"), "{error}");
    let error = agent.reload(Settings { servers: vec![], ..settings }).await.unwrap_err().to_string();
    assert!(error.contains("servers is empty"), "{error}");
    assert!(centre.watches.lock().unwrap().iter().all(|watch| watch.labels["role"] == "web"));
    host.stop().await;
}

/// The program with a settings file.
struct Program {
    child: Child,
    said: Arc<Mutex<String>>,
    admin: String,
}

impl Program {
    fn start(config: &std::path::Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_logmesh-agent"))
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, lines) = (Arc::new(Mutex::new(String::new())), BufReader::new(child.stderr.take().unwrap()).lines());
        let hears = said.clone();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| *hears.lock().unwrap() += &(line + "\n"))
        });
        let mut program = Self { child, said, admin: String::new() };
        program.admin = program.wait_said("metrics=").split_once("metrics=").unwrap().1.trim().to_owned();
        program
    }

    /// The line of its log that has this text.
    fn wait_said(&self, text: &str) -> String {
        wait_for(text, LIMIT, || {
            let said = self.said.lock().unwrap();
            said.lines().find(|line| line.contains(text)).map(str::to_owned).ok_or_else(|| said.clone())
        })
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn file_for(host: &Host, server: &Server, more: &str) -> String {
    let dir = host.dir.path().display();
    format!(
        "id = \"host-1\"\nservers = [\"{}\"]\nallow = [\"{dir}/logs/**\"]\nstate_dir = \"{dir}/state\"\n\
         listen_admin = \"127.0.0.1:0\"\n{more}",
        server.address
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_taken_up_and_a_bad_one_is_refused() {
    let (centre, server) = Centre::start(&[]).await;
    let host = Host::new();
    let config = host.dir.path().join("agent.toml");
    std::fs::write(&config, file_for(&host, &server, "labels = { role = \"web\" }\n")).unwrap();
    let mut program = tokio::task::block_in_place(|| Program::start(&config));
    let role = async |wanted: &str| {
        wait_for_async("the label", LIMIT, || async {
            let watches = centre.watches.lock().unwrap();
            let role = watches.last().map(|watch| watch.labels["role"].clone());
            if role.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{role:?}")) }
        })
        .await;
    };
    role("web").await;

    // Replaced as editors and configuration management do.
    let new = host.dir.path().join("agent.toml.new");
    std::fs::write(&new, file_for(&host, &server, "labels = { role = \"db\" }\n")).unwrap();
    std::fs::rename(&new, &config).unwrap();
    role("db").await;

    tokio::task::block_in_place(|| {
        std::fs::write(&config, file_for(&host, &server, "labels = { role = \"bad\" }\nalow = []\n")).unwrap();
        let refused = program.wait_said("refused");
        assert!(refused.contains("alow") && refused.contains("agent.toml"), "{refused}");
        let ready = wait_for("what /readyz says", LIMIT, || {
            Some(program.get("/readyz")).filter(|ready| ready.contains("settings:")).ok_or("nothing".to_owned())
        });
        assert!(ready.contains("settings: ready, but the changed settings are refused"), "{ready}");
        assert!(program.get("/metrics").contains("logmesh_agent_settings_refused 1"));

        std::fs::write(&config, file_for(&host, &server, "[labels]\nrole = \"good\"\n[log]\nlevel = \"debug\"\n"))
            .unwrap();
        program.signal(Signal::HUP);
        program.wait_said("DEBUG");
    });
    role("good").await;
    tokio::task::block_in_place(|| {
        wait_for("the refusal to be over", LIMIT, || {
            let metrics = program.get("/metrics");
            if metrics.contains("logmesh_agent_settings_refused 0") { Ok(()) } else { Err(metrics) }
        });
        program.signal(Signal::TERM);
        let status = wait_for("the end", LIMIT, || program.child.try_wait().unwrap().ok_or("it runs".to_owned()));
        assert_eq!(status.code(), Some(0));
    });
}
