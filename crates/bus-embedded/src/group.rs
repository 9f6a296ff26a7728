//! Consumer groups: who holds which partition. Pure bookkeeping under one lock; nothing here touches the disk.
//!
//! A partition has at most one owner. To move it, its owner is asked to release it ([`Change::Revoking`]); only then is
//! it given to another. An owner that doesn't answer in time loses it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use logmesh_bus::TopicPartition;
use logmesh_types::TopicName;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::catalog::Catalog;

/// What a member is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Assigned(Vec<TopicPartition>),
    Revoking(Vec<TopicPartition>),
    Lost(Vec<TopicPartition>),
}

#[derive(Debug)]
struct Member {
    topics: BTreeSet<TopicName>,
    changes: VecDeque<Change>,
    wake: Arc<Notify>,
}

impl Member {
    fn tell(&mut self, change: Change) {
        self.changes.push_back(change);
        self.wake.notify_one();
    }
}

#[derive(Debug)]
struct Owner {
    member: u64,
    /// When it loses the partition, if it was asked to release it.
    deadline: Option<Instant>,
}

#[derive(Debug, Default)]
struct Group {
    members: BTreeMap<u64, Member>,
    owners: BTreeMap<TopicPartition, Owner>,
}

/// All groups of a bus.
#[derive(Debug)]
pub(crate) struct Groups {
    catalog: Arc<Catalog>,
    release_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: HashMap<String, Group>,
    next_member: u64,
}

impl Groups {
    pub(crate) fn new(catalog: Arc<Catalog>, release_timeout: Duration) -> Self {
        Self { catalog, release_timeout, state: Mutex::default() }
    }

    /// Adds a member; its number, and what wakes it when there is a change for it.
    pub(crate) fn join(&self, name: &str, topics: &[TopicName]) -> (u64, Arc<Notify>) {
        let mut state = self.lock();
        let member = state.next_member;
        state.next_member += 1;
        let wake = Arc::new(Notify::new());
        let group = state.groups.entry(name.to_owned()).or_default();
        let topics = topics.iter().cloned().collect();
        group.members.insert(member, Member { topics, changes: VecDeque::new(), wake: Arc::clone(&wake) });
        self.rebalance(group);
        (member, wake)
    }

    /// Takes a member out; its partitions go to the others.
    pub(crate) fn leave(&self, name: &str, member: u64) {
        let mut state = self.lock();
        let Some(group) = state.groups.get_mut(name) else { return };
        group.members.remove(&member);
        group.owners.retain(|_, owner| owner.member != member);
        if group.members.is_empty() {
            state.groups.remove(name);
        } else {
            self.rebalance(group);
        }
    }

    /// The next change for a member. Also takes partitions from owners that are past their time.
    pub(crate) fn next_change(&self, name: &str, member: u64) -> Option<Change> {
        let mut state = self.lock();
        let group = state.groups.get_mut(name)?;
        if group.expire(Instant::now()) {
            self.rebalance(group);
        }
        group.members.get_mut(&member)?.changes.pop_front()
    }

    /// When the next owner that was asked to release will be past its time.
    pub(crate) fn next_deadline(&self, name: &str) -> Option<Instant> {
        self.lock().groups.get(name)?.owners.values().filter_map(|owner| owner.deadline).min()
    }

    /// True if the member holds the partition; with `firmly`, also that it wasn't asked to release it.
    pub(crate) fn holds(&self, name: &str, member: u64, at: &TopicPartition, firmly: bool) -> bool {
        let state = self.lock();
        let owner = state.groups.get(name).and_then(|group| group.owners.get(at));
        owner.is_some_and(|owner| owner.member == member && !(firmly && owner.deadline.is_some()))
    }

    /// Gives partitions of a member up; those that it doesn't hold are passed over.
    pub(crate) fn release(&self, name: &str, member: u64, partitions: &[TopicPartition]) {
        let mut state = self.lock();
        let Some(group) = state.groups.get_mut(name) else { return };
        group.owners.retain(|at, owner| owner.member != member || !partitions.contains(at));
        self.rebalance(group);
    }

    /// Shares a new topic out.
    pub(crate) fn rebalance_all(&self) {
        for group in self.lock().groups.values_mut() {
            self.rebalance(group);
        }
    }

    fn rebalance(&self, group: &mut Group) {
        let topics: BTreeSet<_> = group.members.values().flat_map(|member| member.topics.iter().cloned()).collect();
        let topics = topics.into_iter().filter_map(|name| {
            let partitions = self.catalog.get(&name)?.partitions.len() as u32;
            Some((name, partitions))
        });
        group.rebalance(topics, Instant::now() + self.release_timeout);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// Shares the partitions of each topic evenly among the members that want it, moving as few as possible.
    fn rebalance(&mut self, topics: impl Iterator<Item = (TopicName, u32)>, deadline: Instant) {
        let mut assigned: BTreeMap<u64, Vec<TopicPartition>> = BTreeMap::new();
        let mut revoking: BTreeMap<u64, Vec<TopicPartition>> = BTreeMap::new();
        for (name, partitions) in topics {
            let all: Vec<_> =
                (0..partitions).map(|partition| TopicPartition { topic: name.clone(), partition }).collect();
            for (member, quota) in self.quotas(&name, &all) {
                let mut held = 0;
                for at in &all {
                    let Some(owner) = self.owners.get_mut(at).filter(|owner| owner.member == member) else { continue };
                    if owner.deadline.is_some() {
                        continue;
                    }
                    held += 1;
                    if held > quota {
                        owner.deadline = Some(deadline);
                        revoking.entry(member).or_default().push(at.clone());
                    }
                }
                let free = all.iter().filter(|at| !self.owners.contains_key(*at)).take(quota.saturating_sub(held));
                for at in free.cloned().collect::<Vec<_>>() {
                    self.owners.insert(at.clone(), Owner { member, deadline: None });
                    assigned.entry(member).or_default().push(at);
                }
            }
        }
        for (changes, kind) in [(revoking, Change::Revoking as fn(_) -> _), (assigned, Change::Assigned as fn(_) -> _)]
        {
            for (member, partitions) in changes {
                if let Some(member) = self.members.get_mut(&member) {
                    member.tell(kind(partitions));
                }
            }
        }
    }

    /// How many partitions of a topic each member shall hold. The larger shares go to those that hold most of it
    /// already (nothing needs to move), then to those that hold least of all.
    fn quotas(&self, topic: &TopicName, all: &[TopicPartition]) -> Vec<(u64, usize)> {
        let held_of = |member: u64, within: Option<&TopicName>| {
            let of = self.owners.iter().filter(|(at, _)| within.is_none_or(|topic| at.topic == *topic));
            of.filter(|(_, owner)| owner.member == member && owner.deadline.is_none()).count()
        };
        let mut members: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.topics.contains(topic))
            .map(|(member, _)| (std::cmp::Reverse(held_of(*member, Some(topic))), held_of(*member, None), *member))
            .collect();
        members.sort_unstable();
        let (share, larger) = (all.len() / members.len().max(1), all.len() % members.len().max(1));
        let quota = |index: usize| share + usize::from(index < larger);
        members.iter().enumerate().map(|(index, (_, _, member))| (*member, quota(index))).collect()
    }

    /// Takes partitions from owners that are past their time; true if there were any.
    fn expire(&mut self, now: Instant) -> bool {
        let mut lost: BTreeMap<u64, Vec<TopicPartition>> = BTreeMap::new();
        self.owners.retain(|at, owner| {
            let late = owner.deadline.is_some_and(|deadline| deadline <= now);
            if late {
                lost.entry(owner.member).or_default().push(at.clone());
            }
            !late
        });
        let any = !lost.is_empty();
        for (member, partitions) in lost {
            if let Some(member) = self.members.get_mut(&member) {
                member.tell(Change::Lost(partitions));
            }
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(topics: &[&str]) -> Member {
        let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
        Member { topics, changes: VecDeque::new(), wake: Arc::new(Notify::new()) }
    }

    fn rebalance(group: &mut Group, topics: &[(&str, u32)]) {
        let topics = topics.iter().map(|(name, partitions)| (name.parse().unwrap(), *partitions));
        group.rebalance(topics, Instant::now() + Duration::from_secs(30));
    }

    fn held(group: &Group, member: u64) -> usize {
        group.owners.values().filter(|owner| owner.member == member && owner.deadline.is_none()).count()
    }

    #[test]
    fn topics_of_one_partition_are_spread() {
        let mut group = Group::default();
        group.members.insert(0, member(&["a", "b", "c", "d"]));
        group.members.insert(1, member(&["a", "b", "c", "d"]));
        rebalance(&mut group, &[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        assert_eq!((held(&group, 0), held(&group, 1)), (2, 2));
    }

    #[test]
    fn only_the_surplus_moves_and_only_after_release() {
        let mut group = Group::default();
        group.members.insert(0, member(&["a"]));
        rebalance(&mut group, &[("a", 4)]);
        group.members.insert(1, member(&["a"]));
        rebalance(&mut group, &[("a", 4)]);
        assert_eq!((held(&group, 0), held(&group, 1)), (2, 0));
        group.members.insert(2, member(&["a"]));
        rebalance(&mut group, &[("a", 4)]);
        assert_eq!(held(&group, 0), 2, "the third takes from what is being revoked");
        group.owners.retain(|_, owner| owner.deadline.is_none());
        rebalance(&mut group, &[("a", 4)]);
        assert_eq!((held(&group, 0), held(&group, 1), held(&group, 2)), (2, 1, 1));
    }

    #[test]
    fn who_does_not_release_loses_it() {
        let mut group = Group::default();
        group.members.insert(0, member(&["a"]));
        rebalance(&mut group, &[("a", 2)]);
        group.members.insert(1, member(&["a"]));
        rebalance(&mut group, &[("a", 2)]);
        assert!(!group.expire(Instant::now()));
        assert!(group.expire(Instant::now() + Duration::from_secs(31)));
        rebalance(&mut group, &[("a", 2)]);
        assert_eq!((held(&group, 0), held(&group, 1)), (1, 1));
        assert!(matches!(group.members[&0].changes.back(), Some(Change::Lost(lost)) if lost.len() == 1));
    }
}
