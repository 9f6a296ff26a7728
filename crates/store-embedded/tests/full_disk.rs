//! A full disk: writes are refused with a clear, retryable error, nothing acknowledged is lost, reads go on, and so do writes
//! once there's room.
//!
//! The disk is made full by the process's own limit on the size of files. It's a signal by default, which the shell turns off
//! for the test's second process.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use logmesh_store::{ConfigStore, Precondition, StoreError, Txn};
use logmesh_store_embedded::{EmbeddedStore, Options};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FILE: &str = "LOGMESH_FULL_DISK_TEST_FILE";

#[test]
fn a_full_disk_is_told_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" --exact child_fills_its_disk"])
        .arg(std::env::current_exe().unwrap())
        .env(FILE, folder.path().join("config.redb"))
        .status()
        .unwrap();
    assert!(status.success());
}

/// The second process, when it's run by the test above; otherwise nothing.
#[tokio::test]
async fn child_fills_its_disk() {
    let Some(file) = std::env::var_os(FILE).map(PathBuf::from) else { return };
    let store = EmbeddedStore::open(&file, Options::default()).unwrap();
    let lease = store.grant_lease(Duration::from_secs(600)).await.unwrap();
    store.txn(Txn::new().put_leased("/leased", "x", lease.id)).await.unwrap();
    let before = getrlimit(Resource::Fsize);
    limit(Rlimit { current: Some(file.metadata().unwrap().len() + (2 << 20)), ..before });

    let (acked, refused) = fill(&store).await;
    assert!(refused.retryable() && refused.to_string().contains("disk is full"), "{refused:?}");
    assert!(acked > 0, "the disk was full from the beginning");
    wait_for_reads(&store).await;
    assert_eq!(store.list("/fill/").await.unwrap().entries.len(), acked, "what was refused is not there");
    store.keep_alive(lease.id).await.unwrap();

    limit(before);
    let start = Instant::now();
    while let Err(error) = store.put("/after", Bytes::new(), Precondition::None).await {
        assert!(error.retryable() && start.elapsed() < Duration::from_secs(30), "{error:?}");
    }
    assert_eq!(store.keep_alive(lease.id).await.unwrap(), lease.ttl);
    drop(store);
    let store = EmbeddedStore::open(&file, Options::default()).unwrap();
    assert_eq!(store.list("").await.unwrap().entries.len(), acked + 2);
}

fn limit(limit: Rlimit) {
    setrlimit(Resource::Fsize, limit).expect("the limit is set");
}

/// Writes until a write is refused; how many were acknowledged, and the refusal.
async fn fill(store: &EmbeddedStore) -> (usize, StoreError) {
    for n in 0..1000 {
        let value = Bytes::from(vec![7; 64 << 10]);
        if let Err(error) = store.put(&format!("/fill/{n:04}"), value, Precondition::MustNotExist).await {
            return (n, error);
        }
    }
    panic!("the disk never was full");
}

async fn wait_for_reads(store: &EmbeddedStore) {
    let start = Instant::now();
    while let Err(error) = store.get("/leased").await {
        assert!(start.elapsed() < Duration::from_secs(30), "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
