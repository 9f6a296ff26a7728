//! The agent's Dockerfile, held against the program: it collects on a file system that it can't write, with the one right
//! that the file's `docker run` leaves it.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test

mod mesh;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use logmesh_agent::Settings;
use logmesh_testing::wait_for;
use rustix::process::{Pid, Signal, kill_process};

use mesh::host::{Host, arrived};
use mesh::{Centre, Gateway, LIMIT, Mode};

fn dockerfile() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy/container/agent.Dockerfile");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_image_says_what_the_program_does() {
    let (file, settings) = (dockerfile(), Settings::default());
    let line = |text: &str| file.lines().any(|line| line == text);
    assert!(line(&format!("VOLUME {}", settings.state_dir.display())), "{file}");
    assert!(line(&format!("EXPOSE {}", settings.listen_admin.port())), "{file}");
    assert!(line("ENTRYPOINT [\"/usr/bin/logmesh-agent\"]") && line("STOPSIGNAL SIGTERM"), "{file}");
    let used = file.lines().find_map(|line| line.strip_prefix("#     logmesh-agent ")).unwrap();
    let shown = Command::new(env!("CARGO_BIN_EXE_logmesh-agent")).args(used.split(' ')).arg("--print-config").output();
    let shown = shown.unwrap();
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
}

/// The program as `docker run` starts it, but for the image: nothing can be written beneath `/` but its state.
fn contained(host: &Host, server: &str, state: &Path) -> Child {
    let isolate = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro / && shift && \
                   exec setpriv --bounding-set=-all,+dac_read_search --inh-caps=-all --no-new-privs \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", isolate, "sh"]).arg(state).arg(env!("CARGO_BIN_EXE_logmesh-agent"));
    command.args(["--server", server, "--allow"]).arg(host.path("**")).arg("--state-dir").arg(state);
    command.env("LOGMESH_ID", "host-1").env("LOGMESH_LISTEN_ADMIN", "127.0.0.1:0").stderr(Stdio::null());
    command.spawn().unwrap()
}

/// True if this user may make a file system of its own read-only.
fn can_isolate() -> bool {
    let mut tried = Command::new("unshare");
    tried.args(["--mount", "sh", "-c", "mount -o remount,bind,ro / && setpriv --no-new-privs true"]);
    tried.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn it_collects_where_nothing_but_its_state_can_be_written() {
    let file = dockerfile();
    for option in ["--read-only", "--cap-drop ALL", "--cap-add DAC_READ_SEARCH", "no-new-privileges"] {
        assert!(file.contains(option), "{option}");
    }
    if !can_isolate() {
        #[allow(clippy::print_stderr)] // a part that is left out must be seen
        {
            eprintln!("SKIPPED: this user can't have a read-only file system of its own");
        }
        return;
    }
    let (gateway, gateway_server) = Gateway::start(Mode::Ack).await;
    let (centre, server) = Centre::start(&[gateway_server.address]).await;
    let host = Host::new();
    let state = host.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    host.append("a.log", "nobody may read this\n");
    // Another's, and closed to everybody else: only that one right opens it.
    std::os::unix::fs::chown(host.path("a.log"), Some(65_534), None).unwrap();
    std::fs::set_permissions(host.path("a.log"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut child = contained(&host, &server.address.to_string(), &state);
    centre.tell(vec![host.rule("a", 1, "*.log")], &[]);
    arrived(&gateway, &["nobody may read this\n"]).await;

    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    let status = wait_for("the end", LIMIT, || child.try_wait().unwrap().ok_or("it runs".to_owned()));
    assert_eq!(status.code(), Some(0));
    assert!(state.join("tail.redb").exists(), "its state is where it can be written");
}
