//! What is the embedded store's own: its file, its history's bound, its state over a restart.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use logmesh_store::{ConfigStore, Precondition, Revision, StoreError, Txn, WatchError};
use logmesh_store_embedded::{EmbeddedStore, OpenError, Options};

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("config.redb")
}

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path, Options::default()).expect("open")
}

async fn put(store: &EmbeddedStore, key: &str, value: &'static str) -> Revision {
    store.put(key, Bytes::from_static(value.as_bytes()), Precondition::None).await.expect("put")
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&file(&folder));
    let first = put(&store, "/a", "1").await;
    let second = put(&store, "/a", "2").await;
    drop(store);
    let store = open(&file(&folder));
    let snapshot = store.list("").await.unwrap();
    assert_eq!((snapshot.revision, snapshot.entries.len()), (second, 1));
    assert_eq!(snapshot.entries[0].versioned.mod_revision, second);
    let change = store.watch("", first).next().await.unwrap().unwrap();
    assert_eq!(change.revision, second, "a watch resumes over a restart");
    assert!(put(&store, "/b", "1").await > second);
}

#[tokio::test]
async fn a_lease_survives_a_restart_and_its_time_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&file(&folder));
    let lease = store.grant_lease(Duration::from_secs(2)).await.unwrap();
    let revision = store.txn(Txn::new().put_leased("/leased", "x", lease.id)).await.unwrap();
    drop(store);
    let reopened = Instant::now();
    let store = open(&file(&folder));
    assert_eq!(store.keep_alive(lease.id).await.unwrap(), lease.ttl);
    let gone = store.watch("/leased", revision).next().await.unwrap().unwrap();
    assert!(reopened.elapsed() >= lease.ttl);
    assert_eq!(gone.keys[0].value, None);
    let other = store.grant_lease(Duration::from_secs(2)).await.unwrap();
    assert_ne!(other.id, lease.id, "ids aren't used again");
}

#[tokio::test]
async fn history_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&folder), Options { history: 50 }).unwrap();
    let mut revisions = Vec::new();
    for _ in 0..200 {
        revisions.push(put(&store, "/k", "x").await);
    }
    match store.watch("", revisions[0]).next().await {
        Some(Err(WatchError::Compacted { oldest })) => {
            let kept = revisions[199].0 - oldest.0;
            assert!((50..=55).contains(&kept), "{kept} revisions are kept");
            let changes: Vec<_> = store.watch("", oldest).take(kept as usize).collect().await;
            assert!(changes.iter().all(|change| change.is_ok()));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_watch_of_a_quiet_prefix_outlives_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&file(&folder), Options { history: 10 }).unwrap();
    let mut quiet = store.watch("/quiet", Revision(1));
    for _ in 0..100 {
        put(&store, "/busy", "x").await;
        let waiting = tokio::time::timeout(Duration::from_millis(1), quiet.next()).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }
    let revision = put(&store, "/quiet", "x").await;
    assert_eq!(quiet.next().await.unwrap().unwrap().revision, revision);
}

#[tokio::test]
async fn watches_are_bounded_and_end_with_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&file(&folder));
    let mut watches: Vec<_> = (0..1024).map(|_| store.watch("/", Revision(1))).collect();
    match store.watch("/", Revision(1)).next().await {
        Some(Err(WatchError::Lost(error))) => assert!(error.retryable()),
        other => panic!("{other:?}"),
    }
    let mut last = watches.pop().unwrap();
    drop(watches);
    drop(store);
    assert!(matches!(last.next().await, Some(Err(WatchError::Lost(_)))));
    assert!(last.next().await.is_none());
    drop(open(&file(&folder)));
}

#[tokio::test]
async fn a_file_in_use_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(&file(&folder));
    let second = EmbeddedStore::open(&file(&folder), Options::default());
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
}

#[tokio::test]
async fn another_version_and_another_kind_of_file_are_told() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&file(&folder)));
    let database = redb::Database::open(file(&folder)).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("version", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = EmbeddedStore::open(&file(&folder), Options::default()).unwrap_err();
    assert!(matches!(refused, OpenError::Version { .. }), "{refused:?}");
    assert!(refused.to_string().contains("data version 99"), "{refused}");

    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a database, but some text that is long enough to be looked at".repeat(200)).unwrap();
    let refused = EmbeddedStore::open(&text, Options::default()).unwrap_err();
    assert!(matches!(refused, OpenError::NotAStore { .. }), "{refused:?}");
    assert_eq!(std::fs::read(&text).unwrap().len(), 65 * 200, "the file was left as it was");

    let other = folder.path().join("other.redb");
    let database = redb::Database::create(&other).unwrap();
    let transaction = database.begin_write().unwrap();
    let table: redb::TableDefinition<'_, u64, u64> = redb::TableDefinition::new("someone's");
    transaction.open_table(table).unwrap().insert(1, 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = EmbeddedStore::open(&other, Options::default()).unwrap_err();
    assert!(matches!(refused, OpenError::NotAStore { .. }), "{refused:?}");

    let nowhere = EmbeddedStore::open(&folder.path().join("missing/config.redb"), Options::default()).unwrap_err();
    assert!(matches!(nowhere, OpenError::Storage { .. }), "{nowhere:?}");
}

#[tokio::test]
async fn many_writers_are_all_answered() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&file(&folder));
    let puts = (0..1000).map(async |n| store.put(&format!("/{n:04}"), Bytes::new(), Precondition::MustNotExist).await);
    let mut revisions: Vec<Revision> =
        futures::future::join_all(puts).await.into_iter().collect::<Result<_, StoreError>>().unwrap();
    revisions.sort();
    revisions.dedup();
    assert_eq!(revisions.len(), 1000, "each put has a revision of its own");
    assert_eq!(store.list("/").await.unwrap().entries.len(), 1000);
}
