//! Rules: what to collect where. The model, its text forms and its checks; nothing here does I/O.
//!
//! A [`RuleSpec`] is a rule as someone wrote it and may be wrong anywhere; [`RuleSpec::compile`] checks all of it at
//! once and gives a [`Rule`], whose selector and globs are ready to match. Only a `Rule` may be applied.

mod proto;
mod rule;
mod seed;
mod selector;
mod spec;
mod yaml;

pub use rule::Rule;
pub use seed::{BrokenEntry, SEED_NAMES, SeedEntries, SeedRule, read_seed, seed_host, seed_names};
pub use selector::{Labels, Selector, SelectorError};
pub use spec::{Format, JsonError, LongEvents, Multiline, Pace, RuleSpec, StartAt, Violation, Violations};
pub use yaml::{Document, YamlError, parse_yaml, to_yaml};
