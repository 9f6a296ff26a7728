//! A rule as it is written in YAML, stored as JSON and sent as a message: plain data, not yet checked.

use std::fmt;

use logmesh_types::{ByteSize, Span};
use serde::{Deserialize, Serialize};

/// A rule as someone wrote it. An unknown field is an error, so that a typing mistake never changes what is collected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// The resource name; `rules/` before it may be left out.
    pub name: String,
    /// Which agents it is for; empty: all of them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Globs of absolute paths; at least one.
    pub paths: Vec<String>,
    /// Globs of what `paths` matches and the rule shall not collect. One without `/` is matched on the file's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// The topic that the rule writes to.
    pub topic: String,
    /// Of several rules that match a file, the one of the highest priority owns it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// The value of `service.name` in the documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// How fast each agent may read for this rule.
    #[serde(default, skip_serializing_if = "Pace::is_unlimited")]
    pub pace: Pace,
    /// Where reading begins in a file that is seen for the first time.
    #[serde(default, skip_serializing_if = "StartAt::is_beginning")]
    pub start_at: StartAt,
    /// A file to which nothing was written for so long when it is first seen isn't begun before something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_older: Option<Span>,
    /// How lines are joined to events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiline: Option<Multiline>,
    /// How long an event may be, terminators included; none: as long as any may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_event_bytes: Option<ByteSize>,
    /// What becomes of a longer line.
    #[serde(default, skip_serializing_if = "is_default")]
    pub long_events: LongEvents,
    /// What the files hold.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: Format,
    /// The encoding of the files, a label of the WHATWG's standard; none: UTF-8, or what a file's byte-order mark says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
}

/// How fast one agent may read for one rule; no value: as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// Bytes in a second, over all files of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
    /// Events in a second, over all files of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines_per_second: Option<u64>,
}

/// Where reading begins in a file that is seen for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartAt {
    /// At the first byte.
    #[default]
    Beginning,
    /// Behind the last byte that the file had when it was found.
    End,
}

/// How lines are joined to events: by one of three patterns at most, each a regular expression.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Multiline {
    /// A line that it matches begins a new event, every other line belongs to the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_pattern: Option<String>,
    /// A line that it matches belongs to the event before, every other line begins a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continue_pattern: Option<String>,
    /// A line that it matches ends its event, every other line is followed by more of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_pattern: Option<String>,
    /// How long an unfinished event, or a last line without newline, waits for more before it is sent as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

impl Multiline {
    /// The patterns that are given, each with its name.
    pub fn patterns(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("start_pattern", &self.start_pattern),
            ("continue_pattern", &self.continue_pattern),
            ("end_pattern", &self.end_pattern),
        ];
        all.into_iter().filter_map(|(name, pattern)| Some((name, pattern.as_deref()?))).collect()
    }
}

/// What becomes of a line that is longer than an event may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongEvents {
    /// It becomes several events; each but the first is marked as a continuation.
    #[default]
    Split,
    /// Only its start is kept; the event is marked, and says how much was left out.
    Cut,
}

/// What files hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines of text.
    #[default]
    Lines,
    /// What container runtimes write: Docker's JSON or CRI, told line by line.
    Container,
}

impl Pace {
    /// True if nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

impl StartAt {
    fn is_beginning(&self) -> bool {
        *self == Self::Beginning
    }
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl RuleSpec {
    /// The form in which the config store keeps a rule.
    ///
    /// # Errors
    /// None in practice: every field has a JSON form.
    pub fn to_json(&self) -> Result<Vec<u8>, JsonError> {
        serde_json::to_vec(self).map_err(|source| JsonError { path: ".".into(), source })
    }

    /// Reads what [`RuleSpec::to_json`] wrote.
    ///
    /// # Errors
    /// When it is no JSON, has a field that this version doesn't know, or one of the wrong type.
    pub fn from_json(json: &[u8]) -> Result<Self, JsonError> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| JsonError { path: error.path().to_string(), source: error.into_inner() })
    }
}

/// A rule's JSON cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the rule's JSON is unreadable at {path}")]
pub struct JsonError {
    path: String,
    #[source]
    source: serde_json::Error,
}

/// One thing that is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `paths[1]`.
    pub field: String,
    /// What is wrong and what to write.
    pub description: String,
}

/// Everything that is wrong with a rule; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, violation) in self.0.iter().enumerate() {
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_rule_reads_back() {
        let spec = RuleSpec {
            name: "rules/nginx".into(),
            paths: vec!["/var/log/nginx/*.log".into()],
            topic: "nginx".into(),
            pace: Pace { bytes_per_second: Some(ByteSize(5 << 20)), lines_per_second: Some(7) },
            start_at: StartAt::End,
            multiline: Some(Multiline { start_pattern: Some(r"^\d{4}-".into()), ..Multiline::default() }),
            max_event_bytes: Some(ByteSize(4096)),
            long_events: LongEvents::Cut,
            encoding: Some("gbk".into()),
            ..RuleSpec::default()
        };
        let json = spec.to_json().unwrap();
        assert_eq!(RuleSpec::from_json(&json).unwrap(), spec);
        let json = String::from_utf8(json).unwrap();
        assert!(!json.contains("selector") && !json.contains("format"), "defaults aren't stored: {json}");
    }

    #[test]
    fn an_unreadable_rule_names_the_field() {
        let json = br#"{"name":"a","topic":"t","paths":["/a"],"pace":{"bytes_per_second":"fast"}}"#;
        let error = RuleSpec::from_json(json).unwrap_err();
        assert_eq!(error.to_string(), "the rule's JSON is unreadable at pace.bytes_per_second");
        assert!(RuleSpec::from_json(br#"{"name":"a","topic":"t","paths":[],"procss":"x"}"#).is_err());
    }
}
