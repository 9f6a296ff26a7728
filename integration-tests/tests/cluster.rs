//! The same promise with every service apart, on a real etcd, Kafka and Elasticsearch: each process is killed under load, and
//! each line of each file is found exactly once.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::cluster::{self, AGENT, apply};
use logmesh_integration_tests::compare::{assert_equal, by_path, events_of_file};
use logmesh_integration_tests::writer::Writer;
use logmesh_integration_tests::{Client, Cluster, PATIENCE, grpcurl, oracle};
use logmesh_testing::wait_for;
use logmesh_types::{Day, UnixNanos};
use rustix::process::Signal;
use serde_json::{Value, json};

/// How long a killed process stays away, and how long lines flow between two kills.
const AWAY: Duration = Duration::from_millis(700);
const BETWEEN: Duration = Duration::from_millis(1_500);

/// A consumer group's session time-out, and a little.
const TAKEN_OVER: Duration = Duration::from_secs(12);

#[test]
fn every_line_is_found_once_though_each_process_is_killed_under_load() {
    let mut cluster = Cluster::started();
    let (run, begin) = (rand::random(), Instant::now());
    let servers: Vec<PathBuf> = cluster.backends().iter().map(|name| cluster.backend(name).log()).collect();
    let logs = cluster.folder.join("logs/**/*.log*");
    let globs: Vec<&Path> = servers.iter().map(PathBuf::as_path).chain([logs.as_path()]).collect();
    apply(&cluster, "all", &globs, "logs");
    let writers = [
        Writer::start(cluster.log("plain.log"), run, 0, None),
        Writer::start(cluster.log("rotated.log"), run, 1, Some(997)),
    ];

    for name in [cluster.names(), cluster.backends()].concat() {
        sleep(BETWEEN);
        println!("{:?}: {name} is killed", begin.elapsed());
        cluster.kill(name);
        sleep(AWAY);
        cluster.start_again(name);
    }
    // Longer than its group waits for a member: another takes its partitions over, and when it wakes up it spoils nothing.
    println!("{:?}: transfer-1 is frozen", begin.elapsed());
    cluster.signal("transfer-1", Signal::STOP);
    sleep(TAKEN_OVER);
    cluster.signal("transfer-1", Signal::CONT);
    sleep(BETWEEN);
    let written: Vec<u64> = writers.into_iter().map(Writer::finish).collect();
    println!("{:?}: {written:?} lines are written", begin.elapsed());
    cluster.assert_alive();
    cluster.client().wait_ready();

    let client = cluster.client();
    println!("{:?}: all services are ready", begin.elapsed());
    client.wait_count("log.file.path:*/logs/*", written.iter().sum());
    println!("{:?}: all of them are counted", begin.elapsed());
    let generated = client.search("log.file.path:*/logs/*");
    let verdict = oracle::judge(run, &written, &generated);
    println!("{:?}: {verdict:?}", begin.elapsed());
    verdict.assert_clean();
    assert!(written.iter().all(|count| *count > 1_000), "void: too little load between the kills: {written:?}");
    for path in &servers {
        assert_collected(&client, path);
    }
    println!("{:?}: the servers' own lines are found", begin.elapsed());
    client.audit();
    println!("{:?}: the audit is clean", begin.elapsed());
    for name in cluster.names() {
        cluster.stop(name);
        println!("{:?}: {name} has ended", begin.elapsed());
    }
}

/// What a server has written is found, line by line. It may write on meanwhile.
fn assert_collected(client: &Client, path: &Path) {
    let query = format!("log.file.path:\"{}\"", path.display());
    let lines = || events_of_file(&std::fs::read(path).unwrap()).len() as u64;
    wait_for(&format!("the lines of {}", path.display()), PATIENCE, || match (client.count(&query), lines()) {
        (found, lines) if found == lines && lines > 0 => Ok(()),
        (found, lines) => Err(format!("{found} of {lines}")),
    });
    let documents = client.search(&query);
    let files: BTreeMap<String, Vec<&Value>> = by_path(&documents);
    assert_equal(path, &files[&path.display().to_string()]);
}

#[test]
fn services_wait_for_their_backends_and_say_so() {
    let mut cluster = Cluster::new("");
    for name in cluster.backends() {
        cluster.kill(name);
    }
    for name in cluster.names() {
        cluster.spawn(name);
    }
    for (service, waits_for) in
        [("config", "store"), ("gateway-1", "bus"), ("transfer-1", "index"), ("console", "index")]
    {
        wait_for(&format!("{service} to say that it waits"), PATIENCE, || {
            let answer = cluster.readyz(service);
            let says = answer.contains(&format!("{waits_for}: not ready: "));
            if answer.starts_with("HTTP/1.1 503") && says { Ok(()) } else { Err(answer) }
        });
    }
    // Lines that are written meanwhile wait in their file. The agent has no rule yet: that comes with etcd.
    std::fs::write(cluster.log("early.log"), "written before anything was there\n").unwrap();
    let status = cluster.client().run(&["status"]).expect(1);
    assert!(status.stdout.contains("not ready"), "{status:?}");

    for name in cluster.backends() {
        cluster.start_again(name);
    }
    cluster.client().wait_ready();
    let logs = cluster.folder.join("logs/*.log");
    apply(&cluster, "late", &[&logs], "logs");
    cluster.client().wait_count("*", 1);

    // Kafka goes while lines come: they are found when it's back.
    cluster.kill("kafka");
    let lines: String = (0..300).map(|number| format!("line {number} of many\n")).collect();
    std::fs::write(cluster.log("meanwhile.log"), lines).unwrap();
    wait_for("the gateway to say that Kafka is away", PATIENCE, || {
        let answer = cluster.readyz("gateway-1");
        if answer.starts_with("HTTP/1.1 503") { Ok(()) } else { Err(answer) }
    });
    cluster.start_again("kafka");
    cluster.client().wait_count("*", 301);

    // Nor does anybody have to look at a log to learn that the index takes nothing, or is away.
    block(&mut cluster, "true");
    std::fs::write(cluster.log("blocked.log"), "one more\n").unwrap();
    says_why(&cluster, "blocked by");
    block(&mut cluster, "null");
    cluster.client().wait_count("*", 302);
    cluster.kill("elasticsearch");
    says_why(&cluster, "Elasticsearch");
    cluster.start_again("elasticsearch");
    cluster.client().wait_ready();
    // What is there and stands still looks otherwise from outside than what is gone.
    cluster.signal("elasticsearch", Signal::STOP);
    std::fs::write(cluster.log("frozen.log"), "and another\n").unwrap();
    says_why(&cluster, "Elasticsearch");
    cluster.signal("elasticsearch", Signal::CONT);
    cluster.client().wait_ready();
    cluster.signal("transfer-1", Signal::STOP);
    // As long as config takes it for one that lives: then the other has its partitions.
    let frozen = cluster.grpc("transfer-1").replace(':', "-");
    let status = Client::new(&cluster.grpc("transfer-2")).run(&["status"]).expect(1).stdout;
    assert!(status.contains(&format!("worker {frozen} does not answer")), "{status}");
    cluster.signal("transfer-1", Signal::CONT);
    cluster.client().wait_ready();
    cluster.client().audit();
    assert_context(&cluster.client());
    cluster.assert_alive();

    // Somebody makes the index of a topic before its first line: that's said, and can be put right as it is said.
    let days = [0, 1].map(|days| Day::of(UnixNanos(UnixNanos::now().0 + days * 86_400_000_000_000)));
    let theirs = days.map(|day| format!("/logmesh-conf@{}", day.to_string().replace('-', ".")));
    let elasticsearch = cluster.backend("elasticsearch").address();
    for index in &theirs {
        assert!(cluster::http(&elasticsearch, "PUT", index, "{}").unwrap().contains("\"acknowledged\":true"));
    }
    let folder = cluster.folder.join("logs/conf");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("conf.log"), "theirs\n").unwrap();
    apply(&cluster, "conf", &[&folder.join("*.log")], "conf");
    let of_conf = ["audit", "--topic", "conf"];
    wait_for("an audit to name the index", PATIENCE, || {
        let done = cluster.client().run(&of_conf);
        if done.stderr.contains("logmesh-conf@") && done.code == Some(1) { Ok(()) } else { Err(format!("{done:?}")) }
    });
    cluster.client().run(&of_conf).expect(1).says(&["logmesh.stream is of type text, not keyword", "audit --repair"]);
    let all = cluster.client().run(&["audit"]).expect(1).says(&["topic conf was not audited", "of type text"]);
    assert!(all.stdout.contains(" documents: no gap, no double"), "the others are: {all:?}");
    for index in &theirs {
        assert!(cluster::http(&elasticsearch, "DELETE", index, "").unwrap().contains("\"acknowledged\":true"));
    }
    cluster.client().run(&["audit", "--repair"]).expect(0);
    assert_eq!(cluster.client().count("_topic:conf theirs"), 1);

    // Without config nobody can say which topics are only a rule's: work on one that's misspelt isn't done.
    let client = cluster.client();
    client
        .run(&["deadletters", "redrive", "--topic", "lgos"])
        .expect(1)
        .says(&["there is no topic lgos; there are conf, logs"]);
    cluster.kill("config");
    let unknown = client.run(&["deadletters", "redrive", "--topic", "lgos"]).expect(69);
    assert!(unknown.stdout.is_empty(), "{unknown:?}");
    unknown.says(&["there is no topic lgos yet", "try again when a config service answers"]);
    client.run(&["deadletters", "redrive", "--topic", "logs"]).expect(1).says(&["topic logs has no dead letter"]);
}

/// The lines around one, named by its document or by its place; all were read at one time, so that only their offsets order
/// them.
fn assert_context(client: &Client) {
    let hit = client.search("\"line 150\"").remove(0);
    let (id, stream) = (hit["_id"].as_str().unwrap(), hit["logmesh.stream"].as_str().unwrap());
    let shown = client.run(&["context", "logs", id, "-B", "2", "-A", "1"]).expect(0).stdout;
    let lines: Vec<(&str, &str)> = shown.lines().map(|line| (&line[..1], line.rsplit("  ").next().unwrap())).collect();
    let expected =
        [(" ", "line 148 of many"), (" ", "line 149 of many"), (">", "line 150 of many"), (" ", "line 151 of many")];
    assert_eq!(lines, expected);
    let within = (hit["logmesh.offset"].as_u64().unwrap() + 3).to_string();
    let same = client.run(&["context", "logs", stream, &within, "-B", "2", "-A", "1"]).expect(0).stdout;
    assert_eq!(same, shown, "any byte of the line means it");
    let all = client.run(&["context", "logs", id, "-B", "500", "-A", "500", "--json"]).expect(0).stdout;
    let all = json_lines(&all);
    let numbers = (0..300).map(|number| format!("line {number} of many"));
    assert!(all.iter().map(|line| line["message"].as_str().unwrap()).eq(numbers), "{all:?}");
    assert_eq!(all[150], hit);

    let behind = client.run(&["context", "logs", stream, "1000000", "-B", "2"]).expect(1);
    assert_eq!(behind.stdout.lines().count(), 2, "{behind:?}");
    behind.says(&["no line with byte 1000000"]);
    let other = format!("{}{}", if id.starts_with('A') { "B" } else { "A" }, &id[1..]);
    client.run(&["context", "logs", &other]).expect(1).says(&[&format!("holds no document {other}")]);
    client.run(&["context", "logs", &"0".repeat(32), "0"]).expect(1).says(&["holds nothing of stream"]);
    client.run(&["context", "lgos", id]).expect(1).says(&["there is no topic lgos"]);
}

/// Sets, or takes away, a block of all indices.
fn block(cluster: &mut Cluster, value: &str) {
    let address = cluster.backend("elasticsearch").address();
    let body = format!("{{\"index.blocks.write\": {value}}}");
    let answer = cluster::http(&address, "PUT", "/*/_settings", &body).unwrap();
    assert!(answer.contains("\"acknowledged\":true"), "{answer}");
}

/// Waits until `status` says of transfer that it waits, and for what.
fn says_why(cluster: &Cluster, reason: &str) {
    wait_for(&format!("status to say {reason:?}"), PATIENCE, || {
        let said = cluster.client().run(&["status"]).stdout;
        let line = said.lines().find(|line| line.starts_with("transfer")).unwrap_or_default();
        if line.contains(reason) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn the_console_is_the_front_door_of_every_service() {
    let mut cluster = Cluster::started();
    let door = cluster.grpc("console");
    let names = grpcurl::grpcurl(&[], &door, &["list"]).expect(0).stdout;
    for service in [
        "config.v1.RuleService",
        "fleet.v1.FleetService",
        "fleet.v1.AgentConfigService",
        "discovery.v1.DiscoveryService",
        "ingest.v1.IngestService",
        "transfer.v1.TransferService",
        "search.v1.SearchService",
        "audit.v1.AuditService",
    ] {
        assert!(names.contains(&format!("logmesh.{service}")), "{service} is not in {names}");
    }

    // A rule by grpcurl at the front door reaches the agent, which is connected to config.
    std::fs::write(cluster.log("app.log"), "through the front door\n").unwrap();
    let rule = json!({"rule": {"name": "rules/door", "paths": [cluster.log("*.log")], "topic": "door", "selector": "os=linux"}});
    grpcurl::call(&door, "logmesh.config.v1.RuleService/CreateRule", &rule.to_string(), 30).expect(0);
    cluster.client().wait_count("message:\"the front door\"", 1);

    // An event by Write goes to a gateway; a refusal comes back as it was made, with its details.
    let events = json!({"topic": "door", "events": [{"event_id": "1", "message": "written by hand"}]});
    grpcurl::call(&door, "logmesh.ingest.v1.IngestService/Write", &events.to_string(), 30).expect(0);
    cluster.client().wait_count("\"written by hand\"", 1);
    let written = cluster.client().search("\"written by hand\"").remove(0);
    let context = cluster.client().run(&["context", "door", written["_id"].as_str().unwrap()]).expect(1);
    context.says(&["is no event of a file"]);
    let get = cluster.client().run(&["rules", "get", "nobody"]).expect(1);
    get.says(&["nobody"]);
    cluster.client().run(&["rules", "list"]).expect(0);
    let status = cluster.client().run(&["status", "--json"]).expect(0);
    assert_eq!(status.stdout.lines().count(), 4, "{}", status.stdout);
    assert!(cluster.readyz(AGENT).starts_with("HTTP/1.1 200"));
    assert_fresh(&mut cluster);
}

/// How fresh a topic is, as the server answers.
fn freshness(server: &str, request: &Value) -> Value {
    let method = "logmesh.transfer.v1.TransferService/GetFreshness";
    serde_json::from_str(&grpcurl::call(server, method, &request.to_string(), 30).expect(0).stdout).unwrap()
}

/// How long the events of the topic `door` took is told for both workers together, and who is missing.
fn assert_fresh(cluster: &mut Cluster) {
    let workers = ["transfer-1", "transfer-2"].map(|name| cluster.grpc(name));
    // Of which part of the way how many events are known; numbers of 64 bits are texts in JSON.
    let events = |server: &str, own: bool| -> BTreeMap<String, u64> {
        let answer = freshness(server, &json!({"topic": "door", "this_worker_only": own}));
        let hops = answer["topics"][0]["hops"].as_array().cloned().unwrap_or_default();
        let of = |hop: &Value| {
            (hop["hop"].as_str().unwrap().to_owned(), hop["events"].as_str().unwrap().parse::<u64>().unwrap())
        };
        hops.iter().map(of).collect()
    };
    let mut sum: BTreeMap<String, u64> = BTreeMap::new();
    for (hop, count) in workers.iter().flat_map(|worker| events(worker, true)) {
        *sum.entry(hop).or_default() += count;
    }
    assert_eq!((sum["HOP_TOTAL"], sum["HOP_AGENT_TO_GATEWAY"], sum["HOP_GATEWAY_TO_BUS"]), (2, 1, 2), "{sum:?}");
    assert!(["HOP_BUS_TO_TRANSFER", "HOP_TRANSFER_TO_INDEX"].iter().all(|hop| sum[*hop] == 2), "{sum:?}");
    for server in [&workers[0], &workers[1], &cluster.grpc("console")] {
        assert_eq!(events(server, false), sum, "{server}");
    }
    cluster.kill("transfer-2");
    let answer = freshness(&workers[0], &json!({}));
    let missing = answer["unreachableWorkers"].as_array().unwrap();
    assert!(missing.len() == 1 && workers[1].ends_with(missing[0].as_str().unwrap().trim_start_matches("127.0.0.1-")));
}
