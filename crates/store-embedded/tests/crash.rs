//! `kill -9` while writing: every acknowledged put is there afterwards, and history with it.
//!
//! The test runs itself again as the writer, which prints each key once it was acknowledged.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures::StreamExt;
use logmesh_store::{ConfigStore, Precondition, Revision};
use logmesh_store_embedded::{EmbeddedStore, Options};

const FILE: &str = "LOGMESH_CRASH_TEST_FILE";
const ROUNDS: usize = 5;

/// The writer, when it's run by the test below; otherwise nothing.
#[tokio::test]
async fn child_writes_until_killed() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let store = EmbeddedStore::open(Path::new(&file), Options::default()).unwrap();
    let start = store.list("").await.unwrap().revision.0;
    for n in 0.. {
        let keys = (0..4).map(|writer| format!("/{start}/{n}/{writer}"));
        let puts = keys.map(async |key| {
            let revision = store.put(&key, Bytes::from(key.clone()), Precondition::MustNotExist).await.unwrap();
            println!("acked {key} {revision}");
        });
        futures::future::join_all(puts).await;
    }
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.redb");
    let mut acked = Vec::new();
    for round in 1..=ROUNDS {
        acked.extend(write_and_kill(&file, 40 * round));
        let store = EmbeddedStore::open(&file, Options::default()).unwrap();
        for (key, revision) in &acked {
            let held = store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            assert_eq!((held.value.as_ref(), held.mod_revision), (key.as_bytes(), *revision));
        }
        let snapshot = store.list("").await.unwrap();
        let shown: Vec<_> = store.watch("", Revision(1)).take(snapshot.entries.len()).collect().await;
        let mut last = Revision(1);
        for change in shown {
            let change = change.unwrap();
            assert_eq!(change.revision, Revision(last.0 + 1), "history has a gap");
            last = change.revision;
        }
        assert_eq!(last, snapshot.revision);
    }
    assert!(acked.len() >= ROUNDS * 40, "too little was written to mean anything");
}

/// Lets a writer acknowledge at least `count` puts and kills it in the midst of the next.
fn write_and_kill(file: &Path, count: usize) -> Vec<(String, Revision)> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_writes_until_killed", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the writer starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut acked: Vec<_> = lines.by_ref().filter_map(|line| parse(&line.expect("a line"))).take(count).collect();
    child.kill().expect("kill");
    child.wait().expect("wait");
    // What was still in the pipe had been acknowledged too; the last line may be cut.
    acked.extend(lines.map_while(Result::ok).filter_map(|line| parse(&line)));
    acked
}

fn parse(line: &str) -> Option<(String, Revision)> {
    let at = line.find("acked ")?;
    let (key, revision) = line[at + "acked ".len()..].split_once(' ')?;
    Some((key.to_owned(), Revision(revision.parse().ok()?)))
}
