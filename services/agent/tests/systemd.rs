//! The systemd unit and its sample settings, held against the program.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use logmesh_agent::Settings;

/// What the program may take to end beside `drain`.
const GRACE: Duration = Duration::from_secs(10);

fn deploy(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/systemd").join(name)
}

/// The values of a key of the unit.
fn values(unit: &str, key: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

/// What `--print-config` shows with the unit's own options, the settings file being this one.
fn print_config(unit: &str, file: &std::path::Path) -> String {
    let start = values(unit, "ExecStart").remove(0);
    let mut words = start.split_whitespace();
    assert!(words.next().unwrap().ends_with("/logmesh-agent"));
    let options = words.map(|word| match word == "/etc/logmesh/agent.toml" {
        true => file.display().to_string(),
        false => word.to_owned(),
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_logmesh-agent"));
    let shown = command.args(options).arg("--print-config").output().unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    String::from_utf8(shown.stdout).unwrap()
}

#[test]
fn the_unit_starts_the_program_as_it_is() {
    let unit = std::fs::read_to_string(deploy("logmesh-agent.service")).unwrap();
    let shown = print_config(&unit, &deploy("agent.toml"));
    assert!(shown.contains("/var/log/**") && shown.contains("agent.toml"), "{shown}");

    let settings = Settings::default();
    let state = values(&unit, "StateDirectory").remove(0);
    assert_eq!(PathBuf::from("/var/lib").join(state), settings.state_dir);
    let stop: u64 = values(&unit, "TimeoutStopSec")[0].parse().unwrap();
    assert!(Duration::from_secs(stop) > settings.drain.0 + GRACE);
    assert_eq!(values(&unit, "ExecReload"), ["/bin/kill -HUP $MAINPID"]);
    for (key, value) in [
        ("Restart", "always"),
        ("ProtectSystem", "strict"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", "CAP_DAC_READ_SEARCH"),
    ] {
        assert_eq!(values(&unit, key), [value], "{key}");
    }
}

#[test]
fn each_setting_of_the_sample_is_one() {
    let unit = std::fs::read_to_string(deploy("logmesh-agent.service")).unwrap();
    let sample = std::fs::read_to_string(deploy("agent.toml")).unwrap();
    // Those that are commented out are lines `# key = value`; the words around them aren't.
    let is_setting = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let all: String = sample
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line).to_owned() + "\n")
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, all).unwrap();
    let shown = print_config(&unit, &file);
    for key in ["insecure", "compression", "drain", "max_in_flight", "listen_admin", "log.level"] {
        let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(line.contains("agent.toml"), "{line}");
    }
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    let unit = std::fs::read_to_string(deploy("logmesh-agent.service")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logmesh-agent.service");
    // It wants the program to be there.
    std::fs::write(&file, unit.replace("/usr/local/bin/logmesh-agent", env!("CARGO_BIN_EXE_logmesh-agent"))).unwrap();
    // A machine without systemd can't say; the other tests hold there too.
    let Ok(found) = Command::new("systemd-analyze").arg("verify").arg(&file).output() else { return };
    let said = String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success() && !said.contains("logmesh-agent.service"), "{said}");
}
