//! A rule that was checked: its globs, selector and pattern are compiled.

use logmesh_glob::{Exclude, GlobError, PathGlob};
use logmesh_types::limits::MAX_RULE_PATHS;
use logmesh_types::{RuleName, TopicName};
use regex::bytes::{Regex, RegexBuilder};

use crate::selector::Selector;
use crate::spec::{RuleSpec, Violation, Violations};

/// The longest `multiline.start_pattern`, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// The most memory that a compiled `start_pattern` may take, in bytes. Matching is linear in the line whatever the
/// pattern; this bounds what each agent holds for it.
const PATTERN_MEMORY_BYTES: usize = 1 << 20;

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
    /// A line that matches begins an event; none: each line is one.
    pub start_pattern: Option<Regex>,
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
        let start_pattern = self.check_pattern(&mut found);
        if let (Some(name), Some(selector), Some((paths, exclude)), Some(topic), true) =
            (name, selector, paths, topic, found.0.is_empty())
        {
            let spec = RuleSpec { name: name.to_string(), ..self.clone() };
            return Ok(Rule { name, selector, paths, exclude, topic, start_pattern, spec });
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

    fn check_pattern(&self, found: &mut Found) -> Option<Regex> {
        let pattern = &self.multiline.as_ref()?.start_pattern;
        let field = "multiline.start_pattern";
        if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
            found.add(field, format!("is not 1 to {MAX_PATTERN_BYTES} bytes long"));
            return None;
        }
        let built =
            RegexBuilder::new(pattern).size_limit(PATTERN_MEMORY_BYTES).dfa_size_limit(PATTERN_MEMORY_BYTES).build();
        found.keep(field, built.map_err(|error| format!("is not a regular expression: {error}")))
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
            multiline: Some(Multiline { start_pattern: "(".into() }),
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
    fn a_pattern_that_would_take_much_memory_is_refused() {
        let pattern = r"(\w{200}){200}".to_owned();
        let spec = RuleSpec { multiline: Some(Multiline { start_pattern: pattern }), ..spec("a", 0, "/x") };
        assert_eq!(spec.compile().unwrap_err().0[0].field, "multiline.start_pattern");
    }

    #[test]
    fn the_name_gets_its_prefix() {
        assert_eq!(spec("a", 0, "/x").compile().unwrap().spec().name, "rules/a");
    }
}
