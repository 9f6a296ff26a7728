//! What a collector is told to read, and its compiled form.

use std::time::Duration;

use logmesh_types::limits::MAX_RULE_PATHS;
use logmesh_types::{RuleName, TopicName};

use crate::framing::{Framing, FramingSpec};
use crate::pathguard::PathGuard;
use logmesh_glob::{Exclude, PathGlob};

/// What to read and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailRule {
    /// Its name.
    pub name: RuleName,
    /// Grows with each change of the rule.
    pub revision: i64,
    /// Globs of absolute paths.
    pub globs: Vec<String>,
    /// Globs of paths or file names to leave out.
    pub exclude: Vec<String>,
    /// Where the events go.
    pub topic: TopicName,
    /// Of several rules that match a file, the one with the higher priority owns it, then the lesser name.
    pub priority: i32,
    /// Where to begin in files that are there when the rule first comes; later ones are read from their beginning.
    pub start_at: StartAt,
    /// A file to which nothing was written for so long when it is first seen isn't begun before something is.
    pub ignore_older: Option<Duration>,
    /// How bytes become events.
    pub framing: FramingSpec,
    /// How long an unfinished event, or a last line without newline, waits for more; `None`: as the settings say.
    pub flush_after: Option<Duration>,
    /// How fast to read.
    pub pace: Pace,
    /// `service.name` of its events.
    pub service: Option<String>,
}

/// Where to begin in a file that is seen for the first time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartAt {
    /// At its first byte.
    #[default]
    Beginning,
    /// After its last line feed: an unfinished last line is read, what lies before it isn't.
    End,
}

/// How fast a rule may read; `None` is without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes per second.
    pub bytes_per_second: Option<u64>,
    /// Lines per second.
    pub lines_per_second: Option<u64>,
}

/// A rule can't be applied; what ran before under its name goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct RuleError {
    /// A stable name: `INVALID_RULE`, or `NOT_ALLOWED` if the host's settings forbid all that it asks for.
    pub reason: &'static str,
    /// The field's path, such as `paths[1]`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl RuleError {
    fn invalid(field: impl Into<String>, message: impl ToString) -> Self {
        Self { reason: "INVALID_RULE", field: field.into(), message: message.to_string() }
    }
}

/// A rule that can run.
#[derive(Debug, Clone)]
pub(crate) struct Compiled {
    pub rule: TailRule,
    pub globs: Vec<PathGlob>,
    pub exclude: Vec<Exclude>,
    pub framing: Framing,
}

impl Compiled {
    pub(crate) fn new(rule: TailRule, guard: &PathGuard) -> Result<Self, RuleError> {
        for (field, list) in [("paths", &rule.globs), ("exclude", &rule.exclude)] {
            if list.len() > MAX_RULE_PATHS {
                return Err(RuleError::invalid(field, format!("holds {} globs, at most {MAX_RULE_PATHS}", list.len())));
            }
        }
        let globs = compile("paths", &rule.globs, PathGlob::new)?;
        let exclude = compile("exclude", &rule.exclude, Exclude::new)?;
        let framing = Framing::new(&rule.framing).map_err(|(field, message)| RuleError::invalid(field, message))?;
        if globs.is_empty() {
            return Err(RuleError::invalid("paths", "is empty; name at least one path"));
        }
        for (index, glob) in globs.iter().enumerate() {
            if guard.roots_for(glob).is_empty() {
                return Err(RuleError {
                    reason: "NOT_ALLOWED",
                    field: format!("paths[{index}]"),
                    message: format!("{} is outside of what this agent allows", glob.as_str()),
                });
            }
        }
        Ok(Self { rule, globs, exclude, framing })
    }

    /// The place of the first glob that matches and isn't undone by an exclude.
    pub(crate) fn matches(&self, path: &std::path::Path) -> Option<usize> {
        let glob = self.globs.iter().position(|glob| glob.matches(path))?;
        (!self.excludes(path)).then_some(glob)
    }

    pub(crate) fn excludes(&self, path: &std::path::Path) -> bool {
        self.exclude.iter().any(|glob| glob.matches(path))
    }

    /// Rules sort by this: the owner of a file comes first.
    pub(crate) fn precedence(&self) -> (std::cmp::Reverse<i32>, RuleName) {
        (std::cmp::Reverse(self.rule.priority), self.rule.name.clone())
    }
}

fn compile<T, E: ToString>(
    field: &str,
    texts: &[String],
    new: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, RuleError> {
    let one =
        |(index, text): (usize, &String)| new(text).map_err(|e| RuleError::invalid(format!("{field}[{index}]"), e));
    texts.iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Pattern;

    fn compile(change: impl FnOnce(&mut TailRule)) -> Result<Compiled, RuleError> {
        let mut rule = TailRule {
            name: "a".parse().unwrap(),
            revision: 1,
            globs: vec!["/var/log/**/*.log".into()],
            exclude: vec!["*.gz".into()],
            topic: "t".parse().unwrap(),
            priority: 0,
            start_at: StartAt::Beginning,
            framing: FramingSpec::default(),
            ignore_older: None,
            flush_after: None,
            pace: Pace::default(),
            service: None,
        };
        change(&mut rule);
        Compiled::new(rule, &PathGuard::new(&["/var/log/**".into()], &[]).unwrap())
    }

    #[test]
    fn faults_name_their_field() {
        assert!(compile(|_| {}).is_ok());
        let field = |change: fn(&mut TailRule)| {
            let error = compile(change).unwrap_err();
            (error.reason, error.field)
        };
        assert_eq!(field(|r| r.globs.push("x".into())), ("INVALID_RULE", "paths[1]".into()));
        assert_eq!(field(|r| r.globs.clear()), ("INVALID_RULE", "paths".into()));
        assert_eq!(field(|r| r.exclude = vec!["[".into()]), ("INVALID_RULE", "exclude[0]".into()));
        assert_eq!(field(|r| r.globs.push("/etc/*".into())), ("NOT_ALLOWED", "paths[1]".into()));
        assert_eq!(
            field(|r| r.framing.pattern = Some(Pattern::Start("(".into()))),
            ("INVALID_RULE", "multiline.start_pattern".into())
        );
        assert_eq!(field(|r| r.globs = vec!["/var/log/*".into(); 300]), ("INVALID_RULE", "paths".into()));
    }
}
