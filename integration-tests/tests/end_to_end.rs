//! The promise itself: every line of every file is found exactly once, whatever is killed meanwhile.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use logmesh_integration_tests::compare::{assert_equal, by_path, events_of_file};
use logmesh_integration_tests::writer::Writer;
use logmesh_integration_tests::{Mesh, oracle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How often the mesh is killed. `MESH_KILLS` asks for more.
const KILLS: u32 = 12;

/// Copies the machine's own log files that can be read; how many there were.
fn copy_real_logs(to: &Path) -> usize {
    std::fs::create_dir_all(to).unwrap();
    let mut folders = vec![PathBuf::from("/var/log")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.path().extension().is_some_and(|extension| extension == "log") {
                let copied = std::fs::copy(entry.path(), to.join(format!("{count}.log")));
                count += usize::from(copied.is_ok());
            }
        }
    }
    count
}

#[test]
fn every_line_is_found_once_over_kills_at_random_instants() {
    let seed: u64 = std::env::var("MESH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    let kills = std::env::var("MESH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    println!("MESH_SEED={seed} MESH_KILLS={kills}");
    let mut rng = StdRng::seed_from_u64(seed);
    let run: u32 = rng.random();

    let mut mesh = Mesh::new();
    let real = copy_real_logs(&mesh.log("real"));
    mesh.start();
    let writers = [
        Writer::start(mesh.log("plain.log"), run, 0, None),
        Writer::start(mesh.log("rotated.log"), run, 1, Some(1_500)),
        Writer::start(mesh.log("fast-rotated.log"), run, 2, Some(97)),
    ];
    for _ in 0..kills {
        sleep(Duration::from_millis(rng.random_range(50..1_500)));
        mesh.kill();
        if rng.random_ratio(1, 4) {
            // A start that doesn't come to its end either.
            mesh.spawn();
            sleep(Duration::from_millis(rng.random_range(0..300)));
            mesh.kill();
        }
        mesh.start();
    }
    let written: Vec<u64> = writers.into_iter().map(Writer::finish).collect();

    mesh.wait_count("*", written.iter().sum::<u64>() + lines_in(&mesh.log("real")));
    mesh.audit();
    let (real_documents, generated): (Vec<_>, Vec<_>) = mesh
        .search("*")
        .into_iter()
        .partition(|document| document["log.file.path"].as_str().unwrap().contains("/real/"));
    let verdict = oracle::judge(run, &written, &generated);
    println!("{verdict:?}, {real} real files with {} lines", real_documents.len());
    verdict.assert_clean();
    assert_real_logs(&mesh.log("real"), &by_path(&real_documents));
    assert!(written.iter().all(|count| *count > 100), "void: too little load between the kills: {written:?}");
    assert!(mesh.stop().success());
}

fn lines_in(folder: &Path) -> u64 {
    let files = folder.read_dir().unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.map(|bytes| events_of_file(&bytes).len() as u64).sum()
}

fn assert_real_logs(folder: &Path, documents: &std::collections::BTreeMap<String, Vec<&serde_json::Value>>) {
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let found = documents.get(&path.display().to_string()).map(Vec::as_slice).unwrap_or_default();
        assert_equal(&path, found);
    }
}
