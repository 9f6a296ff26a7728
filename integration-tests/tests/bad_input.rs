//! What goes wrong in practice: odd files, bad rules, ports and folders in use, a full disk. Each is either collected as it
//! is or refused with what was wrong, where, and what to do.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::compare::{assert_equal, by_path, event_of, events_of_file};
use logmesh_integration_tests::program::{command, logmesh, run};
use logmesh_integration_tests::{Mesh, PATIENCE};
use logmesh_testing::{flip_pages, wait_for};
use serde_json::{Value, json};

/// A user that isn't root and owns nothing.
const NOBODY: u32 = 65_534;

/// Lines that fill a disk of 16 MiB: about 20 MB of noise.
const FLOOD: u64 = 60_000;

/// Waits until the mesh holds exactly the lines of the file.
#[track_caller]
fn assert_collected(mesh: &Mesh, name: &str) {
    let path = mesh.log(name);
    let lines = events_of_file(&std::fs::read(&path).unwrap()).len();
    let documents = wait_for(&format!("the lines of {name}"), PATIENCE, || {
        let found = documents_of(mesh, &path);
        if found.len() >= lines { Ok(found) } else { Err(format!("{} of {lines}", found.len())) }
    });
    assert_equal(&path, &documents.iter().collect::<Vec<_>>());
}

fn documents_of(mesh: &Mesh, path: &Path) -> Vec<Value> {
    let documents = mesh.search("*");
    by_path(&documents).remove(&path.display().to_string()).unwrap_or_default().into_iter().cloned().collect()
}

/// Waits until the agent says of the file that it isn't read, and why.
#[track_caller]
fn assert_reported(mesh: &Mesh, name: &str, reason: &str) {
    let path = mesh.log(name).display().to_string();
    wait_for(&format!("{reason} for {name}"), PATIENCE, || {
        let agents = json_lines(&mesh.run(&["agents", "list", "--json"]).expect(0).stdout);
        let rules = agents[0]["rules"].as_array().unwrap();
        let problems = rules.iter().flat_map(|rule| rule["problems"].as_array().unwrap());
        match problems.clone().any(|problem| problem["path"] == path.as_str() && problem["reason"] == reason) {
            true => Ok(()),
            false => Err(format!("{rules:?}")),
        }
    });
}

/// That the mesh still does its work.
#[track_caller]
fn assert_alive(mesh: &mut Mesh) {
    std::fs::write(mesh.log("alive.log"), "still alive\n").unwrap();
    assert_collected(mesh, "alive.log");
    mesh.audit();
    assert!(mesh.runs());
}

#[test]
fn a_missing_file_is_collected_once_it_is_there() {
    let mut mesh = Mesh::new();
    mesh.collect = vec![mesh.log("missing/late.log").display().to_string()];
    mesh.start();
    std::fs::create_dir(mesh.log("missing")).unwrap();
    std::fs::write(mesh.log("missing/late.log"), "better late\nthan never\n").unwrap();
    assert_collected(&mesh, "missing/late.log");
}

#[test]
fn an_unreadable_file_is_reported_and_collected_once_it_is_readable() {
    let mut mesh = Mesh::new();
    if rustix::process::geteuid().is_root() {
        run_as_nobody(&mut mesh);
    }
    let path = mesh.log("secret.log");
    std::fs::write(&path, "for root only\n").unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    mesh.start();
    assert_alive(&mut mesh);
    assert_reported(&mesh, "secret.log", "UNREADABLE");
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert_collected(&mesh, "secret.log");
}

/// Root can read everything, so the mesh runs as somebody else, with a copy of the program that everybody can reach.
fn run_as_nobody(mesh: &mut Mesh) {
    std::fs::set_permissions(&*mesh.folder, Permissions::from_mode(0o755)).unwrap();
    mesh.program = mesh.folder.join("logmesh");
    std::fs::copy(logmesh(), &mesh.program).unwrap();
    std::fs::create_dir(&mesh.data).unwrap();
    chown(&mesh.data, Some(NOBODY), Some(NOBODY)).unwrap();
    mesh.uid = Some(NOBODY);
}

#[test]
fn an_empty_file_is_no_event_and_no_gap() {
    let mut mesh = Mesh::started();
    std::fs::write(mesh.log("empty.log"), "").unwrap();
    assert_alive(&mut mesh);
    assert_eq!(mesh.count("*"), 1);
    std::fs::write(mesh.log("empty.log"), "\n\nno longer\n").unwrap();
    assert_collected(&mesh, "empty.log");
}

#[test]
fn a_directory_that_matches_is_left_alone() {
    let mut mesh = Mesh::new();
    std::fs::create_dir(mesh.log("folder.log")).unwrap();
    mesh.start();
    std::fs::create_dir(mesh.log("later.log")).unwrap();
    assert_alive(&mut mesh);
    std::fs::write(mesh.log("folder.log/inside.log"), "inside\n").unwrap();
    assert_collected(&mesh, "folder.log/inside.log");
}

#[test]
fn a_binary_file_is_refused_and_reported() {
    let mut mesh = Mesh::started();
    std::fs::copy(logmesh(), mesh.log("program.log")).unwrap();
    assert_reported(&mesh, "program.log", "BINARY");
    assert_alive(&mut mesh);
    assert_eq!(mesh.count("*"), 1);
    let rules = json_lines(&mesh.run(&["rules", "list", "--json"]).expect(0).stdout);
    let name = rules[0]["name"].as_str().unwrap();
    let told = mesh.run(&["rules", "status", name]).expect(0);
    assert!(told.stdout.contains("(1 BINARY); `logmesh agents get ID` shows their paths"), "{told:?}");
    let told = json_lines(&mesh.run(&["rules", "status", name, "--json"]).expect(0).stdout);
    assert_eq!(
        (&told[0]["files_refused"], &told[0]["refused_by_reason"]["BINARY"]),
        (&json!(1), &json!(1)),
        "{told:?}"
    );
    for (command, said) in
        [("status", format!("{name} and aren't read (1 BINARY)")), ("audit", "aren't read".to_owned())]
    {
        let told = mesh.run(&[command]).expect(0);
        assert!(told.stdout.contains(&said), "{told:?}");
    }
}

#[test]
fn binary_bytes_in_a_log_come_back_byte_by_byte() {
    let mut mesh = Mesh::started();
    let noise = (0..200_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8);
    let bytes: Vec<u8> = b"a line of text\n".repeat(1_000).into_iter().chain(noise).chain(*b"\n").collect();
    std::fs::write(mesh.log("noise.log"), bytes).unwrap();
    assert_collected(&mesh, "noise.log");
    assert_alive(&mut mesh);
}

#[test]
fn a_line_of_10_mb_is_split_and_whole() {
    let mut mesh = Mesh::started();
    let long: Vec<u8> = (0..10_000_000u32).map(|number| b'a' + (number % 26) as u8).collect();
    let path = mesh.log("long.log");
    std::fs::write(&path, [b"before\n", &long[..], b"\nafter\n"].concat()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let found = wait_for("the whole line", PATIENCE, || {
        let mut found: Vec<_> = documents_of(&mesh, &path).iter().map(event_of).collect();
        found.sort();
        let length: u64 = found.iter().map(|event| event.length).sum();
        if length >= bytes.len() as u64 { Ok(found) } else { Err(format!("{length} bytes")) }
    });
    assert!(found.iter().all(|event| event.length <= 1 << 20), "an event is at most 1 MiB");
    let whole: Vec<u8> = found.iter().flat_map(|event| event.message.clone()).collect();
    assert!(whole == [b"before", &long[..], b"after"].concat(), "the parts give the line again");
    assert_alive(&mut mesh);
}

#[test]
fn invalid_utf8_is_shown_and_kept() {
    let mesh = Mesh::started();
    std::fs::write(mesh.log("latin1.log"), b"caf\xe9 au lait\n\xff\xfe\n").unwrap();
    assert_collected(&mesh, "latin1.log");
    let documents = documents_of(&mesh, &mesh.log("latin1.log"));
    let messages: Vec<&str> = documents.iter().map(|document| document["message"].as_str().unwrap()).collect();
    assert!(messages.contains(&"caf\u{fffd} au lait"), "{messages:?}");
    assert!(documents.iter().all(|document| document["event.original_base64"].is_string()));
}

#[test]
fn crlf_is_a_line_end() {
    let mesh = Mesh::started();
    std::fs::write(mesh.log("dos.log"), "one\r\ntwo\r\n\r\na\rb\n").unwrap();
    assert_collected(&mesh, "dos.log");
    let mut messages: Vec<Value> =
        documents_of(&mesh, &mesh.log("dos.log")).iter().map(|document| document["message"].clone()).collect();
    messages.sort_by_key(Value::to_string);
    assert_eq!(messages, ["", "a\rb", "one", "two"]);
}

#[test]
fn a_last_line_without_newline_is_found_and_its_rest_too() {
    let mesh = Mesh::started();
    let path = mesh.log("open.log");
    std::fs::write(&path, "whole\nhalf of a").unwrap();
    mesh.wait_count("half", 1);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b" line\nnext\n").unwrap();
    mesh.wait_count("next", 1);
    mesh.audit();
    let mut found: Vec<_> = documents_of(&mesh, &path).iter().map(event_of).collect();
    found.sort();
    let whole: Vec<u8> = found.iter().flat_map(|event| event.message.clone()).collect();
    assert_eq!(String::from_utf8(whole).unwrap(), "wholehalf of a linenext");
    assert_eq!(found.len(), 4, "the rest of a flushed line is an event of its own: {found:?}");
}

#[test]
fn bad_rules_are_refused_with_the_field_s_path() {
    let mesh = Mesh::started();
    let good = "name: rules/x\ntopic: x\npaths: [\"/var/log/x.log\"]\n";
    for (text, said) in [
        ("name: rules/x\ntopic: x\npaths: [\"/ok.log\", \"/var/[.log\"]\n".to_owned(), "paths[1]"),
        (format!("{good}colour: blue\n"), "colour"),
        (format!("{good}multiline: {{ start_pattern: '(' }}\n"), "multiline.start_pattern"),
        (format!("{good}selector: 'role ='\n"), "selector"),
        ("name: rules/x\ntopic: x\npaths: [\"relative.log\"]\n".to_owned(), "paths[0]"),
        ("name: rules/x\ntopic: x\n".to_owned(), "paths"),
        ("name: [\n".to_owned(), "line"),
    ] {
        let file = mesh.folder.join("rule.yaml");
        std::fs::write(&file, &text).unwrap();
        mesh.run(&["rules", "apply", "-f", file.to_str().unwrap()]).expect(64).says(&[said, "rule.yaml"]);
    }
    mesh.run(&["rules", "get", "x"]).expect(1);
}

#[test]
fn a_port_in_use_is_named() {
    let mesh = Mesh::started();
    let other = mesh.folder.join("other");
    let done = run(&["standalone", "--data-dir", other.to_str().unwrap(), "--listen", mesh.grpc()]);
    assert_ne!(done.code, Some(0));
    done.says(&[mesh.grpc(), "in use"]);
}

#[test]
fn off_loopback_it_wants_to_be_told_so() {
    let folder = logmesh_testing::Folder::new();
    let done = run(&["standalone", "--data-dir", folder.join("d").to_str().unwrap(), "--listen", "0.0.0.0:0"]);
    done.expect(64).says(&["0.0.0.0:0", "--insecure"]);
}

#[test]
fn an_unknown_setting_is_named_with_its_line() {
    let folder = logmesh_testing::Folder::new();
    let file = folder.join("x.toml");
    std::fs::write(&file, "insecure = false\nlissten = \"127.0.0.1:0\"\n").unwrap();
    run(&["standalone", "--config", file.to_str().unwrap()]).expect(64).says(&["lissten", "x.toml, line 2"]);
    let mut command = command(logmesh());
    command.args(["standalone", "--print-config"]).env("LOGMESH_LISSTEN", "x");
    let done = logmesh_integration_tests::program::Done::from(command.output().unwrap());
    done.expect(64).says(&["LOGMESH_LISSTEN"]);
}

#[test]
fn a_data_folder_in_use_is_refused() {
    let mesh = Mesh::started();
    let done = run(&["standalone", "--data-dir", mesh.data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_ne!(done.code, Some(0));
    done.says(&[mesh.data.to_str().unwrap(), "in use"]);
    assert_eq!(mesh.run(&["status"]).code, Some(0), "the first goes on");
}

#[test]
fn a_data_folder_of_another_version_is_left_alone() {
    let mut mesh = Mesh::started();
    mesh.stop();
    std::fs::write(mesh.data.join("version"), "999\n").unwrap();
    let done = run(&["standalone", "--data-dir", mesh.data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_ne!(done.code, Some(0));
    done.says(&[mesh.data.to_str().unwrap(), "version", "999"]);
    assert_eq!(std::fs::read_to_string(mesh.data.join("version")).unwrap(), "999\n");
}

#[test]
fn a_version_that_is_no_text_is_named_with_what_to_do() {
    let mut mesh = Mesh::started();
    mesh.stop();
    for (name, advice) in [("version", "printf 1 >"), ("index/VERSION", "remove the file")] {
        let path = mesh.data.join(name);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, b"\xff\xfe\xfd").unwrap();
        let done = run(&["standalone", "--data-dir", mesh.data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        assert_ne!(done.code, Some(0));
        done.says(&[mesh.data.to_str().unwrap(), name, advice]);
        std::fs::write(&path, whole).unwrap();
    }
    mesh.start();
}

/// A mesh that has indexed a file of 100 lines, and was stopped.
fn stopped_with_100_lines() -> Mesh {
    let mut mesh = Mesh::started();
    std::fs::write(mesh.log("a.log"), "a line\n".repeat(100)).unwrap();
    mesh.wait_count("*", 100);
    mesh.audit();
    mesh.stop();
    mesh.errors_expected = true;
    mesh
}

/// Starts it, and gives what it says of that.
fn start(mesh: &mut Mesh) -> String {
    let before = mesh.said().len();
    mesh.start();
    mesh.said()[before..].to_owned()
}

#[test]
fn a_lost_bus_is_told_and_the_audit_puts_its_books_back() {
    let mut mesh = stopped_with_100_lines();
    for lost in ["removed", "with its folder"] {
        match lost {
            "removed" => std::fs::remove_file(mesh.data.join("bus/bus.redb")).unwrap(),
            _ => std::fs::remove_dir_all(mesh.data.join("bus")).unwrap(),
        }
        let said = start(&mut mesh);
        let told = said.lines().find(|line| line.contains(" ERROR ") && line.contains("bus/bus.redb"));
        let told = told.unwrap_or_else(|| panic!("{lost}: {said}"));
        assert!(told.contains("books") && told.contains("audit --repair"), "{told}");
        mesh.run(&["audit", "--repair"]).expect(0);
        mesh.audit();
        assert_eq!(mesh.count("*"), 100, "{lost}");
        mesh.stop();
    }
    let said = start(&mut mesh);
    assert!(!said.contains("bus.redb"), "it's told once: {said}");
}

#[test]
fn lost_positions_of_an_agent_are_told() {
    let mut mesh = stopped_with_100_lines();
    for lost in ["removed", "emptied"] {
        let path = mesh.data.join("agent/tail.redb");
        match lost {
            "removed" => std::fs::remove_file(&path).unwrap(),
            _ => std::fs::write(&path, "").unwrap(),
        }
        let said = start(&mut mesh);
        let told = said.lines().any(|line| line.contains(" ERROR ") && line.contains("agent/tail.redb"));
        assert!(told, "{lost}: {said}");
        mesh.stop();
    }
}

#[test]
fn flipped_bytes_of_a_database_are_told_by_its_name() {
    let mut mesh = stopped_with_100_lines();
    for name in ["bus/bus.redb", "config.redb"] {
        let path = mesh.data.join(name);
        let whole = std::fs::read(&path).unwrap();
        flip_pages(&path);
        let done = run(&["standalone", "--data-dir", mesh.data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        assert_ne!(done.code, Some(0));
        done.says(&[path.to_str().unwrap(), "move it away"]);
        std::fs::write(&path, whole).unwrap();
    }
    flip_pages(&mesh.data.join("agent/tail.redb"));
    let said = start(&mut mesh);
    assert!(said.lines().any(|line| line.contains(" ERROR ") && line.contains("tail.redb.corrupt-")), "{said}");
    mesh.wait_count("*", 100);
}

#[test]
fn a_full_disk_loses_nothing() {
    let mut mesh = Mesh::new();
    mesh.errors_expected = true;
    std::fs::create_dir(&mesh.data).unwrap();
    let Some(disk) = Disk::mount(&mesh.data, 16) else {
        println!("SKIPPED: this machine doesn't let the test mount a tmpfs");
        return;
    };
    mesh.start();
    let mut file = File::create(mesh.log("flood.log")).unwrap();
    for number in 0..FLOOD {
        // Noise doesn't compress much, so the disk must fill up.
        let noise = logmesh_integration_tests::oracle::line(1, 1, number);
        file.write_all(&noise).unwrap();
    }
    drop(file);
    wait_for("the disk to be full", PATIENCE, || disk.free_below(1 << 20));
    disk.resize(2_048);
    if !mesh.runs() {
        let status = mesh.wait_end();
        assert!(!status.success() && mesh.said().contains("space"), "{status}: {}", mesh.said());
        mesh.start();
    }
    mesh.wait_count("*", FLOOD);
    mesh.audit();
    assert_collected(&mesh, "flood.log");
    mesh.stop();
}

/// A small disk of its own, gone with the value.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        let size = format!("size={mebibytes}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        done.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }

    fn resize(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }

    fn free_below(&self, bytes: u64) -> Result<(), String> {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        let free = disk.f_bavail * disk.f_frsize;
        if free < bytes { Ok(()) } else { Err(format!("{free} bytes free")) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["--lazy"]).arg(&self.0).status());
    }
}
