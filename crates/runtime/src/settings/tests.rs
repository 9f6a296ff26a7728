//! The environment of a test process is shared by all its tests, so what depends on it runs in `figment::Jail`.

#![allow(clippy::result_large_err)] // figment's own error type

use std::collections::BTreeMap;

use figment::Jail;
use logmesh_types::ByteSize;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Example {
    listen: String,
    servers: Vec<String>,
    limits: Limits,
    labels: BTreeMap<String, String>,
    api_key: Option<String>,
    data_dir: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    chunk: ByteSize,
    files: u32,
}

impl Default for Example {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7400".to_owned(),
            servers: Vec::new(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
            api_key: None,
            data_dir: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { chunk: ByteSize(1 << 20), files: 100 }
    }
}

#[derive(Serialize, Default)]
struct Options {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
}

/// Loads `text` as the file `x.toml`, with these variables.
fn load_with(text: &str, env: &[(&str, &str)], options: Options) -> Result<Loaded<Example>, SettingsError> {
    let mut result = None;
    Jail::expect_with(|jail| {
        jail.clear_env();
        env.iter().for_each(|(name, value)| jail.set_env(name, value));
        jail.create_file("x.toml", text)?;
        result = Some(load(Some(Path::new("x.toml")), options));
        Ok(())
    });
    result.unwrap()
}

fn error_of(text: &str, env: &[(&str, &str)]) -> String {
    load_with(text, env, Options::default()).unwrap_err().to_string()
}

#[test]
fn the_later_source_wins() {
    let text = "listen = \"127.0.0.1:1\"\ndata_dir = \"/file\"\n[limits]\nchunk = \"64KiB\"\n[labels]\nenv = \"prod\"";
    let env = [
        ("LOGMESH_LIMITS__FILES", "7"),
        ("LOGMESH_SERVERS", r#"["a:1", "b:2"]"#),
        ("LOGMESH_SERVER", "x:1"),
        ("LOGMESH_AUTHOR", "me"),
    ];
    let options = Options { data_dir: Some("/option".into()), ..Options::default() };
    let value = load_with(text, &env, options).unwrap().value;
    assert_eq!(value.listen, "127.0.0.1:1", "an option that isn't given hides nothing");
    assert_eq!(value.servers, ["a:1", "b:2"]);
    assert_eq!(value.limits, Limits { chunk: ByteSize(64 << 10), files: 7 });
    assert_eq!(value.labels["env"], "prod");
    assert_eq!(value.data_dir, Some(PathBuf::from("/option")));
}

#[test]
fn without_anything_there_are_the_defaults() {
    assert_eq!(load_with("", &[], Options::default()).unwrap().value, Example::default());
}

#[test]
fn an_unknown_key_is_named_with_its_place() {
    let error = error_of("\n[limits]\nchunks = 5\n", &[]);
    assert_eq!(error, "unknown setting `limits.chunks` in x.toml, line 3; known there are: chunk, files");
    let error = error_of("", &[("LOGMESH_LISTN", "a")]);
    assert!(error.starts_with("unknown setting `listn` in the environment (LOGMESH_LISTN)"), "{error}");
}

#[test]
fn a_bad_value_is_named_with_its_place() {
    let error = error_of("listen = 'a'\n[limits]\nfiles = \"many\"\n", &[]);
    assert!(error.contains("`limits.files` in x.toml, line 3") && error.contains("u32"), "{error}");
    let error = error_of("", &[("LOGMESH_LIMITS__CHUNK", "5 parsecs")]);
    assert!(error.contains("(LOGMESH_LIMITS__CHUNK)") && error.contains("parsecs"), "{error}");
}

#[test]
fn a_bad_file_is_named() {
    let error = error_of("listen = \n", &[]);
    assert!(error.contains("x.toml is not valid TOML") && error.contains("line 1"), "{error}");
    let error = load::<Example>(Some(Path::new("/nowhere/x.toml")), Options::default()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/x.toml"), "{error}");
}

#[test]
fn what_is_in_force_is_shown_with_its_source_and_without_secrets() {
    let env = [("LOGMESH_LIMITS__FILES", "7"), ("LOGMESH_API_KEY", "hunter2")];
    let options = Options { listen: Some("127.0.0.1:9".into()), ..Options::default() };
    let text = load_with("[limits]\nchunk = \"64KiB\"", &env, options).unwrap().print();
    let expected = "\
api_key = (hidden)  # the environment (LOGMESH_API_KEY)
data_dir = (not set)  # default
labels = {}  # default
limits.chunk = \"64KiB\"  # x.toml
limits.files = 7  # the environment (LOGMESH_LIMITS__FILES)
listen = \"127.0.0.1:9\"  # the command line
servers = []  # default
";
    assert_eq!(text, expected);
}
