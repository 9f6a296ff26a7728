//! `docs/reference/` is made of the code, so that it can't say what isn't so: settings from the structs that hold them, with
//! their comments and defaults, and metrics from the list that `/metrics` describes them by.
//!
//! A test fails when a page is out of date; `MESH_WRITE_REFERENCE=1 cargo test -p logmesh reference` writes it.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Parser;
use logmesh_types::metric;
use schemars::{JsonSchema, schema_for};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{service, settings};

/// Fails if the page isn't as the code has it, or writes it if that was asked for.
fn check(page: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(page);
    if std::env::var_os("MESH_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == text,
        "docs/reference/{page} is out of date: MESH_WRITE_REFERENCE=1 cargo test -p logmesh reference"
    );
}

#[test]
fn the_reference_of_metrics_is_what_the_code_has() {
    let mut text = String::from(
        "# Metrics\n\nMade of `crates/types/src/metric.rs` by a test; edit that. Each process tells its own on `/metrics` of its \
         operator's port ([ports](../../README.md#ports)). A counter is 0, and may be absent, until it first counts.\n\n\
         | name | kind | labels | what it tells |\n|---|---|---|---|\n",
    );
    for metric in metric::ALL {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        writeln!(text, "| `{}` | {kind} | {} | {} |", metric.name, metric.labels.join(", "), metric.help).unwrap();
    }
    check("metrics.md", &text);
}

#[test]
fn the_reference_of_settings_is_what_the_code_has() {
    let mut text = String::from(
        "# Settings\n\nMade of the code by a test; edit the comments there. Each service takes its defaults, then a TOML file \
         (`--config`), then variables of the environment, then options; the later wins, and a key that nobody knows is an error. \
         `a.b` here is `b = …` under `[a]` in the file, and `LOGMESH_A__B` in the environment, where a list is written as in \
         TOML: `'[\"x\", \"y\"]'`. `--print-config` shows what is in force and where it came from.\n\nSizes are written `512`, \
         `64KiB` or `5MiB`, spans of time `500ms`, `15m`, `36h` or `90d`.\n",
    );
    let apart = service::Settings::default();
    section(&mut text, "logmesh config, gateway, transfer, console", "One file serves all four.", &apart);
    // What depends on who runs it.
    let standalone = settings::Settings { data_dir: "/var/lib/logmesh".into(), ..Default::default() };
    section(
        &mut text,
        "logmesh standalone",
        "The data folder is `~/.local/state/logmesh` for others than root.",
        &standalone,
    );
    let agent = logmesh_agent::Settings { state_dir: "/var/lib/logmesh-agent".into(), ..Default::default() };
    section(&mut text, "logmesh-agent", "", &agent);
    check("settings.md", &text);
}

fn section<T: JsonSchema + Serialize>(text: &mut String, title: &str, note: &str, defaults: &T) {
    let root = schema_for!(T).to_value();
    write!(text, "\n## {title}\n\n").unwrap();
    if !note.is_empty() {
        write!(text, "{note}\n\n").unwrap();
    }
    text.push_str("| key | default | what it says |\n|---|---|---|\n");
    rows(text, &root, &root, "", &serde_json::to_value(defaults).unwrap());
}

/// A row for each key of a table, and those of the tables in it.
fn rows(text: &mut String, root: &Value, table: &Value, prefix: &str, defaults: &Value) {
    for (key, field) in &properties(table) {
        let key = format!("{prefix}{key}");
        let default = &defaults[key.rsplit('.').next().unwrap()];
        let kind = resolve(root, field);
        let values = kind.get("additionalProperties").filter(|values| values.is_object());
        if values.is_none() && !properties(kind).is_empty() {
            rows(text, root, kind, &format!("{key}."), default);
            continue;
        }
        let meaning = meaning(root, field, kind);
        writeln!(text, "| `{key}` | {} | {meaning} |", shown(default)).unwrap();
        if let Some(values) = values.map(|values| resolve(root, values)) {
            rows(text, root, values, &format!("{key}.NAME."), &Value::Null);
        }
    }
}

fn properties(schema: &Value) -> Map<String, Value> {
    schema["properties"].as_object().cloned().unwrap_or_default()
}

/// The schema that a field refers to, past what says that it may be left out.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let alternatives = schema["anyOf"].as_array();
    let schema = alternatives.and_then(|all| all.iter().find(|one| one["type"] != "null")).unwrap_or(schema);
    match schema["$ref"].as_str() {
        Some(place) => root.pointer(place.trim_start_matches('#')).expect("a schema that is referred to is there"),
        None => schema,
    }
}

/// What the comment says, and which values there are where they're few.
fn meaning(root: &Value, field: &Value, kind: &Value) -> String {
    let mut text = comment(field);
    assert!(!text.is_empty(), "a setting without a comment: {field}");
    let choices = kind["oneOf"].as_array().into_iter().flatten();
    for choice in choices {
        let choice = resolve(root, choice);
        let value = choice["const"].as_str().or_else(|| choice["enum"][0].as_str()).unwrap_or_default();
        write!(text, "<br>`{value}`: {}", comment(choice)).unwrap();
    }
    text
}

fn comment(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => String::new(),
        Value::String(text) => format!("`{text}`"),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => format!("`{other}`"),
    }
}

/// Every `logmesh …` in the code blocks of the pages is one that the program takes.
#[test]
fn the_commands_in_the_pages_are_ones_that_there_are() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    let mut checked = 0;
    for page in pages.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        // Text between fences is every second part.
        for line in text.split("```").skip(1).step_by(2).flat_map(str::lines) {
            let Some(words) = line.strip_prefix("logmesh ").map(words) else { continue };
            let all = std::iter::once("logmesh".to_owned()).chain(words);
            if let Err(error) = crate::Args::try_parse_from(all) {
                panic!("{}: {line}\n{error}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} commands were found");
}

/// The words of a command as a shell cuts them, up to a comment or where its output goes; only quotes are known here.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for letter in line.chars() {
        match (quote, letter) {
            (None, '#' | '>' | '|' | '&') if words.last().is_some_and(String::is_empty) => break,
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            (None, ' ') => words.push(String::new()),
            (_, letter) => words.last_mut().expect("there is always a last word").push(letter),
        }
    }
    words.into_iter().filter(|word| !word.is_empty()).collect()
}
