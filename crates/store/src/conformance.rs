//! What every implementation of [`ConfigStore`] has to pass.
//!
//! Each test is a plain function over a store; [`conformance_suite!`](crate::conformance_suite) makes a `#[tokio::test]` of each. The
//! factory is an `async fn() -> (Arc<dyn ConfigStore>, impl Any)`, whose second part (a temp folder, say) is kept until the test's
//! end. Tests write beneath a prefix of their own and take nothing for granted about how far revisions lie apart, so that they
//! may share a server; one of them compacts it, so that tests sharing a server run one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;

use crate::*;

/// The longest that a test waits for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes a `#[tokio::test]` of every test of the suite, over stores that the factory makes.
#[macro_export]
macro_rules! conformance_suite {
    ($factory:path) => {
        $crate::conformance_suite!(@tests $factory:
            a_missing_key_is_none,
            what_was_put_is_there,
            preconditions_are_kept,
            one_of_many_racing_writers_wins_each_round,
            a_transaction_is_whole_or_not_at_all,
            bad_transactions_are_refused,
            list_is_ordered_and_of_one_revision,
            deleting_nothing_makes_no_revision,
            a_watch_shows_every_revision_once_in_order,
            a_watch_resumes_after_any_revision,
            a_watch_sees_a_transaction_whole,
            a_watch_keeps_to_its_prefix,
            a_slow_watcher_misses_nothing,
            compaction_is_told_apart,
            a_lease_ends_with_its_keys,
            a_lease_kept_alive_lives,
            a_revoked_lease_takes_its_keys_in_one_revision,
            a_key_put_anew_leaves_its_lease,
            a_lease_that_is_not_there_is_told,
            a_watcher_follows_and_survives_compaction,
            at_most_one_leads,
            a_leader_that_dies_is_followed,
        );
    };
    (@tests $factory:path: $($name:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _guard) = $factory().await;
                $crate::conformance::$name(store).await;
            }
        )*
    };
}

type Store = Arc<dyn ConfigStore>;

/// A prefix that no other test or run uses.
fn prefix(test: &str) -> String {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("/conformance/{test}/{nanos:x}/")
}

fn text(bytes: &'static str) -> Bytes {
    Bytes::from_static(bytes.as_bytes())
}

async fn put(store: &Store, key: &str, value: &str) -> Revision {
    store.put(key, Bytes::copy_from_slice(value.as_bytes()), Precondition::None).await.expect("put")
}

async fn next(changes: &mut ChangeStream) -> Change {
    next_or_error(changes).await.expect("a change")
}

/// The next change that is one: a store may send a bookmark at any time.
async fn next_or_error(changes: &mut ChangeStream) -> Result<Change, WatchError> {
    let mut told =
        changes.filter(|told| std::future::ready(told.as_ref().map_or(true, |change| !change.keys.is_empty())));
    let next = tokio::time::timeout(PATIENCE, told.next()).await;
    next.expect("the watch showed nothing in time").expect("the watch ended")
}

async fn wait_until_gone(store: &Store, key: &str) {
    let start = Instant::now();
    while store.get(key).await.expect("get").is_some() {
        assert!(start.elapsed() < PATIENCE, "{key} is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn a_missing_key_is_none(store: Store) {
    let key = prefix("missing");
    assert_eq!(store.get(&key).await.expect("get"), None);
    let snapshot = store.list(&key).await.expect("list");
    assert!(snapshot.entries.is_empty());
    assert!(snapshot.revision > Revision(0), "0 means before everything");
}

pub async fn what_was_put_is_there(store: Store) {
    let key = prefix("put") + "ключ";
    let first = put(&store, &key, "one").await;
    let second = put(&store, &key, "").await;
    assert!(second > first);
    let held = store.get(&key).await.expect("get").expect("there");
    assert_eq!(held, Versioned { value: Bytes::new(), mod_revision: second, lease: None });
    let third = store.delete(&key, Precondition::None).await.expect("delete");
    assert!(third > second);
    assert_eq!(store.get(&key).await.expect("get"), None);
}

pub async fn preconditions_are_kept(store: Store) {
    let key = prefix("preconditions") + "k";
    let absent = store.put(&key, text("x"), Precondition::RevisionIs(Revision(1))).await;
    assert!(matches!(absent, Err(StoreError::PreconditionFailed { actual: None, .. })), "{absent:?}");
    let first = store.put(&key, text("a"), Precondition::MustNotExist).await.expect("create");
    let again = store.put(&key, text("b"), Precondition::MustNotExist).await;
    match again {
        Err(StoreError::PreconditionFailed { key: named, actual }) => {
            assert_eq!((named, actual), (key.clone(), Some(first)))
        }
        other => panic!("{other:?}"),
    }
    let second = store.put(&key, text("c"), Precondition::RevisionIs(first)).await.expect("update");
    let stale = store.delete(&key, Precondition::RevisionIs(first)).await.expect_err("stale");
    assert!(!stale.retryable());
    assert_eq!(store.get(&key).await.expect("get").expect("there").value, text("c"));
    store.delete(&key, Precondition::RevisionIs(second)).await.expect("delete");
    assert_eq!(store.get(&key).await.expect("get"), None);
}

pub async fn one_of_many_racing_writers_wins_each_round(store: Store) {
    const WRITERS: u64 = 8;
    let key = prefix("race") + "counter";
    put(&store, &key, "0").await;
    let add_one = async |key: &str| {
        loop {
            let held = store.get(key).await.expect("get").expect("there");
            let count: u64 = std::str::from_utf8(&held.value).expect("text").parse().expect("number");
            let new = Bytes::from((count + 1).to_string());
            match store.put(key, new, Precondition::RevisionIs(held.mod_revision)).await {
                Ok(_) => return,
                Err(StoreError::PreconditionFailed { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    futures::future::join_all((0..WRITERS).map(|_| async {
        for _ in 0..5 {
            add_one(&key).await;
        }
    }))
    .await;
    assert_eq!(store.get(&key).await.expect("get").expect("there").value, Bytes::from((WRITERS * 5).to_string()));
}

pub async fn a_transaction_is_whole_or_not_at_all(store: Store) {
    let prefix = prefix("txn");
    let (a, b, c) = (format!("{prefix}a"), format!("{prefix}b"), format!("{prefix}c"));
    let first = put(&store, &a, "1").await;
    let before = store.list(&prefix).await.expect("list").revision;
    let refused = Txn::new()
        .when(&a, Precondition::RevisionIs(first))
        .when(&b, Precondition::RevisionIs(first))
        .put(&a, "2")
        .put(&c, "2");
    match store.txn(refused).await {
        Err(StoreError::PreconditionFailed { key, actual: None }) => assert_eq!(key, b),
        other => panic!("{other:?}"),
    }
    let after = store.list(&prefix).await.expect("list");
    assert_eq!((after.entries.len(), after.entries[0].versioned.mod_revision), (1, first));
    assert_eq!(after.revision, before, "a refused transaction makes no revision");
    let done = Txn::new().when(&a, Precondition::RevisionIs(first)).put(&b, "2").put(&c, "2").delete(&a);
    let revision = store.txn(done).await.expect("txn");
    let entries = store.list(&prefix).await.expect("list").entries;
    let found: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.versioned.mod_revision)).collect();
    assert_eq!(found, [(b.as_str(), revision), (c.as_str(), revision)]);
}

pub async fn bad_transactions_are_refused(store: Store) {
    let key = prefix("bad") + "k";
    let bad = [
        Txn::new().put(&key, "1").delete(&key),
        Txn::new().put("", "1"),
        Txn::new().put("x".repeat(MAX_KEY_BYTES + 1), "1"),
        Txn::new().put(&key, vec![0; MAX_VALUE_BYTES + 1]),
        (0..=MAX_TXN_OPS).fold(Txn::new(), |txn, n| txn.put(format!("{key}{n}"), "1")),
    ];
    for txn in bad {
        let refused = store.txn(txn).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    let largest = vec![7; MAX_VALUE_BYTES];
    store.txn(Txn::new().put(&key, largest)).await.expect("the largest value is taken");
    let many = (0..MAX_TXN_OPS).fold(Txn::new(), |txn, n| txn.put(format!("{key}{n}"), "1"));
    store.txn(many).await.expect("the most operations are taken");
}

pub async fn list_is_ordered_and_of_one_revision(store: Store) {
    let prefix = prefix("list");
    for name in ["b/2", "b/10", "a", "c", "b/1"] {
        put(&store, &format!("{prefix}{name}"), name).await;
    }
    let last = put(&store, &format!("{prefix}b"), "b").await;
    let snapshot = store.list(&format!("{prefix}b/")).await.expect("list");
    let names: Vec<_> = snapshot.entries.iter().map(|entry| &entry.key[prefix.len()..]).collect();
    assert_eq!(names, ["b/1", "b/10", "b/2"]);
    assert!(snapshot.revision >= last);
    let keys: Vec<String> = snapshot.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(store.keys(&format!("{prefix}b/")).await.expect("keys"), keys);
    assert_eq!(store.list(&prefix).await.expect("list").entries.len(), 6);
}

pub async fn deleting_nothing_makes_no_revision(store: Store) {
    let key = prefix("nothing") + "k";
    let before = put(&store, &key, "1").await;
    assert_eq!(store.txn(Txn::new()).await.expect("txn"), before);
    assert_eq!(store.delete(&format!("{key}x"), Precondition::None).await.expect("delete"), before);
    let missing = store.delete(&format!("{key}x"), Precondition::RevisionIs(before)).await;
    assert!(matches!(missing, Err(StoreError::PreconditionFailed { .. })));
}

pub async fn a_watch_shows_every_revision_once_in_order(store: Store) {
    let prefix = prefix("watch");
    let start = store.list(&prefix).await.expect("list").revision;
    let mut live = store.watch(&prefix, start);
    let key = format!("{prefix}k");
    let mut expected = Vec::new();
    for n in 0..20 {
        expected.push((put(&store, &key, &n.to_string()).await, Some(Bytes::from(n.to_string()))));
    }
    expected.push((store.delete(&key, Precondition::None).await.expect("delete"), None));
    let mut replayed = store.watch(&prefix, start);
    for (revision, value) in expected {
        for changes in [&mut live, &mut replayed] {
            let change = next(changes).await;
            assert_eq!((change.revision, change.keys.len()), (revision, 1));
            assert_eq!(change.keys[0].key, key);
            let expected = value.clone().map(|value| Versioned { value, mod_revision: revision, lease: None });
            assert_eq!(change.keys[0].value, expected);
        }
    }
}

pub async fn a_watch_resumes_after_any_revision(store: Store) {
    let prefix = prefix("resume");
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(put(&store, &format!("{prefix}{n}"), "x").await);
    }
    for (n, after) in revisions.iter().enumerate().take(9) {
        let change = next(&mut store.watch(&prefix, *after)).await;
        assert_eq!(change.revision, revisions[n + 1]);
    }
    let mut future = store.watch(&prefix, *revisions.last().expect("some"));
    let revision = put(&store, &format!("{prefix}last"), "x").await;
    assert_eq!(next(&mut future).await.revision, revision);
}

pub async fn a_watch_sees_a_transaction_whole(store: Store) {
    let prefix = prefix("whole");
    let after = put(&store, &format!("{prefix}b"), "x").await;
    let mut changes = store.watch(&prefix, after);
    let txn = Txn::new().put(format!("{prefix}c"), "1").delete(format!("{prefix}b")).put(format!("{prefix}a"), "1");
    let revision = store.txn(txn).await.expect("txn");
    let change = next(&mut changes).await;
    assert_eq!(change.revision, revision);
    let keys: Vec<_> = change.keys.iter().map(|key| (&key.key[prefix.len()..], key.value.is_some())).collect();
    assert_eq!(keys, [("a", true), ("b", false), ("c", true)]);
}

pub async fn a_watch_keeps_to_its_prefix(store: Store) {
    let prefix = prefix("filter");
    let after = put(&store, &prefix, "x").await;
    let mut changes = store.watch(&format!("{prefix}in/"), after);
    put(&store, &format!("{prefix}in"), "x").await;
    put(&store, &format!("{prefix}inn/1"), "x").await;
    let both = Txn::new().put(format!("{prefix}out"), "x").put(format!("{prefix}in/1"), "x");
    let revision = store.txn(both).await.expect("txn");
    let change = next(&mut changes).await;
    assert_eq!((change.revision, change.keys.len()), (revision, 1));
    assert_eq!(change.keys[0].key, format!("{prefix}in/1"));
}

pub async fn a_slow_watcher_misses_nothing(store: Store) {
    let prefix = prefix("slow");
    let start = store.list(&prefix).await.expect("list").revision;
    let mut slow = store.watch(&prefix, start);
    put(&store, &format!("{prefix}first"), "x").await;
    next(&mut slow).await;
    let mut revisions = Vec::new();
    for round in 0..20 {
        let round = round.to_string();
        let puts = (0..20).map(async |n| put(&store, &format!("{prefix}{n}"), &round).await);
        revisions.extend(futures::future::join_all(puts.collect::<Vec<_>>()).await);
    }
    revisions.sort();
    for revision in revisions {
        assert_eq!(next(&mut slow).await.revision, revision);
    }
}

pub async fn compaction_is_told_apart(store: Store) {
    let prefix = prefix("compaction");
    let key = format!("{prefix}k");
    let mut revisions = Vec::new();
    for n in 0..6 {
        revisions.push(put(&store, &key, &n.to_string()).await);
    }
    let mut watching = store.watch(&prefix, revisions[5]);
    store.compact(revisions[4]).await.expect("compact");
    store.compact(revisions[1]).await.expect("compacting less does nothing");
    match next_or_error(&mut store.watch(&prefix, revisions[0])).await {
        Err(WatchError::Compacted { oldest }) => {
            assert!(oldest >= revisions[4]);
            assert_eq!(next(&mut store.watch(&prefix, oldest)).await.revision, revisions[5]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get(&key).await.expect("get").expect("there").value, text("5"));
    let future = store.compact(Revision(revisions[5].0 + 1000)).await;
    assert!(matches!(future, Err(StoreError::Invalid(_))), "{future:?}");
    let last = put(&store, &key, "6").await;
    assert_eq!(next(&mut watching).await.revision, last, "a watch that is not behind goes on");
}

pub async fn a_lease_ends_with_its_keys(store: Store) {
    let prefix = prefix("lease");
    let key = format!("{prefix}k");
    let lease = store.grant_lease(Duration::from_secs(1)).await.expect("grant");
    assert!(lease.ttl >= Duration::from_secs(1));
    let granted = Instant::now();
    let revision = store.txn(Txn::new().put_leased(&key, "x", lease.id)).await.expect("put");
    assert_eq!(store.get(&key).await.expect("get").expect("there").lease, Some(lease.id));
    let change = next(&mut store.watch(&prefix, revision)).await;
    assert!(granted.elapsed() >= Duration::from_millis(900), "ended early");
    assert_eq!((change.keys[0].key.as_str(), &change.keys[0].value), (key.as_str(), &None));
    assert_eq!(store.get(&key).await.expect("get"), None);
    let late = store.keep_alive(lease.id).await;
    assert!(matches!(late, Err(StoreError::LeaseNotFound(id)) if id == lease.id), "{late:?}");
}

pub async fn a_lease_kept_alive_lives(store: Store) {
    let key = prefix("alive") + "k";
    let lease = store.grant_lease(Duration::from_secs(1)).await.expect("grant");
    store.txn(Txn::new().put_leased(&key, "x", lease.id)).await.expect("put");
    let until = Instant::now() + lease.ttl * 2;
    while Instant::now() < until {
        assert_eq!(store.keep_alive(lease.id).await.expect("keep alive"), lease.ttl);
        assert!(store.get(&key).await.expect("get").is_some());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    wait_until_gone(&store, &key).await;
}

pub async fn a_revoked_lease_takes_its_keys_in_one_revision(store: Store) {
    let prefix = prefix("revoke");
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("grant");
    let txn = Txn::new()
        .put_leased(format!("{prefix}a"), "x", lease.id)
        .put_leased(format!("{prefix}b"), "x", lease.id)
        .put(format!("{prefix}c"), "x");
    let revision = store.txn(txn).await.expect("put");
    store.revoke_lease(lease.id).await.expect("revoke");
    store.revoke_lease(lease.id).await.expect("revoking what has ended is no error");
    let change = next(&mut store.watch(&prefix, revision)).await;
    assert_eq!(change.keys.len(), 2);
    assert!(change.keys.iter().all(|key| key.value.is_none()));
    assert_eq!(store.list(&prefix).await.expect("list").entries.len(), 1);
}

pub async fn a_key_put_anew_leaves_its_lease(store: Store) {
    let prefix = prefix("rebind");
    let (kept, moved) = (format!("{prefix}kept"), format!("{prefix}moved"));
    let first = store.grant_lease(Duration::from_secs(60)).await.expect("grant");
    let second = store.grant_lease(Duration::from_secs(60)).await.expect("grant");
    assert_ne!(first.id, second.id);
    store.txn(Txn::new().put_leased(&kept, "x", first.id).put_leased(&moved, "x", first.id)).await.expect("put");
    store.txn(Txn::new().put(&kept, "y").put_leased(&moved, "y", second.id)).await.expect("put anew");
    store.revoke_lease(first.id).await.expect("revoke");
    assert_eq!(store.list(&prefix).await.expect("list").entries.len(), 2);
    store.revoke_lease(second.id).await.expect("revoke");
    assert_eq!(store.get(&moved).await.expect("get"), None);
    assert_eq!(store.get(&kept).await.expect("get").expect("there").lease, None);
}

pub async fn a_lease_that_is_not_there_is_told(store: Store) {
    let key = prefix("no-lease") + "k";
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("grant");
    store.revoke_lease(lease.id).await.expect("revoke");
    let put = store.txn(Txn::new().put_leased(&key, "x", lease.id)).await;
    assert!(matches!(put, Err(StoreError::LeaseNotFound(id)) if id == lease.id), "{put:?}");
    assert_eq!(store.get(&key).await.expect("get"), None);
    for ttl in [Duration::ZERO, MAX_LEASE_TTL + Duration::from_secs(1)] {
        let refused = store.grant_lease(ttl).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
}

pub async fn a_watcher_follows_and_survives_compaction(store: Store) {
    let prefix = prefix("watcher");
    let key = format!("{prefix}k");
    put(&store, &key, "1").await;
    let (watcher, driver) = ConfigWatcher::new(store.clone(), prefix.clone());
    let scenario = async {
        let state = watcher.reached(Revision(1)).await.expect("loaded");
        assert_eq!(state.entries[&key].value, text("1"));
        let mut last = Revision(0);
        for n in 2..50 {
            last = put(&store, &key, &n.to_string()).await;
            store.compact(last).await.expect("compact");
        }
        put(&store, &format!("{prefix}gone"), "x").await;
        let gone = store.delete(&format!("{prefix}gone"), Precondition::None).await.expect("delete");
        let state = watcher.reached(gone).await.expect("reached");
        assert_eq!((state.entries.len(), state.entries[&key].mod_revision), (1, last));
        assert_eq!(watcher.latest().revision, state.revision);
    };
    tokio::select! {
        () = driver => panic!("the driver ended while it was watched"),
        done = tokio::time::timeout(PATIENCE, scenario) => done.expect("in time"),
    }
}

pub async fn at_most_one_leads(store: Store) {
    let election = Election::new(store.clone(), prefix("election") + "leader", Duration::from_secs(60));
    assert_eq!(election.leader().await.expect("leader"), None);
    let first = election.campaign("first").await.expect("campaign");
    let leader = election.leader().await.expect("leader").expect("elected");
    assert_eq!((leader.candidate.as_str(), leader.revision), ("first", first.revision()));
    let mut waiting = Box::pin(election.campaign("second"));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "two lead at once");
    let (key, condition) = first.condition();
    let work = prefix("election") + "work";
    store.txn(Txn::new().when(&key, condition).put(&work, "by the first")).await.expect("the leader writes");
    first.resign().await.expect("resign");
    let second = tokio::time::timeout(PATIENCE, waiting).await.expect("in time").expect("campaign");
    assert!(second.revision() > leader.revision);
    let fenced = store.txn(Txn::new().when(&key, condition).put(&work, "by the first, late")).await;
    assert!(matches!(fenced, Err(StoreError::PreconditionFailed { .. })), "a former leader wrote");
}

pub async fn a_leader_that_dies_is_followed(store: Store) {
    let election = Election::new(store.clone(), prefix("succession") + "leader", Duration::from_secs(1));
    let first = election.campaign("first").await.expect("campaign");
    let mut waiting = Box::pin(election.campaign("second"));
    tokio::select! {
        () = first.hold() => panic!("lost while it was kept"),
        early = &mut waiting => panic!("two lead at once: {early:?}"),
        () = tokio::time::sleep(Duration::from_secs(3)) => {}
    }
    let second = tokio::time::timeout(PATIENCE, waiting).await.expect("in time").expect("campaign");
    tokio::time::timeout(PATIENCE, first.hold()).await.expect("a former leader learns that it was followed");
    assert_eq!(election.leader().await.expect("leader").map(|leader| leader.revision), Some(second.revision()));
}
