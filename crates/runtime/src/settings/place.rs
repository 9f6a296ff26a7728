//! Where a setting stands.

use std::path::PathBuf;

use figment::{Metadata, Source};
use toml::de::{DeTable, DeValue};

use super::ENV_PREFIX;

/// One of the four places that settings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nobody said anything.
    Default,
    /// The settings file.
    File(PathBuf),
    /// A variable of the environment.
    Environment,
    /// An option of the command line.
    Options,
}

impl Place {
    /// How figment keeps it.
    pub(super) fn metadata(&self) -> Metadata {
        match self {
            Self::Default => Metadata::named("default"),
            Self::File(path) => Metadata::from("file", path.as_path()),
            Self::Environment => Metadata::named("environment"),
            Self::Options => Metadata::named("options"),
        }
    }

    /// The way back from [`metadata`](Self::metadata).
    pub(super) fn of(metadata: &Metadata) -> Self {
        match (&metadata.source, metadata.name.as_ref()) {
            (Some(Source::File(path)), _) => Self::File(path.clone()),
            (_, "environment") => Self::Environment,
            (_, "options") => Self::Options,
            _ => Self::Default,
        }
    }

    /// For people: the file and its line if `text` is the file's, the variable, or the option.
    pub(super) fn at(&self, key: &[String], text: Option<&str>) -> String {
        match self {
            Self::Default => "the defaults".to_owned(),
            Self::File(path) => match text.and_then(|text| line_of(text, key)) {
                Some(line) => format!("{}, line {line}", path.display()),
                None => path.display().to_string(),
            },
            Self::Environment => format!("the environment ({ENV_PREFIX}{})", key.join("__").to_uppercase()),
            Self::Options => "the command line".to_owned(),
        }
    }
}

/// The line of the deepest part of the key that the TOML text holds, from 1.
fn line_of(text: &str, key: &[String]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut start = None;
    for part in key {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref().as_ref() == part) else { break };
        start = Some(name.span().start);
        let DeValue::Table(inner) = value.get_ref() else { break };
        table = inner;
    }
    start.map(|start| text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1)
}
