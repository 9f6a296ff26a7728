//! What the tests on real servers share.

#![allow(dead_code, unreachable_pub)] // each test uses a part

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use logmesh_store::{Change, ChangeStream, ConfigStore, Precondition, Revision, WatchError};
use logmesh_store_etcd::{EtcdStore, Settings};
use logmesh_testing::servers::Server;

/// The longest that a test waits for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn settings(members: &[&Server]) -> Settings {
    Settings { endpoints: members.iter().map(|member| member.address()).collect(), ..Settings::default() }
}

pub fn store(members: &[&Server]) -> EtcdStore {
    EtcdStore::new(&settings(members)).expect("good settings")
}

pub async fn put(store: &EtcdStore, key: &str, value: &str) -> Revision {
    store.put(key, Bytes::copy_from_slice(value.as_bytes()), Precondition::None).await.expect("put")
}

/// Writes until it's answered: a write whose fate is unknown is read back, so that it happens once.
pub async fn put_surely(store: &EtcdStore, key: &str, value: &str) -> Revision {
    let value = Bytes::copy_from_slice(value.as_bytes());
    let surely = async {
        loop {
            match store.get(key).await {
                Ok(Some(held)) if held.value == value => return held.mod_revision,
                Ok(_) => {
                    if let Ok(revision) = store.put(key, value.clone(), Precondition::None).await {
                        return revision;
                    }
                }
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, surely).await.expect("written in time")
}

pub async fn next(changes: &mut ChangeStream) -> Result<Change, WatchError> {
    tokio::time::timeout(PATIENCE, changes.next()).await.expect("in time").expect("a watch ends with an error only")
}

/// Follows a prefix over every loss of the watch until a key is written, and gives all key changes in order.
pub async fn follow_until(store: &EtcdStore, prefix: &str, after: Revision, last: &str) -> Vec<(Revision, String)> {
    let (mut seen, mut after) = (Vec::new(), after);
    loop {
        let mut changes = store.watch(prefix, after);
        while let Ok(change) = next(&mut changes).await {
            assert!(change.revision > after, "{change:?} after {after}");
            after = change.revision;
            seen.extend(change.keys.into_iter().map(|key| (change.revision, key.key)));
            if seen.last().is_some_and(|(_, key)| key == last) {
                return seen;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the prefix holds now, as [`follow_until`] tells it if each key was written once.
pub async fn held(store: &EtcdStore, prefix: &str) -> Vec<(Revision, String)> {
    let entries = store.list(prefix).await.expect("list").entries;
    let mut held: Vec<_> = entries.into_iter().map(|entry| (entry.versioned.mod_revision, entry.key)).collect();
    held.sort();
    held
}
