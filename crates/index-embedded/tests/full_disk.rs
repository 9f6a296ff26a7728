//! A disk that is full: writing fails clearly, reading goes on, and so does writing once there is room.
//!
//! A limit on the size of files stands for the full disk. It is a process's own, so the test runs in one of its own,
//! started by a shell that ignores the signal which comes with the error.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::process::Command;

use logmesh_index::conformance::{Doc, selection};
use logmesh_index::{IndexReader, IndexWriter, NewDoc, Outcome};
use logmesh_index_embedded::{EmbeddedIndex, Settings};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const INSIDE: &str = "LOGMESH_TEST_FULL_DISK";

fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

fn bulk(from: i64, count: i64) -> Vec<NewDoc> {
    (from..from + count).map(|offset| Doc::new(offset, &format!("document {offset}")).build()).collect()
}

#[tokio::test]
#[ignore = "run by the test below in a process of its own"]
async fn inside() {
    if std::env::var(INSIDE).is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let index = EmbeddedIndex::open(folder.path(), Settings::default()).await.unwrap();
    index.write(bulk(0, 500)).await.unwrap();
    // From nothing at all to so much that only the larger files of a segment fail.
    for bytes in [0, 100, 1_000, 3_000, 10_000] {
        limit_files(Some(bytes));
        let failed = index.write(bulk(500, 500)).await.unwrap_err();
        assert!(failed.retryable(), "{bytes}: {failed}");
        assert_eq!(index.count(&selection("document")).await.unwrap(), 500, "{bytes}");
        limit_files(None);
    }
    let outcomes = index.write(bulk(499, 501)).await.unwrap();
    assert_eq!(outcomes[0], Outcome::Duplicate);
    assert!(outcomes[1..].iter().all(|outcome| *outcome == Outcome::Created));
    assert_eq!(index.count(&selection("document")).await.unwrap(), 1_000);

    drop(index);
    let index = EmbeddedIndex::open(folder.path(), Settings::default()).await.unwrap();
    assert_eq!(index.count(&selection("document")).await.unwrap(), 1_000);
}

#[test]
fn a_full_disk_stops_writing_only_while_it_is_full() {
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
