//! Names that end up in paths, keys and index names, so they are checked where they come in.

use std::fmt;
use std::str::FromStr;

use crate::limits::MAX_NAME_BYTES;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {text:?} is not 1 to {MAX_NAME_BYTES} of the characters a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
)]
pub struct NameError {
    what: &'static str,
    text: String,
}

/// Checks a name: 1 to 64 of `[a-z0-9._-]`, the first a letter or digit. `what` names the thing in the error.
pub(crate) fn check_name(what: &'static str, text: &str) -> Result<(), NameError> {
    let ok = text.len() <= MAX_NAME_BYTES
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'));
    if ok { Ok(()) } else { Err(NameError { what, text: text.chars().take(MAX_NAME_BYTES).collect() }) }
}

macro_rules! name_type {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The name of a topic. Topics whose name ends in `.books` or `.dead`, and `logmesh.jobs`, belong to logmesh; see
/// [`TopicName::books`].
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(String);

name_type!(TopicName);

const BOOKS: &str = ".books";
const DEAD: &str = ".dead";
const JOBS: &str = "logmesh.jobs";

impl TopicName {
    /// The compacted topic that keeps this topic's books, partitioned like it.
    pub fn books(&self) -> Self {
        Self(format!("{}{BOOKS}", self.0))
    }

    /// The topic to which events go that cannot be stored.
    pub fn dead_letters(&self) -> Self {
        Self(format!("{}{DEAD}", self.0))
    }

    /// The topic whose books or dead letters lie in this one.
    pub fn owner(&self) -> Option<Self> {
        let name = self.0.strip_suffix(BOOKS).or_else(|| self.0.strip_suffix(DEAD))?;
        Some(Self(name.to_owned()))
    }

    /// The compacted topic, one for the mesh, in which transfer's workers keep what they do beside the stream of events:
    /// replays, and which dead letters have been sent through again.
    pub fn jobs() -> Self {
        Self(JOBS.to_owned())
    }

    /// True for the topics that logmesh keeps for itself; no rule and no client writes to them.
    pub fn is_internal(&self) -> bool {
        self.0.ends_with(BOOKS) || self.0.ends_with(DEAD) || self.0 == JOBS
    }
}

impl FromStr for TopicName {
    type Err = NameError;
    /// Accepts an internal topic's name as well, which is longer than the topic's by its ending.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix(BOOKS).or_else(|| text.strip_suffix(DEAD)).unwrap_or(text);
        check_name("topic", name)?;
        Ok(Self(text.to_owned()))
    }
}

/// The resource name of a rule, `rules/{rule}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleName(String);

name_type!(RuleName);

impl RuleName {
    /// The collection that all rules are in, with its slash.
    pub const PREFIX: &'static str = "rules/";

    /// The part after `rules/`.
    pub fn id(&self) -> &str {
        self.0.strip_prefix(Self::PREFIX).unwrap_or(&self.0)
    }
}

impl FromStr for RuleName {
    type Err = NameError;
    /// Accepts the name with or without its `rules/`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let id = text.strip_prefix(Self::PREFIX).unwrap_or(text);
        check_name("rule", id)?;
        Ok(Self(format!("{}{id}", Self::PREFIX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_names_take_the_prefix_or_leave_it() {
        let name: RuleName = "nginx-access".parse().unwrap();
        assert_eq!(name.as_str(), "rules/nginx-access");
        assert_eq!("rules/nginx-access".parse::<RuleName>().unwrap(), name);
        assert_eq!(name.id(), "nginx-access");
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "A", "../x", "a/b", "a b", ".a", "-a", &"a".repeat(65)] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad:?}");
        }
        assert!("rules/rules/a".parse::<RuleName>().is_err());
    }

    #[test]
    fn internal_topics_are_told_apart() {
        let topic: TopicName = "nginx".parse().unwrap();
        assert!(!topic.is_internal());
        assert!(topic.books().is_internal() && topic.dead_letters().is_internal() && TopicName::jobs().is_internal());
        assert_eq!([topic.books().owner(), topic.dead_letters().owner()], [Some(topic.clone()), Some(topic.clone())]);
        assert_eq!([topic.owner(), TopicName::jobs().owner()], [None, None]);
        assert_eq!(TopicName::jobs().as_str().parse::<TopicName>().unwrap(), TopicName::jobs());
        let longest: TopicName = "a".repeat(MAX_NAME_BYTES).parse().unwrap();
        assert_eq!(longest.books().as_str().parse::<TopicName>().unwrap(), longest.books());
    }
}
