//! What an audit lists, and what the files and documents say that it should.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::client::{Client, json_lines};
use crate::program::Done;

/// Ranges of a stream, `[start, end)`.
pub type Places = Vec<(u64, u64)>;

/// The gaps that `logmesh audit --json` with these arguments lists as `not_indexed`, by path; panics if it ends with another
/// code, or lists another kind.
#[track_caller]
pub fn gaps(client: &Client, args: &[&str], code: i32) -> BTreeMap<String, Places> {
    listed(client, args, code, "gaps", &["not_indexed"])
}

/// The doubles that it lists, by path; panics if it ends with another code, or lists anything else.
#[track_caller]
pub fn doubles(client: &Client, args: &[&str], code: i32) -> BTreeMap<String, Places> {
    listed(client, args, code, "doubles", &["same_document", "overlap"])
}

#[track_caller]
fn listed(client: &Client, args: &[&str], code: i32, kind: &str, causes: &[&str]) -> BTreeMap<String, Places> {
    let audits = json_lines(&client.run(&[&["audit", "--json"], args].concat()).expect(code).stdout);
    let mut found = BTreeMap::new();
    for audit in &audits {
        let listed = audit[kind].as_array().unwrap_or_else(|| panic!("no {kind} in {audit}"));
        assert!(listed.iter().all(|one| causes.iter().any(|cause| one["cause"] == *cause)), "{audit}");
        assert_eq!(audit["clean"], listed.is_empty(), "{audit}");
        found.insert(audit["path"].as_str().unwrap_or_default().to_owned(), listed.iter().map(place_in).collect());
    }
    found
}

/// Where a finding, or a range that was repaired, lies.
pub fn place_in(one: &Value) -> (u64, u64) {
    (number(one, "start_offset"), number(one, "end_offset"))
}

/// Where the event of a document lies in its stream.
pub fn place_of(document: &Value) -> (u64, u64) {
    let start = number(document, "logmesh.offset");
    (start, start + number(document, "logmesh.length"))
}

/// Panics unless each of these texts was printed.
#[track_caller]
pub fn prints(done: &Done, texts: &[&str]) {
    texts.iter().for_each(|text| assert!(done.stdout.contains(text), "{text:?} is not in: {}", done.stdout));
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}
