//! A process's settings: defaults, then a TOML file, then environment, then options; the later wins.
//!
//! A key that nobody knows is an error that names it and where it stands: a mistyped limit must not mean "no limit".
//! For that to hold, settings structs carry `#[serde(default, deny_unknown_fields)]`.
//!
//! `limits.chunk` in the file is `LOGMESH_LIMITS__CHUNK` in the environment. A list there is written as in TOML:
//! `LOGMESH_SERVERS='["a:7401", "b:7401"]'`.

mod place;
mod print;

use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;
use serde::de::DeserializeOwned;

use place::Place;

/// What the names of our environment variables begin with.
const ENV_PREFIX: &str = "LOGMESH_";

/// Variables that begin so and aren't settings of a service: the command line's own.
const ENV_OF_CLI: &[&str] = &["author", "server"];

/// Why settings couldn't be loaded. Each says which key, where it stands, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("cannot read the settings file {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file isn't TOML.
    #[error("{path} is not valid TOML: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// Nobody knows this key.
    #[error("unknown setting `{key}` in {place}; known there are: {known}")]
    UnknownKey {
        /// The key's path, `limits.chunk`.
        key: String,
        /// Where it stands.
        place: String,
        /// The keys that could stand there.
        known: String,
    },
    /// The value isn't one for this key.
    #[error("setting `{key}` in {place}: {reason}")]
    BadValue {
        /// The key's path.
        key: String,
        /// Where it stands.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

/// Settings with the knowledge of where each value came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The settings in force.
    pub value: T,
    sources: Figment,
}

impl<T> Loaded<T> {
    /// One line for each value, by key, with where it came from; secrets are hidden.
    pub fn print(&self) -> String {
        print::lines(&self.sources)
    }
}

/// Loads the settings. `options` is what the command line said: any value that serializes as a map in the shape of `T`, in
/// which `None` means "not given".
pub fn load<T>(file: Option<&Path>, options: impl Serialize) -> Result<Loaded<T>, SettingsError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let text = file.map(read).transpose()?;
    let mut sources = Figment::from(Named { place: Place::Default, inner: Serialized::defaults(T::default()) });
    if let (Some(path), Some(text)) = (file, &text) {
        sources = sources.merge(Named { place: Place::File(path.to_owned()), inner: Toml::string(text) });
    }
    let env = Env::prefixed(ENV_PREFIX).ignore(ENV_OF_CLI).split("__");
    let options = Given(Serialized::defaults(options));
    let sources = sources
        .merge(Named { place: Place::Environment, inner: env })
        .merge(Named { place: Place::Options, inner: options });
    match sources.extract() {
        Ok(value) => Ok(Loaded { value, sources }),
        Err(error) => Err(explain(&sources, text.as_deref(), error)),
    }
}

/// The file's text, known to be TOML.
fn read(path: &Path) -> Result<String, SettingsError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })?;
    match toml::from_str::<toml::Table>(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(SettingsError::Syntax { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// Figment's error in our words.
fn explain(sources: &Figment, text: Option<&str>, error: figment::Error) -> SettingsError {
    let mut path = error.path.clone();
    if let Kind::UnknownField(name, _) = &error.kind
        && path.last() != Some(name)
    {
        path.push(name.clone());
    }
    let key = path.join(".");
    let place = match sources.find_metadata(&key).or(error.metadata.as_ref()) {
        Some(metadata) => Place::of(metadata).at(&path, text),
        None => "the settings".to_owned(),
    };
    match error.kind {
        Kind::UnknownField(_, known) => SettingsError::UnknownKey { key, place, known: known.join(", ") },
        kind => SettingsError::BadValue { key, place, reason: kind.to_string() },
    }
}

/// A provider whose values are said to come from `place`.
struct Named<P> {
    place: Place,
    inner: P,
}

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        self.place.metadata()
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        self.inner.data()
    }
}

/// A provider without the values that are empty: options that weren't given must not hide what the file says.
struct Given<P>(P);

impl<P: Provider> Provider for Given<P> {
    fn metadata(&self) -> Metadata {
        self.0.metadata()
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(self.0.data()?.into_iter().map(|(profile, values)| (profile, given(values))).collect())
    }
}

fn given(values: Dict) -> Dict {
    let known = values.into_iter().filter(|(_, value)| !matches!(value, Value::Empty(..)));
    known
        .map(|(key, value)| match value {
            Value::Dict(tag, inner) => (key, Value::Dict(tag, given(inner))),
            other => (key, other),
        })
        .collect()
}

#[cfg(test)]
mod tests;
