//! Rules from the command line to hosts and back, with real processes: what a rule would do before it is applied, who runs it
//! once it is, and that one bad host spoils no other.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::program::{Done, command, logmesh_agent};
use logmesh_integration_tests::{Mesh, PATIENCE};
use logmesh_testing::wait_for;
use serde_json::{Value, json};

/// An agent on a host of its own: `hosts/{id}/` is what it has, `hosts/{id}/logs/` what may be read.
struct Host {
    id: &'static str,
    folder: PathBuf,
    child: Option<Child>,
}

impl Host {
    fn start(mesh: &Mesh, id: &'static str) -> Self {
        let folder = mesh.folder.join("hosts").join(id);
        for name in ["logs", "private"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let mut host = Self { id, folder, child: None };
        host.spawn(mesh.grpc());
        host
    }

    fn spawn(&mut self, server: &str) {
        let said = File::options().create(true).append(true).open(self.folder.join("said.log")).unwrap();
        let mut command = command(logmesh_agent());
        command.env("LOGMESH_ID", self.id).env("LOGMESH_LISTEN_ADMIN", "127.0.0.1:0");
        command.args(["--server", server, "--label", "role=web"]).arg("--label").arg(format!("name={}", self.id));
        command.arg("--state-dir").arg(self.folder.join("state"));
        command.arg("--allow").arg(self.folder.join("logs/**"));
        self.child = Some(command.stdout(Stdio::null()).stderr(said).spawn().unwrap());
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn append(&self, name: &str, text: &str) {
        let mut file = File::options().create(true).append(true).open(self.folder.join(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Two agents `a` and `b` that are connected, beside the standalone's own.
fn two_hosts() -> (Mesh, Host, Host) {
    let mesh = Mesh::started();
    let (a, b) = (Host::start(&mesh, "a"), Host::start(&mesh, "b"));
    wait_for("both agents", PATIENCE, || {
        let said = mesh.run(&["agents", "list", "--json"]).expect(0).stdout;
        let online = json_lines(&said).iter().filter(|agent| agent["online"] == true).count();
        if online == 3 { Ok(()) } else { Err(said) }
    });
    (mesh, a, b)
}

/// Runs a command of `rules` on a file with this text.
fn rules(mesh: &Mesh, text: &str, args: &[&str]) -> Done {
    let file = mesh.folder.join("rules.yaml");
    std::fs::write(&file, text).unwrap();
    mesh.run(&[&["rules", args[0], "-f", file.to_str().unwrap()][..], &args[1..]].concat())
}

/// A rule for both agents: paths beneath their folders.
fn rule(mesh: &Mesh, name: &str, priority: i32, paths: &[&str]) -> String {
    let paths: Vec<String> =
        paths.iter().map(|path| mesh.folder.join("hosts").join(path).display().to_string()).collect();
    let selector = "role=web";
    json!({"name": name, "selector": selector, "paths": paths, "topic": name, "priority": priority}).to_string()
}

/// What an agent says of a rule.
fn status(mesh: &Mesh, agent: &str, rule: &str) -> Value {
    let said = mesh.run(&["agents", "get", agent, "--json"]).expect(0).stdout;
    let rules = json_lines(&said)[0]["rules"].as_array().cloned().unwrap_or_default();
    rules.into_iter().find(|one| one["name"] == format!("rules/{rule}")).unwrap_or_default()
}

fn by_agent<'a>(preview: &'a Value, id: &str) -> &'a Value {
    preview["agents"].as_array().unwrap().iter().find(|agent| agent["agent_id"] == id).unwrap()
}

#[test]
fn a_preview_shows_files_and_whose_they_are_before_anything_is_applied() {
    let (mesh, a, mut b) = two_hosts();
    for host in [&a, &b] {
        host.append("logs/app.log", "one\n");
        host.append("logs/db.log", "12345\n");
    }
    rules(&mesh, &rule(&mesh, "app", 0, &["*/logs/app.log"]), &["apply", "--wait", "60s"]).expect(0);
    mesh.wait_count("message:one", 2);
    b.kill();
    wait_for("b to be gone", PATIENCE, || {
        let said = mesh.run(&["agents", "get", "b", "--json"]).expect(0).stdout;
        if json_lines(&said)[0]["online"] == false { Ok(()) } else { Err(said) }
    });

    let wanted = rule(&mesh, "all", 1, &["*/logs/*.log"]);
    let preview = json_lines(&rules(&mesh, &wanted, &["preview", "--json"]).expect(0).stdout).remove(0);
    assert_eq!((&preview["rule"], &preview["matched_agents"]), (&json!("rules/all"), &json!(2)));
    let found = by_agent(&preview, "a");
    assert_eq!((&found["files"], &found["bytes"], &found["new_files"]), (&json!(2), &json!(10), &json!(1)), "{found}");
    assert_eq!(found["owner_changes"], json!([{"present_owner": "rules/app", "owner": "rules/all", "files": 1}]));
    let first = &found["sample"][0];
    assert_eq!((&first["present_owner"], &first["owner"]), (&json!("rules/app"), &json!("rules/all")), "{found}");
    let away = by_agent(&preview, "b");
    assert_eq!((&away["online"], &away["answered"]), (&json!(false), &json!(false)));
    let shown = rules(&mesh, &wanted, &["preview"]).expect(0).stdout;
    for text in ["rules/all: 2 agents selected, 1 answered, 2 files", "rules/app -> rules/all", "not connected"] {
        assert!(shown.contains(text), "{text:?} is not in: {shown}");
    }

    // A rule that a host would refuse, or the centre.
    let outside = rule(&mesh, "outside", 0, &["*/logs/*.log", "*/private/*"]);
    let shown = rules(&mesh, &outside, &["preview"]).expect(1).stdout;
    assert!(shown.contains("NOT_ALLOWED: paths[1]"), "{shown}");
    rules(&mesh, &wanted.replace("role=web", "role in"), &["preview"]).expect(64).says(&["selector"]);
    assert_eq!(mesh.count("*"), 2, "nothing was collected for being asked about");
    let applied = mesh.run(&["rules", "list"]).expect(0).stdout;
    assert!(!applied.contains("rules/all") && !applied.contains("rules/outside"), "{applied}");
}

#[test]
fn a_rule_whose_files_others_own_says_so_and_whose_they_are() {
    let (mesh, a, b) = two_hosts();
    a.append("logs/app.log", "one\n");
    for name in ["logs/app.log", "logs/db.log"] {
        b.append(name, "one\n");
    }
    rules(&mesh, &rule(&mesh, "app", 5, &["*/logs/app.log"]), &["apply", "--wait", "60s"]).expect(0);
    let done = rules(&mesh, &rule(&mesh, "all", 0, &["*/logs/*.log"]), &["apply", "--wait", "60s"]).expect(0);
    assert!(done.stdout.contains("rules/all: 2 agents: 1 applied, 1 shadowed"), "{done:?}");
    assert!(done.stderr.contains("rules/all: agent a: shadowed: 1 of 1 files belong to rules/app"), "{done:?}");
    let (on_a, on_b) = (status(&mesh, "a", "all"), status(&mesh, "b", "all"));
    assert_eq!((&on_a["state"], &on_a["error"]), (&json!("shadowed"), &Value::Null), "{on_a}");
    assert_eq!((&on_a["files_shadowed"], &on_a["shadowed_by"]), (&json!(1), &json!(["rules/app"])));
    assert_eq!((&on_b["state"], &on_b["files_matched"]), (&json!("applied"), &json!(1)), "{on_b}");
    assert_eq!((&on_b["files_shadowed"], &on_b["shadowed_by"]), (&json!(1), &json!(["rules/app"])));
    let shown = mesh.run(&["rules", "status", "all"]).expect(0).stdout;
    for text in ["1 applied, 1 shadowed", "1 of 1 files belong to rules/app"] {
        assert!(shown.contains(text), "{text:?} is not in: {shown}");
    }
    let shown = mesh.run(&["agents", "get", "b"]).expect(0).stdout;
    assert!(shown.contains("1 of 2 files belong to rules/app"), "{shown}");

    // The owner goes, and the other takes over.
    mesh.run(&["rules", "delete", "app"]).expect(0);
    wait_for("the other rule to own the file", PATIENCE, || {
        let rule = status(&mesh, "a", "all");
        if rule["state"] == "applied" && rule["files_shadowed"] == 0 { Ok(()) } else { Err(rule.to_string()) }
    });
}

#[test]
fn a_rule_that_one_host_forbids_is_refused_there_and_runs_on_the_other() {
    let (mesh, a, b) = two_hosts();
    let first = rule(&mesh, "web", 0, &["*/logs/*.log"]);
    let done = rules(&mesh, &first, &["apply", "--wait", "60s"]).expect(0).stdout;
    assert!(done.contains("rules/web created"), "{done}");
    let good = status(&mesh, "b", "web")["running_revision"].clone();

    // `a` may read this folder, `b` may not: what it was told before goes on there.
    let wider = rule(&mesh, "web", 0, &["*/logs/*.log", "a/logs/more/*.txt"]);
    let done = rules(&mesh, &wider, &["apply", "--wait", "60s"]).expect(1);
    assert!(done.stderr.contains("agent b: refused: paths[1]"), "{done:?}");
    let (on_a, on_b) = (status(&mesh, "a", "web"), status(&mesh, "b", "web"));
    assert_eq!((&on_a["state"], &on_b["state"]), (&json!("applied"), &json!("refused")));
    assert_eq!((&on_b["running_revision"], &on_b["error"]["field"]), (&good, &json!("paths[1]")));
    assert_ne!(on_a["running_revision"], good);
    for host in [&a, &b] {
        host.append("logs/app.log", "still\n");
    }
    mesh.wait_count("message:still", 2);
    let shown = mesh.run(&["rules", "status", "web"]).expect(0).stdout;
    for text in ["1 applied", "1 refused", "paths[1]"] {
        assert!(shown.contains(text), "{text:?} is not in: {shown}");
    }
}
