//! An etcd that isn't there yet, is killed, frozen, compacted or full.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test, its helpers too; its tasks are joined

mod support;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{AlarmAction, AlarmType};
use logmesh_store::{ConfigStore, ConfigWatcher, PrefixState, Revision, StoreError, WatchError};
use logmesh_store_etcd::{EtcdStore, Settings};
use logmesh_testing::servers::{self, Etcd};
use rustix::process::Signal;
use support::{PATIENCE, follow_until, held, next, put, put_surely, store};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_may_be_there_before_its_server() {
    let port = servers::free_port();
    let settings = Settings { endpoints: vec![format!("127.0.0.1:{port}")], ..Settings::default() };
    let store = EtcdStore::new(&settings).unwrap();
    let error = store.get("k").await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(error.to_string().contains(&port.to_string()) && error.to_string().contains("refused"), "{error}");
    assert!(store.ping().await.is_err());
    let lost = next(&mut store.watch("", Revision(0))).await;
    assert!(matches!(lost, Err(WatchError::Lost(_))), "{lost:?}");
    let _server = Etcd::start(&[("ETCD_PORT", &port.to_string())]);
    store.ping().await.unwrap();
    assert_eq!(store.get("k").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_kills_of_the_server_misses_and_doubles_nothing() {
    const WRITES: u32 = 300;
    let mut server = Etcd::start(&[]);
    let store = Arc::new(store(&[&server]));
    let start = store.list("/w/").await.unwrap().revision;
    let last = format!("/w/{WRITES}");
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 1..=WRITES {
                put_surely(&store, &format!("/w/{n}"), &n.to_string()).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let follower = tokio::spawn({
        let (store, last) = (store.clone(), last.clone());
        async move { follow_until(&store, "/w/", start, &last).await }
    });
    for n in [50, 150, 250] {
        while store.get(&format!("/w/{n}")).await.ok().flatten().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.kill();
        server.start_again();
    }
    writer.await.unwrap();
    let seen = follower.await.unwrap();
    assert_eq!(seen.len(), WRITES as usize);
    assert_eq!(seen, held(&store, "/w/").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_reads_anew_what_was_compacted_while_it_was_away() {
    let mut server = Etcd::start(&[]);
    let store = Arc::new(store(&[&server]));
    put(&store, "/c/kept", "1").await;
    put(&store, "/c/gone", "1").await;
    let (watcher, driver) = ConfigWatcher::new(store.clone(), "/c/");
    let mut driver = Box::pin(driver);
    tokio::select! {
        () = &mut driver => panic!("the driver ended"),
        loaded = watcher.reached(Revision(1)) => assert_eq!(loaded.unwrap().entries.len(), 2),
    }
    // Nothing drives the watcher now: what happens here, it misses.
    server.kill();
    server.start_again();
    store.delete("/c/gone", logmesh_store::Precondition::None).await.unwrap();
    let last = put(&store, "/c/kept", "2").await;
    store.compact(last).await.unwrap();
    let reached = tokio::time::timeout(PATIENCE, watcher.reached(last));
    tokio::select! {
        () = &mut driver => panic!("the driver ended"),
        state = reached => {
            let state = state.expect("in time").unwrap();
            assert_eq!(state.entries.keys().collect::<Vec<_>>(), ["/c/kept"]);
            assert_eq!(state.entries["/c/kept"].mod_revision, last);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_reads_anew_what_was_made_anew_while_it_was_away() {
    let mut server = Etcd::start(&[]);
    let store = Arc::new(store(&[&server]));
    for n in 0..20 {
        put(&store, "/n/former", &n.to_string()).await;
    }
    let (watcher, driver) = ConfigWatcher::new(store.clone(), "/n/");
    let mut driver = Box::pin(driver);
    tokio::select! {
        () = &mut driver => panic!("the driver ended"),
        loaded = watcher.reached(Revision(1)) => assert_eq!(loaded.unwrap().entries.len(), 1),
    }
    server.kill();
    std::fs::remove_dir_all(server.folder().join("data")).unwrap();
    server.start_again();
    put_surely(&store, "/n/present", "1").await;
    let mut states = watcher.subscribe();
    let is_anew = |state: &Arc<PrefixState>| state.entries.keys().eq(["/n/present"]);
    tokio::select! {
        () = &mut driver => panic!("the driver ended"),
        state = tokio::time::timeout(PATIENCE, states.wait_for(is_anew)) => drop(state.expect("in time").unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_watch_does_not_fall_behind_a_compaction() {
    let mut server = Etcd::start(&[("ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL", "100ms")]);
    let store = store(&[&server]);
    let start = put(&store, "/idle/k", "1").await;
    let mut changes = store.watch("/idle/", start);
    let mut bookmark = Revision(0);
    let mut last = Revision(0);
    while bookmark <= start || bookmark < last {
        last = put(&store, "/busy/k", "x").await;
        let change = next(&mut changes).await.unwrap();
        assert!(change.keys.is_empty() && change.revision > bookmark, "{change:?}");
        bookmark = change.revision;
        last = last.min(bookmark);
    }
    store.compact(bookmark).await.unwrap();
    server.kill();
    server.start_again();
    let lost = loop {
        if let Err(error) = next(&mut changes).await {
            break error;
        }
    };
    assert!(matches!(lost, WatchError::Lost(_)), "{lost:?}");
    let mut resumed = store.watch("/idle/", bookmark);
    let revision = put_surely(&store, "/idle/k", "2").await;
    loop {
        let change = next(&mut resumed).await.expect("nothing was compacted after the bookmark");
        if !change.keys.is_empty() {
            break assert_eq!(change.revision, revision);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_not_available_and_works_again_when_it_thaws() {
    let server = Etcd::start(&[]);
    let store = store(&[&server]);
    let before = put(&store, "/f/k", "1").await;
    let mut changes = store.watch("/f/", before);
    let first = put(&store, "/f/k", "2").await;
    assert_eq!(next(&mut changes).await.unwrap().revision, first);
    server.signal(Signal::STOP);
    let (read, write, lost) = tokio::join!(
        store.get("/f/k"),
        store.put("/f/k", "3".into(), logmesh_store::Precondition::None),
        next(&mut changes),
    );
    for error in [read.unwrap_err(), write.unwrap_err()] {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("did not answer"), "{error}");
    }
    assert!(matches!(lost, Err(WatchError::Lost(_))), "{lost:?}");
    server.signal(Signal::CONT);
    let last = put_surely(&store, "/f/k", "4").await;
    let mut changes = store.watch("/f/", first);
    loop {
        // The write that nobody heard of may have been done.
        let change = next(&mut changes).await.unwrap();
        if change.revision == last {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_a_message_is_listed_and_watched_whole() {
    const LARGE: usize = 40;
    let server = Etcd::start(&[("ETCD_UNSAFE_NO_FSYNC", "true")]);
    let store = store(&[&server]);
    let start = store.list("").await.unwrap().revision;
    for n in 0..LARGE {
        let part = |name| format!("/large/{n:03}/{name}");
        let value = vec![b'x'; 400 << 10];
        let txn =
            ["c", "a", "b"].iter().fold(logmesh_store::Txn::new(), |txn, name| txn.put(part(name), value.clone()));
        store.txn(txn).await.unwrap();
    }
    let mut changes = store.watch("/large/", start);
    let mut revision = start;
    for n in 0..LARGE {
        let change = next(&mut changes).await.unwrap();
        let keys: Vec<_> = change.keys.iter().map(|key| key.key.clone()).collect();
        let expected: Vec<_> = ["a", "b", "c"].iter().map(|name| format!("/large/{n:03}/{name}")).collect();
        assert_eq!((keys, change.revision > revision), (expected, true));
        revision = change.revision;
    }
    for n in 0..1500 {
        put(&store, &format!("/small/{n:04}"), "x").await;
    }
    let everything = store.list("").await.unwrap();
    assert_eq!(everything.entries.len(), LARGE * 3 + 1500);
    assert!(everything.entries.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(store.list("/small/").await.unwrap().entries.len(), 1500);
    let too_large = (0..4).fold(logmesh_store::Txn::new(), |txn, n| txn.put(format!("/t/{n}"), vec![0; 1 << 20]));
    let refused = store.txn(too_large).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_says_what_to_do_and_goes_on_reading_until_it_is_done() {
    let server = Etcd::start(&[("ETCD_QUOTA_BACKEND_BYTES", "4194304"), ("ETCD_UNSAFE_NO_FSYNC", "true")]);
    let store = store(&[&server]);
    let start = put(&store, "/full/small", "1").await;
    let lease = store.grant_lease(PATIENCE).await.unwrap();
    store.txn(logmesh_store::Txn::new().put_leased("/full/leased", "x", lease.id)).await.unwrap();
    let full = loop {
        let written = store.put("/full/k", vec![7; 1 << 20].into(), logmesh_store::Precondition::None).await;
        if let Err(error) = written {
            break error;
        }
    };
    for word in ["space is used up", "compact", "defragment", "disarm"] {
        assert!(full.retryable() && full.to_string().contains(word), "{full}");
    }

    // What needs no room goes on, watches of deletions too.
    assert!(store.get("/full/small").await.unwrap().is_some());
    store.keep_alive(lease.id).await.unwrap();
    let mut changes = store.watch("/full/small", start);
    let revision = store.delete("/full/small", logmesh_store::Precondition::None).await.unwrap();
    assert_eq!(next(&mut changes).await.unwrap().revision, revision);
    let refused = store.grant_lease(PATIENCE).await.unwrap_err();
    assert!(refused.to_string().contains("space is used up"), "{refused}");

    // What the error says.
    store.compact(revision).await.unwrap();
    let mut human = etcd_client::Client::connect([server.address()], None).await.unwrap();
    human.defragment().await.unwrap();
    for alarm in human.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap().alarms() {
        let mut whose = etcd_client::AlarmOptions::new();
        whose.with_member(alarm.member_id());
        human.alarm(AlarmAction::Deactivate, alarm.alarm(), Some(whose)).await.unwrap();
    }
    let again = put(&store, "/full/small", "2").await;
    assert_eq!(next(&mut changes).await.unwrap().revision, again, "the same watch goes on");
    store.keep_alive(lease.id).await.unwrap();
    assert!(store.get("/full/leased").await.unwrap().is_some());
}
