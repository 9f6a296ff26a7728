//! A full disk under the state: nothing is begun that couldn't be remembered, and all goes on once there's room.
//!
//! The disk is made full by the process's own limit on the size of files. It's a signal by default, which the shell
//! turns off for the test's second process.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use logmesh_tail::{Collector, FramingSpec, Pace, Settings, StartAt, TailRule};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FOLDER: &str = "LOGMESH_FULL_DISK_TEST_FOLDER";

/// So many files' records don't fit into a new state's first megabytes.
const FILES: usize = 4_000;

#[test]
fn a_full_disk_holds_up_only_while_it_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" --exact child_fills_its_disk"])
        .arg(std::env::current_exe().unwrap())
        .env(FOLDER, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
}

/// The second process, when it's run by the test above; otherwise nothing.
#[test]
fn child_fills_its_disk() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let logs = folder.join("logs");
    std::fs::create_dir(&logs).unwrap();
    (0..FILES).for_each(|number| std::fs::write(logs.join(format!("{number}.log")), format!("{number}\n")).unwrap());
    let mut now = Instant::now();
    let mut collector = open(&folder, now);
    let before = getrlimit(Resource::Fsize);
    let size = folder.join("state/tail.redb").metadata().unwrap().len();
    setrlimit(Resource::Fsize, Rlimit { current: Some(size), ..before }).unwrap();

    assert!(collector.poll(now, u64::MAX).is_none(), "nothing is sent of which no record could be kept");
    let error = collector.state_error().unwrap().to_owned();
    assert!(error.contains("cannot be written"), "{error}");
    assert_eq!(collector.totals().files, FILES, "they are followed all the same");

    setrlimit(Resource::Fsize, before).unwrap();
    let mut texts = HashMap::new();
    for _ in 0..20 {
        now += Duration::from_secs(1);
        while let Some(chunk) = collector.poll(now, u64::MAX) {
            assert!(texts.insert(chunk.stream, chunk.data.clone()).is_none());
            collector.ack(chunk.stream, chunk.range.end, now);
        }
    }
    assert_eq!((texts.len(), collector.state_error()), (FILES, None));
    collector.flush(now).unwrap();
    drop(collector);
    assert!(open(&folder, now).poll(Instant::now(), u64::MAX).is_none(), "all is known to be acked");
}

fn open(folder: &Path, now: Instant) -> Collector {
    let glob = format!("{}/logs/*.log", folder.display());
    let settings = Settings::new("agent".parse().unwrap(), folder.join("state"), vec![glob.clone()]);
    let mut collector = Collector::open(settings).unwrap();
    let rule = TailRule {
        name: "a".parse().unwrap(),
        revision: 1,
        globs: vec![glob],
        exclude: Vec::new(),
        topic: "t".parse().unwrap(),
        priority: 0,
        start_at: StartAt::Beginning,
        framing: FramingSpec::default(),
        ignore_older: None,
        flush_after: None,
        pace: Pace::default(),
        service: None,
    };
    collector.apply(vec![rule], now);
    collector
}
