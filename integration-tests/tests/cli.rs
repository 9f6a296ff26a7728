//! The command line, as the design has it: what each command prints, and its exit code (0 done, 1 found wanting, 64 usage
//! or a bad file, 69 not reachable).

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::mpsc;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::program::{Done, command, logmesh, run};
use logmesh_integration_tests::{Mesh, PATIENCE};
use logmesh_testing::wait_for;
use serde_json::{Value, json};

/// Ten lines in `logs/app.log`, found.
fn mesh_with_lines() -> Mesh {
    let mesh = Mesh::started();
    let lines: String = (0..10).map(|number| format!("request {number} took {}ms\n", number * 10)).collect();
    std::fs::write(mesh.log("app.log"), lines).unwrap();
    mesh.wait_count("*", 10);
    mesh
}

#[test]
fn search_prints_what_it_is_asked_for() {
    let mesh = mesh_with_lines();
    let done = mesh.run(&["search", "took", "--count"]).expect(0);
    assert_eq!(done.stdout, "10\n");
    assert_eq!(mesh.run(&["search", "\"request 3\"", "--count"]).expect(0).stdout, "1\n");
    assert_eq!(mesh.run(&["search", "nonexistent", "--count"]).expect(0).stdout, "0\n");
    assert_eq!(mesh.run(&["search", "nonexistent"]).expect(0).stdout, "");
    assert_eq!(mesh.run(&["search", "request", "--limit", "3"]).expect(0).stdout.lines().count(), 3);
    assert_eq!(mesh.run(&["search", "*", "--since", "15m", "--count"]).expect(0).stdout, "10\n");
    assert_eq!(mesh.run(&["search", "*", "--to", "2001-01-01T00:00:00Z", "--count"]).expect(0).stdout, "0\n");
    assert_eq!(mesh.run(&["search", "*", "--from", "now-1h", "--to", "now", "--count"]).expect(0).stdout, "10\n");
    assert_eq!(mesh.run(&["search", "*", "--topic", "logs", "--count"]).expect(0).stdout, "10\n");
    let topics = mesh.run(&["search", "request", "--facet", "_topic"]).expect(0).stdout;
    assert_eq!(topics, "COUNT  VALUE\n10     logs\n");
    let file = mesh.run(&["search", "\"request 3\"", "--facet", "log.file.path", "--json"]).expect(0).stdout;
    assert_eq!(json_lines(&file), [json!({ "value": mesh.log("app.log"), "count": 1 })]);
    mesh.run(&["search", "*", "--facet", "message"]).expect(1).says(&["field", "words"]);
    let text = mesh.run(&["search", "\"request 7\""]).expect(0).stdout;
    assert!(text.contains("request 7 took 70ms"), "{text}");
}

#[test]
fn a_misspelt_topic_is_told_and_one_without_documents_is_none() {
    let mesh = Mesh::started();
    for args in [
        &["search", "*", "--topic", "logs", "--count"][..],
        &["search", "_topic:lo*"],
        &["deadletters", "list", "--topic", "logs"],
    ] {
        // The rule of `--collect` writes to it, and nothing has come yet.
        mesh.run(args).expect(0);
    }
    std::fs::write(mesh.log("app.log"), "one\n").unwrap();
    mesh.wait_count("*", 1);
    for args in [
        &["search", "*", "--topic", "lgos"][..],
        &["search", "*", "--topic", "logs", "--topic", "lgos"],
        &["search", "*", "--topic", "lgos", "--count"],
        &["search", "*", "--topic", "lgos", "--facet", "host.name"],
        &["context", "lgos", "00000000000000000000000000000000", "0"],
        &["deadletters", "list", "--topic", "lgos"],
        &["deadletters", "list", "--topic", "lgos", "--summary"],
        &["deadletters", "redrive", "--topic", "lgos"],
        &["replay", "start", "--topic", "lgos"],
        &["transfer", "pause", "--topic", "lgos"],
        &["transfer", "resume", "--topic", "lgos"],
        &["audit", "--topic", "lgos"],
    ] {
        let done = mesh.run(args).expect(1);
        assert!(done.stdout.is_empty() && done.stderr.contains("there is no topic lgos; "), "{args:?}: {done:?}");
    }
    mesh.run(&["search", "*", "--topic", "log"]).expect(1).says(&["there is no topic log; did you mean logs?"]);
    for query in ["_topic:lgo*", "one _topic:lgo*", "_topic:(lgo* OR logz)"] {
        mesh.run(&["search", query]).expect(1).says(&["there is no topic lgo*; there are logs"]);
    }
    mesh.run(&["search", "_topic:lgos", "--count"]).expect(1).says(&["there is no topic lgos; there are logs"]);
    for query in ["two _topic:lo*", "two (_topic:lgo* OR logs)", "two _topic:(lgo* OR logs)", "two NOT _topic:lgo*"] {
        assert_eq!(mesh.run(&["search", query, "--count"]).expect(0).stdout, "0\n", "{query}");
    }
    mesh.run(&["search", "*", "--topic", "payments"]).expect(1).says(&["there is no topic payments; there are logs"]);

    // A tail may be there before its topic: it says so and waits.
    for (args, text) in [
        (&["tail", "*", "--topic", "logz"][..], "there is no topic logz; did you mean logs?"),
        (&["tail", "_topic:payment?"], "there is no topic payment?; there are logs"),
    ] {
        let mut tail = command(logmesh());
        tail.args(args).args(["--server", mesh.grpc()]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tail = tail.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(tail.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, format!("logmesh: {text} (waiting for it)\n"));
        assert_eq!(tail.try_wait().unwrap(), None, "it goes on");
        tail.kill().unwrap();
        tail.wait().unwrap();
    }
}

#[test]
fn a_topic_of_a_rule_is_one_before_its_first_line() {
    let mesh = Mesh::started();
    assert_eq!(mesh.run(&["transfer", "pause", "--topic", "logs"]).expect(0).stdout, "paused: logs\n");
    let status = mesh.run(&["status"]).stdout;
    assert!(status.contains("paused: logs"), "{status}");
    let nothing = mesh.run(&["replay", "start", "--topic", "logs"]).expect(1);
    nothing.says(&["the bus has no topic logs yet: there is nothing to replay"]);
    std::fs::write(mesh.log("app.log"), "one\n").unwrap();
    let started = wait_for("the line to be on the bus", PATIENCE, || {
        let done = mesh.run(&["replay", "start", "--topic", "logs", "--json"]);
        if done.code == Some(0) { Ok(json_lines(&done.stdout).remove(0)) } else { Err(format!("{done:?}")) }
    });
    assert_eq!((&started["retired"], &started["unreadable_records"]), (&json!(0), &json!(0)));
    assert_eq!(mesh.count("*"), 0, "it is paused");

    let file = mesh.log("future.yaml");
    let paths = mesh.log("none");
    let rule = format!(
        "name: rules/future\nselector: \"os=linux\"\npaths: [{:?}]\ntopic: future\n",
        paths.display().to_string()
    );
    std::fs::write(&file, rule).unwrap();
    mesh.run(&["rules", "apply", "-f", file.to_str().unwrap()]).expect(0);
    let into = mesh.run(&["replay", "start", "--topic", "logs", "--into", "future"]).expect(1);
    into.says(&["future is a topic of the mesh"]);
    mesh.run(&["transfer", "pause", "--topic", "future"]).expect(0);
    let resumed = mesh.run(&["transfer", "resume", "--topic", "logs"]).expect(0).stdout;
    assert_eq!(resumed, "logs isn't paused; paused: future\n");
    mesh.wait_count("*", 1);
}

#[test]
fn what_matches_nothing_is_not_said_to_be_done() {
    let mesh = mesh_with_lines();
    let none = ["replay", "start", "--topic", "logs", "--stream", "217a55e0e277d86e24b960c80282a1c5", "--id", "none"];
    mesh.run(&none).expect(0);
    wait_for("the replay to be done", PATIENCE, || {
        let said = mesh.run(&["replay", "get", "none"]).expect(0).stdout;
        let done = said.contains("  done  ") && said.ends_with("; the bus holds nothing that was asked for\n");
        if done { Ok(()) } else { Err(said) }
    });
    for (which, text) in [
        (&[][..], "topic logs has no dead letter: "),
        (&["--id", "xyz"], "topic logs has no dead letter of those that were named: "),
        (&["--reason", "none such"], "topic logs has no dead letter with this reason: "),
    ] {
        let done = mesh.run(&[&["deadletters", "redrive", "--topic", "logs"][..], which].concat()).expect(1);
        assert!(done.stdout.is_empty(), "{done:?}");
        done.says(&[text]);
    }
    for (which, text) in [
        (&[][..], "logmesh: there is no dead letter\n"),
        (&["--topic", "logs"], "logmesh: topic logs has no dead letter\n"),
        (&["--topic", "logs", "--reason", "none such"], "logmesh: topic logs has no dead letter with this reason\n"),
    ] {
        let done = mesh.run(&[&["deadletters", "list"][..], which].concat()).expect(0);
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", text));
    }
    // Neither is a replay that would write where its lines are, or nothing each second.
    let own = mesh.run(&["replay", "start", "--topic", "logs", "--into", "logs"]).expect(1);
    own.says(&["into", "logs is a topic of the mesh"]);
    mesh.run(&["replay", "start", "--topic", "logs", "--rate", "0"]).expect(64).says(&["--rate"]);
}

#[test]
fn the_lines_around_one_are_shown() {
    let mesh = mesh_with_lines();
    let hit = mesh.search("\"request 4\"").remove(0);
    let (id, stream) = (hit["_id"].as_str().unwrap(), hit["logmesh.stream"].as_str().unwrap());
    let shown = mesh.run(&["context", "logs", id, "-B", "1", "-A", "2"]).expect(0).stdout;
    let lines: Vec<(&str, &str)> = shown.lines().map(|line| (&line[..1], line.rsplit("  ").next().unwrap())).collect();
    let expected = [
        (" ", "request 3 took 30ms"),
        (">", "request 4 took 40ms"),
        (" ", "request 5 took 50ms"),
        (" ", "request 6 took 60ms"),
    ];
    assert_eq!(lines, expected);
    let within = (hit["logmesh.offset"].as_u64().unwrap() + 3).to_string();
    let same = mesh.run(&["context", "logs", stream, &within, "-B", "1", "-A", "2"]).expect(0).stdout;
    assert_eq!(same, shown, "any byte of the line means it");
    let all = json_lines(&mesh.run(&["context", "logs", id, "-A", "500", "--json"]).expect(0).stdout);
    assert_eq!((all.len(), &all[4]), (10, &hit), "four come before it");

    let behind = mesh.run(&["context", "logs", stream, "5000"]).expect(1);
    assert_eq!(behind.stdout.lines().count(), 5, "{behind:?}");
    behind.says(&["no line with byte 5000"]);
    mesh.run(&["context", "logs", &"0".repeat(32), "0"]).expect(1).says(&["holds nothing of stream"]);
    mesh.run(&["context", "logs", stream]).expect(64).says(&["OFFSET"]);
}

#[test]
fn json_is_the_document_as_stored_with_its_id_and_topic() {
    let mesh = mesh_with_lines();
    let hits = json_lines(&mesh.run(&["search", "\"request 4\"", "--json"]).expect(0).stdout);
    let [hit] = &hits[..] else { panic!("{hits:?}") };
    assert_eq!(hit["message"], "request 4 took 40ms");
    assert_eq!(hit["_topic"], "logs");
    assert_eq!(hit["log.file.path"], mesh.log("app.log").display().to_string());
    assert_eq!(hit["logmesh.rule"], "rules/collect");
    assert_eq!(
        hit["logmesh.offset"],
        "request 0 took 0ms\nrequest 1 took 10ms\nrequest 2 took 20ms\nrequest 3 took 30ms\n".len()
    );
    assert_eq!(hit["logmesh.stream"].as_str().unwrap().len(), 32);
    for key in ["_id", "@timestamp", "host.name", "log.offset", "logmesh.agent", "logmesh.length", "logmesh.read_time"]
    {
        assert!(!hit[key].is_null(), "no {key} in {hit}");
    }
}

#[test]
fn the_newest_come_first() {
    let mesh = mesh_with_lines();
    let messages: Vec<Value> = mesh.search("*").iter().map(|hit| hit["message"].clone()).collect();
    assert_eq!(messages.first().unwrap(), "request 9 took 90ms");
    assert_eq!(messages.last().unwrap(), "request 0 took 0ms");
}

#[test]
fn a_bad_query_is_refused_with_the_place() {
    let mesh = Mesh::started();
    mesh.run(&["search", "level:error AND ("]).expect(64).says(&["level:error AND (", "^"]);
}

#[test]
fn rules_go_in_and_come_out() {
    let mesh = Mesh::started();
    let file = mesh.folder.join("rule.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "name: rules/web\npaths: [\"/srv/web/*.log\"]\ntopic: web\n").unwrap();
    let applied = mesh.run(&["rules", "apply", "-f", path]).expect(0).stdout;
    assert!(applied.contains("rules/web created"), "{applied}");
    assert!(mesh.run(&["rules", "apply", "-f", path]).expect(0).stdout.contains("unchanged"));
    std::fs::write(&file, "name: rules/web\npaths: [\"/srv/web/*.log\"]\ntopic: web\npriority: 3\n").unwrap();
    assert!(mesh.run(&["rules", "apply", "-f", path]).expect(0).stdout.contains("updated"));

    let listed = mesh.run(&["rules", "list"]).expect(0).stdout;
    assert!(listed.contains("rules/web") && listed.contains("rules/collect"), "{listed}");
    let yaml = mesh.run(&["rules", "get", "web"]).expect(0).stdout;
    assert!(yaml.contains("/srv/web/*.log") && yaml.contains("priority: 3"), "{yaml}");
    let json = json_lines(&mesh.run(&["rules", "get", "rules/web", "--json"]).expect(0).stdout);
    assert_eq!(json[0]["name"], "rules/web");

    mesh.run(&["rules", "delete", "web"]).expect(0);
    mesh.run(&["rules", "get", "web"]).expect(1).says(&["web"]);
    mesh.run(&["rules", "delete", "web"]).expect(1);
}

#[test]
fn a_rule_reaches_the_agent_within_moments_and_its_state_is_shown() {
    let mesh = Mesh::started();
    let folder = mesh.log("later");
    std::fs::create_dir(&folder).unwrap();
    let rule = format!("name: later\npaths: [\"{}/*.log\"]\ntopic: later\npriority: 1\n", folder.display());
    std::fs::write(mesh.folder.join("rule.yaml"), rule).unwrap();
    mesh.run(&["rules", "apply", "-f", mesh.folder.join("rule.yaml").to_str().unwrap()]).expect(0);
    wait_for("the agent to say that it runs the rule", PATIENCE, || {
        let said = mesh.run(&["agents", "list", "--json"]).expect(0).stdout;
        let rules = json_lines(&said)[0]["rules"].as_array().cloned().unwrap_or_default();
        match rules.iter().any(|rule| rule["name"] == "rules/later" && rule["state"] == "applied") {
            true => Ok(()),
            false => Err(said),
        }
    });
    std::fs::write(folder.join("x.log"), "by the later rule\n").unwrap();
    wait_for("its line", PATIENCE, || {
        let count = mesh.run(&["search", "*", "--topic", "later", "--count"]).expect(0).stdout;
        if count == "1\n" { Ok(()) } else { Err(count) }
    });
    let agents = json_lines(&mesh.run(&["agents", "list", "--json"]).expect(0).stdout);
    let id = agents[0]["id"].as_str().unwrap();
    wait_for("the agent's report of the file", PATIENCE, || {
        let shown = mesh.run(&["agents", "get", id]).expect(0).stdout;
        if shown.contains("rules/later") && shown.contains("x.log") { Ok(()) } else { Err(shown) }
    });
    mesh.run(&["agents", "get", "nobody"]).expect(1).says(&["nobody"]);
}

#[test]
fn tail_shows_lines_as_they_arrive_until_its_server_is_gone() {
    let mut mesh = Mesh::started();
    let mut tail = command(logmesh())
        .args(["tail", "level:error OR urgent", "--server", mesh.grpc()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        send.send(lines.next().unwrap().unwrap()).unwrap();
        lines.count()
    });
    // It isn't known when the tail has begun, so urgent lines come until one is seen.
    let mut file = std::fs::File::create(mesh.log("tail.log")).unwrap();
    let seen = wait_for("a line of the tail", PATIENCE, || {
        writeln!(file, "dull").unwrap();
        writeln!(file, "urgent: look here").unwrap();
        receive.recv_timeout(std::time::Duration::from_millis(100)).map_err(|error| error.to_string())
    });
    assert!(seen.contains("urgent: look here"), "{seen}");
    mesh.kill();
    let done = Done::from(tail.wait_with_output().unwrap());
    done.expect(69).says(&["the connection to", "broke off"]);
    reader.join().unwrap();
}

#[test]
fn audit_and_status_and_dead_letters_are_content() {
    let mesh = mesh_with_lines();
    let audit = mesh.audit().stdout;
    assert!(audit.contains("no gap, no double"), "{audit}");
    let streams = json_lines(&mesh.run(&["audit", "--topic", "logs", "--json"]).expect(0).stdout);
    assert_eq!(streams.iter().map(|stream| stream["documents"].as_u64().unwrap()).sum::<u64>(), 10);
    assert!(streams.iter().all(|stream| stream["agent_reported"].is_boolean()), "{streams:?}");
    mesh.run(&["audit", "--topic", "nope"]).expect(1).says(&["there is no topic nope; "]);
    mesh.run(&["audit", "--agent", "nobody"]).expect(1).says(&["no such agent"]);
    let status = mesh.run(&["status"]).expect(0).stdout;
    for service in ["config", "gateway", "transfer", "console"] {
        assert!(status.contains(service), "{status}");
    }
    assert_eq!(mesh.run(&["deadletters", "list", "--topic", "logs", "--json"]).expect(0).stdout, "");
}

#[test]
fn no_server_is_69_and_bad_usage_is_64() {
    // A port that was free a moment ago.
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for args in [&["status"][..], &["search", "*"], &["audit"], &["rules", "list"], &["agents", "list"]] {
        run(&[args, &["--server", &addr]].concat()).expect(69).says(&[&addr]);
    }
    for args in [
        &["search"][..],
        &["search", "*", "--limit", "0"],
        &["search", "*", "--facet", "host.name", "--limit", "1001"],
        &["search", "*", "--since", "soon"],
        &["rules", "get", "Not A Name"],
        &["rules", "apply", "-f", "/nowhere/rules.yaml"],
        &["status", "--server", "nonsense"],
        &["frobnicate"],
        &["standalone", "--listen", "everywhere"],
    ] {
        let done = run(args);
        assert!(done.code == Some(64) && !done.stderr.is_empty(), "{args:?}: {done:?}");
    }
    for args in [&["--help"][..], &["search", "--help"], &["standalone", "--help"], &["rules", "apply", "--help"]] {
        assert!(run(args).expect(0).stdout.contains("Usage:"));
    }
}

#[test]
fn print_config_shows_every_value_and_its_source() {
    let folder = logmesh_testing::Folder::new();
    let file = folder.join("x.toml");
    std::fs::write(&file, "insecure = true\n").unwrap();
    let mut command = command(logmesh());
    command.args(["standalone", "--print-config", "--listen", "127.0.0.1:1", "--config"]).arg(&file);
    let done = Done::from(command.env("LOGMESH_LOG__LEVEL", "warn").output().unwrap());
    let shown = done.expect(0).stdout;
    for line in [
        "listen = \"127.0.0.1:1\"  # the command line".to_owned(),
        "log.level = \"warn\"  # the environment (LOGMESH_LOG__LEVEL)".to_owned(),
        format!("insecure = true  # {}", file.display()),
    ] {
        assert!(shown.contains(&line), "{line:?} is not in {shown}");
    }
}
