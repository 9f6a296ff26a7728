//! A database with flipped bytes: it's refused by name, or where it's too long to be looked through, the panic names it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use logmesh_bus::{Bus, Cleanup, NewRecord, TopicSpec};
use logmesh_bus_embedded::{EmbeddedBus, OpenError, Settings};
use logmesh_testing::flip_pages;
use logmesh_types::{TopicName, at_work};
use tempfile::TempDir;

async fn with_records(folder: &Path) -> PathBuf {
    let bus = EmbeddedBus::open(folder, Settings::default()).unwrap();
    let topic: TopicName = "t".parse().unwrap();
    let cleanup = Cleanup::Delete { max_age: None, max_bytes: None };
    bus.ensure_topic(&TopicSpec { name: topic.clone(), partitions: 2, cleanup }).await.unwrap();
    for _ in 0..50 {
        let record = NewRecord { value: Bytes::from(vec![b'v'; 1000]), ..NewRecord::default() };
        bus.append(&topic, record).await.unwrap().await.unwrap();
    }
    folder.join("bus.redb")
}

#[tokio::test]
async fn flipped_bytes_are_told_with_the_file_s_name() {
    let folder = TempDir::new().unwrap();
    let path = with_records(folder.path()).await;
    flip_pages(&path);
    let error = EmbeddedBus::open(folder.path(), Settings::default()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
}

#[tokio::test]
async fn a_panic_of_one_too_long_to_be_looked_through_names_it() {
    let folder = TempDir::new().unwrap();
    let path = with_records(folder.path()).await;
    flip_pages(&path);
    let named = Arc::new(Mutex::new(None));
    let seen = named.clone();
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| match at_work::file() {
        Some(file) => *seen.lock().unwrap() = Some(file),
        None => before(info),
    }));
    let opened =
        panic::catch_unwind(|| EmbeddedBus::open(folder.path(), Settings { checked_bytes: 0, ..Settings::default() }));
    assert!(opened.is_err(), "void: redb bore it");
    assert_eq!(*named.lock().unwrap(), Some(path));
}
