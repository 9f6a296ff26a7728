//! A replay from the command line: killed in the middle it goes on, and nothing is there twice.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::{Mesh, PATIENCE};
use logmesh_testing::wait_for;
use serde_json::Value;

const FILES: u64 = 12;
const LINES: u64 = 500;

fn get(mesh: &Mesh, id: &str) -> Value {
    json_lines(&mesh.run(&["replay", "get", id, "--json"]).expect(0).stdout).remove(0)
}

fn count(mesh: &Mesh, topic: &str) -> u64 {
    let said = mesh.run(&["search", "*", "--since", "1d", "--topic", topic, "--count"]).expect(0).stdout;
    said.trim().parse().unwrap()
}

#[test]
fn killed_in_the_middle_it_goes_on_and_doubles_nothing() {
    let mut mesh = Mesh::new();
    for file in 0..FILES {
        let lines: String = (0..LINES).map(|line| format!("line {line} of {file}\n")).collect();
        std::fs::write(mesh.log(&format!("{file}.log")), lines).unwrap();
    }
    mesh.start();
    mesh.wait_count("*", FILES * LINES);

    let started = mesh.run(&["replay", "start", "--topic", "logs", "--id", "same"]).expect(0).stdout;
    assert!(started.starts_with("same  logs  running"), "{started}");
    let slow = ["replay", "start", "--topic", "logs", "--into", "again", "--rate", "1500", "--id", "slow"];
    mesh.run(&slow).expect(0);
    wait_for("the replay to get on", PATIENCE, || {
        let replay = get(&mesh, "slow");
        if replay["events"].as_u64() > Some(0) { Ok(()) } else { Err(replay.to_string()) }
    });
    let before = get(&mesh, "slow");
    mesh.kill();
    mesh.start();
    for id in ["slow", "same"] {
        wait_for("the replay to be done", PATIENCE, || {
            let replay = get(&mesh, id);
            if replay["state"] == "done" { Ok(()) } else { Err(replay.to_string()) }
        });
    }
    assert_eq!(before["state"], "running", "void: it was done before the kill: {before}");
    let (slow, same) = (get(&mesh, "slow"), get(&mesh, "same"));
    assert_eq!(slow["events"], FILES * LINES);
    assert_eq!((&same["indexed"], &same["already_there"]), (&0.into(), &(FILES * LINES).into()));
    assert_eq!((count(&mesh, "logs"), count(&mesh, "again")), (FILES * LINES, FILES * LINES));
    let list = mesh.run(&["replay", "list"]).expect(0).stdout;
    assert!(list.lines().count() == 2 && list.contains("logs into again  done"), "{list}");
    mesh.run(&["replay", "cancel", "slow"]).expect(1).says(&["done"]);
    mesh.run(&["replay", "get", "none"]).expect(1).says(&["none"]);
    mesh.run(&["replay", "start", "--topic", "logs", "--into", "logs.dead"]).expect(1).says(&["into"]);
    mesh.audit();
}
