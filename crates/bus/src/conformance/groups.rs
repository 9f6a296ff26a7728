//! Consumer groups.

use std::collections::BTreeSet;

use super::*;

/// A consumer that comes later goes on where the group's last commit stands.
pub async fn goes_on_from_the_commit(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let (group, at) = (fixture.unique("g"), at(&topic, 0));
    append_all(&*bus, &topic, (0..10).map(|n| record("k", &n.to_string()))).await;
    assert_eq!(bus.committed(&group, &at).await.unwrap(), None);

    let mut first = [Member::join(&*bus, &group, std::slice::from_ref(&topic)).await];
    drive("reading all", &mut first, |members| members[0].read.len() == 10).await;
    first[0].consumer.commit(&[(at.clone(), NextOffset(4))]).await.unwrap();
    assert_eq!(bus.committed(&group, &at).await.unwrap(), Some(NextOffset(4)));
    drop(first);

    let mut second = [Member::join(&*bus, &group, std::slice::from_ref(&topic)).await];
    drive("reading the rest", &mut second, |members| members[0].read.len() == 6).await;
    assert_eq!(second[0].values(), ["4", "5", "6", "7", "8", "9"]);
}

/// A commit behind the last one changes nothing.
pub async fn commits_only_forwards(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let (group, at) = (fixture.unique("g"), at(&topic, 0));
    append_all(&*bus, &topic, (0..10).map(|n| record("k", &n.to_string()))).await;
    let mut members = [Member::join(&*bus, &group, std::slice::from_ref(&topic)).await];
    drive("reading", &mut members, |members| members[0].read.len() == 10).await;
    for (commit, expected) in [(5, 5), (3, 5), (5, 5), (9, 9)] {
        members[0].consumer.commit(&[(at.clone(), NextOffset(commit))]).await.unwrap();
        assert_eq!(bus.committed(&group, &at).await.unwrap(), Some(NextOffset(expected)));
    }
}

/// A commit that names a partition which isn't held is refused as a whole.
pub async fn refuses_commits_of_others(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 2, KEEP).await;
    let group = fixture.unique("g");
    let topics = std::slice::from_ref(&topic);
    append_all(&*bus, &topic, (0..10).map(|n| record(&n.to_string(), "v"))).await;
    let mut members = [Member::join(&*bus, &group, topics).await, Member::join(&*bus, &group, topics).await];
    let shared = |members: &[Member]| members.iter().all(|member| member.held.len() == 1);
    drive("sharing", &mut members, shared).await;
    let (own, others) = (members[0].held[0].clone(), members[1].held[0].clone());
    let before = bus.committed(&group, &own).await.unwrap();
    let error =
        members[0].consumer.commit(&[(own.clone(), NextOffset(1)), (others.clone(), NextOffset(1))]).await.unwrap_err();
    assert!(matches!(&error, BusError::NotOwner { partition, .. } if *partition == others.partition), "{error}");
    assert_eq!(bus.committed(&group, &own).await.unwrap(), before);
}

/// Each group reads everything.
pub async fn groups_do_not_disturb_each_other(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 2, KEEP).await;
    append_all(&*bus, &topic, (0..50).map(|n| record(&n.to_string(), "v"))).await;
    let topics = std::slice::from_ref(&topic);
    let mut members = [
        Member::join(&*bus, &fixture.unique("g1"), topics).await,
        Member::join(&*bus, &fixture.unique("g2"), topics).await,
    ];
    drive("reading", &mut members, |members| members.iter().all(|member| member.read.len() == 50)).await;
    assert!(members.iter().all(|member| member.held.len() == 2));
}

/// A consumer that seeks reads from there, back or forth, and live records after that.
pub async fn seeks_back_within_a_group(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 1, KEEP).await;
    let at = at(&topic, 0);
    append_all(&*bus, &topic, (0..10).map(|n| record("k", &n.to_string()))).await;
    let mut members = [Member::join(&*bus, &fixture.unique("g"), std::slice::from_ref(&topic)).await];
    drive("reading", &mut members, |members| members[0].read.len() == 10).await;
    members[0].read.clear();
    members[0].consumer.seek(&at, NextOffset(7)).await.unwrap();
    drive("reading again", &mut members, |members| members[0].read.len() == 3).await;
    append_all(&*bus, &topic, [record("k", "10")]).await;
    drive("reading on", &mut members, |members| members[0].read.len() == 4).await;
    assert_eq!(members[0].values(), ["7", "8", "9", "10"]);
}

/// Who subscribes to a topic before it is made gets it when it is.
pub async fn takes_up_a_topic_made_later(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let name: TopicName = fixture.unique("t").parse().unwrap();
    let mut members = [Member::join(&*bus, &fixture.unique("g"), std::slice::from_ref(&name)).await];
    let topic = make_topic(fixture, &*bus, 2, KEEP).await;
    assert_eq!(topic, name);
    append_all(&*bus, &topic, (0..20).map(|n| record(&n.to_string(), "v"))).await;
    drive("reading", &mut members, |members| members[0].read.len() == 20).await;
}

/// A second consumer gets its share after the first released it; nothing is missed, and no partition is held twice.
pub async fn shares_partitions_and_rebalances(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 4, KEEP).await;
    let group = fixture.unique("g");
    let topics = std::slice::from_ref(&topic);
    append_all(&*bus, &topic, (0..40).map(|n| record(&n.to_string(), &n.to_string()))).await;
    let mut members = vec![Member::join(&*bus, &group, topics).await];
    drive("reading alone", &mut members, |members| members[0].held.len() == 4 && members[0].read.len() == 40).await;

    members.push(Member::join(&*bus, &group, topics).await);
    let shared = |members: &[Member]| members.iter().all(|member| member.held.len() == 2);
    drive("sharing", &mut members, shared).await;
    let held: BTreeSet<_> = members.iter().flat_map(|member| member.held.iter().cloned()).collect();
    assert_eq!(held.len(), 4);
    assert!(members[1].read.is_empty(), "what was committed at the release came again");

    append_all(&*bus, &topic, (40..80).map(|n| record(&n.to_string(), &n.to_string()))).await;
    let all = |members: &[Member]| members.iter().map(|member| member.read.len()).sum::<usize>() == 80;
    drive("reading together", &mut members, all).await;
    assert!(members.iter().all(|member| !member.read.is_empty()));
}

/// The partitions of a consumer that is gone go to the others, from its last commit.
pub async fn moves_partitions_of_a_dropped_consumer(fixture: &dyn Fixture) {
    let bus = fixture.open().await;
    let topic = make_topic(fixture, &*bus, 4, KEEP).await;
    let group = fixture.unique("g");
    let topics = std::slice::from_ref(&topic);
    let mut members = vec![Member::join(&*bus, &group, topics).await, Member::join(&*bus, &group, topics).await];
    drive("sharing", &mut members, |members| members.iter().all(|member| member.held.len() == 2)).await;
    append_all(&*bus, &topic, (0..40).map(|n| record(&n.to_string(), &n.to_string()))).await;
    let all = |members: &[Member]| members.iter().map(|member| member.read.len()).sum::<usize>() == 40;
    drive("reading together", &mut members, all).await;
    members[0].commit_all().await;
    let uncommitted = members[1].read.len();

    members.remove(1);
    let before = members[0].read.len();
    let again = |members: &[Member]| members[0].held.len() == 4 && members[0].read.len() == before + uncommitted;
    drive("taking over", &mut members, again).await;
    let mut values = members[0].values();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), 40);
}
