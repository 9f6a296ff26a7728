//! `docs/grpcurl.md` is true: its calls are run in their order against a mesh, and print what it says.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeSet;
use std::path::Path;

use logmesh_integration_tests::Mesh;
use logmesh_integration_tests::program::{command, logmesh};
use prost::Message;
use prost_types::FileDescriptorSet;

const COOKBOOK: &str = include_str!("../../docs/grpcurl.md");

/// Where the cookbook says that the mesh listens.
const ADDRESS: &str = "127.0.0.1:7400";

/// Seconds that all calls may take, and how `timeout` ends when they took more.
const TIME: &str = "300";
const TIMED_OUT: i32 = 124;

/// A block of commands, and what they print.
struct Recipe {
    commands: String,
    prints: String,
}

/// The fenced blocks, two by two.
fn recipes() -> Vec<Recipe> {
    let blocks: Vec<(&str, &str)> = (COOKBOOK.split("```").skip(1).step_by(2))
        .map(|block| block.split_once('\n').expect("a block begins with its language"))
        .collect();
    let pair = |pair: &[(&str, &str)]| {
        let [("sh", commands), (language, prints)] = pair else { panic!("no commands and their output: {pair:?}") };
        assert!(matches!(*language, "" | "json"), "{language} is no output: {prints}");
        Recipe { commands: (*commands).to_owned(), prints: (*prints).to_owned() }
    };
    blocks.chunks(2).map(pair).collect()
}

/// One script, so that a block may use what one before it has set. Each block's output goes to a file of its number.
fn script(recipes: &[Recipe], address: &str) -> String {
    let block = |(number, recipe): (usize, &Recipe)| format!("{{\n{}\n}} >{number} 2>&1\n", recipe.commands);
    recipes.iter().enumerate().map(block).collect::<String>().replace(ADDRESS, address)
}

/// The line of `expected` that has no place in `printed`, if there is one. Each has to come after the one before it, and
/// behind it at once unless a line `…` stands between them.
fn missing<'e>(expected: &'e str, printed: &str) -> Option<&'e str> {
    let mut rest = printed.lines();
    let mut anywhere = true;
    for line in expected.lines() {
        if line == "…" {
            anywhere = true;
            continue;
        }
        let found = if std::mem::take(&mut anywhere) {
            rest.any(|printed| is_like(line, printed))
        } else {
            rest.next().is_some_and(|printed| is_like(line, printed))
        };
        if !found {
            return Some(line);
        }
    }
    None
}

/// True if the line is the one expected, in which `…` stands for any text. A comma at the end doesn't count: what comes after
/// may be left out.
fn is_like(expected: &str, printed: &str) -> bool {
    let mut parts = expected.trim_end_matches(',').split('…');
    let mut rest = match printed.trim_end_matches(',').strip_prefix(parts.next().unwrap_or_default()) {
        Some(rest) => rest,
        None => return false,
    };
    let mut open = false;
    for part in parts {
        open = true;
        rest = match rest.find(part) {
            Some(place) => &rest[place + part.len()..],
            None => return false,
        };
    }
    rest.is_empty() || (open && expected.trim_end_matches(',').ends_with('…'))
}

#[test]
fn what_the_cookbook_says_is_printed() {
    let mesh = Mesh::started();
    std::fs::write(mesh.log("app.log"), "one\n").unwrap();
    mesh.wait_count("one", 1);
    let recipes = recipes();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin");
    let programs = logmesh().parent().unwrap();
    let path = format!("{}:{}:{}", tools.display(), programs.display(), std::env::var("PATH").unwrap());
    let folder = mesh.folder.join("cookbook");
    std::fs::create_dir(&folder).unwrap();
    let script = script(&recipes, mesh.grpc());
    let mut bash = command(Path::new("timeout"));
    bash.args([TIME, "bash", "-c", &script]).env("PATH", path).current_dir(&folder);
    let code = bash.status().unwrap().code();
    assert!(code.is_some_and(|code| code != TIMED_OUT), "it took longer than {TIME} s, or was killed: {code:?}");
    let wrong = recipes.iter().enumerate().filter_map(|(number, recipe)| {
        let printed = std::fs::read_to_string(folder.join(number.to_string())).unwrap().replace(mesh.grpc(), ADDRESS);
        let missing = missing(&recipe.prints, &printed)?;
        Some(format!("{missing:?} isn't there:\n{}\n{printed}", recipe.commands))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn each_declared_method_is_in_the_cookbook() {
    let set = FileDescriptorSet::decode(logmesh_proto::FILE_DESCRIPTOR_SET).unwrap();
    let methods = set.file.iter().filter(|file| file.package().starts_with("logmesh.")).flat_map(|file| {
        let of = |service: &prost_types::ServiceDescriptorProto| -> Vec<String> {
            let name = format!("{}.{}", file.package(), service.name());
            service.method.iter().map(|method| format!(" {name}/{}\n", method.name())).collect()
        };
        file.service.iter().flat_map(of).collect::<Vec<_>>()
    });
    let calls: String = recipes().into_iter().map(|recipe| recipe.commands.replace(" |", "\n")).collect();
    let left_out: BTreeSet<String> = methods.filter(|method| !calls.contains(method.as_str())).collect();
    assert!(left_out.is_empty(), "not in docs/grpcurl.md: {left_out:?}");
}

#[test]
fn lines_are_compared_as_they_stand() {
    assert!(is_like("  \"a\": \"…\",", "  \"a\": \"xyz\""));
    assert!(is_like("a…", "abc") && is_like("…", "") && is_like("a…c…", "abcd"));
    assert!(!is_like("a", "ab") && !is_like("a…c", "abcd") && !is_like("b…", "ab"));
    assert_eq!(missing("one\nthree\n", "zero\none\ntwo\nthree\n"), Some("three"), "two stands between them");
    assert_eq!(missing("one\n…\nthree\n", "zero\none\ntwo\nthree\n"), None);
    assert_eq!(missing("three\n…\none\n", "one\nthree\n"), Some("one"));
}
