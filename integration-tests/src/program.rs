//! The programs under test: where they are, and running them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

use logmesh_testing::wait_for;
use rustix::process::{Pid, Signal, kill_process};

use crate::client::PATIENCE;

/// Names the folder of programs that are known to be fresh; `./dev test` sets it.
const BIN_DIR: &str = "MESH_BIN_DIR";

/// The `logmesh` program, built if need be.
pub fn logmesh() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| find("logmesh"))
}

/// The `logmesh-agent` program, built if need be.
pub fn logmesh_agent() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| find("logmesh-agent"))
}

fn find(package: &str) -> PathBuf {
    match std::env::var_os(BIN_DIR) {
        Some(folder) => Path::new(&folder).join(package),
        None => build(package),
    }
}

/// Builds the package's program, which has its name, into the target folder that this test lies in.
fn build(package: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let folder = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let target = folder.parent().expect("the profile's folder lies in the target folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "-p", package, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "{package} does not build");
    folder.join(package)
}

/// A command whose environment holds none of our settings, so that a test is the same on every machine.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LOGMESH_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Sends a signal to a child that wasn't waited for yet.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid is not 0");
    kill_process(pid, signal).expect("a child can be signalled");
}

/// Waits until a child has ended by itself.
pub(crate) fn wait_end(what: &str, mut child: Child) -> ExitStatus {
    wait_for(&format!("{what} to end"), PATIENCE, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    })
}

/// What a command gave back.
#[derive(Clone, Debug)]
pub struct Done {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said beside that.
    pub stderr: String,
}

impl Done {
    /// Panics with everything unless the command ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Panics unless stderr holds each of these texts.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in: {}", self.stderr);
        }
        self
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs `logmesh` with these arguments to its end.
pub fn run(args: &[&str]) -> Done {
    command(logmesh()).args(args).output().expect("logmesh can be run").into()
}
