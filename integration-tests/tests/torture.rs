//! Each line of each file is found exactly once, whatever programs, rotation and people do to the files, and whatever
//! happens to the agent and the mesh meanwhile. What can't be saved is listed by its range.
//!
//! `./dev torture --minutes N --seed S` runs it for longer, or again.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test, its helpers too; it prints its way with --nocapture

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::torture::{
    AgentProcess, Attention, Centre, Habit, Ledger, SmallDisk, TortureWriter, judge,
};
use logmesh_integration_tests::{PATIENCE, cluster, run_from_env};
use logmesh_testing::wait_for;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

/// How long files are tortured. `MESH_MINUTES` asks for more.
const TIME: Duration = Duration::from_secs(45);

/// How long the number of found lines may stand still before the judge looks at what is missing: longer than anything
/// waits before it tries again.
const STILL: Duration = Duration::from_secs(40);

/// The same once the lines that can't be destroyed are all there: the others are on the same way.
const STILL_OTHERS: Duration = Duration::from_secs(6);

/// The user that the agent runs as where this test may choose: for root no file is forbidden.
const NOBODY: u32 = 65_534;

struct Torture {
    rng: StdRng,
    // In the order in which they go: a folder with a disk in it can't be removed.
    agent: AgentProcess,
    disk: Option<SmallDisk>,
    centre: Centre,
    attention: Arc<Attention>,
    revision: u32,
    begin: Instant,
}

impl Torture {
    fn new(seed: u64, centre: Centre) -> Self {
        let uid = rustix::process::geteuid().is_root().then_some(NOBODY);
        let folder = centre.folder();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let state = folder.join("tortured");
        std::fs::create_dir(&state).unwrap();
        let disk = SmallDisk::mount(&state, 6);
        std::os::unix::fs::chown(&state, uid, uid).unwrap();
        let allow = format!("{}/**", folder.join("logs").display());
        let agent = AgentProcess::new(centre.server(), allow, state, folder.join("tortured.log"), uid);
        let attention = Arc::new(Attention::default());
        Self { rng: StdRng::seed_from_u64(seed), centre, agent, disk, attention, revision: 0, begin: Instant::now() }
    }

    fn start(&mut self) {
        self.agent.spawn();
        self.apply();
        wait_for("the agent to run both rules", PATIENCE, || {
            let done = self.centre.client().run(&["agents", "get", "tortured"]);
            if done.stdout.matches("applied").count() == 2 { Ok(()) } else { Err(format!("{done:?}")) }
        });
        self.attention.begin();
    }

    /// Applies the rules, each time another way: neither reads anything again nor leaves anything out.
    fn apply(&mut self) {
        self.revision += 1;
        let logs = self.centre.folder().join("logs");
        for (name, glob) in [("all", "all/**/*.log*"), ("away", "away/**/*.log")] {
            let mut rule = cluster::rule(name, &[&logs.join(glob)]).replace("os=linux", "role=tortured");
            if self.revision % 3 == 2 {
                rule += "pace: { bytes_per_second: 400KiB }\n";
            }
            if self.revision.is_multiple_of(2) {
                rule = rule.replace("topic: logs", "topic: other");
            }
            rule += &format!("service: revision-{}\n", self.revision);
            let file = self.centre.folder().join(format!("{name}.yaml"));
            std::fs::write(&file, rule).unwrap();
            // A frozen or killed mesh takes no rule; the next one counts.
            self.centre.client().run(&["rules", "apply", "-f", file.to_str().unwrap()]);
        }
    }

    fn pause(&mut self, most: u64) {
        sleep(Duration::from_millis(self.rng.random_range(0..most)));
    }

    /// One fault, from its beginning to its end.
    fn fault(&mut self) {
        let kind = self.rng.random_range(0..8);
        println!("{:?}: fault {kind}", self.begin.elapsed());
        match kind {
            0 | 1 => {
                self.attention.end();
                self.agent.kill();
                self.pause(1_500);
                self.agent.spawn();
                self.attention.begin();
            }
            2 => {
                self.attention.end();
                self.agent.stop();
                self.pause(500);
                self.agent.spawn();
                self.attention.begin();
            }
            3 => {
                self.attention.end();
                self.agent.signal(Signal::STOP);
                self.pause(2_500);
                self.agent.signal(Signal::CONT);
                self.attention.begin();
            }
            4 => {
                let which = self.rng.random_range(0..2);
                self.centre.kill(which);
                self.pause(800);
                self.centre.start_again(which);
            }
            5 => {
                self.centre.signal(Signal::STOP);
                self.pause(4_000);
                self.centre.signal(Signal::CONT);
            }
            6 => self.throttle(),
            _ => self.fill_disk(),
        }
    }

    /// What takes events gets a fifth of the time only: acks and credit come late.
    fn throttle(&mut self) {
        for _ in 0..12 {
            self.centre.signal(Signal::STOP);
            sleep(Duration::from_millis(160));
            self.centre.signal(Signal::CONT);
            sleep(Duration::from_millis(40));
        }
        self.apply();
    }

    /// The agent's state can't be written for a while; now and then it's killed meanwhile, too.
    fn fill_disk(&mut self) {
        let Some(disk) = &self.disk else { return };
        self.attention.end();
        disk.fill();
        sleep(Duration::from_millis(self.rng.random_range(200..2_000)));
        let killed = self.rng.random_ratio(1, 3);
        if killed {
            self.agent.kill();
        }
        disk.free();
        if killed {
            self.agent.spawn();
        }
        self.attention.begin();
    }

    /// Waits until all lines are found that can't have been destroyed, or nothing more comes; then for the others.
    fn settle(&mut self, lines: u64) {
        let destroyed = Habit::ALL.into_iter().filter(|habit| habit.destroys());
        let paths = destroyed.map(|habit| format!("log.file.path:*/{}*", habit.path().display()));
        let kept = &format!("NOT ({})", paths.collect::<Vec<_>>().join(" OR "));
        let found = self.wait_still(kept, lines, STILL);
        println!("{:?}: {found} of {lines} lines that can't be destroyed", self.begin.elapsed());
        self.wait_still("*", u64::MAX, STILL_OTHERS);
    }

    /// Waits until so many documents match, or their number hasn't changed for so long; answers it.
    fn wait_still(&self, query: &str, wanted: u64, still: Duration) -> u64 {
        let (mut last, mut changed) = (self.centre.client().count(query), Instant::now());
        while last < wanted && changed.elapsed() < still {
            sleep(Duration::from_millis(200));
            let found = self.centre.client().count(query);
            if found != last {
                (last, changed) = (found, Instant::now());
            }
        }
        last
    }
}

#[test]
fn each_line_is_found_once_whatever_happens_to_its_file() {
    torture(Centre::standalone());
}

#[test]
fn so_it_is_with_services_apart_on_real_servers() {
    torture(Centre::apart());
}

fn torture(centre: Centre) {
    let (seed, time) = run_from_env(TIME);
    println!("MESH_SEED={seed} for {time:?}");
    let mut torture = Torture::new(seed, centre);
    torture.start();
    let (run, logs) = (torture.rng.random(), torture.centre.folder().join("logs"));
    let start = |habit| TortureWriter::start(habit, &logs, run, torture.attention.clone());
    let writers: Vec<TortureWriter> = Habit::ALL.into_iter().map(start).collect();

    torture.begin = Instant::now();
    while torture.begin.elapsed() < time {
        torture.pause(2_500);
        if torture.rng.random_ratio(1, 4) {
            torture.apply();
        }
        torture.fault();
    }
    let ledgers: Vec<(Habit, Ledger)> = writers.into_iter().map(|writer| (writer.habit, writer.finish())).collect();
    assert!(torture.agent.runs(), "the agent has ended: {}", torture.agent.said());
    torture.centre.client().wait_ready();
    // At full speed to the end.
    torture.revision = 3;
    torture.apply();
    let kept = ledgers.iter().filter(|(habit, _)| !habit.destroys());
    torture.settle(kept.map(|(_, ledger)| ledger.lines.len() as u64).sum());

    let documents = torture.centre.client().search("*");
    let audit = torture.centre.client().run(&["audit", "--json"]);
    let audits: Vec<Value> = json_lines(&audit.stdout);
    let reports: Vec<_> = ledgers
        .iter()
        .map(|(habit, ledger)| (*habit, judge(run, *habit, ledger, &documents, &audits, &torture.attention)))
        .collect();
    for (habit, report) in &reports {
        println!("{habit:?}: {report:?}");
    }
    for (habit, report) in &reports {
        report.assert_clean(*habit);
        assert!(report.verdict.judged > 500, "void: too few lines: {habit:?} {report:?}");
    }
    assert_audit(&audits);
    assert_eq!(torture.centre.client().count("log.file.path:*.gz"), 0, "compressed files aren't text");
    assert!(!torture.agent.said().contains("panicked"), "{}", torture.agent.said());
    torture.agent.stop();
}

/// The audit finds no double anywhere, and gaps only where bytes were destroyed.
fn assert_audit(audits: &[Value]) {
    for audit in audits {
        let path = audit["path"].as_str().unwrap();
        let destroyed = Habit::ALL.into_iter().any(|habit| habit.destroys() && habit.owns(path));
        assert!(
            audit["clean"] == true || destroyed && audit["doubles"].as_array().is_some_and(Vec::is_empty),
            "{audit}"
        );
    }
}
