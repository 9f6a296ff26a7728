//! The rules in force: those that were made here and those of a logagent's tree, as one set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use logmesh_proto::config::v1::{self as message, RuleProblem};
use logmesh_rules::{Rule, Violation, Violations};
use logmesh_store::{PrefixState, Revision, Versioned};

use super::seed::SeedTree;
use super::stored::{StoredRule, etag};
use crate::keys;
use crate::limits::{MAX_PROBLEM_BYTES, MAX_PROBLEMS, MAX_RULES, MAX_RULES_BYTES};
use crate::revision::on_wire;

/// A rule that is in force.
#[derive(Debug)]
pub(crate) struct LiveRule {
    /// It as agents and watchers get it.
    pub(crate) message: message::Rule,
    /// It, ready to match.
    pub(crate) rule: Rule,
    /// Its size as stored.
    pub(crate) bytes: usize,
    /// The revision that wrote it.
    written: Revision,
}

/// All rules at one revision.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    /// The store's revision; 0 until the rules were read.
    pub(crate) revision: Revision,
    /// The rules by name.
    pub(crate) rules: BTreeMap<String, Arc<LiveRule>>,
    /// Their size as stored.
    pub(crate) bytes: usize,
    /// What should be a rule and isn't, the first [`MAX_PROBLEMS`] of it.
    pub(crate) problems: Vec<RuleProblem>,
    /// What there is and could never be read, or finds no room.
    unknown: Unknown,
}

/// Rules that there are and of which nothing good is known here, or that find no room: what agents hold of them goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    /// By name.
    pub(super) names: BTreeSet<String>,
    /// All whose names begin so.
    pub(super) beginnings: BTreeSet<String>,
}

impl RuleSet {
    /// Whether the rules were read at all.
    pub(crate) fn is_loaded(&self) -> bool {
        self.revision > Revision(0)
    }

    /// Whether there may be a rule of this name that can't be read or finds no room: an agent that holds it keeps it.
    pub(crate) fn is_unknown(&self, name: &str) -> bool {
        self.unknown.names.contains(name) || self.unknown.beginnings.iter().any(|beginning| name.starts_with(beginning))
    }

    /// The rule of this name if it is served from a logagent's tree.
    pub(crate) fn tree_rule(&self, name: &str) -> Option<&LiveRule> {
        self.rules.get(name).map(Arc::as_ref).filter(|rule| rule.is_from_tree())
    }

    /// All rules that are served from a logagent's tree.
    pub(crate) fn tree_rules(&self) -> impl Iterator<Item = &LiveRule> {
        self.rules.values().map(Arc::as_ref).filter(|rule| rule.is_from_tree())
    }

    /// Reads what is new since the former set. A rule that can't be read, as when a later version of the program wrote it,
    /// stays as it was in force before. What was made here takes the place of what the tree names so.
    pub(super) fn read(state: &PrefixState, tree: &SeedTree, former: &RuleSet) -> Self {
        let mut set = Self { revision: state.revision.max(tree.revision()), ..Self::default() };
        for (key, versioned) in &state.entries {
            let name = format!("rules/{}", key.strip_prefix(keys::RULES).unwrap_or(key));
            let known = former.rules.get(&name);
            let same = |known: &&Arc<LiveRule>| known.written == versioned.mod_revision && !known.is_from_tree();
            let rule = match known.filter(same) {
                Some(known) => Some(known.clone()),
                None => match LiveRule::read(&name, versioned) {
                    Ok(rule) => Some(Arc::new(rule)),
                    Err(found) => {
                        set.problems.extend(found.0.into_iter().map(|found| problem(key, found, known.is_some())));
                        known.cloned()
                    }
                },
            };
            set.bytes += versioned.value.len();
            match rule {
                Some(rule) => drop(set.rules.insert(name, rule)),
                None => drop(set.unknown.names.insert(name)),
            }
        }
        set.add(tree, former);
        set.problems = bounded(set.problems);
        set
    }

    /// Adds the rules of the tree, as many as there is room for: those that are in force already, so that a new host's
    /// don't end another's, then the others in the order of keys.
    fn add(&mut self, tree: &SeedTree, former: &RuleSet) {
        let in_force = |(_, _, rule): &(&str, &str, &Arc<LiveRule>)| former.rules.contains_key(&rule.message.name);
        let (before, new): (Vec<_>, Vec<_>) = tree.rules().partition(in_force);
        for (key, place, rule) in before.into_iter().chain(new) {
            let name = rule.message.name.clone();
            if self.rules.contains_key(&name) || self.unknown.names.contains(&name) {
                continue;
            }
            if self.rules.len() >= MAX_RULES || self.bytes + rule.bytes > MAX_RULES_BYTES {
                let limit = format!("there is room for {MAX_RULES} rules of {MAX_RULES_BYTES} bytes, which are taken");
                let found = Violation { field: place.to_owned(), description: limit };
                self.problems.push(problem(key, found, false));
                self.unknown.names.insert(name);
                continue;
            }
            self.bytes += rule.bytes;
            self.rules.insert(name, rule.clone());
        }
        self.problems.extend(tree.problems().cloned());
        for unknown in tree.unknown() {
            self.unknown.names.extend(unknown.names.iter().cloned());
            self.unknown.beginnings.extend(unknown.beginnings.iter().cloned());
        }
    }
}

impl LiveRule {
    fn read(name: &str, versioned: &Versioned) -> Result<Self, Violations> {
        let one = |field: &str, description: String| Violations(vec![Violation { field: field.into(), description }]);
        let stored = StoredRule::read(versioned).map_err(|found| Violations(vec![found]))?;
        let inside = |found: Violation| Violation { field: format!("rule.{}", found.field), ..found };
        let compiled = stored.rule.compile().map_err(|found| found.0.into_iter().map(inside).collect());
        let rule = compiled.map_err(Violations)?;
        if rule.name.as_str() != name {
            return Err(one("rule.name", format!("is {}, but its key is that of {name}", rule.name)));
        }
        let (message, bytes) = (stored.message(versioned.mod_revision), versioned.value.len());
        Ok(Self { message, rule, bytes, written: versioned.mod_revision })
    }

    /// A rule of a logagent's tree, read from a key that `revision` wrote.
    pub(super) fn of_tree(origin: &str, rule: Rule, revision: Revision) -> Self {
        let message = message::Rule {
            revision: on_wire(revision),
            etag: etag(revision),
            origin: origin.to_owned(),
            ..message::Rule::from(rule.spec())
        };
        let bytes = rule.spec().to_json().map_or(0, |json| json.len()) + origin.len();
        Self { message, rule, bytes, written: revision }
    }

    fn is_from_tree(&self) -> bool {
        !self.message.origin.is_empty()
    }
}

/// A problem as it's told, its text cut where it's too long.
pub(super) fn problem(key: &str, found: Violation, goes_on: bool) -> RuleProblem {
    let then = if goes_on { "the state before it goes on" } else { "the rule is not served" };
    let what = &found.description[..found.description.floor_char_boundary(MAX_PROBLEM_BYTES)];
    RuleProblem { key: key.to_owned(), field: found.field, message: format!("{what}; {then}") }
}

/// The first problems, the last of which then says how many more there are.
fn bounded(mut problems: Vec<RuleProblem>) -> Vec<RuleProblem> {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if let (true, Some(last)) = (more > 0, problems.last_mut()) {
        last.message = format!("{}; and {more} problems more", last.message);
    }
    problems
}

#[cfg(test)]
impl LiveRule {
    /// A rule as tests elsewhere need it.
    pub(crate) fn of(message: message::Rule) -> Self {
        let rule = logmesh_rules::RuleSpec::try_from(&message).and_then(|spec| spec.compile()).unwrap();
        Self { message, rule, bytes: 0, written: Revision(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(revision: u64, rules: &[(&str, &'static str, u64)]) -> PrefixState {
        let entries = rules.iter().map(|(id, json, written)| {
            let versioned = Versioned { value: json.as_bytes().into(), mod_revision: Revision(*written), lease: None };
            (format!("{}{id}", keys::RULES), versioned)
        });
        PrefixState { revision: Revision(revision), entries: entries.collect() }
    }

    fn read(state: &PrefixState, former: &RuleSet) -> RuleSet {
        RuleSet::read(state, &SeedTree::default(), former)
    }

    const GOOD: &str = r#"{"rule": {"name": "rules/a", "paths": ["/a"], "topic": "logs"},
        "create_time": "2026-01-01T00:00:00Z", "update_time": "2026-01-01T00:00:00Z"}"#;

    #[test]
    fn an_unreadable_rule_stays_as_it_was_and_harms_no_other() {
        let first = read(&state(5, &[("a", GOOD, 5)]), &RuleSet::default());
        assert_eq!(first.rules["rules/a"].message.revision, 5);
        let broken = state(7, &[("a", "{\"of\": \"the future\"}", 7), ("b", "nonsense", 6)]);
        let second = read(&broken, &first);
        assert_eq!(second.rules.keys().collect::<Vec<_>>(), ["rules/a"]);
        assert_eq!(second.rules["rules/a"].message.revision, 5);
        let told: Vec<_> = second.problems.iter().map(|found| (found.key.as_str(), found.message.as_str())).collect();
        assert_eq!(told[0].0, "/logmesh/v1/rules/a");
        assert!(told[0].1.ends_with("; the state before it goes on"), "{told:?}");
        assert!(told[1].0.ends_with("/b") && told[1].1.ends_with("; the rule is not served"), "{told:?}");
        assert!(second.is_unknown("rules/b") && !second.is_unknown("rules/a") && !second.is_unknown("rules/bc"));
        let gone = read(&state(8, &[]), &second);
        assert!(gone.rules.is_empty() && gone.problems.is_empty());
    }

    #[test]
    fn what_is_in_force_is_not_displaced_and_what_finds_no_room_is_not_said_to_be_gone() {
        let host = |ip: &str, entries: usize| {
            let entry = |n| format!(r#"{{"log_path": "/log/{n}", "topic": "t"}}"#);
            let value = format!("[{}]", (0..entries).map(entry).collect::<Vec<_>>().join(","));
            let versioned = Versioned { value: value.into(), mod_revision: Revision(5), lease: None };
            (format!("/logagent/{ip}/log_config"), versioned)
        };
        let tree = |hosts: &[(String, Versioned)], former: &SeedTree| {
            let entries = hosts.iter().cloned().collect();
            SeedTree::read("/logagent/", &PrefixState { revision: Revision(5), entries }, former)
        };
        let served = |set: &RuleSet, ip: &str| set.tree_rules().filter(|rule| rule.message.origin.contains(ip)).count();
        let (old, new) = (host("10.0.0.7", MAX_RULES), host("10.0.0.1", 3));
        let full = tree(std::slice::from_ref(&old), &SeedTree::default());
        let first = RuleSet::read(&state(5, &[]), &full, &RuleSet::default());
        assert_eq!((served(&first, "10.0.0.7"), first.problems.len()), (MAX_RULES, 0));
        let more = tree(&[old, new.clone()], &full);
        let second = RuleSet::read(&state(5, &[]), &more, &first);
        assert_eq!((served(&second, "10.0.0.7"), served(&second, "10.0.0.1")), (MAX_RULES, 0));
        assert_eq!(second.problems.iter().map(|found| &found.key).collect::<Vec<_>>(), [&new.0; 3]);
        // The next process doesn't know what was in force. Who holds a rule keeps it, served or not.
        let restarted = RuleSet::read(&state(5, &[]), &more, &RuleSet::default());
        assert_eq!(served(&restarted, "10.0.0.1"), 3);
        let kept = |name: &String| restarted.rules.contains_key(name) || restarted.is_unknown(name);
        assert!(restarted.problems.len() == 3 && first.rules.keys().all(kept), "{:?}", restarted.problems);
    }

    #[test]
    fn a_rule_that_lies_in_anothers_place_is_not_taken() {
        let set = read(&state(5, &[("b", GOOD, 5)]), &RuleSet::default());
        assert!(set.rules.is_empty());
        assert_eq!(set.problems[0].field, "rule.name");
    }

    #[test]
    fn problems_name_the_field_and_are_bounded() {
        let bad = r#"{"rule": {"name": "rules/a", "paths": ["/a", "b"], "topic": "T"}, "create_time": "", "update_time": ""}"#;
        let worse = r#"{"rule": {"name": "rules/b", "paths": 7, "topic": "t"}, "create_time": "", "update_time": ""}"#;
        let set = read(&state(7, &[("a", bad, 5), ("b", worse, 6)]), &RuleSet::default());
        let fields: Vec<_> = set.problems.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["rule.paths[1]", "rule.topic", "rule.paths"]);
        let names: Vec<String> = (0..MAX_PROBLEMS + 5).map(|n| format!("r{n:04}")).collect();
        let many: Vec<(&str, &'static str, u64)> = names.iter().map(|name| (name.as_str(), "{", 1)).collect();
        let set = read(&state(7, &many), &RuleSet::default());
        assert_eq!(set.problems.len(), MAX_PROBLEMS);
        assert!(set.problems.last().unwrap().message.ends_with("; and 5 problems more"));
    }
}
