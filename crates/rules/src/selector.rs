//! Selectors: which agents a rule is for, as a match on their labels.
//!
//! ```text
//! env=prod, role in (web, api), ip=10.0.0.7
//! (role=web OR role=api) AND NOT exists(gpu)
//! ```
//!
//! Requirements stand between commas and all must hold; within one, OR binds weaker than AND, AND weaker than NOT (`!`).
//! A requirement is `key=value`, `key!=value`, `key in (a, b)`, `key notin (a, b)` or `exists(key)`. As in Kubernetes,
//! `!=` and `notin` also hold where the label is missing. Values with other characters than a word's stand in double
//! quotes. An empty selector matches every agent.
//!
//! A host may have several addresses: the label `ip` holds them with commas between, and each of them counts.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

mod parse;

pub use parse::SelectorError;

/// An agent's labels.
pub type Labels = BTreeMap<String, String>;

/// A selector that was read. Printed in its canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// All must hold.
    requirements: Vec<Expr>,
}

/// A part of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    In { key: String, values: Vec<String> },
    Exists { key: String },
}

impl Selector {
    /// True if an agent with these labels is meant.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|expr| expr.matches(labels))
    }

    /// The keys that it names, each as often as it does.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys = Vec::new();
        self.requirements.iter().for_each(|expr| expr.add_keys(&mut keys));
        keys
    }
}

impl Expr {
    fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(labels)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(labels)),
            Self::Not(part) => !part.matches(labels),
            Self::Exists { key } => labels.contains_key(key),
            Self::In { key, values } => {
                labels.get(key).is_some_and(|label| values.iter().any(|value| equal(key, label, value)))
            }
        }
    }

    fn add_keys<'a>(&'a self, keys: &mut Vec<&'a str>) {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|part| part.add_keys(keys)),
            Self::Not(part) => part.add_keys(keys),
            Self::In { key, .. } | Self::Exists { key } => keys.push(key),
        }
    }

    /// How strongly the outermost operator binds.
    fn strength(&self) -> u8 {
        match self {
            Self::Any(_) => 0,
            Self::All(_) => 1,
            _ => 2,
        }
    }
}

fn equal(key: &str, label: &str, value: &str) -> bool {
    if key != "ip" {
        return label == value;
    }
    let mut addresses = label.split(',').map(str::trim);
    // An IPv4 address is written in one way only. A tree of thousands of hosts asks this of each of them.
    if !value.contains(':') {
        return addresses.any(|label| label == value);
    }
    let wanted = value.parse::<IpAddr>();
    addresses.any(|label| match (&wanted, label.parse::<IpAddr>()) {
        (Ok(wanted), Ok(address)) => *wanted == address,
        _ => label == value,
    })
}

impl FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        parse::selector(text).map(|requirements| Self { requirements })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.requirements, ", ", 0)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(parts) => join(f, parts, " AND ", 2),
            Self::Any(parts) => join(f, parts, " OR ", 1),
            Self::Exists { key } => write!(f, "exists({key})"),
            Self::In { key, values } => write_in(f, key, values, ["=", "in"]),
            Self::Not(part) => match &**part {
                Self::In { key, values } => write_in(f, key, values, ["!=", "notin"]),
                Self::Exists { key } => write!(f, "!exists({key})"),
                other => write!(f, "NOT ({other})"),
            },
        }
    }
}

/// Prints the parts, those that bind weaker than `least` in parentheses.
fn join(f: &mut fmt::Formatter<'_>, parts: &[Expr], separator: &str, least: u8) -> fmt::Result {
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            f.write_str(separator)?;
        }
        if part.strength() < least {
            write!(f, "({part})")?;
        } else {
            write!(f, "{part}")?;
        }
    }
    Ok(())
}

fn write_in(f: &mut fmt::Formatter<'_>, key: &str, values: &[String], [one, several]: [&str; 2]) -> fmt::Result {
    if let [value] = values {
        return write!(f, "{key}{one}{}", Value(value));
    }
    write!(f, "{key} {several} (")?;
    for (place, value) in values.iter().enumerate() {
        let separator = if place == 0 { "" } else { ", " };
        write!(f, "{separator}{}", Value(value))?;
    }
    f.write_str(")")
}

/// A value as it's written: a word if it can be one, else in quotes.
struct Value<'a>(&'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(parse::is_word) {
            return f.write_str(self.0);
        }
        write!(f, "\"{}\"", self.0.replace('\\', r"\\").replace('"', r#"\""#))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
        selector.parse::<Selector>().unwrap().matches(&labels(pairs))
    }

    #[test]
    fn every_form_of_requirement_matches_as_written() {
        let web = [("env", "prod"), ("role", "web"), ("ip", "10.0.0.7,fe80::1")];
        for yes in [
            "",
            "  ",
            "env=prod",
            "env == prod",
            "env=prod, role in (web, api), ip=10.0.0.7",
            "ip=fe80:0:0::1",
            "ip in (10.0.0.7)",
            "env!=test",
            "rack!=7",
            "role notin (db)",
            "rack notin (7, 8)",
            "exists(env)",
            "!exists(gpu)",
            "NOT exists(gpu) AND env=prod",
            "role=db or role=web",
            "env=\"prod\"",
            "!(role=db, env=prod)",
            "role=db OR role=web, env=prod",
        ] {
            assert!(matches(yes, &web), "{yes:?}");
        }
        for no in [
            "env=test",
            "env=prod, role=db",
            "ip=10.0.0.70",
            "ip!=10.0.0.7",
            "role notin (web)",
            "exists(gpu)",
            "rack=7",
            "role=web AND NOT env=prod",
            "role=web OR role=db, env=test",
        ] {
            assert!(!matches(no, &web), "{no:?}");
        }
    }

    #[test]
    fn and_binds_stronger_than_or() {
        assert!(matches("a=1 OR b=1 AND c=1", &[("a", "1")]));
        assert!(!matches("(a=1 OR b=1) AND c=1", &[("a", "1")]));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z0-9._:/-]{1,6}", "[ -~äß\u{4e2d}]{0,6}", Just("and".to_owned()), Just("in".to_owned())]
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![Just("k".to_owned()), Just("ip".to_owned()), Just("a.b/c-d_e".to_owned()), "k[a-z0-9]{0,5}"]
    }

    fn expr() -> impl Strategy<Value = Expr> {
        let leaf = prop_oneof![
            key().prop_map(|key| Expr::Exists { key }),
            (key(), prop::collection::vec(text(), 1..4)).prop_map(|(key, values)| Expr::In { key, values }),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|part| Expr::Not(Box::new(part))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::All),
                prop::collection::vec(inner, 2..4).prop_map(Expr::Any),
            ]
        })
    }

    proptest! {
        /// What is printed means the same when it is read again.
        #[test]
        fn printing_and_reading_are_inverse(requirements in prop::collection::vec(expr(), 0..4)) {
            let selector = Selector { requirements };
            let printed = selector.to_string();
            let read: Selector = printed.parse().unwrap();
            prop_assert_eq!(read.to_string(), printed);
            prop_assert_eq!(read, selector);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            drop(text.parse::<Selector>());
        }

        #[test]
        fn no_text_of_its_own_words_makes_the_reader_panic(
            words in prop::collection::vec(prop::sample::select(
                vec!["a", "=", "!=", "!", "(", ")", ",", "in", "notin", "and", "or", "not", "exists", "\"", " ", "\\"]), 0..20)
        ) {
            if let Ok(selector) = words.concat().parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
            }
        }
    }
}
