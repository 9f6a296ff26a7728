//! Slices whose files somebody broke: they're named and set aside, the others go on, and nothing is deleted.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use logmesh_index::conformance::{Doc, selection, slice, topic};
use logmesh_index::{IndexError, IndexReader, IndexWriter, NewDoc, Order, Outcome, Page, PageLimit};
use logmesh_index_embedded::{EmbeddedIndex, Settings};

const LOGS: u64 = 300;
const FOLDER: &str = "LOGMESH_TEST_INDEX_FOLDER";
/// Places in a fieldnorm and in a store.
const LENGTH_OF_A_LIST: usize = 1;
const OF_A_DOCUMENT: usize = 2_269;
const SIGABRT: i32 = 6;

async fn open(folder: &Path) -> EmbeddedIndex {
    EmbeddedIndex::open(folder, Settings::default()).await.unwrap()
}

fn bulk(topic: &str) -> Vec<NewDoc> {
    let doc = |offset| Doc::new(offset, &format!("line {offset}")).in_slice(slice(topic, "2026-01-31")).build();
    (0..LOGS as i64).map(doc).collect()
}

/// A folder with two topics of one slice each.
async fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await;
    for topic in ["app", "logs"] {
        index.write(bulk(topic)).await.unwrap();
    }
    folder
}

fn of_logs(folder: &Path, extension: &str) -> PathBuf {
    let dir = folder.join("slices/logs/2026-01-31");
    let mut paths = dir.read_dir().unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|it| it == extension)).unwrap()
}

fn flip(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (middle, mut bytes) = (file.metadata().unwrap().len() / 2, [0; 64]);
    file.read_exact_at(&mut bytes, middle).unwrap();
    file.write_all_at(&bytes.map(|byte| !byte), middle).unwrap();
}

/// Flips one bit. Where that makes tantivy panic was found by trying.
fn change(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

async fn search(index: &EmbeddedIndex) -> Result<Page, IndexError> {
    index.search(&selection("*"), Order::NewestFirst, PageLimit::hits(1_000), None).await
}

/// The one slice that was set aside.
fn aside(folder: &Path) -> PathBuf {
    let dirs: Vec<_> = folder.join("damaged").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    assert!(dirs[0].file_name().unwrap().to_string_lossy().starts_with("logs@2026-01-31."), "{dirs:?}");
    dirs[0].clone()
}

/// A search says once what is damaged and what to do; from then on the others are found, and the lines can be written again.
async fn assert_set_aside(folder: &Path, why: &str) {
    let index = open(folder).await;
    let told = search(&index).await.unwrap_err();
    let aside = aside(folder);
    assert!(matches!(&told, IndexError::Damaged { .. }), "{told}");
    let told = told.to_string();
    for word in [why, "slices/logs/2026-01-31 is damaged", aside.to_str().unwrap(), "logmesh audit --repair"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert_eq!(search(&index).await.unwrap().hits.len() as u64, LOGS, "those of topic app");
    let outcomes = index.write(bulk("logs")).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created));
    assert_eq!(search(&index).await.unwrap().hits.len() as u64, 2 * LOGS);
    drop(index);
    assert_eq!(open(folder).await.count(&selection("*")).await.unwrap(), 2 * LOGS);
    assert!(aside.is_dir(), "it's still there");
}

#[tokio::test]
async fn bytes_of_a_store_are_flipped() {
    let folder = filled().await;
    flip(&of_logs(folder.path(), "store"));
    assert_set_aside(folder.path(), "store doesn't have its checksum").await;
}

#[tokio::test]
async fn a_store_is_gone() {
    let folder = filled().await;
    fs::remove_file(of_logs(folder.path(), "store")).unwrap();
    assert_set_aside(folder.path(), "store is missing").await;
}

#[tokio::test]
async fn an_idx_is_cut_short() {
    for length in [0, 6, 1_000] {
        let folder = filled().await;
        let path = of_logs(folder.path(), "idx");
        assert!(path.metadata().unwrap().len() > length);
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
        assert_set_aside(folder.path(), "idx is cut short or overwritten").await;
    }
}

#[tokio::test]
async fn the_meta_file_is_cut_short() {
    let folder = filled().await;
    fs::write(folder.path().join("slices/logs/2026-01-31/meta.json"), "{").unwrap();
    assert_set_aside(folder.path(), "meta.json").await;
}

#[tokio::test]
async fn segments_without_a_meta_file_are_kept() {
    let folder = filled().await;
    let store = of_logs(folder.path(), "store");
    fs::remove_file(store.with_file_name("meta.json")).unwrap();
    let index = open(folder.path()).await;
    assert_eq!(index.count(&selection("*")).await.unwrap(), LOGS);
    assert!(aside(folder.path()).join(store.file_name().unwrap()).exists());
}

/// Who writes, or asks for the audit, isn't held up: what is missing is missing, and put back.
#[tokio::test]
async fn writers_and_the_audit_go_on_without_it() {
    let folder = filled().await;
    fs::remove_file(of_logs(folder.path(), "store")).unwrap();
    let index = open(folder.path()).await;
    let both = [bulk("app"), bulk("logs")].concat();
    let outcomes = index.write(both).await.unwrap();
    let created = outcomes.iter().filter(|outcome| **outcome == Outcome::Created).count() as u64;
    assert_eq!((created, outcomes.len() as u64), (LOGS, 2 * LOGS));
    aside(folder.path());
}

/// Flipped bytes may be in what no lookup reads: only reading all of it tells. What is whole stays.
#[tokio::test]
async fn all_is_read_to_verify_a_topic() {
    let folder = filled().await;
    let index = open(folder.path()).await;
    for name in ["app", "logs"] {
        index.verify(&topic(name)).await.unwrap();
    }
    assert_eq!(index.count(&selection("*")).await.unwrap(), 2 * LOGS);
    flip(&of_logs(folder.path(), "store"));
    assert_eq!(index.count(&selection("*")).await.unwrap(), 2 * LOGS, "a count doesn't read it");
    index.verify(&topic("app")).await.unwrap();
    assert!(!folder.path().join("damaged").exists());
    index.verify(&topic("logs")).await.unwrap();
    assert_eq!(index.count(&selection("*")).await.unwrap(), LOGS);
    assert_eq!(index.topics().await.unwrap(), [topic("app")]);
    aside(folder.path());
}

/// Not a test of its own: what uses the index in a process that a panic ends, as it ends a release build.
#[tokio::test]
#[ignore = "run by the tests below in a process of its own"]
async fn uses_all_until_a_panic() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let settings = Settings { open_writers: 1, ..Settings::default() };
    let index = EmbeddedIndex::open(Path::new(&folder), settings).await.unwrap();
    search(&index).await.unwrap();
    // The second one has the writer of the first closed, which waits for its merges.
    for topic in ["logs", "app"] {
        index.write(bulk(topic)).await.unwrap();
    }
}

/// Has a process end by a panic in work with the slice of topic logs, and asserts that the next one finds its damage.
async fn assert_ends_once(folder: &Path, why: &str) {
    let slices = folder.join("slices");
    let mut ends = Command::new(std::env::current_exe().unwrap());
    ends.args(["--exact", "uses_all_until_a_panic", "--ignored"]).env(FOLDER, folder);
    let ended = ends.output().unwrap();
    assert_eq!(ended.status.signal(), Some(SIGABRT), "{ended:?}");
    assert!(slices.join("logs/2026-01-31/.suspect").exists());
    assert!(!slices.join("app/2026-01-31/.suspect").exists());
    assert_set_aside(folder, why).await;
}

#[tokio::test]
async fn a_panic_while_a_slice_is_opened_comes_once() {
    let folder = filled().await;
    change(&of_logs(folder.path(), "fieldnorm"), LENGTH_OF_A_LIST);
    assert_ends_once(folder.path(), "fieldnorm doesn't have its checksum").await;
}

#[tokio::test]
async fn a_panic_in_a_search_comes_once() {
    let folder = filled().await;
    change(&of_logs(folder.path(), "store"), OF_A_DOCUMENT);
    assert_ends_once(folder.path(), "store doesn't have its checksum").await;
}

/// On a thread of tantivy's, which nobody waits for.
#[tokio::test]
async fn a_panic_in_a_merge_comes_once() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await;
    index.write(bulk("app")).await.unwrap();
    // The sixth segment has all merged.
    for part in bulk("logs").chunks(LOGS as usize / 6).take(5) {
        index.write(part.to_vec()).await.unwrap();
    }
    drop(index);
    flip(&of_logs(folder.path(), "idx"));
    assert_ends_once(folder.path(), "idx doesn't have its checksum").await;
}

/// In a build that unwinds, as this one does, nothing has to end.
#[tokio::test]
async fn a_panic_that_ends_no_process_is_an_error() {
    let folder = filled().await;
    change(&of_logs(folder.path(), "store"), OF_A_DOCUMENT);
    assert_set_aside(folder.path(), "store doesn't have its checksum").await;
    assert!(aside(folder.path()).join(".suspect").exists(), "it was a panic");
}

#[tokio::test]
async fn a_suspect_whose_files_are_whole_stays() {
    let folder = filled().await;
    let suspect = of_logs(folder.path(), "store").with_file_name(".suspect");
    fs::write(&suspect, "").unwrap();
    let index = open(folder.path()).await;
    assert_eq!(index.count(&selection("*")).await.unwrap(), 2 * LOGS);
    assert!(!suspect.exists());
}

/// A wrong number of documents made tantivy panic, with all other files whole.
#[tokio::test]
async fn a_digit_of_the_meta_file_is_another() {
    let folder = filled().await;
    let path = folder.path().join("slices/logs/2026-01-31/meta.json");
    let text = fs::read_to_string(&path).unwrap();
    let number = format!("\"max_doc\": {LOGS}");
    assert!(text.contains(&number), "{text}");
    fs::write(&path, text.replace(&number, "\"max_doc\": 900")).unwrap();
    assert_set_aside(folder.path(), "meta.json doesn't have its checksum").await;
}

/// Those of an earlier version have no checksum in them.
#[tokio::test]
async fn a_meta_file_without_a_checksum_is_read() {
    let folder = filled().await;
    let path = folder.path().join("slices/logs/2026-01-31/meta.json");
    let text = fs::read_to_string(&path).unwrap();
    let (sum, rest) = text.split_once(',').unwrap();
    assert!(sum.starts_with("{\"crc32c\":"), "{sum}");
    fs::write(&path, format!("{{{rest}")).unwrap();
    let index = open(folder.path()).await;
    assert_eq!(index.count(&selection("*")).await.unwrap(), 2 * LOGS);
    index.verify(&topic("logs")).await.unwrap();
    assert!(!folder.path().join("damaged").exists());
}

/// A slice of which nothing is left but what is open: what it held is gone with the process.
#[tokio::test]
async fn an_open_slice_whose_names_are_gone_is_not_whole() {
    for all in [false, true] {
        let folder = filled().await;
        let index = open(folder.path()).await;
        assert_eq!(index.count(&selection("*")).await.unwrap(), 2 * LOGS);
        let meta = of_logs(folder.path(), "store").with_file_name("meta.json");
        match all {
            true => fs::remove_dir_all(meta.parent().unwrap()).unwrap(),
            false => fs::remove_file(&meta).unwrap(),
        }
        index.verify(&topic("logs")).await.unwrap();
        assert_eq!(index.topics().await.unwrap(), [topic("app")]);
        assert_eq!(folder.path().join("damaged").read_dir().unwrap().count(), usize::from(!all));
    }
}

/// The same of a slice that was closed for others: it isn't made anew over what it was.
#[tokio::test]
async fn a_closed_slice_whose_names_are_gone_is_kept() {
    for all in [false, true] {
        let folder = filled().await;
        let index = open(folder.path()).await;
        let store = of_logs(folder.path(), "store");
        match all {
            true => fs::remove_dir_all(store.parent().unwrap()).unwrap(),
            false => fs::remove_file(store.with_file_name("meta.json")).unwrap(),
        }
        let told = search(&index).await.unwrap_err().to_string();
        assert!(told.contains("slices/logs/2026-01-31 is damaged (meta.json is missing)"), "{told}");
        let outcomes = index.write(bulk("logs")).await.unwrap();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created));
        if !all {
            assert!(aside(folder.path()).join(store.file_name().unwrap()).exists());
        }
    }
}

/// What can't be read for now proves nothing: neither damage nor that all is well.
#[cfg(unix)]
#[tokio::test]
async fn what_cannot_be_read_is_neither_whole_nor_damaged() {
    let folder = filled().await;
    let index = open(folder.path()).await;
    let store = of_logs(folder.path(), "store");
    let (suspect, elsewhere) = (store.with_file_name(".suspect"), folder.path().join("elsewhere"));
    fs::write(&suspect, "").unwrap();
    fs::rename(&store, &elsewhere).unwrap();
    // Opening it fails with "too many levels of symbolic links", as it may with "too many open files".
    std::os::unix::fs::symlink(&store, &store).unwrap();
    for told in [index.verify(&topic("logs")).await.unwrap_err(), search(&index).await.unwrap_err()] {
        assert!(matches!(told, IndexError::Unavailable { .. }), "{told}");
        assert!(told.to_string().contains("for now"), "{told}");
    }
    assert!(suspect.exists());
    assert!(!folder.path().join("damaged").exists());
    fs::rename(&elsewhere, &store).unwrap();
    index.verify(&topic("logs")).await.unwrap();
    assert_eq!(index.count(&selection("*")).await.unwrap(), 2 * LOGS);
    assert!(!suspect.exists());
}
