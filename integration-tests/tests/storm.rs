//! Every process of the mesh and of what it stands on is killed, frozen and cut off at random, while programs log: each
//! line is found exactly once, and the audit says so.
//!
//! `./dev storm --minutes N --seed S` runs it for longer, or again.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test, its helpers too; it prints its way with --nocapture

use std::thread::sleep;
use std::time::{Duration, Instant};

use logmesh_integration_tests::cluster::{self, AGENT};
use logmesh_integration_tests::oracle::{Found, Judge, Verdict};
use logmesh_integration_tests::proxy::Weather;
use logmesh_integration_tests::writer::Writer;
use logmesh_integration_tests::{Cluster, PATIENCE, documents, run_from_env};
use logmesh_testing::wait_for;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

/// How long the storm lasts. `MESH_MINUTES` asks for more.
const TIME: Duration = Duration::from_secs(60);

/// How long the number of found lines may stand still in the end: longer than anything waits before it tries again.
const STILL: Duration = Duration::from_secs(90);

/// One topic holds events, the other chunks.
const TOPICS: &str = "[topics.named.packed]\nformat = \"chunks\"\n";

/// Blocks on writing that Elasticsearch knows: one by an operator's hand, one that a full disk sets.
const BLOCKS: [&str; 2] = ["index.blocks.write", "index.blocks.read_only_allow_delete"];

/// The topic of a log, by what its name begins with.
fn topic_of(name: &str) -> &'static str {
    if name.starts_with("packed") { "packed" } else { "logs" }
}

struct Storm {
    rng: StdRng,
    cluster: Cluster,
    begin: Instant,
}

impl Storm {
    fn start(seed: u64) -> Self {
        let mut cluster = Cluster::large(TOPICS);
        cluster.start();
        for (name, glob) in [("events", "events*.log*"), ("packed", "packed*.log*")] {
            let rule = cluster::rule(name, &[&cluster.log(glob)]);
            let rule = rule.replace("topic: logs", &format!("topic: {}", topic_of(name)));
            let file = cluster.folder.join(format!("{name}.yaml"));
            std::fs::write(&file, rule).unwrap();
            cluster.client().run(&["rules", "apply", "-f", file.to_str().unwrap()]).expect(0);
        }
        Self { rng: StdRng::seed_from_u64(seed), cluster, begin: Instant::now() }
    }

    fn pause(&mut self, least: u64, most: u64) {
        sleep(Duration::from_millis(self.rng.random_range(least..most)));
    }

    fn say(&self, what: &str) {
        println!("{:.1?}: {what}", self.begin.elapsed());
    }

    /// One fault, from its beginning to its end.
    fn fault(&mut self) {
        match self.rng.random_range(0..10) {
            0..4 => self.kill(),
            4..7 => self.freeze(),
            7..9 => self.weather(),
            _ => self.block(),
        }
    }

    fn target(&mut self) -> &'static str {
        let all = [self.cluster.names(), self.cluster.backends()].concat();
        all.choose(&mut self.rng).copied().unwrap()
    }

    fn kill(&mut self) {
        let name = self.target();
        self.say(&format!("{name} is killed"));
        self.cluster.kill(name);
        self.pause(0, 2_000);
        self.cluster.start_again(name);
    }

    /// Up to longer than a session, a lease or a broker's patience lasts.
    fn freeze(&mut self) {
        let name = self.target();
        let time = self.rng.random_range(500..14_000);
        self.say(&format!("{name} is frozen for {time} ms"));
        self.cluster.signal(name, Signal::STOP);
        sleep(Duration::from_millis(time));
        self.cluster.signal(name, Signal::CONT);
    }

    fn weather(&mut self) {
        let (which, kind) = (self.rng.random_range(0..self.cluster.proxies().len()), self.rng.random_range(0..4));
        let time = self.rng.random_range(500..6_000);
        self.say(&format!("weather {kind} at proxy {which} for {time} ms"));
        let slow = Duration::from_millis(self.rng.random_range(20..400));
        let proxy = self.cluster.proxies()[which];
        match kind {
            0 => proxy.cut(),
            1 => proxy.half_close(),
            2 => proxy.set(Weather::Slow(slow)),
            _ => proxy.set(Weather::Deaf),
        }
        sleep(Duration::from_millis(time));
        self.cluster.proxies()[which].set(Weather::Clear);
    }

    /// Elasticsearch takes no documents for a while.
    fn block(&mut self) {
        let block = BLOCKS.choose(&mut self.rng).copied().unwrap();
        self.say(&format!("{block} is set"));
        self.set_block(block, "true");
        self.pause(1_000, 5_000);
        self.set_block(block, "null");
    }

    fn set_block(&mut self, block: &str, value: &str) {
        let address = self.cluster.backend("elasticsearch").address();
        let body = format!("{{\"{block}\": {value}}}");
        wait_for("Elasticsearch to take a setting", PATIENCE, || {
            let answer = cluster::http(&address, "PUT", "/*/_settings", &body).map_err(|error| error.to_string())?;
            if answer.contains("\"acknowledged\":true") { Ok(()) } else { Err(answer) }
        });
    }

    /// Waits until so many lines are found, or the number stands still.
    fn settle(&self, expected: u64) {
        let (mut last, mut changed) = (0, Instant::now());
        while last != expected && changed.elapsed() < STILL {
            sleep(Duration::from_millis(500));
            let found = self.cluster.client().count("*");
            if found != last {
                (last, changed) = (found, Instant::now());
            }
        }
        self.say(&format!("{last} of {expected} lines are found"));
    }

    /// Compares all documents with the files.
    fn judge(&mut self, run: u32, written: &[u64]) -> Verdict {
        let mut judge = Judge::new(run, written).with_files(&self.cluster.folder.join("logs"), topic_of);
        self.say("the files are read");
        let (mut documents, elasticsearch) = (0, self.cluster.backend("elasticsearch").address());
        documents::each(&elasticsearch, "logmesh-*", Found::new, |found| {
            documents += 1;
            judge.take(&found);
        });
        self.say(&format!("{documents} documents are read"));
        assert_eq!(self.cluster.client().count("*"), documents, "what a search counts, and what there is");
        judge.verdict()
    }
}

#[test]
fn every_line_is_found_once_whatever_is_killed_frozen_or_cut_off() {
    let (seed, time) = run_from_env(TIME);
    println!("MESH_SEED={seed} for {time:?}");
    let mut storm = Storm::start(seed);
    let run = storm.rng.random();
    let writer = |number: u32, name: &str, rotate| Writer::start(storm.cluster.log(name), run, number, rotate);
    let writers = [
        writer(0, "events.log", None),
        writer(1, "events-rotated.log", Some(997)),
        writer(2, "packed.log", None),
        writer(3, "packed-rotated.log", Some(499)),
    ];
    storm.begin = Instant::now();
    while storm.begin.elapsed() < time {
        storm.pause(0, 1_500);
        storm.fault();
    }
    let written: Vec<u64> = writers.into_iter().map(Writer::finish).collect();
    storm.say(&format!("the storm is over, {written:?} lines are written"));
    storm.cluster.assert_alive();
    storm.cluster.client().wait_ready();
    storm.settle(written.iter().sum());

    let verdict = storm.judge(run, &written);
    storm.say(&format!("{verdict:?}"));
    verdict.assert_clean();
    assert!(written.iter().all(|count| *count > 1_000), "void: too few lines: {written:?}");
    storm.cluster.client().audit();
    storm.say("the audit is clean");
    wait_for("the agent to be ready", PATIENCE, || match storm.cluster.readyz(AGENT) {
        ready if ready.starts_with("HTTP/1.1 200") => Ok(()),
        other => Err(other),
    });
}
