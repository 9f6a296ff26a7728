//! The audit against damage done by hand: documents deleted one by one, a whole day removed from the index. It names the exact
//! ranges, `--repair` puts them back, and what was killed half-way or repeated spoils nothing. Documents doubled by hand are named too,
//! and their copies removed.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::compare::{assert_equal, by_path};
use logmesh_integration_tests::gaps::{doubles, gaps, place_in, place_of, prints};
use logmesh_integration_tests::program::command;
use logmesh_integration_tests::{Mesh, PATIENCE};
use logmesh_testing::wait_for;
use serde_json::Value;
use tantivy::directory::MmapDirectory;
use tantivy::query::{AllQuery, BooleanQuery, Occur, Query, TermQuery};
use tantivy::schema::IndexRecordOption;
use tantivy::{Index, IndexWriter, TantivyDocument, Term};

/// Files, and lines of each.
const FILES: usize = 3;
const LINES: usize = 700;

/// What a query finds, by the file's path.
type Found = BTreeMap<String, Vec<Value>>;

/// A mesh that has collected all files, and is stopped.
fn filled() -> Mesh {
    let mut mesh = Mesh::new();
    for file in 0..FILES {
        let line = |number: usize| format!("file {file} line {number} {}\n", "x".repeat(number * 7 % 50));
        std::fs::write(mesh.log(&format!("{file}.log")), (0..LINES).map(line).collect::<String>()).unwrap();
    }
    mesh.start();
    mesh.wait_count("*", (FILES * LINES) as u64);
    mesh.audit();
    assert!(mesh.stop().success());
    mesh
}

/// The folders of the days in the index, while the mesh is stopped.
fn days(mesh: &Mesh) -> Vec<PathBuf> {
    let slices = mesh.data.join("index/slices/logs");
    let days: Vec<PathBuf> = slices.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!days.is_empty(), "no day in {}", slices.display());
    days
}

/// Deletes documents behind the mesh's back, while it is stopped.
fn delete(mesh: &Mesh, ids: &[String]) {
    for day in days(mesh) {
        let index = Index::open(MmapDirectory::open(day).unwrap()).unwrap();
        let id = index.schema().get_field("id").unwrap();
        let mut writer: IndexWriter<TantivyDocument> = index.writer_with_num_threads(1, 15_000_000).unwrap();
        for text in ids {
            writer.delete_term(Term::from_field_text(id, text));
        }
        writer.commit().unwrap();
        // Gone from the segments too, as if they had never been there.
        writer.merge(&index.searchable_segment_ids().unwrap()).wait().unwrap();
        writer.wait_merging_threads().unwrap();
    }
}

fn found(mesh: &Mesh) -> Found {
    let mut found = Found::new();
    for document in mesh.search("*") {
        found.entry(document["log.file.path"].as_str().unwrap().to_owned()).or_default().push(document);
    }
    for documents in found.values_mut() {
        documents.sort_by_key(|document| document["logmesh.offset"].as_u64());
    }
    found
}

/// Each line of each file once, as it was written.
fn assert_whole(mesh: &Mesh) {
    assert_eq!(mesh.count("*"), (FILES * LINES) as u64);
    let documents = mesh.search("*");
    let found = by_path(&documents);
    for file in 0..FILES {
        let path = mesh.log(&format!("{file}.log"));
        assert_equal(&path, &found[&path.display().to_string()]);
    }
}

fn path(mesh: &Mesh, file: usize) -> String {
    mesh.log(&format!("{file}.log")).display().to_string()
}

#[test]
fn what_was_deleted_by_hand_is_named_by_its_ranges_and_put_back() {
    let mut mesh = filled();
    mesh.start();
    let before = found(&mesh);
    // Two lines that touch, a single one and the last one of the first file, and one of the second: lines of any length.
    let gone =
        [(0, 10), (0, 11), (0, 300), (0, LINES - 1), (1, 0)].map(|(file, line)| &before[&path(&mesh, file)][line]);
    let [first, second, third, last, other] = gone.map(place_of);
    assert_eq!(first.1, second.0);
    assert!(mesh.stop().success());
    delete(&mesh, &gone.map(|document| document["_id"].as_str().unwrap().to_owned()));

    mesh.start();
    assert_eq!(mesh.count("*"), (FILES * LINES - 5) as u64);
    let expected = BTreeMap::from([
        (path(&mesh, 0), vec![(first.0, second.1), third, last]),
        (path(&mesh, 1), vec![other]),
        (path(&mesh, 2), vec![]),
    ]);
    assert_eq!(gaps(&mesh.client(), &[], 1), expected);
    prints(&mesh.run(&["audit"]).expect(1), &["4 gaps, 0 doubles", "no document holds it"]);

    prints(&mesh.run(&["audit", "--repair"]).expect(0), &["5 events", "no gap, no double"]);
    assert_whole(&mesh);
    mesh.audit();
    let again = mesh.run(&["audit", "--repair"]).expect(0);
    assert!(!again.stdout.contains("sent through the bus"), "{again:?}");
    assert_whole(&mesh);
    prints(&mesh.run(&["audit", "--streams"]).expect(0), &["INDEXED", &path(&mesh, 2), "no gap, no double"]);
    assert!(mesh.stop().success());
}

#[test]
fn a_day_that_was_removed_comes_back_though_its_repair_is_killed() {
    let mut mesh = filled();
    days(&mesh).iter().for_each(|day| std::fs::remove_dir_all(day).unwrap());
    mesh.start();
    let size = |file: usize| std::fs::metadata(mesh.log(&format!("{file}.log"))).unwrap().len();
    let expected: BTreeMap<_, _> = (0..FILES).map(|file| (path(&mesh, file), vec![(0, size(file))])).collect();
    assert_eq!(gaps(&mesh.client(), &[], 1), expected);

    // Killed as soon as the first lines are back.
    let mut repair = command(&mesh.program);
    repair.env("LOGMESH_SERVER", mesh.grpc()).args(["audit", "--repair"]);
    let mut repair = repair.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the first lines to be back", PATIENCE, || match mesh.count("*") {
        0 => Err("none".to_owned()),
        some => Ok(some),
    });
    mesh.kill();
    repair.wait().unwrap();

    mesh.start();
    mesh.run(&["audit", "--repair"]).expect(0);
    assert_whole(&mesh);
    mesh.audit();
    assert!(mesh.stop().success());
}

/// Copies the days of the index, with these documents or all, to slices of a month long ago; while the mesh is stopped.
fn double(mesh: &Mesh, month: &str, ids: &[String]) {
    for (number, day) in days(mesh).into_iter().enumerate() {
        let copy = day.with_file_name(format!("{month}-{:02}", number + 1));
        std::fs::create_dir(&copy).unwrap();
        for file in day.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
        }
        if ids.is_empty() {
            continue;
        }
        let index = Index::open(MmapDirectory::open(copy).unwrap()).unwrap();
        let id = index.schema().get_field("id").unwrap();
        let kept = |text: &String| -> (Occur, Box<dyn Query>) {
            let term = Term::from_field_text(id, text);
            (Occur::MustNot, Box::new(TermQuery::new(term, IndexRecordOption::Basic)))
        };
        let all: (Occur, Box<dyn Query>) = (Occur::Must, Box::new(AllQuery));
        let others = BooleanQuery::new(ids.iter().map(kept).chain([all]).collect());
        let mut writer: IndexWriter<TantivyDocument> = index.writer_with_num_threads(1, 15_000_000).unwrap();
        writer.delete_query(Box::new(others)).unwrap();
        writer.commit().unwrap();
        writer.wait_merging_threads().unwrap();
    }
}

#[test]
fn what_was_doubled_by_hand_is_named_by_its_ranges_and_its_copies_are_removed() {
    let mut mesh = filled();
    mesh.start();
    let before = found(&mesh);
    let twice =
        [(0, 10), (0, 11), (0, 300), (0, LINES - 1), (1, 0)].map(|(file, line)| &before[&path(&mesh, file)][line]);
    let [first, second, third, last, other] = twice.map(place_of);
    assert!(mesh.stop().success());
    double(&mesh, "2020-01", &twice.map(|document| document["_id"].as_str().unwrap().to_owned()));

    mesh.start();
    let all = (FILES * LINES) as u64;
    let expected = BTreeMap::from([
        (path(&mesh, 0), vec![(first.0, second.1), third, last]),
        (path(&mesh, 1), vec![other]),
        (path(&mesh, 2), vec![]),
    ]);
    for _ in 0..2 {
        assert_eq!(doubles(&mesh.client(), &[], 1), expected);
        assert_eq!(mesh.count("*"), all + 5, "an audit removes nothing");
    }
    prints(&mesh.run(&["audit"]).expect(1), &["0 gaps, 4 doubles", "is in the index more than once"]);
    let told = mesh.run(&["audit", "--repair"]).expect(0);
    prints(&told, &["5 copies removed from the index", "1 copy, from 2020-01-01", "no gap, no double"]);
    assert_whole(&mesh);
    mesh.audit();

    // All of it, and killed in the middle of the repair.
    assert!(mesh.stop().success());
    double(&mesh, "2020-02", &[]);
    mesh.start();
    let copies = mesh.count("*") - all;
    let whole = |file: usize| (path(&mesh, file), vec![(0, std::fs::metadata(path(&mesh, file)).unwrap().len())]);
    assert_eq!(doubles(&mesh.client(), &[], 1), (0..FILES).map(whole).collect());
    let mut repair = command(&mesh.program);
    repair.env("LOGMESH_SERVER", mesh.grpc()).args(["audit", "--repair"]);
    let mut repair = repair.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the first copies to be gone", PATIENCE, || match mesh.count("*") {
        count if count == all + copies => Err("none".to_owned()),
        _ => Ok(()),
    });
    mesh.kill();
    repair.wait().unwrap();

    mesh.start();
    let left = mesh.count("*") - all;
    let told = json_lines(&mesh.run(&["audit", "--repair", "--json"]).expect(0).stdout);
    let removed = told.iter().map(|audit| audit["removed_documents"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(removed, left, "{told:?}");
    let ranges = told.iter().flat_map(|audit| audit["removed_ranges"].as_array().unwrap());
    assert!(ranges.clone().all(|one| place_in(one).0 < place_in(one).1), "{told:?}");
    assert_eq!(ranges.map(|one| one["documents"].as_u64().unwrap()).sum::<u64>(), removed);
    assert_whole(&mesh);
    mesh.audit();
    assert!(mesh.stop().success());
}
