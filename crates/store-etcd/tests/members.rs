//! Three members, of which one dies or freezes.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test, its helpers too; its tasks are joined

mod support;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use logmesh_store::{ConfigStore, Election};
use logmesh_store_etcd::EtcdStore;
use logmesh_testing::servers::{Etcd, Server};
use rustix::process::Signal;
use support::{PATIENCE, follow_until, held, put_surely, settings};

/// Which member leads.
async fn leader(members: &[Server]) -> usize {
    for (n, member) in members.iter().enumerate() {
        let status = Client::connect([member.address()], None).await.unwrap().status().await.unwrap();
        if status.leader() == status.header().unwrap().member_id() {
            return n;
        }
    }
    panic!("nobody leads");
}

/// Writes and watches while `fault` happens to the leader, and checks that everything came once and in order.
async fn go_on_while(members: &mut [Server], fault: impl AsyncFnOnce(&mut Server, &EtcdStore)) {
    const WRITES: u32 = 200;
    let leader = leader(members).await;
    let mut settings = settings(&members.iter().collect::<Vec<_>>());
    // The one to fail is the one in use.
    settings.endpoints.rotate_left(leader);
    let store = Arc::new(EtcdStore::new(&settings).unwrap());
    let start = store.list("").await.unwrap().revision;
    let prefix = format!("/{start}/");
    let writer = tokio::spawn({
        let (store, prefix) = (store.clone(), prefix.clone());
        async move {
            for n in 1..=WRITES {
                put_surely(&store, &format!("{prefix}{n}"), &n.to_string()).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let follower = tokio::spawn({
        let (store, prefix) = (store.clone(), prefix.clone());
        async move { follow_until(&store, &prefix, start, &format!("{prefix}{WRITES}")).await }
    });
    while store.get(&format!("{prefix}50")).await.ok().flatten().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fault(&mut members[leader], &store).await;
    writer.await.unwrap();
    let seen = follower.await.unwrap();
    assert_eq!(seen.len(), WRITES as usize);
    assert_eq!(seen, held(&store, &prefix).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_watches_outlive_the_leader() {
    let mut members = Etcd::members(3, &[]);
    go_on_while(&mut members, async |leader, store| {
        leader.kill();
        put_surely(store, "/without-it", "written").await;
        leader.start_again();
    })
    .await;
    go_on_while(&mut members, async |leader, store| {
        leader.signal(Signal::STOP);
        put_surely(store, "/without-it", "written again").await;
        leader.signal(Signal::CONT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_is_kept_while_its_member_dies() {
    let mut members = Etcd::members(3, &[]);
    let store = Arc::new(support::store(&members.iter().collect::<Vec<_>>()));
    let election = Election::new(store.clone(), "/office", Duration::from_secs(10));
    let first = election.campaign("first").await.unwrap();
    let work = async {
        members[0].kill();
        put_surely(&store, "/k", "the first member is gone").await;
        let leader = loop {
            if let Ok(leader) = election.leader().await {
                break leader;
            }
        };
        assert_eq!(leader.map(|leader| leader.revision), Some(first.revision()));
        // Longer than a lease without a sign of life would live.
        tokio::time::sleep(Duration::from_secs(12)).await;
    };
    tokio::select! {
        () = first.hold() => panic!("the office was lost"),
        done = tokio::time::timeout(PATIENCE, work) => done.expect("in time"),
    }
    assert_eq!(election.leader().await.unwrap().map(|leader| leader.candidate).as_deref(), Some("first"));
}
