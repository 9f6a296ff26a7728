//! The rules that the agent was told to run, what became of each, and the last good ones on disk.
//!
//! A rule is taken in by itself: one that can't run is reported with the field at fault, its last good revision goes
//! on, and the others aren't touched. What is kept on disk is what runs, so that a restart without the centre collects
//! what was collected before; it's checked against the host's own settings again like any other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use logmesh_proto::config::v1::Rule;
use logmesh_proto::fleet::v1::{Delta, RuleError, RuleState};
use logmesh_rules::{Format, LongEvents, Pace, RuleSpec, StartAt, Violations};
use logmesh_runtime::files;
use logmesh_tail::{FramingSpec, Pattern, TailRule};
use logmesh_types::UnixNanos;
use serde::{Deserialize, Serialize};

use crate::collect::Outcome;

pub(crate) const FILE_NAME: &str = "rules.json";

/// A rule that runs, or did last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Good {
    revision: i64,
    rule: RuleSpec,
}

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Of the store that the revisions are of; empty: not known.
    incarnation: String,
    rules: Vec<Good>,
}

impl Kept {
    /// Reads it, also as it was before incarnations were known: the list alone.
    fn read(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text).or_else(|error| match serde_json::from_slice(text) {
            Ok(rules) => Ok(Self { incarnation: String::new(), rules }),
            Err(_) => Err(error),
        })
    }
}

/// How a rule stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    pub desired_revision: i64,
    pub attempted_revision: i64,
    pub state: RuleState,
    pub error: Option<RuleError>,
    pub since: UnixNanos,
}

/// A rule that the centre wants, with its fault if it can't even be read.
#[derive(Debug)]
struct Desired {
    revision: i64,
    rule: Result<(RuleSpec, TailRule), RuleError>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Rules {
    path: PathBuf,
    incarnation: String,
    desired: BTreeMap<String, Desired>,
    good: BTreeMap<String, Good>,
    standing: BTreeMap<String, Standing>,
}

impl Rules {
    /// The last good rules of this state folder; none if there are none that can be read.
    pub(crate) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let Kept { incarnation, rules: good } = match std::fs::read(&path) {
            Ok(text) => Kept::read(&text).unwrap_or_else(|error| {
                let aside = path.with_extension(format!("json.corrupt-{}", UnixNanos::now().0));
                let kept = std::fs::rename(&path, &aside);
                tracing::error!(path = %path.display(), aside = %aside.display(), ?kept, %error,
                    "the last good rules cannot be read: they are set aside, nothing is collected until the centre is reached");
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        let desired =
            good.iter().map(|good| (good.rule.name.clone(), Desired::new(good.revision, Ok(good.rule.clone()))));
        let desired = desired.collect();
        let good = good.into_iter().map(|good| (good.rule.name.clone(), good)).collect();
        Self { path, incarnation, desired, good, standing: BTreeMap::new() }
    }

    /// Name and revision of the rules that the agent was told last.
    pub(crate) fn held(&self) -> BTreeMap<String, i64> {
        self.desired.iter().map(|(name, desired)| (name.clone(), desired.revision)).collect()
    }

    /// Which store they came from; empty: not known.
    pub(crate) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Takes in what has changed in the store of this incarnation. After a snapshot there is nothing but what it holds.
    pub(crate) fn change(&mut self, delta: Delta, incarnation: &str) {
        incarnation.clone_into(&mut self.incarnation);
        let all: Option<HashSet<&str>> =
            delta.snapshot.then(|| delta.upserted.iter().map(|rule| rule.name.as_str()).collect());
        let stays = |name: &str| {
            all.as_ref().is_none_or(|all| all.contains(name)) && !delta.removed.iter().any(|gone| gone == name)
        };
        self.desired.retain(|name, _| stays(name));
        self.good.retain(|name, _| stays(name));
        self.standing.retain(|name, _| stays(name));
        for rule in delta.upserted {
            self.desired.insert(rule.name.clone(), Desired::new(rule.revision, read(&rule)));
        }
    }

    /// The rules to run: each as it is desired or, where that can't be read, as it was good last.
    pub(crate) fn to_run(&self) -> Vec<TailRule> {
        let one = |(name, desired): (&String, &Desired)| match &desired.rule {
            Ok((_, rule)) => Some(rule.clone()),
            Err(_) => {
                let good = self.good.get(name)?;
                convert(&good.rule, good.revision).ok()
            }
        };
        self.desired.iter().filter_map(one).collect()
    }

    /// The rules that run: each as it is desired, or as it was good last.
    pub(crate) fn running(&self) -> Vec<TailRule> {
        let one = |(name, good): (&String, &Good)| match self.desired.get(name) {
            Some(Desired { revision, rule: Ok((_, rule)) }) if *revision == good.revision => Some(rule.clone()),
            _ => convert(&good.rule, good.revision).ok(),
        };
        self.good.iter().filter_map(one).collect()
    }

    /// Notes what became of the rules and keeps those that run on disk.
    pub(crate) fn note(&mut self, outcomes: Vec<Outcome>) -> anyhow::Result<()> {
        let outcomes: HashMap<String, Outcome> =
            outcomes.into_iter().map(|outcome| (outcome.name.to_string(), outcome)).collect();
        for (name, desired) in &self.desired {
            let outcome = outcomes.get(name);
            let fault = match (&desired.rule, outcome.map(|outcome| &outcome.result)) {
                (Err(fault), _) => Some(fault.clone()),
                (Ok(_), Some(Err(error))) => Some(RuleError {
                    reason: error.reason.to_owned(),
                    message: error.message.clone(),
                    field: error.field.clone(),
                }),
                (Ok((spec, _)), _) => {
                    self.good.insert(name.clone(), Good { revision: desired.revision, rule: spec.clone() });
                    None
                }
            };
            let standing = Standing::new(desired.revision, fault, outcome.is_some_and(|outcome| outcome.runs));
            let same = self.standing.get(name).is_some_and(|before| before.is_like(&standing));
            if !same {
                if let Some(error) = &standing.error {
                    tracing::warn!(rule = %name, revision = desired.revision, reason = %error.reason, field = %error.field,
                        error = %error.message, "rule cannot run; its last good revision goes on, if there is one");
                } else {
                    tracing::info!(rule = %name, revision = desired.revision, "rule runs");
                }
                self.standing.insert(name.clone(), standing);
            }
        }
        self.keep()
    }

    /// How each rule stands.
    pub(crate) fn standing(&self) -> BTreeMap<String, Standing> {
        self.standing.clone()
    }

    /// Writes the good rules: a new file, made durable, takes the old one's name.
    fn keep(&self) -> anyhow::Result<()> {
        let kept = Kept { incarnation: self.incarnation.clone(), rules: self.good.values().cloned().collect() };
        let text = serde_json::to_vec_pretty(&kept)?;
        if std::fs::read(&self.path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        files::replace(&self.path, &text).with_context(|| format!("cannot keep the rules in {}", self.path.display()))
    }
}

/// A rule that is only asked about, ready to be held against the host.
pub(crate) fn asked_about(rule: &Rule) -> Result<TailRule, RuleError> {
    Desired::new(rule.revision, read(rule)).rule.map(|(_, rule)| rule)
}

impl Desired {
    fn new(revision: i64, spec: Result<RuleSpec, RuleError>) -> Self {
        let rule = spec.and_then(|spec| {
            let rule = convert(&spec, revision).map_err(|violations| fault(&violations))?;
            Ok((spec, rule))
        });
        Self { revision, rule }
    }
}

impl Standing {
    /// What is to be said of a revision; `runs`: something of the rule does, this revision or the last good one.
    fn new(revision: i64, error: Option<RuleError>, runs: bool) -> Self {
        let state = match &error {
            None => RuleState::Applied,
            Some(error) if error.reason == "NOT_ALLOWED" => RuleState::Refused,
            Some(_) if runs => RuleState::RolledBack,
            Some(_) => RuleState::Failed,
        };
        Self { desired_revision: revision, attempted_revision: revision, state, error, since: UnixNanos::now() }
    }

    fn is_like(&self, other: &Self) -> bool {
        Self { since: other.since, ..self.clone() } == *other
    }
}

fn read(rule: &Rule) -> Result<RuleSpec, RuleError> {
    RuleSpec::try_from(rule).map_err(|violations| fault(&violations))
}

/// The first violation names the field; all are in the message.
fn fault(violations: &Violations) -> RuleError {
    let field = violations.0.first().map(|violation| violation.field.clone()).unwrap_or_default();
    RuleError { reason: "INVALID_RULE".to_owned(), message: violations.to_string(), field }
}

fn convert(spec: &RuleSpec, revision: i64) -> Result<TailRule, Violations> {
    let rule = spec.compile()?;
    let Pace { bytes_per_second, lines_per_second } = spec.pace;
    Ok(TailRule {
        name: rule.name,
        revision,
        globs: spec.paths.clone(),
        exclude: spec.exclude.clone(),
        topic: rule.topic,
        priority: spec.priority,
        start_at: match spec.start_at {
            StartAt::Beginning => logmesh_tail::StartAt::Beginning,
            StartAt::End => logmesh_tail::StartAt::End,
        },
        framing: framing(spec),
        ignore_older: spec.ignore_older.map(|age| age.0),
        flush_after: spec.multiline.as_ref().and_then(|multiline| multiline.timeout).map(|timeout| timeout.0),
        pace: logmesh_tail::Pace { bytes_per_second: bytes_per_second.map(|rate| rate.0), lines_per_second },
        service: spec.service.clone(),
    })
}

/// The framing of a rule that was checked, so it has one pattern at most.
fn framing(spec: &RuleSpec) -> FramingSpec {
    let multiline = spec.multiline.clone().unwrap_or_default();
    let start = multiline.start_pattern.map(Pattern::Start);
    let pattern = start.or(multiline.continue_pattern.map(Pattern::Continue));
    let standard = FramingSpec::default();
    FramingSpec {
        pattern: pattern.or(multiline.end_pattern.map(Pattern::End)),
        max_event_bytes: spec.max_event_bytes.map_or(standard.max_event_bytes, |size| size.0 as usize),
        cut: spec.long_events == LongEvents::Cut,
        container: spec.format == Format::Container,
        encoding: spec.encoding.clone(),
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::config::v1::{self as message, Multiline};

    use super::*;

    fn rule(name: &str, revision: i64, path: &str) -> Rule {
        Rule { name: format!("rules/{name}"), revision, paths: vec![path.into()], topic: "t".into(), ..Rule::default() }
    }

    #[test]
    fn all_that_decides_framing_comes_through() {
        let multiline = Multiline {
            end_pattern: ";$".into(),
            timeout: Some(logmesh_proto::time::duration(std::time::Duration::from_secs(2))),
            ..Multiline::default()
        };
        let rule = Rule {
            multiline: Some(multiline),
            max_event_bytes: 4096,
            long_events: message::LongEvents::Cut.into(),
            encoding: "GBK".into(),
            ..rule("a", 3, "/x/*")
        };
        let (spec, tail) = Desired::new(3, read(&rule)).rule.unwrap();
        let expected = FramingSpec {
            pattern: Some(Pattern::End(";$".into())),
            max_event_bytes: 4096,
            cut: true,
            container: false,
            encoding: Some("GBK".into()),
        };
        assert_eq!((tail.framing, tail.flush_after), (expected, Some(std::time::Duration::from_secs(2))));
        let container = RuleSpec { format: Format::Container, encoding: None, max_event_bytes: None, ..spec };
        assert!(convert(&container, 3).unwrap().framing.container);
    }

    fn outcomes(rules: &Rules) -> Vec<Outcome> {
        rules.to_run().into_iter().map(|rule| Outcome { name: rule.name, result: Ok(()), runs: true }).collect()
    }

    fn told(rules: &mut Rules, delta: Delta) {
        rules.change(delta, "store-1");
        rules.note(outcomes(rules)).unwrap();
    }

    #[test]
    fn a_snapshot_is_all_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut rules = Rules::load(dir.path());
        told(&mut rules, Delta { upserted: vec![rule("a", 3, "/x/*"), rule("b", 4, "/y/*")], ..Delta::default() });
        assert_eq!(rules.incarnation(), "store-1");
        rules.change(Delta { upserted: vec![rule("b", 2, "/y/*")], snapshot: true, ..Delta::default() }, "store-2");
        rules.note(outcomes(&rules)).unwrap();
        let expected = BTreeMap::from([("rules/b".to_owned(), 2)]);
        assert_eq!((rules.held(), rules.standing().len()), (expected.clone(), 1));
        let again = Rules::load(dir.path());
        assert_eq!((again.held(), again.incarnation()), (expected, "store-2"));
    }

    #[test]
    fn rules_that_an_older_version_kept_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"[{"revision": 3, "rule": {"name": "rules/a", "paths": ["/x/*"], "topic": "t"}}]"#;
        std::fs::write(dir.path().join(FILE_NAME), old).unwrap();
        let rules = Rules::load(dir.path());
        assert_eq!((rules.held(), rules.incarnation()), (BTreeMap::from([("rules/a".to_owned(), 3)]), ""));
    }

    #[test]
    fn a_rule_that_fails_says_whether_anything_runs() {
        let fault = |reason: &str| Some(RuleError { reason: reason.into(), ..RuleError::default() });
        let state = |reason, runs| Standing::new(1, fault(reason), runs).state;
        assert_eq!(state("INVALID_RULE", false), RuleState::Failed);
        assert_eq!(state("INVALID_RULE", true), RuleState::RolledBack);
        assert_eq!(state("NOT_ALLOWED", true), RuleState::Refused);
    }

    #[test]
    fn what_ran_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut rules = Rules::load(dir.path());
        assert!(rules.held().is_empty());
        told(
            &mut rules,
            Delta { upserted: vec![rule("a", 3, "/x/*"), rule("b", 4, "/y/*")], removed: vec![], ..Delta::default() },
        );
        told(&mut rules, Delta { upserted: vec![], removed: vec!["rules/b".into()], ..Delta::default() });
        let rules = Rules::load(dir.path());
        assert_eq!(rules.held(), BTreeMap::from([("rules/a".to_owned(), 3)]));
        assert_eq!(rules.to_run()[0].globs, ["/x/*"]);
    }

    #[test]
    fn a_bad_revision_is_reported_and_the_good_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut rules = Rules::load(dir.path());
        told(&mut rules, Delta { upserted: vec![rule("a", 3, "/x/*")], removed: vec![], ..Delta::default() });
        rules
            .change(Delta { upserted: vec![rule("a", 5, "relative")], removed: vec![], ..Delta::default() }, "store-1");
        assert_eq!((rules.to_run()[0].revision, &rules.to_run()[0].globs[0][..]), (3, "/x/*"));
        rules.note(outcomes(&rules)).unwrap();
        let standing = &rules.standing()["rules/a"];
        assert_eq!((standing.desired_revision, standing.state), (5, RuleState::RolledBack));
        assert_eq!(standing.error.as_ref().unwrap().field, "paths[0]");
        assert_eq!(rules.held()["rules/a"], 5, "it needn't be told again");
        assert_eq!(Rules::load(dir.path()).held()["rules/a"], 3, "a restart has the good one");
    }

    #[test]
    fn rules_that_cannot_be_read_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "[{").unwrap();
        assert!(Rules::load(dir.path()).held().is_empty());
        assert!(!dir.path().join(FILE_NAME).exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
