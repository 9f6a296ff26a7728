//! Damage done by hand to a mesh on a real etcd, Kafka and Elasticsearch, and what mends it: repair from the bus and from the files,
//! copies removed, redrive, replay, with `kill -9` in the middle. One mesh for all of it, a topic for each part.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test, its helpers too; it prints its way with --nocapture

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::cluster::{self, AGENT, apply};
use logmesh_integration_tests::compare::{assert_equal, by_path};
use logmesh_integration_tests::gaps::{doubles, gaps, place_of, prints};
use logmesh_integration_tests::program::{command, logmesh};
use logmesh_integration_tests::{Cluster, PATIENCE};
use logmesh_testing::wait_for;
use logmesh_types::{Day, UnixNanos};
use serde_json::Value;

/// Files of a topic, and lines of each.
const FILES: usize = 4;
const LINES: usize = 1_500;
const ALL: u64 = (FILES * LINES) as u64;

/// Partitions of a topic, if its settings don't say.
const PARTITIONS: u32 = 4;

/// A topic holds events unless it's named here.
const TOPICS: &str = "[topics.named.packed]\nformat = \"chunks\"\n";

/// A topic, and its files in a folder of its name.
struct Part<'a> {
    cluster: &'a mut Cluster,
    topic: &'static str,
}

impl<'a> Part<'a> {
    fn new(cluster: &'a mut Cluster, topic: &'static str) -> Self {
        let part = Self { cluster, topic };
        part.write(0..FILES);
        part
    }

    /// Its files are collected, and the audit is clean.
    fn filled(cluster: &'a mut Cluster, topic: &'static str) -> Self {
        let part = Self::new(cluster, topic);
        part.collect();
        part.wait_whole(FILES);
        println!("{topic}: {ALL} lines are found");
        part
    }

    /// Its files are collected from now on.
    fn collect(&self) {
        let glob = self.cluster.log(self.topic).join("*.log");
        apply(self.cluster, self.topic, &[&glob], self.topic);
    }

    fn path(&self, file: usize) -> PathBuf {
        self.cluster.log(self.topic).join(format!("{file}.log"))
    }

    fn paths(&self) -> Vec<String> {
        (0..FILES).map(|file| self.path(file).display().to_string()).collect()
    }

    fn write(&self, files: std::ops::Range<usize>) {
        std::fs::create_dir_all(self.cluster.log(self.topic)).unwrap();
        for file in files {
            let line = |number: usize| format!("file {file} line {number} {}\n", "x".repeat(number * 7 % 50));
            std::fs::write(self.path(file), (0..LINES).map(line).collect::<String>()).unwrap();
        }
    }

    /// What a command prints for this topic, which ends with 0.
    #[track_caller]
    fn run(&self, args: &[&str]) -> String {
        self.cluster.client().run(&[args, &["--topic", self.topic]].concat()).expect(0).stdout
    }

    #[track_caller]
    fn count_in(&self, index: &str) -> u64 {
        let args = ["search", "*", "--from", "2000-01-01T00:00:00Z", "--count", "--topic", index];
        self.cluster.client().run(&args).expect(0).stdout.trim().parse().unwrap()
    }

    fn count(&self) -> u64 {
        self.count_in(self.topic)
    }

    /// Each line of the first files is found once, and the audit says so.
    #[track_caller]
    fn wait_whole(&self, files: usize) {
        wait_for("all lines to be found", PATIENCE, || match self.count() {
            count if count == (files * LINES) as u64 => Ok(()),
            count => Err(format!("{count} lines")),
        });
        wait_for("a clean audit", PATIENCE, || {
            let done = self.cluster.client().run(&["audit", "--topic", self.topic]);
            if done.code == Some(0) { Ok(()) } else { Err(format!("{done:?}")) }
        });
        let mut documents = self.cluster.client().search(&format!("log.file.path:*/logs/{}/*", self.topic));
        documents.retain(|document| document["_topic"] == self.topic);
        let found = by_path(&documents);
        (0..files).for_each(|file| assert_equal(&self.path(file), &found[&self.path(file).display().to_string()]));
    }

    /// Calls Elasticsearch itself.
    #[track_caller]
    fn elasticsearch(&mut self, method: &str, path: &str, body: &str) -> String {
        cluster::http(&self.cluster.backend("elasticsearch").address(), method, path, body).unwrap()
    }

    /// The topic's daily indices.
    fn indices(&mut self) -> Vec<String> {
        let answer = self.elasticsearch("GET", &format!("/_cat/indices/logmesh-{}@*?h=index", self.topic), "");
        answer.lines().map(str::trim).filter(|line| line.starts_with("logmesh-")).map(str::to_owned).collect()
    }

    fn delete_document(&mut self, id: &str) {
        let deleted = self.indices().iter().any(|index| {
            let path = format!("/{index}/_doc/{id}?refresh=true");
            self.elasticsearch("DELETE", &path, "").contains("\"result\":\"deleted\"")
        });
        assert!(deleted, "document {id} is in no index");
    }

    fn create_document(&mut self, index: &str, id: &str, body: &str) {
        let answer = self.elasticsearch("PUT", &format!("/{index}/_doc/{id}?refresh=true"), body);
        assert!(answer.contains("\"result\":\"created\""), "{answer}");
    }

    /// The index in which a document lies, and its body.
    fn source_of(&mut self, id: &str) -> (String, String) {
        let days = self.indices();
        let found = days.into_iter().find_map(|index| {
            let answer = self.elasticsearch("GET", &format!("/{index}/_source/{id}"), "");
            let (_, source) = answer.split_once("\r\n\r\n").unwrap();
            source.contains("logmesh.stream").then(|| (index, source.to_owned()))
        });
        found.unwrap_or_else(|| panic!("document {id} is in no index"))
    }

    /// Removes everything that the index holds of the topic.
    fn delete_days(&mut self) {
        let days = self.indices();
        assert!(!days.is_empty());
        for day in days {
            let answer = self.elasticsearch("DELETE", &format!("/{day}"), "");
            assert!(answer.contains("\"acknowledged\":true"), "{answer}");
        }
    }

    /// Makes today's index as somebody by hand might: Elasticsearch refuses each line of the topic with 400.
    fn make_index_that_refuses(&mut self) {
        let index = format!("logmesh-{}@{}", self.topic, Day::of(UnixNanos::now()).to_string().replace('-', "."));
        let body = format!(
            "{{\"mappings\": {{\"properties\": {{\"message\": {{\"type\": \"long\"}}}}}}, \"aliases\": {{\"{index}.write\": {{}}}}}}"
        );
        let answer = self.elasticsearch("PUT", &format!("/{index}"), &body);
        assert!(answer.contains("\"acknowledged\":true"), "{answer}");
    }

    /// Removes everything that the bus holds of the topic.
    fn delete_records(&mut self) {
        let partitions = (0..PARTITIONS)
            .map(|partition| format!("{{\"topic\": \"{}\", \"partition\": {partition}, \"offset\": -1}}", self.topic));
        let file = self.cluster.folder.join("delete.json");
        let list = partitions.collect::<Vec<_>>().join(",");
        std::fs::write(&file, format!("{{\"version\": 1, \"partitions\": [{list}]}}")).unwrap();
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backends/kafka/run");
        let mut command = command(&tool);
        command.args(["tool", "DeleteRecordsCommand", "--bootstrap-server", &self.cluster.backend("kafka").address()]);
        let output = command.arg("--offset-json-file").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// A command for this topic, under way.
    fn begin(&self, args: &[&str]) -> Child {
        let mut command = command(logmesh());
        command.env("LOGMESH_SERVER", self.cluster.grpc("console")).args(args).args(["--topic", self.topic]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Kills both workers as soon as more than `before` documents are there, and starts them again.
    fn kill_transfer_in_the_middle(&mut self, before: u64) {
        wait_for("the first lines to be there", PATIENCE, || match self.count() {
            count if count > before => Ok(()),
            count => Err(count.to_string()),
        });
        for name in ["transfer-1", "transfer-2"] {
            self.cluster.kill(name);
        }
        let there = self.count();
        println!("{}: transfer was killed when {there} lines were there", self.topic);
        for name in ["transfer-1", "transfer-2"] {
            self.cluster.spawn(name);
        }
        self.cluster.client().wait_ready();
    }
}

/// Documents deleted one by one: exactly they are named, and put back.
fn single_documents_are_put_back(part: &mut Part<'_>) {
    let documents = part.cluster.client().search(&format!("log.file.path:*/logs/{}/*", part.topic));
    let mut found = by_path(&documents);
    found.values_mut().for_each(|documents| documents.sort_by_key(|document| document["logmesh.offset"].as_u64()));
    let paths = part.paths();
    // Two lines that touch, a single one and the last one of the first file, and one of the second.
    let gone = [(0, 10), (0, 11), (0, 300), (0, LINES - 1), (1, 0)].map(|(file, line)| found[&paths[file]][line]);
    let [first, second, third, last, other] = gone.map(place_of);
    gone.iter().for_each(|document| part.delete_document(document["_id"].as_str().unwrap()));
    assert_eq!(part.count(), ALL - 5);

    let expected = [vec![(first.0, second.1), third, last], vec![other], vec![], vec![]];
    let expected: BTreeMap<_, _> = paths.into_iter().zip(expected).collect();
    assert_eq!(gaps(&part.cluster.client(), &["--topic", part.topic], 1), expected);
    let done = part.cluster.client().run(&["audit", "--repair", "--topic", part.topic]).expect(0);
    prints(&done, &["5 events", "no gap, no double"]);
    part.wait_whole(FILES);
    println!("{}: single documents are put back", part.topic);
}

/// Documents doubled in each way that comes to mind: exactly they are named, and their copies removed.
fn copies_are_removed(part: &mut Part<'_>) {
    let documents = part.cluster.client().search(&format!("log.file.path:*/logs/{}/*", part.topic));
    let mut found = by_path(&documents);
    found.values_mut().for_each(|documents| documents.sort_by_key(|document| document["logmesh.offset"].as_u64()));
    let paths = part.paths();
    let twice = [(0, 10), (0, 11), (0, 300), (1, 0)].map(|(file, line)| found[&paths[file]][line]);
    let [first, second, third, other] = twice.map(place_of);
    let ids = twice.map(|document| document["_id"].as_str().unwrap().to_owned());
    let topic = part.topic;
    // As a `_reindex` of them would.
    for id in ids {
        let (_, body) = part.source_of(&id);
        for to in ["2020.01.01", "2020.01.01-copy"] {
            part.create_document(&format!("logmesh-{topic}@{to}"), &id, &body);
        }
    }
    // One more under a made-up id, and something else under another.
    let last = found[&paths[2]][7];
    let (index, body) = part.source_of(last["_id"].as_str().unwrap());
    for (id, body) in [("by-hand", body.clone()), ("tampered", body.replace("line 7", "LINE 7"))] {
        part.create_document(&index, id, &body);
    }
    assert_eq!(part.count(), ALL + 10);

    let named = [vec![(first.0, second.1), third], vec![other], vec![place_of(last)], vec![]];
    let mut expected: BTreeMap<_, _> = paths.into_iter().zip(named).collect();
    for _ in 0..2 {
        assert_eq!(doubles(&part.cluster.client(), &["--topic", topic], 1), expected);
        assert_eq!(part.count(), ALL + 10, "an audit removes nothing");
    }
    // All that is sure goes; of the line that is there in two ways both stay.
    expected.values_mut().for_each(|places| places.retain(|place| *place == place_of(last)));
    let told = part.cluster.client().run(&["audit", "--repair", "--topic", topic]).expect(1);
    prints(&told, &["9 copies removed", &format!("from logmesh-{topic}@2020.01.01-copy"), "they don't say the same"]);
    assert_eq!(doubles(&part.cluster.client(), &["--topic", topic], 1), expected);
    part.delete_document("tampered");
    part.run(&["audit"]);
    part.wait_whole(FILES);
    println!("{topic}: copies are removed");
}

/// Whole days deleted, and transfer killed in the middle of the repair.
fn lost_days_are_put_back(part: &mut Part<'_>) {
    part.delete_days();
    let size = |path: &String| std::fs::metadata(path).unwrap().len();
    let expected: BTreeMap<_, _> =
        part.paths().into_iter().map(|path| (path.clone(), vec![(0, size(&path))])).collect();
    assert_eq!(gaps(&part.cluster.client(), &["--topic", part.topic], 1), expected);
    let mut repair = part.begin(&["audit", "--repair"]);
    part.kill_transfer_in_the_middle(0);
    repair.wait().unwrap();
    part.run(&["audit", "--repair"]);
    part.wait_whole(FILES);
    let again = part.run(&["audit", "--repair"]);
    assert!(!again.contains("sent through the bus"), "{again}");
    println!("{}: lost days are put back", part.topic);
}

/// What Elasticsearch refused with 400 is redriven after the fix, and transfer is killed in the middle of that.
fn dead_letters_are_redriven(part: &mut Part<'_>) {
    part.make_index_that_refuses();
    part.collect();
    let letters = |part: &Part<'_>| -> u64 {
        let groups = json_lines(&part.run(&["deadletters", "list", "--summary", "--json"]));
        groups.iter().map(|group| group["letters"].as_u64().unwrap()).sum()
    };
    wait_for("the dead letters", PATIENCE, || match letters(part) {
        ALL => Ok(()),
        letters => Err(letters.to_string()),
    });
    assert_eq!((part.count(), rejected(part)), (0, ALL));
    // As long as nothing is mended they stay what they are.
    let still = part.cluster.client().run(&["deadletters", "redrive", "--topic", part.topic]).expect(1);
    prints(&still, &["0 indexed", &format!("{ALL} refused again")]);
    assert_eq!(letters(part), ALL);

    part.delete_days();
    let mut redrive = part.begin(&["deadletters", "redrive"]);
    part.kill_transfer_in_the_middle(0);
    redrive.wait().unwrap();
    // All may have been sent before the kill, and done since: then there is none such.
    let rest = part.cluster.client().run(&["deadletters", "redrive", "--topic", part.topic]);
    assert!(rest.code == Some(0) || rest.stderr.contains("has no dead letter"), "{rest:?}");
    wait_for("no dead letter to be left", PATIENCE, || match letters(part) {
        0 => Ok(()),
        letters => Err(letters.to_string()),
    });
    part.wait_whole(FILES);
    assert_eq!(rejected(part), 0);
    println!("{}: dead letters are redriven", part.topic);
}

/// Events of the topic that the audit counts among the dead letters.
fn rejected(part: &Part<'_>) -> u64 {
    let audits = json_lines(&part.run(&["audit", "--json"]));
    audits.iter().map(|audit| audit["dead_letter_events"].as_u64().unwrap()).sum()
}

/// A replay into the topic's own index changes nothing, one into another fills it; the only worker is killed, and another joins.
fn replays_survive_a_kill_and_a_rebalance(part: &mut Part<'_>) {
    let middle = part.now_on_the_bus();
    part.write(FILES..2 * FILES);
    part.wait_whole(2 * FILES);
    part.cluster.stop("transfer-2");
    part.cluster.client().wait_ready();
    let start = |id: &str, more: &[&str]| {
        part.run(&[&["replay", "start", "--id", id], more].concat());
    };
    start("same", &[]);
    start("slow", &["--into", "again", "--rate", "1500"]);
    start("early", &["--into", "first-half", "--to", &middle]);
    let get = |part: &Part<'_>, id: &str| -> Value {
        json_lines(&part.cluster.client().run(&["replay", "get", id, "--json"]).expect(0).stdout).remove(0)
    };
    wait_for("the replay to get on", PATIENCE, || match get(part, "slow") {
        replay if replay["events"].as_u64() > Some(0) => Ok(()),
        replay => Err(replay.to_string()),
    });
    part.cluster.kill("transfer-1");
    part.cluster.spawn("transfer-1");
    part.cluster.client().wait_ready();
    let before = get(part, "slow");
    part.cluster.spawn("transfer-2");
    for id in ["slow", "same", "early"] {
        wait_for("the replay to be done", PATIENCE, || match get(part, id) {
            replay if replay["state"] == "done" => Ok(()),
            replay => Err(replay.to_string()),
        });
    }
    assert_eq!(before["state"], "running", "void: it was done before the other worker joined: {before}");
    let same = get(part, "same");
    assert_eq!((&same["indexed"], &same["already_there"]), (&0.into(), &(2 * ALL).into()), "{same}");
    let expected = (2 * ALL, ALL, 2 * ALL);
    // What was written last is found a refresh later.
    wait_for("equal counts", PATIENCE, || match (part.count_in("again"), part.count_in("first-half"), part.count()) {
        counts if counts == expected => Ok(()),
        counts => Err(format!("{counts:?}")),
    });
    part.wait_whole(2 * FILES);
    println!("{}: replays are done", part.topic);
}

/// Neither the index nor the bus holds it any more: the agent, which is away at first, reads it from its files.
fn what_only_the_files_hold_is_read_again(part: &mut Part<'_>) {
    part.delete_records();
    part.delete_days();
    part.cluster.stop(AGENT);
    let repair = ["audit", "--repair", "--json", "--topic", part.topic];
    let told = json_lines(&part.cluster.client().run(&repair).expect(1).stdout);
    let is_told = |audit: &Value| {
        let gap = &audit["gaps"][0];
        gap["file"] == "undone" && gap["detail"].as_str().unwrap().contains("is not connected")
    };
    assert!(told.len() == FILES && told.iter().all(is_told), "{told:?}");

    part.cluster.spawn(AGENT);
    wait_for("the agent to be back", PATIENCE, || {
        let agents = part.cluster.client().run(&["agents", "list", "--json"]).expect(0).stdout;
        if json_lines(&agents).iter().any(|agent| agent["online"] == true) { Ok(()) } else { Err(agents) }
    });
    let said = part.run(&["audit", "--repair"]);
    assert!(said.contains(&format!("{ALL} events")) && said.contains("read from the file again"), "{said}");
    part.wait_whole(FILES);
    println!("{}: it is read from the files again", part.topic);
}

impl Part<'_> {
    /// A time after everything that lies on the bus, and before what comes.
    fn now_on_the_bus(&self) -> String {
        let said = self.run(&["replay", "start", "--id", "clock", "--json"]);
        json_lines(&said)[0]["create_time"].as_str().unwrap().to_owned()
    }
}

#[test]
fn whatever_was_broken_by_hand_is_named_and_mended() {
    let mut cluster = Cluster::new(TOPICS);
    cluster.start();
    for topic in ["logs", "packed"] {
        let mut part = Part::filled(&mut cluster, topic);
        single_documents_are_put_back(&mut part);
        copies_are_removed(&mut part);
        lost_days_are_put_back(&mut part);
        what_only_the_files_hold_is_read_again(&mut part);
    }
    dead_letters_are_redriven(&mut Part::new(&mut cluster, "refused"));
    replays_survive_a_kill_and_a_rebalance(&mut Part::filled(&mut cluster, "replayed"));
    cluster.assert_alive();
    cluster.client().audit();
}
