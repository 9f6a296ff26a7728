//! A logagent's tree in etcd, followed live and served as rules: each host's key by itself, so that what's wrong with one
//! spoils no other. See `docs/decisions/0013`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use logmesh_proto::config::v1::RuleProblem;
use logmesh_rules::{SEED_NAMES, SeedRule, Violation, read_seed, seed_host, seed_names};
use logmesh_runtime::{RetryPolicy, Tasks};
use logmesh_store::{ConfigStore, ConfigWatcher, PrefixState, Revision, StoreError, Versioned};
use tokio::sync::watch;

use super::live::{LiveRule, Unknown, problem};

/// How often a tree that can't be read yet is tried.
const RETRY: RetryPolicy = RetryPolicy { initial: Duration::from_millis(100), max: Duration::from_secs(5) };

/// The latest state of the tree.
#[derive(Clone, Debug)]
pub(crate) struct SeedView {
    trees: watch::Receiver<Arc<SeedTree>>,
    /// Keeps the channel of a tree that nobody follows.
    _none: Option<Arc<watch::Sender<Arc<SeedTree>>>>,
}

impl SeedView {
    /// Follows the tree until the tasks are asked to end; an empty prefix is a tree without rules.
    pub(crate) fn start(store: Arc<dyn ConfigStore>, prefix: &str, tasks: &Tasks) -> Self {
        let (sender, mut trees) =
            watch::channel(Arc::new(SeedTree { known: prefix.is_empty(), ..SeedTree::default() }));
        trees.mark_changed();
        if prefix.is_empty() {
            return Self { trees, _none: Some(Arc::new(sender)) };
        }
        let (token, prefix) = (tasks.token(), prefix.to_owned());
        tasks.spawn("config-seed", async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = follow(store, prefix, sender) => {}
            }
            Ok(())
        });
        Self { trees, _none: None }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<SeedTree>> {
        self.trees.clone()
    }
}

async fn follow(store: Arc<dyn ConfigStore>, prefix: String, sender: watch::Sender<Arc<SeedTree>>) {
    let mut attempt = 0;
    while let Err(error) = store.list(&prefix).await {
        // Who may not read it has no tree, and mustn't wait for one.
        if let StoreError::Denied(_) = error {
            sender.send_replace(Arc::new(SeedTree::denied(&prefix, &error)));
        }
        tokio::time::sleep(RETRY.delay(attempt)).await;
        attempt = attempt.saturating_add(1);
    }
    let (watcher, driver) = ConfigWatcher::new(store, prefix.clone());
    let mut states = watcher.subscribe();
    let publish = async {
        while states.changed().await.is_ok() {
            let tree = SeedTree::read(&prefix, &states.borrow_and_update(), &sender.borrow());
            sender.send_replace(Arc::new(tree));
        }
    };
    tokio::select! {
        () = driver => {}
        () = publish => {}
    }
}

/// The tree at one revision.
#[derive(Debug, Default)]
pub(crate) struct SeedTree {
    /// Whether it was read, or is known not to be for us.
    known: bool,
    revision: Revision,
    hosts: BTreeMap<String, Arc<SeedHost>>,
    /// Of the tree as a whole, and of keys that name no host.
    problems: Vec<RuleProblem>,
    /// What a tree that may not be read can hold.
    unknown: Unknown,
}

/// One host's key.
#[derive(Debug)]
struct SeedHost {
    /// The revision that wrote it.
    written: Revision,
    /// The rules by their places.
    rules: Vec<(String, Arc<LiveRule>)>,
    problems: Vec<RuleProblem>,
    unknown: Unknown,
}

impl SeedTree {
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// The revision of its last change.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Its rules in the order of keys and places: key, place, rule.
    pub(super) fn rules(&self) -> impl Iterator<Item = (&str, &str, &Arc<LiveRule>)> {
        self.hosts
            .iter()
            .flat_map(|(key, host)| host.rules.iter().map(move |(place, rule)| (key.as_str(), place.as_str(), rule)))
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = &RuleProblem> {
        self.problems.iter().chain(self.hosts.values().flat_map(|host| &host.problems))
    }

    pub(super) fn unknown(&self) -> impl Iterator<Item = &Unknown> {
        self.hosts.values().map(|host| &host.unknown).chain([&self.unknown])
    }

    /// A tree that may not be read: who holds rules of it, from when it was readable, keeps them.
    fn denied(prefix: &str, error: &StoreError) -> Self {
        let what = format!("can't be read: {error}; let the user read it, or set config.seed_prefix to \"\"");
        let problem = RuleProblem { key: prefix.to_owned(), field: String::new(), message: what };
        let unknown = Unknown { beginnings: BTreeSet::from([SEED_NAMES.to_owned()]), ..Unknown::default() };
        Self { known: true, problems: vec![problem], unknown, ..Self::default() }
    }

    /// Reads the keys that are new since the former tree.
    pub(super) fn read(prefix: &str, state: &PrefixState, former: &SeedTree) -> Self {
        let mut tree = Self { known: true, revision: former.revision, ..Self::default() };
        for (key, versioned) in &state.entries {
            let known = former.hosts.get(key);
            let host = match seed_host(prefix, key) {
                None => continue,
                Some(Err(found)) => {
                    tree.problems.push(problem(key, found, false));
                    continue;
                }
                Some(Ok(_)) if known.is_some_and(|known| known.written == versioned.mod_revision) => known.cloned(),
                Some(Ok(ip)) => Some(Arc::new(SeedHost::read(key, ip, versioned, known.map(Arc::as_ref)))),
            };
            tree.hosts.extend(host.map(|host| (key.clone(), host)));
        }
        let same = |(key, host): (&String, &Arc<SeedHost>)| {
            tree.hosts.get(key).is_some_and(|other| other.written == host.written)
        };
        if tree.hosts.len() != former.hosts.len() || !former.hosts.iter().all(same) {
            tree.revision = state.revision;
        }
        tree
    }
}

impl SeedHost {
    /// Reads a key. Of what can't be read, the state before goes on: of the whole where that's no JSON, of an entry
    /// where that has a path.
    fn read(key: &str, ip: IpAddr, versioned: &Versioned, former: Option<&SeedHost>) -> Self {
        let written = versioned.mod_revision;
        let mut host = Self { written, rules: Vec::new(), problems: Vec::new(), unknown: Unknown::default() };
        let entries = match read_seed(ip, &versioned.value) {
            Ok(entries) => entries,
            Err(found) => return host.unreadable(key, ip, found, former),
        };
        let served: BTreeSet<String> = entries.rules.iter().map(|entry| entry.rule.name.to_string()).collect();
        for broken in entries.broken {
            let name = broken.name.map(|name| name.to_string()).filter(|name| !served.contains(name));
            let before =
                name.as_ref().and_then(|name| former?.rules.iter().find(|(_, rule)| rule.message.name == *name));
            let goes_on = before.is_some();
            let place = broken.problems.first().map_or("", |found| place_of(&found.field));
            host.rules.extend(before.map(|(_, rule)| (place.to_owned(), rule.clone())));
            if let (Some(name), false) = (name, goes_on) {
                host.unknown.names.insert(name);
            }
            host.problems.extend(broken.problems.into_iter().map(|found| problem(key, found, goes_on)));
        }
        let live = |entry: SeedRule| (entry.field, Arc::new(LiveRule::of_tree(key, entry.rule, written)));
        host.rules.extend(entries.rules.into_iter().map(live));
        host.rules.sort_by_key(|(place, _)| number(place));
        host
    }

    fn unreadable(mut self, key: &str, ip: IpAddr, found: Violation, former: Option<&SeedHost>) -> Self {
        let former = former.filter(|former| former.unknown.beginnings.is_empty());
        self.problems.push(problem(key, found, former.is_some()));
        match former {
            Some(former) => (self.rules, self.unknown) = (former.rules.clone(), former.unknown.clone()),
            None => drop(self.unknown.beginnings.insert(seed_names(ip))),
        }
        self
    }
}

/// The place of an entry, `log_config[2]`, that a field of it begins with.
fn place_of(field: &str) -> &str {
    field.split_inclusive(']').next().unwrap_or_default()
}

/// The number in a place.
fn number(place: &str) -> usize {
    place.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/logagent/10.0.0.7/log_config";

    fn tree(revision: u64, value: &'static str, former: &SeedTree) -> SeedTree {
        let revision = Revision(revision);
        let versioned = Versioned { value: value.into(), mod_revision: revision, lease: None };
        let entries = BTreeMap::from([(KEY.to_owned(), versioned)]);
        SeedTree::read("/logagent/", &PrefixState { revision, entries }, former)
    }

    #[test]
    fn what_goes_on_keeps_its_place_among_the_others() {
        let good = tree(
            5,
            r#"[{"log_path": "/a", "topic": "t"}, {"log_path": "/b", "topic": "t"}, {"log_path": "/c", "topic": "t"}]"#,
            &SeedTree::default(),
        );
        let edited = tree(
            6,
            r#"[{"log_path": "/a", "topic": "t"}, {"log_path": "/c", "topic": "t"}, {"log_path": "/b", "topic": "No"}]"#,
            &good,
        );
        let shown: Vec<_> = edited.rules().map(|(_, place, rule)| (place, rule.message.paths[0].as_str())).collect();
        assert_eq!(shown, [("log_config[0]", "/a"), ("log_config[1]", "/c"), ("log_config[2]", "/b")]);
        assert_eq!(edited.problems().map(|found| found.field.as_str()).collect::<Vec<_>>(), ["log_config[2].topic"]);
        assert!((number("log_config[10]"), number("log_config[9]")) == (10, 9));
    }

    #[test]
    fn who_holds_rules_of_a_tree_that_may_not_be_read_keeps_them() {
        let denied = SeedTree::denied("/logagent/", &StoreError::Denied("no".to_owned()));
        let loaded = PrefixState { revision: Revision(3), ..PrefixState::default() };
        let set = super::super::live::RuleSet::read(&loaded, &denied, &Default::default());
        assert!(set.is_unknown("rules/seed-10.0.0.7-a.log-01234567") && !set.is_unknown("rules/web"));
    }
}
