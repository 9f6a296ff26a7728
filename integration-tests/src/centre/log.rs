//! Every change of a rule, as etcd's own client tells it, and what each agent should hold after each. Nothing here uses the
//! code under test.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use data_encoding::BASE64;
use logmesh_testing::wait_for;
use serde_json::Value;

use super::Centre;
use crate::client::PATIENCE;
use crate::fleet::Fleet;

/// Where rules lie.
const RULES: &str = "/logmesh/v1/rules/";

/// A rule as etcd holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRule {
    /// The revision that wrote it.
    pub revision: i64,
    /// What was written of the rule itself.
    pub rule: Value,
}

/// Rules by name.
pub type Rules = BTreeMap<String, StoredRule>;

/// Labels of an agent.
type Labels = BTreeMap<String, String>;

/// A watch of a prefix since etcd was new.
#[derive(Debug)]
pub struct EtcdLog {
    path: PathBuf,
    child: Child,
}

/// What became of a key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision that did it.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// What it holds since; `None`: it was deleted.
    pub value: Option<String>,
}

impl EtcdLog {
    /// Begins to watch.
    pub fn start(centre: &Centre, prefix: &str) -> Self {
        let path = centre.folder.join(format!("{}.log", prefix.trim_matches('/').replace('/', "-")));
        let out = File::create(&path).expect("a log can be made");
        let mut command = centre.etcdctl(&["watch", "--prefix", "--rev=1", "-w", "json", prefix]);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::null()).spawn();
        Self { path, child: child.expect("etcdctl can be run") }
    }

    /// All that was told so far, in order.
    pub fn events(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(&self.path).expect("the log can be read");
        // The last line may not be whole yet.
        let messages = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let events = |line: &str| -> Vec<Event> {
            let message: Value = serde_json::from_str(line).expect("etcdctl prints JSON");
            message["Events"].as_array().into_iter().flatten().map(Event::read).collect()
        };
        messages.flat_map(events).collect()
    }
}

impl Drop for EtcdLog {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Event {
    fn read(event: &Value) -> Self {
        let of = &event["kv"];
        // etcd's client leaves out a type that is 0, which is a put.
        let deleted = event["type"].as_i64() == Some(1);
        let revision = of["mod_revision"].as_i64().expect("a revision");
        Self { revision, key: text(&of["key"]), value: (!deleted).then(|| text(&of["value"])) }
    }
}

/// A watch of all rules since etcd was new.
#[derive(Debug)]
pub struct RuleLog {
    log: EtcdLog,
}

/// A change: revision, rule, what it is now.
type Entry = (i64, String, Option<StoredRule>);

impl RuleLog {
    /// Begins to watch.
    pub fn start(centre: &Centre) -> Self {
        Self { log: EtcdLog::start(centre, RULES) }
    }

    fn entries(&self) -> Vec<Entry> {
        self.log.events().into_iter().map(entry).collect()
    }

    /// Waits until it tells of all that etcd holds now, and gives that.
    #[track_caller]
    pub fn caught_up(&self, centre: &Centre) -> Rules {
        wait_for("the log to be complete", PATIENCE, || {
            let answer = centre.ask_etcd(&["get", "--prefix", RULES]);
            let rule = |of: &Value| {
                let revision = of["mod_revision"].as_i64().expect("a revision");
                (text(&of["key"]).replace(RULES, "rules/"), stored(revision, &text(&of["value"])))
            };
            let held = answer["kvs"].as_array().into_iter().flatten().map(rule).collect();
            let told = at(&self.entries(), i64::MAX);
            if told == held { Ok(held) } else { Err(format!("{} rules, not {}", told.len(), held.len())) }
        })
    }

    /// Panics unless each agent, after each message, held what etcd held for it at the message's revision, and nothing came
    /// twice, late or from the past.
    #[track_caller]
    pub fn judge(&self, fleet: &Fleet) {
        assert_eq!(fleet.disorder(), Vec::<String>::new());
        let (entries, labels) = (self.entries(), fleet.labels());
        for (id, record) in fleet.records() {
            let mut held: BTreeMap<String, i64> = BTreeMap::new();
            for message in record.steps.chunk_by(|a, b| a.at == b.at) {
                for step in message {
                    match step.revision {
                        Some(revision) => held.insert(step.rule.clone(), revision),
                        None => held.remove(&step.rule),
                    };
                }
                let wanted = revisions(&meant_for(&at(&entries, message[0].at), &labels[&id]));
                assert_eq!(held, wanted, "{id} at {}: {:?}", message[0].at, record.steps);
            }
        }
    }

    /// Waits until each agent, simulated or real, holds exactly what etcd's content says.
    #[track_caller]
    pub fn wait_equal(&self, centre: &Centre, fleet: &Fleet, real: &[&str]) {
        let rules = self.caught_up(centre);
        let labels = fleet.labels();
        wait_for("each agent to hold what etcd says", PATIENCE, || {
            for (id, record) in fleet.records() {
                let wanted = meant_for(&rules, &labels[&id]);
                let held = record.held.iter().map(|(name, rule)| {
                    let shown = (rule.revision, rule.topic.clone(), rule.paths.clone(), rule.selector.clone());
                    (name.clone(), shown)
                });
                let held: BTreeMap<_, _> = held.collect();
                if held != wanted.iter().map(|(name, rule)| (name.clone(), shown(rule))).collect() {
                    return Err(format!("{id} holds {held:?} and not {wanted:?}"));
                }
            }
            for name in real {
                let labels = [("role", "real"), ("os", "linux")].map(|(key, value)| (key.to_owned(), value.to_owned()));
                let wanted = meant_for(&rules, &Labels::from(labels));
                let wanted: BTreeMap<_, _> =
                    wanted.into_iter().map(|(name, stored)| (name, (stored.revision, stored.rule))).collect();
                let held = centre.rules_of_agent(name);
                if held != wanted {
                    return Err(format!("{name} holds {held:?} and not {wanted:?}"));
                }
            }
            Ok(())
        });
    }
}

fn entry(event: Event) -> Entry {
    let stored = event.value.map(|value| stored(event.revision, &value));
    (event.revision, event.key.replace(RULES, "rules/"), stored)
}

fn stored(revision: i64, value: &str) -> StoredRule {
    let value: Value = serde_json::from_str(value).expect("a rule is JSON");
    StoredRule { revision, rule: value["rule"].clone() }
}

/// etcd's client prints keys and values in base64.
pub(super) fn text(encoded: &Value) -> String {
    let bytes = BASE64.decode(encoded.as_str().unwrap_or_default().as_bytes()).expect("base64");
    String::from_utf8(bytes).expect("text")
}

/// What etcd held at a revision.
fn at(entries: &[Entry], revision: i64) -> Rules {
    let mut rules = Rules::new();
    for (_, name, stored) in entries.iter().filter(|(of, _, _)| *of <= revision) {
        match stored {
            Some(stored) => rules.insert(name.clone(), stored.clone()),
            None => rules.remove(name),
        };
    }
    rules
}

fn meant_for(rules: &Rules, labels: &Labels) -> Rules {
    let meant = |stored: &StoredRule| matches(stored.rule["selector"].as_str().unwrap_or_default(), labels);
    rules.iter().filter(|(_, stored)| meant(stored)).map(|(name, stored)| (name.clone(), stored.clone())).collect()
}

fn revisions(rules: &Rules) -> BTreeMap<String, i64> {
    rules.iter().map(|(name, stored)| (name.clone(), stored.revision)).collect()
}

/// A rule as an agent sees it.
fn shown(stored: &StoredRule) -> (i64, String, Vec<String>, String) {
    let word = |field: &str| stored.rule[field].as_str().unwrap_or_default().to_owned();
    let paths = stored.rule["paths"].as_array().into_iter().flatten().filter_map(Value::as_str);
    (stored.revision, word("topic"), paths.map(str::to_owned).collect(), word("selector"))
}

/// The selectors of [`super::RuleWriter`], and no others.
fn matches(selector: &str, labels: &Labels) -> bool {
    let label = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
    if let Some((key, values)) = selector.split_once(" in ") {
        return values.trim_matches(['(', ')']).split(", ").any(|value| label(key) == value);
    }
    selector.split(", ").filter(|part| !part.is_empty()).all(|part| match part.split_once("!=") {
        Some((key, value)) => label(key) != value,
        None => part.split_once('=').is_some_and(|(key, value)| label(key) == value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read() {
        let labels = Labels::from([("os".to_owned(), "linux".to_owned()), ("group".to_owned(), "2".to_owned())]);
        for (selector, wanted) in [
            ("", true),
            ("group=2", true),
            ("group=1", false),
            ("group in (0, 2)", true),
            ("group in (0, 1)", false),
            ("role!=real", true),
            ("os=linux, group!=2", false),
        ] {
            assert_eq!(matches(selector, &labels), wanted, "{selector}");
        }
    }
}
