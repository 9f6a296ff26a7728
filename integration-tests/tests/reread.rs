//! Repair from the files: the index is damaged by hand, the bus has let go of what it held, and agents read it again. What no
//! file holds any more is told by its range and its reason.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::time::Duration;

use logmesh_integration_tests::Mesh;
use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::compare::{assert_equal, by_path};
use logmesh_integration_tests::gaps::{gaps, prints};
use logmesh_testing::wait_for;
use serde_json::Value;

/// Files, and lines of each.
const FILES: usize = 5;
const LINES: usize = 700;

/// The bus looks once a minute for what it may let go.
const LET_GO: Duration = Duration::from_secs(150);

fn write(mesh: &Mesh, file: usize) {
    let line = |number: usize| format!("file {file} line {number} {}\n", "x".repeat(number * 7 % 50));
    std::fs::write(mesh.log(&format!("{file}.log")), (0..LINES).map(line).collect::<String>()).unwrap();
}

fn path(mesh: &Mesh, name: &str) -> String {
    mesh.log(name).display().to_string()
}

/// The bus holds no event of the topic any more: a replay would find none.
fn wait_until_the_bus_is_empty(mesh: &Mesh) {
    let mut look = 0;
    wait_for("the bus to let go", LET_GO, || {
        look += 1;
        let done =
            mesh.run(&["replay", "start", "--topic", "logs", "--id", &format!("look-{look}"), "--json"]).expect(0);
        let replay = json_lines(&done.stdout).remove(0);
        mesh.run(&["replay", "cancel", &format!("look-{look}")]);
        std::thread::sleep(Duration::from_secs(2));
        if replay["total_records"] == 0 { Ok(()) } else { Err(replay.to_string()) }
    });
}

/// Of a repair's answer: which ranges of which file came from where, or why from nowhere.
fn sources(audits: &[Value]) -> BTreeMap<String, Vec<(u64, u64, String)>> {
    let told = |range: &Value| {
        let how = range["source"].as_str().or(range["reason"].as_str()).unwrap().to_owned();
        (range["start_offset"].as_u64().unwrap(), range["end_offset"].as_u64().unwrap(), how)
    };
    let path = |audit: &Value| audit["path"].as_str().unwrap().to_owned();
    let told = |audit: &Value| audit["repaired_ranges"].as_array().unwrap().iter().map(told).collect();
    audits.iter().map(|audit| (path(audit), told(audit))).collect()
}

/// Topics are gone from the bus, and nobody writes a line that would make them anew: the repair does.
#[test]
fn what_is_left_of_a_lost_bus_and_index_is_read_from_the_files_again() {
    let mut mesh = Mesh::new();
    (0..FILES).for_each(|file| write(&mesh, file));
    mesh.start();
    mesh.wait_count("*", (FILES * LINES) as u64);
    mesh.audit();
    assert!(mesh.stop().success());
    mesh.errors_expected = true;
    std::fs::remove_file(mesh.data.join("bus/bus.redb")).unwrap();
    std::fs::remove_dir_all(mesh.data.join("index")).unwrap();
    mesh.start();
    wait_for("the agent to report its files", LET_GO, || {
        let told = mesh.run(&["audit"]).stdout;
        if told.contains(&format!("{FILES} streams, ")) { Ok(()) } else { Err(told) }
    });
    let repaired = mesh.run(&["audit", "--repair"]).expect(0).stdout;
    assert!(repaired.contains(&format!("; {} events, ", FILES * LINES)), "{repaired}");
    mesh.wait_count("*", (FILES * LINES) as u64);
    mesh.audit();
}

#[test]
fn what_the_bus_no_longer_holds_is_read_from_the_files_again() {
    let mut mesh = Mesh::new();
    mesh.settings = "[topics.default]\nretention_age = \"1s\"\n".to_owned();
    (0..FILES).for_each(|file| write(&mesh, file));
    mesh.start();
    mesh.wait_count("*", (FILES * LINES) as u64);
    mesh.audit();
    wait_until_the_bus_is_empty(&mesh);
    let size = std::fs::metadata(mesh.log("0.log")).unwrap().len();
    assert!(mesh.stop().success());

    std::fs::remove_dir_all(mesh.data.join("index/slices/logs")).unwrap();
    std::fs::remove_file(mesh.log("1.log")).unwrap();
    std::fs::rename(mesh.log("2.log"), mesh.log("2.log.old")).unwrap();
    let cut = std::fs::File::options().write(true).open(mesh.log("3.log")).unwrap();
    cut.set_len(size / 2).unwrap();
    mesh.start();
    let before = wait_for("the agent to report the renamed file", LET_GO, || {
        let listed = gaps(&mesh.client(), &[], 1);
        if listed.contains_key(&path(&mesh, "2.log.old")) { Ok(listed) } else { Err(format!("{listed:?}")) }
    });
    assert_eq!(before[&path(&mesh, "0.log")], [(0, size)]);

    let done = mesh.run(&["audit", "--repair", "--json"]).expect(1);
    let sources = sources(&json_lines(&done.stdout));
    for whole in ["0.log", "2.log.old", "4.log"] {
        assert_eq!(sources[&path(&mesh, whole)], [(0, size, "file".to_owned())], "{whole} in {done:?}");
    }
    assert_eq!(sources[&path(&mesh, "1.log")], [(0, size, "gone".to_owned())], "{done:?}");
    let documents = mesh.search("*");
    let found = by_path(&documents);
    for (file, now) in [("0.log", "0.log"), ("2.log", "2.log.old"), ("4.log", "4.log")] {
        // Where it was read first, or by the name that it has now.
        let documents = found.get(&path(&mesh, now)).or_else(|| found.get(&path(&mesh, file)));
        assert_equal(&mesh.log(now), documents.unwrap());
    }
    // What was cut short is another stream, read whole; of the former one nobody has a byte.
    prints(&mesh.run(&["audit", "--repair"]).expect(1), &["the bus no longer holds it; the file: ", "2 gaps"]);
    assert!(mesh.stop().success());
}
