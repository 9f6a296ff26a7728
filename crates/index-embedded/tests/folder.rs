//! The folder: who may open it, what it forgives, and what it says when it can't.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::fs;
use std::path::Path;
use std::time::Duration;

use logmesh_index::conformance::{Doc, selection, slice};
use logmesh_index::{IndexError, IndexReader, IndexWriter, Outcome};
use logmesh_index_embedded::{EmbeddedIndex, Settings};

async fn open(folder: &Path) -> Result<EmbeddedIndex, IndexError> {
    EmbeddedIndex::open(folder, Settings::default()).await
}

#[tokio::test]
async fn a_folder_is_one_process_own() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await.unwrap();
    let refused = open(folder.path()).await.unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    drop(first);
    open(folder.path()).await.unwrap();
}

#[tokio::test]
async fn data_of_another_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await.unwrap());
    fs::write(folder.path().join("VERSION"), "logmesh-index-embedded 99\n").unwrap();
    let refused = open(folder.path()).await.unwrap_err();
    assert!(matches!(&refused, IndexError::Damaged { reason } if reason.contains("99")), "{refused}");
}

/// What is said of damaged types names the file and is worth doing: without it the index opens, with all that it holds.
#[tokio::test]
async fn damaged_types_are_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await.unwrap();
    index.ensure_topic(&"logs".parse().unwrap(), &Default::default()).await.unwrap();
    index.write(vec![Doc::new(1, "kept").build()]).await.unwrap();
    drop(index);
    let types = folder.path().join("topics.json");
    let text = fs::read(&types).unwrap();
    fs::write(&types, &text[..text.len() - 1]).unwrap();
    let refused = open(folder.path()).await.unwrap_err();
    assert!(matches!(refused, IndexError::Damaged { .. }), "{refused:?}");
    let said = refused.to_string();
    for part in [&types.display().to_string(), "is damaged (EOF", "move it away and start again"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    fs::remove_file(&types).unwrap();
    assert_eq!(open(folder.path()).await.unwrap().count(&selection("*")).await.unwrap(), 1);
}

#[tokio::test]
async fn leftovers_of_a_killed_process_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()).await.unwrap());
    let trash = folder.path().join("trash/logs@2026-01-31.0");
    let unborn = folder.path().join("slices/logs/2026-01-31");
    for (dir, file) in [(&trash, "half.store"), (&unborn, ".tmpx")] {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(file), "x").unwrap();
    }
    let index = open(folder.path()).await.unwrap();
    assert!(!trash.exists() && !unborn.exists());
    assert!(index.topics().await.unwrap().is_empty());
    assert_eq!(index.write(vec![Doc::new(1, "x").build()]).await.unwrap(), [Outcome::Created]);
}

/// A slice whose folder can't be written to, as on a full disk, holds nothing up once it can be again.
#[tokio::test]
async fn writing_goes_on_after_the_disk_failed() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await.unwrap();
    index.write(vec![Doc::new(1, "kept").build()]).await.unwrap();

    let (dir, away) = (folder.path().join("slices/logs/2026-01-31"), folder.path().join("away"));
    fs::rename(&dir, &away).unwrap();
    fs::write(&dir, "no folder").unwrap();
    let failed = index.write(vec![Doc::new(2, "x").build()]).await.unwrap_err();
    assert!(failed.retryable(), "{failed}");
    let failed = index.write(vec![Doc::new(2, "x").build()]).await.unwrap_err();
    assert!(failed.retryable(), "{failed}");

    fs::remove_file(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    let both = vec![Doc::new(1, "kept").build(), Doc::new(2, "x").build()];
    assert_eq!(index.write(both).await.unwrap(), [Outcome::Duplicate, Outcome::Created]);
    assert_eq!(index.count(&selection("*")).await.unwrap(), 2);
}

#[tokio::test]
async fn a_date_that_is_none_never_becomes_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path()).await.unwrap();
    for date in ["../../2026", "2026-1-31", "", "2026-01-31x"] {
        let doc = Doc::new(1, "x").in_slice(slice("logs", date)).build();
        let outcomes = index.write(vec![doc]).await.unwrap();
        assert!(matches!(&outcomes[..], [Outcome::Rejected { .. }]), "{outcomes:?}");
    }
}

/// Lookups and searches don't wait for writers, and many callers at once find what they wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_write_and_search_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { open_writers: 2, open_slices: 3, ..Settings::default() };
    let index = EmbeddedIndex::open(folder.path(), settings).await.unwrap();
    let writers = (0..6).map(|writer: i64| {
        let index = index.clone();
        async move {
            for bulk in 0..8 {
                let date = format!("2026-01-{:02}", writer + 1);
                let docs =
                    (0..20).map(|n| Doc::new(writer * 1_000 + bulk * 20 + n, "all").in_slice(slice("logs", &date)));
                let outcomes = index.write(docs.map(|doc| doc.build()).collect()).await.unwrap();
                assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Created));
                assert!(index.count(&selection("all")).await.unwrap() >= 20 * (bulk as u64 + 1));
            }
        }
    });
    let writers: Vec<_> = writers.collect();
    let all = async {
        let mut set = tokio::task::JoinSet::new();
        writers.into_iter().for_each(|writer| {
            set.spawn(writer);
        });
        set.join_all().await
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
    assert_eq!(index.count(&selection("all")).await.unwrap(), 6 * 8 * 20);
}
