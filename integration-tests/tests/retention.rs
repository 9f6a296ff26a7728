//! Days of the index that are old enough go, and nothing brings them back: no agent without its state, no repair, no kill. A host whose
//! clock is far behind loses nothing by that. What is paused waits, and comes once.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::io::Write;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::cluster::{self, http};
use logmesh_integration_tests::program::Done;
use logmesh_integration_tests::{Client, Cluster, Mesh, PATIENCE, grpcurl};
use logmesh_testing::wait_for;
use logmesh_types::{Day, UnixNanos};
use serde_json::Value;

/// A stream that no agent knows.
const STREAM: &str = "217a55e0e277d86e24b960c80282a1c5";

const DAY: i64 = 86_400_000_000_000;

fn ago(days: i64) -> UnixNanos {
    UnixNanos(UnixNanos::now().0 - days * DAY)
}

/// Sends lines that were read so many days ago.
fn push(address: &str, start: usize, text: &str, days: i64) {
    grpcurl::push(address, STREAM, start, text, ago(days));
}

#[track_caller]
fn prints(done: &Done, text: &str) {
    assert!(done.stdout.contains(text), "{text:?} is not in {done:?}");
}

/// The status of one service, as JSON.
fn status(client: &Client, service: &str) -> Value {
    let lines = json_lines(&client.run(&["status", "--json"]).stdout);
    lines.into_iter().find(|line| line["service"] == service).unwrap_or_default()
}

/// Sends all dead letters of the topic through again, and waits until they are indexed.
fn redrive(client: &Client, letters: usize) {
    let done = client.run(&["deadletters", "redrive", "--topic", "logs"]).expect(0);
    prints(&done, &format!("{letters} sent: "));
    assert_eq!(client.run(&["deadletters", "list"]).expect(0).stdout, "");
}

/// The bytes that the audit calls retired, of all streams; it must be clean.
fn retired_bytes(client: &Client) -> u64 {
    let audits = json_lines(&client.run(&["audit", "--repair", "--json"]).expect(0).stdout);
    assert!(audits.iter().all(|audit| audit["repaired_events"] == 0), "{audits:?}");
    audits.iter().map(|audit| audit["retired_bytes"].as_u64().unwrap()).sum()
}

#[test]
fn an_old_day_goes_and_stays_away() {
    let mut mesh = Mesh::new();
    std::fs::write(mesh.log("new.log"), "new\nnewer\n").unwrap();
    mesh.start();
    push(mesh.grpc(), 0, "old\nolder\n", 10);
    mesh.wait_count("*", 4);
    mesh.audit();
    assert!(mesh.stop().success());

    mesh.env = vec![("LOGMESH_TOPICS__DEFAULT__INDEX_RETENTION", "3d".to_owned())];
    mesh.start();
    mesh.wait_count("*", 2);
    prints(&mesh.audit(), "10 B retired with their days");
    assert_eq!(retired_bytes(&mesh.client()), 10);
    assert_eq!(status(&mesh.client(), "transfer")["retired_before"]["logs"], Day::of(ago(3)).to_string());
    let leaders = status(&mesh.client(), "config")["leaders"].clone();
    let holds = |leader: &Value| leader["name"] == "retention" && leader["holder"] == "standalone";
    assert!(leaders.as_array().unwrap().iter().any(holds), "{leaders}");

    // A line of a host whose clock is behind; the whole file from an agent without its state; and all of it again after a kill.
    mesh.errors_expected = true;
    for round in 1..=2 {
        push(mesh.grpc(), 10, "astray\n", 9);
        push(mesh.grpc(), 0, "old\nolder\n", 0);
        push(mesh.grpc(), 17, "in time\n", 0);
        mesh.wait_count("\"in time\"", 1);
        wait_for("the line to be a dead letter", PATIENCE, || {
            let letters = json_lines(&mesh.client().run(&["deadletters", "list", "--json"]).expect(0).stdout);
            if letters.len() == round { Ok(()) } else { Err(format!("{letters:?}")) }
        });
        let audit = mesh.audit();
        prints(&audit, "10 B retired with their days");
        prints(&audit, "7 B in the dead letters");
        prints(&mesh.client().run(&["audit", "--no-dead-letters"]).expect(1), "no gap, no double");
        prints(&mesh.client().run(&["status"]).expect(0), "dead letters wait");
        assert_eq!(mesh.count("*"), 3);
        mesh.kill();
        mesh.start();
    }
    let summary = mesh.client().run(&["deadletters", "list", "--summary"]).expect(0);
    prints(&summary, "by the clock of agent '…' on host '…'");

    // Redriven it is there, once, whatever comes again.
    redrive(&mesh.client(), 2);
    mesh.wait_count("astray", 1);
    for days in [9, 0, 1] {
        push(mesh.grpc(), 10, "astray\n", days);
    }
    mesh.client().run(&["replay", "start", "--topic", "logs", "--id", "all"]).expect(0);
    wait_for("the replay to be done", PATIENCE, || {
        let replay = mesh.client().run(&["replay", "get", "all", "--json"]);
        if replay.stdout.contains("\"done\"") { Ok(()) } else { Err(format!("{replay:?}")) }
    });
    mesh.audit();
    let audit = json_lines(&mesh.client().run(&["audit", "--json"]).expect(0).stdout);
    assert!(audit.iter().all(|one| one["dead_letter_bytes"].as_u64().unwrap_or_default() == 0), "{audit:?}");
    assert_eq!((mesh.count("*"), retired_bytes(&mesh.client())), (4, 10));
    mesh.client().run(&["audit", "--no-dead-letters"]).expect(0);
    let status = mesh.client().run(&["status"]).expect(0).stdout;
    assert!(!status.contains("dead letters wait"), "{status}");
}

/// The indices of topic `logs` in Elasticsearch.
fn indices(cluster: &mut Cluster) -> Vec<String> {
    let address = cluster.backend("elasticsearch").address();
    let answer = http(&address, "GET", "/_cat/indices/logmesh-logs@*?h=index&format=txt", "").unwrap();
    let mut names: Vec<String> =
        answer.lines().map(str::trim).filter(|line| line.starts_with("logmesh-logs@")).map(str::to_owned).collect();
    names.sort();
    names
}

fn until_indices(cluster: &mut Cluster, wanted: &[String]) {
    wait_for("old indices to go", PATIENCE, || match indices(cluster) {
        found if found == wanted => Ok(()),
        found => Err(format!("{found:?} and not {wanted:?}")),
    });
}

/// The transfer worker that leads.
fn leader(cluster: &Cluster, but: &str) -> &'static str {
    wait_for("a leader", PATIENCE, || {
        let leaders = status(&cluster.client(), "config")["leaders"].clone();
        let led = |name: &&str| {
            let id = cluster.grpc(name).replace(':', "-");
            leaders.as_array().into_iter().flatten().any(|one| one["name"] == "retention" && one["holder"] == id)
        };
        ["transfer-1", "transfer-2"].into_iter().find(led).filter(|name| *name != but).ok_or(leaders.to_string())
    })
}

#[test]
fn on_servers_the_next_leader_goes_on_and_a_pause_outlives_kills() {
    let mut cluster = Cluster::new(
        "[topics.default]\nindex_retention = \"3d\"\n[transfer]\nretention_interval = \"1s\"\n[config]\nendpoint_ttl = \"3s\"\n",
    );
    cluster.start();
    let file = cluster.folder.join("rule.yaml");
    std::fs::write(&file, cluster::rule("all", &[&cluster.log("*.log")])).unwrap();
    cluster.client().run(&["rules", "apply", "-f", file.to_str().unwrap(), "--wait", "30s"]).expect(0);
    let lines = |from: usize| (from..from + 100).map(|line| format!("line {line}\n")).collect::<String>();
    std::fs::write(cluster.log("app.log"), lines(0)).unwrap();
    cluster.client().wait_count("*", 100);
    let today = indices(&mut cluster);
    assert_eq!(today.len(), 1, "{today:?}");

    // The next leader knows what is retired, and takes away what comes back.
    let first = leader(&cluster, "");
    let old = format!("/logmesh-logs@{}", Day::of(ago(10)).to_string().replace('-', "."));
    let elasticsearch = cluster.backend("elasticsearch").address();
    http(&elasticsearch, "PUT", &old, "{}").unwrap();
    until_indices(&mut cluster, &today);
    cluster.kill(first);
    let second = leader(&cluster, first);
    http(&elasticsearch, "PUT", &old, "{}").unwrap();
    until_indices(&mut cluster, &today);
    println!("{first} was followed by {second}");
    cluster.spawn(first);

    // A line of a host whose clock is behind: a dead letter, and after a redrive a line of today.
    push(&cluster.grpc("gateway-1"), 0, "astray\n", 9);
    wait_for("the line to be a dead letter", PATIENCE, || {
        let letters = cluster.client().run(&["deadletters", "list"]);
        if letters.stdout.contains("by the clock of agent 'web-1'") { Ok(()) } else { Err(format!("{letters:?}")) }
    });
    assert_eq!(indices(&mut cluster), today);
    redrive(&cluster.client(), 1);
    push(&cluster.grpc("gateway-1"), 0, "astray\n", 9);
    cluster.client().wait_count("*", 101);
    assert_eq!((indices(&mut cluster), retired_bytes(&cluster.client())), (today, 0));

    prints(&cluster.client().run(&["transfer", "pause"]).expect(0), "all topics are paused");
    let none_held = |cluster: &Cluster| {
        let held = ["transfer-1", "transfer-2"].map(|name| {
            let method = "logmesh.transfer.v1.TransferService/GetStatus";
            grpcurl::call(&cluster.grpc(name), method, "{}", 30).stdout.contains("\"held\": true")
        });
        if held == [false, false] { Ok(()) } else { Err(format!("{held:?}")) }
    };
    wait_for("the workers to pause", PATIENCE, || none_held(&cluster));
    let mut log = std::fs::File::options().append(true).open(cluster.log("app.log")).unwrap();
    log.write_all(lines(100).as_bytes()).unwrap();
    wait_for("lines to wait on the bus", PATIENCE, || {
        let said = cluster.client().run(&["audit"]);
        if said.code == Some(0) && said.stdout.contains("on their way") { Ok(()) } else { Err(format!("{said:?}")) }
    });
    for name in ["transfer-1", "transfer-2"] {
        cluster.kill(name);
        cluster.spawn(name);
    }
    cluster.client().wait_ready();
    wait_for("the new workers to say that they are paused", PATIENCE, || {
        let status = cluster.client().run(&["status"]);
        if status.stdout.contains("all topics are paused") { Ok(()) } else { Err(format!("{status:?}")) }
    });
    assert_eq!(cluster.client().count("*"), 101);
    prints(&cluster.client().run(&["transfer", "resume"]).expect(0), "nothing is paused");
    cluster.kill("transfer-2");
    cluster.client().wait_count("*", 201);
    cluster.spawn("transfer-2");
    cluster.client().audit();
    assert_eq!(cluster.client().count("*"), 201);
    cluster.assert_alive();
}
