//! `kill -9` while documents are written: what was said to be created is there afterwards, and nothing twice.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use logmesh_index::conformance::{Doc, selection, slice, topic};
use logmesh_index::{IndexReader, IndexWriter, Order, Outcome, PageLimit};
use logmesh_index_embedded::{EmbeddedIndex, Settings};

const FOLDER: &str = "LOGMESH_TEST_INDEX_FOLDER";
const ROUNDS: usize = 6;
const BULK: i64 = 40;

fn doc(offset: i64) -> Doc {
    Doc::new(offset, "crash").in_slice(slice("logs", ["2026-01-30", "2026-01-31"][offset as usize % 2]))
}

async fn open(folder: &Path) -> EmbeddedIndex {
    EmbeddedIndex::open(folder, Settings::default()).await.unwrap()
}

/// Not a test of its own: what the killed process does. Each bulk holds half of the one before, and it says how far
/// it is by a line.
#[tokio::test]
#[ignore = "run by the test below in a process of its own"]
async fn writes_until_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let index = open(Path::new(&folder)).await;
    let mut next = index.count(&selection("*")).await.unwrap() as i64;
    loop {
        let from = (next - BULK / 2).max(0);
        let outcomes = index.write((from..from + BULK).map(|offset| doc(offset).build()).collect()).await.unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Created | Outcome::Duplicate)));
        next = from + BULK;
        println!("\nwritten {next}");
    }
}

fn spawn(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writes_until_killed", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Lets a process write so many bulks, kills it, and says up to where it had written.
fn write_and_kill(folder: &Path, bulks: usize) -> i64 {
    let mut child = spawn(folder);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut written = 0;
    let progress = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("written ")?.parse().ok());
    for (number, next) in progress.enumerate() {
        written = next;
        if number == bulks {
            // Lines that were on their way are read to the end: they were promises too.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    written
}

#[tokio::test]
async fn a_killed_process_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let written = write_and_kill(folder.path(), 3 + 4 * round);
        assert!(written > 0, "the process wrote nothing");
        let index = open(folder.path()).await;
        let mut times_found: HashMap<_, usize> = HashMap::new();
        let mut token = None;
        loop {
            let page = index
                .search(&selection("crash"), Order::OldestFirst, PageLimit::hits(500), token.as_deref())
                .await
                .unwrap();
            page.hits.into_iter().for_each(|hit| *times_found.entry(hit.id).or_default() += 1);
            token = page.next_page_token;
            if token.is_none() {
                break;
            }
        }
        assert!((0..written).all(|offset| times_found.contains_key(&doc(offset).id())), "lost before {written}");
        assert!(times_found.values().all(|times| *times == 1), "doubled");
        let ids: Vec<_> = (0..written).map(|offset| doc(offset).id()).collect();
        assert!(index.contains(&topic("logs"), &ids).await.unwrap().into_iter().all(|there| there));
    }
}
