//! A small disk that can be filled, where the system lets this process mount one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mounted tmpfs; unmounted with the value.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many MiB at the folder, which must exist; `None`, and a word on standard error, if that can't be.
    pub fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0777"), "none"]).arg(path);
        let mounted = mount.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            #[allow(clippy::print_stderr)] // a part of the test that is left out must be seen
            {
                eprintln!("SKIPPED: no file system can be mounted here, so the disk won't be full");
            }
        }
        mounted.then(|| Self { path: path.to_owned() })
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut size = 1 << 20;
        let mut bytes = Vec::new();
        while size > 0 {
            // What doesn't fit is halved until nothing more goes.
            bytes.resize(bytes.len() + size, b'x');
            if std::fs::write(self.filler(), &bytes).is_err() {
                bytes.truncate(bytes.len() - size);
                size /= 2;
            }
        }
    }

    /// Gives the room back.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).ok();
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that was killed may not be gone from it yet.
        Command::new("umount").arg("-l").arg(&self.path).status().ok();
    }
}
