//! A rule that was checked: its globs and selector are compiled.

use std::time::Duration;

use logmesh_glob::{Exclude, GlobError, PathGlob};
use logmesh_text::Charset;
use logmesh_types::limits::{MAX_EVENT_BYTES, MAX_RULE_PATHS, MIN_CONTAINER_EVENT_BYTES, MIN_EVENT_BYTES};
use logmesh_types::{RuleName, TopicName};

use crate::selector::Selector;
use crate::spec::{Format, RuleSpec, Violation, Violations};

/// The longest pattern of `multiline`, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// The bounds of `multiline.timeout`: shorter, and a writer that pauses would be cut; longer, and nobody sees the line.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// The least `ignore_older`: below it a file that was just written would be too old.
const MIN_AGE: Duration = Duration::from_secs(1);

/// The longest `service`, in bytes.
const MAX_SERVICE_BYTES: usize = 256;

/// A rule that is right in all its parts and ready to match.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name.
    pub name: RuleName,
    /// Which agents it is for.
    pub selector: Selector,
    /// Which files it takes,
    pub paths: Vec<PathGlob>,
    /// and of those, which it leaves.
    pub exclude: Vec<Exclude>,
    /// The topic that it writes to; never an internal one.
    pub topic: TopicName,
    spec: RuleSpec,
}

impl Rule {
    /// The rule as it was written, its name with `rules/`.
    pub fn spec(&self) -> &RuleSpec {
        &self.spec
    }
}

impl RuleSpec {
    /// Checks every field and compiles the rule.
    ///
    /// # Errors
    /// Everything that is wrong with it, not only the first thing.
    pub fn compile(&self) -> Result<Rule, Violations> {
        let mut found = Found::default();
        let name = found.keep("name", self.name.parse::<RuleName>());
        let selector = found.keep("selector", self.selector.parse::<Selector>());
        let paths = self.check_paths(&mut found);
        let topic = found.keep("topic", self.topic.parse::<TopicName>()).filter(|topic| {
            let internal = topic.is_internal();
            if internal {
                found.add("topic", format!("{topic} is a topic that logmesh keeps for itself; choose another name"));
            }
            !internal
        });
        self.check_values(&mut found);
        self.check_multiline(&mut found);
        self.check_age(&mut found);
        self.check_events(&mut found);
        if let (Some(name), Some(selector), Some((paths, exclude)), Some(topic), true) =
            (name, selector, paths, topic, found.0.is_empty())
        {
            let spec = RuleSpec { name: name.to_string(), ..self.clone() };
            return Ok(Rule { name, selector, paths, exclude, topic, spec });
        }
        Err(Violations(found.0))
    }

    fn check_paths(&self, found: &mut Found) -> Option<(Vec<PathGlob>, Vec<Exclude>)> {
        if self.paths.is_empty() {
            found.add("paths", "is empty; name at least one path or glob");
        }
        for (field, globs) in [("paths", &self.paths), ("exclude", &self.exclude)] {
            if globs.len() > MAX_RULE_PATHS {
                found.add(field, format!("has {} entries, more than {MAX_RULE_PATHS}; use globs", globs.len()));
                return None;
            }
        }
        let paths = keep_all(found, "paths", &self.paths, PathGlob::new);
        let exclude = keep_all(found, "exclude", &self.exclude, Exclude::new);
        Some((paths, exclude))
    }

    fn check_values(&self, found: &mut Found) {
        if let Some(service) = &self.service
            && (service.is_empty() || service.len() > MAX_SERVICE_BYTES || service.chars().any(char::is_control))
        {
            found.add("service", format!("is not 1 to {MAX_SERVICE_BYTES} bytes of text without control characters"));
        }
        let never = "is 0, so nothing would ever be sent; leave it out for no limit";
        if self.pace.bytes_per_second.is_some_and(|rate| rate.0 == 0) {
            found.add("pace.bytes_per_second", never);
        }
        if self.pace.lines_per_second == Some(0) {
            found.add("pace.lines_per_second", never);
        }
    }

    fn check_multiline(&self, found: &mut Found) {
        let Some(multiline) = &self.multiline else { return };
        let patterns = multiline.patterns();
        if patterns.len() > 1 || (patterns.is_empty() && multiline.timeout.is_none()) {
            let given: Vec<&str> = patterns.iter().map(|(name, _)| *name).collect();
            let given = if given.is_empty() { "is empty".to_owned() } else { format!("has {}", given.join(" and ")) };
            found.add("multiline", format!("{given}; write one of start_pattern, continue_pattern and end_pattern"));
        }
        for (name, pattern) in patterns {
            let field = format!("multiline.{name}");
            if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
                found.add(field, format!("is not 1 to {MAX_PATTERN_BYTES} bytes long"));
            } else {
                found.keep(field, logmesh_text::pattern(pattern));
            }
        }
        if multiline.timeout.is_some_and(|timeout| !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&timeout.0)) {
            found.add("multiline.timeout", "is not between 100ms and 1h");
        }
    }

    fn check_age(&self, found: &mut Found) {
        if self.ignore_older.is_some_and(|age| age.0 < MIN_AGE) {
            found.add("ignore_older", "is less than 1s");
        }
    }

    fn check_events(&self, found: &mut Found) {
        let container = self.format == Format::Container;
        let least = if container { MIN_CONTAINER_EVENT_BYTES } else { MIN_EVENT_BYTES };
        if self.max_event_bytes.is_some_and(|size| !(least as u64..=MAX_EVENT_BYTES as u64).contains(&size.0)) {
            let of = if container { " of a container's files, whose lines may be that long" } else { "" };
            found.add("max_event_bytes", format!("is not {} to {} KiB{of}", least >> 10, MAX_EVENT_BYTES >> 10));
        }
        if let Some(label) = &self.encoding {
            match Charset::for_label(label) {
                None => {
                    found.add("encoding", format!("{label:?} is no encoding; write a label such as utf-16le or gbk"))
                }
                Some(charset) if container && !charset.is_utf8() => {
                    found.add("encoding", "does not go with format: container, whose files are UTF-8; leave it out");
                }
                Some(_) => {}
            }
        }
    }
}

/// The violations found so far.
#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation { field: field.into(), description: description.into() });
    }

    /// The value, or its error noted under the field.
    fn keep<T>(&mut self, field: impl Into<String>, result: Result<T, impl ToString>) -> Option<T> {
        result.map_err(|error| self.add(field, error.to_string())).ok()
    }
}

/// The globs of a list that compile; the others are noted under their place in it.
fn keep_all<T>(
    found: &mut Found,
    field: &str,
    texts: &[String],
    compile: impl Fn(&str) -> Result<T, GlobError>,
) -> Vec<T> {
    let compiled = texts.iter().enumerate();
    compiled.filter_map(|(place, text)| found.keep(format!("{field}[{place}]"), compile(text))).collect()
}

#[cfg(test)]
mod tests {
    use logmesh_types::ByteSize;

    use super::*;
    use crate::spec::{Multiline, Pace};

    fn spec(name: &str, priority: i32, glob: &str) -> RuleSpec {
        RuleSpec { name: name.into(), priority, paths: vec![glob.into()], topic: "logs".into(), ..RuleSpec::default() }
    }

    fn multiline(yaml: &str) -> Multiline {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let spec = RuleSpec {
            name: "Bad Name".into(),
            selector: "env=".into(),
            paths: vec!["/ok/*.log".into(), "relative".into()],
            exclude: vec!["[".into()],
            topic: "x.books".into(),
            service: Some("a\u{1b}[2J".into()),
            pace: Pace { bytes_per_second: Some(ByteSize(0)), lines_per_second: Some(0) },
            multiline: Some(multiline("start_pattern: '('\ntimeout: 2h")),
            max_event_bytes: Some(ByteSize(1023)),
            encoding: Some("klingon".into()),
            ..RuleSpec::default()
        };
        let fields: Vec<String> = spec.compile().unwrap_err().0.into_iter().map(|found| found.field).collect();
        let expected = [
            "name",
            "selector",
            "paths[1]",
            "exclude[0]",
            "topic",
            "service",
            "pace.bytes_per_second",
            "pace.lines_per_second",
            "multiline.start_pattern",
            "multiline.timeout",
            "max_event_bytes",
            "encoding",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_rule_without_paths_is_refused() {
        let spec = RuleSpec { paths: vec![], ..spec("a", 0, "/x") };
        assert_eq!(spec.compile().unwrap_err().0[0].field, "paths");
        let many = RuleSpec { paths: vec!["/x".into(); MAX_RULE_PATHS + 1], ..spec };
        assert!(many.compile().unwrap_err().to_string().contains("257 entries"));
    }

    #[test]
    fn one_pattern_at_most_says_which_lines_belong_together() {
        let faults = |text: &str| -> Vec<String> {
            let spec = RuleSpec { multiline: Some(multiline(text)), ..spec("a", 0, "/x") };
            let faults = spec.compile().map_or_else(|violations| violations.0, |_| Vec::new());
            faults.into_iter().map(|fault| format!("{}: {}", fault.field, fault.description)).collect()
        };
        for good in ["start_pattern: ^a", "continue_pattern: ^a", "end_pattern: ^a\ntimeout: 100ms", "timeout: 1h"] {
            assert_eq!(faults(good), [""; 0], "{good}");
        }
        let which = "write one of start_pattern, continue_pattern and end_pattern";
        assert_eq!(faults("{}"), [format!("multiline: is empty; {which}")]);
        assert_eq!(
            faults("start_pattern: a\nend_pattern: b"),
            [format!("multiline: has start_pattern and end_pattern; {which}")]
        );
        assert_eq!(faults("timeout: 99ms"), ["multiline.timeout: is not between 100ms and 1h"]);
        assert_eq!(faults("end_pattern: ''"), ["multiline.end_pattern: is not 1 to 1024 bytes long"]);
        let much = r"continue_pattern: (\w{200}){200}";
        assert!(
            faults(much)[0].starts_with("multiline.continue_pattern: is not a regular expression"),
            "too much memory"
        );
    }

    #[test]
    fn a_container_s_files_have_their_own_bounds() {
        let container = RuleSpec { format: Format::Container, ..spec("a", 0, "/x") };
        let bad =
            RuleSpec { max_event_bytes: Some(ByteSize(65_536)), encoding: Some("gbk".into()), ..container.clone() };
        let fields: Vec<String> = bad.compile().unwrap_err().0.into_iter().map(|found| found.field).collect();
        assert_eq!(fields, ["max_event_bytes", "encoding"]);
        RuleSpec { max_event_bytes: Some(ByteSize(1 << 17)), encoding: Some("utf8".into()), ..container }
            .compile()
            .unwrap();
    }

    #[test]
    fn the_name_gets_its_prefix() {
        assert_eq!(spec("a", 0, "/x").compile().unwrap().spec().name, "rules/a");
    }
}
