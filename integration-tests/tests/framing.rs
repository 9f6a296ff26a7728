//! How lines lie in files, by rules: several of them one event, too long, wrapped by a container's runtime, in another
//! encoding. Through the whole mesh, from a rule's YAML to the documents.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use logmesh_integration_tests::Mesh;
use logmesh_testing::wait_for;
use serde_json::{Value, json};

const RULES: &str = r#"
name: java
paths: ["LOGS/java.log"]
topic: java
multiline: { start_pattern: '^\d{4}-', timeout: 500ms }
---
name: indented
paths: ["LOGS/indented.log"]
topic: java
multiline: { continue_pattern: '^\s', timeout: 500ms }
---
name: sql
paths: ["LOGS/sql.log"]
topic: java
multiline: { end_pattern: ';$' }
---
name: pods
paths: ["LOGS/pods/**/*.log"]
topic: pods
format: container
---
name: chinese
paths: ["LOGS/gbk.log"]
topic: text
encoding: gbk
---
name: long
paths: ["LOGS/long.log"]
topic: text
max_event_bytes: 1KiB
long_events: cut
---
name: split
paths: ["LOGS/split.log"]
topic: text
max_event_bytes: 1KiB
"#;

/// Applies rules over those of the mesh, and waits until the agent runs them all.
fn apply(mesh: &Mesh, rules: &str) {
    let logs = mesh.log("").display().to_string();
    let rules = rules.replace("LOGS/", &logs).replace("\ntopic:", "\npriority: 1\ntopic:");
    let file = mesh.folder.join("rules.yaml");
    std::fs::write(&file, rules).unwrap();
    mesh.run(&["rules", "apply", "-f", file.to_str().unwrap(), "--wait", "60s"]).expect(0);
    // At first the agent may not have been connected, so that nobody was waited for.
    wait_for("the agent to run all rules", Duration::from_secs(30), || {
        let agents = mesh.run(&["agents", "list"]).expect(0).stdout;
        if agents.contains(" 8/8 ") { Ok(()) } else { Err(agents) }
    });
}

fn append(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::File::options().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The documents of a file, by their place in it, once there are so many.
fn documents(mesh: &Mesh, name: &str, count: u64) -> Vec<Value> {
    let query = format!("log.file.path:\"{}\"", mesh.log(name).display());
    mesh.wait_count(&query, count);
    let mut found = mesh.search(&query);
    found.sort_by_key(|document| document["log.offset"].as_u64());
    found
}

fn messages(mesh: &Mesh, name: &str, count: u64) -> Vec<String> {
    documents(mesh, name, count).iter().map(|document| document["message"].as_str().unwrap().to_owned()).collect()
}

fn fields(document: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| document[name].clone()).collect()
}

#[test]
fn rules_say_what_an_event_is() {
    let mut mesh = Mesh::started();
    apply(&mesh, RULES);

    append(&mesh.log("java.log"), b"2026-01-31 one\n  at a\n\n  at b\n2026-01-31 two\n2026-01-31 three\n");
    append(&mesh.log("indented.log"), b"one\n  at a\n  at b\r\ntwo\n");
    append(&mesh.log("sql.log"), b"select 1\n  from a;\nselect 2;\n");
    append(&mesh.log("gbk.log"), b"\xc4\xe3\xba\xc3\r\n\xff\n");
    append(&mesh.log("utf16.log"), &utf16("\u{feff}first\r\nse\u{a0a}cond 😀\n"));
    let long = format!("short\n{}\n{}\nend\n", "ab".repeat(700), "€".repeat(1_000_000));
    append(&mesh.log("long.log"), long.as_bytes());
    append(&mesh.log("split.log"), long.as_bytes());
    let pod = "pods/shop_web-1_0a1b-2c/app/3.log";
    let lines = [
        "2026-01-31T12:00:00.000000007Z stdout P one ",
        "2026-01-31T12:00:01Z stderr F between",
        "2026-01-31T12:00:02Z stdout F event",
        "neither",
        r#"{"log":"two ","stream":"stdout","time":"2026-01-31T12:00:03.5Z"}"#,
        r#"{"log":"events\n","stream":"stdout","time":"2026-01-31T12:00:04Z"}"#,
        "",
    ];
    append(&mesh.log(pod), lines.join("\n").as_bytes());
    // However far it came: what is read again is cut the same way.
    mesh.kill();
    mesh.start();

    let expected = ["2026-01-31 one\n  at a\n\n  at b", "2026-01-31 two", "2026-01-31 three"];
    assert_eq!(messages(&mesh, "java.log", 3), expected);
    assert_eq!(messages(&mesh, "indented.log", 2), ["one\n  at a\n  at b", "two"]);
    assert_eq!(messages(&mesh, "sql.log", 2), ["select 1\n  from a;", "select 2;"]);
    assert_eq!(messages(&mesh, "utf16.log", 2), ["first", "se\u{a0a}cond 😀"]);
    let gbk = documents(&mesh, "gbk.log", 2);
    assert_eq!(fields(&gbk[0], &["message", "event.original_base64"]), json!(["你好", null]));
    assert_eq!(fields(&gbk[1], &["message", "event.original_base64"]), json!(["\u{fffd}", "/w=="]));

    let cut = documents(&mesh, "long.log", 4);
    let marks = ["logmesh.length", "logmesh.truncated", "logmesh.omitted"];
    assert_eq!(fields(&cut[0], &marks), json!([6, null, null]));
    assert_eq!(fields(&cut[1], &marks), json!([1_401, true, 1_401 - 1_024]));
    assert_eq!(fields(&cut[2], &marks), json!([3_000_001, true, 3_000_001 - 1_023]), "no character is cut");
    assert_eq!(cut[2]["message"], "€".repeat(341));
    assert_eq!(cut[3]["message"], "end");

    let pieces = documents(&mesh, "split.log", 1 + 2 + 2_933 + 1);
    let whole: String = pieces.iter().map(|document| document["message"].as_str().unwrap()).collect();
    assert!(whole == long.replace('\n', ""), "no character is split");
    assert_eq!(pieces.iter().filter(|document| document["logmesh.continuation"] == true).count(), 1 + 2_932);

    let found = documents(&mesh, pod, 5);
    let names = ["message", "@timestamp", "log.iostream", "logmesh.continuation"];
    assert_eq!(fields(&found[0], &names), json!(["one ", "2026-01-31T12:00:00.000000007Z", "stdout", null]));
    assert_eq!(fields(&found[1], &names), json!(["between", "2026-01-31T12:00:01.000000000Z", "stderr", null]));
    assert_eq!(fields(&found[2], &names), json!(["event", "2026-01-31T12:00:02.000000000Z", "stdout", true]));
    assert_eq!(fields(&found[3], &["message", "log.iostream"]), json!(["neither", null]));
    assert_eq!(fields(&found[4], &names), json!(["two events", "2026-01-31T12:00:03.500000000Z", "stdout", null]));
    let names =
        ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.container.name", "k8s.container.restart_count"];
    assert_eq!(fields(&found[0], &names), json!(["shop", "web-1", "0a1b-2c", "app", "3"]));
    assert_eq!(mesh.count("k8s.pod.name:web-1 AND log.iostream:stderr"), 1);

    // Edited in every way, a rule neither reads anything again nor leaves anything out.
    let edited = RULES.replace("encoding: gbk", "format: container");
    let edited =
        edited.replace("start_pattern: '^\\d{4}-'", "end_pattern: x").replace("long_events: cut", "encoding: gbk");
    assert_eq!(edited.matches("gbk\n").count() + edited.matches("end_pattern: x").count(), 2);
    apply(&mesh, &edited);
    append(&mesh.log("java.log"), b"2026-01-31 four\n x\n");
    append(&mesh.log("gbk.log"), b"2026-01-31T12:00:00Z stdout F late\n");
    append(&mesh.log("long.log"), &[&b"\xc4\xe3"[..], &vec![b'x'; 1_100], b"\n"].concat());
    assert_eq!(messages(&mesh, "java.log", 4)[3], "2026-01-31 four\n x");
    assert_eq!(messages(&mesh, "gbk.log", 3)[2], "late");
    let split = documents(&mesh, "long.log", 6);
    assert_eq!(split[4]["message"], format!("你{}", "x".repeat(1_022)));
    assert_eq!(split[5]["logmesh.continuation"], true);
    mesh.audit();
    assert!(mesh.stop().success());
}
