//! What the host's owner may change while files are followed.

use std::path::PathBuf;

use logmesh_glob::GlobError;

use super::Collector;
use crate::pathguard::PathGuard;

impl Collector {
    /// Takes another set of allowed globs, own folders and bound on unacked bytes. After a bad glob all is as it was.
    ///
    /// Files outside of what is allowed now are let go at once: nothing more is read of them, and only what was read
    /// already is still sent. The rules have to be judged anew by [`Collector::apply`].
    pub fn reconfigure(
        &mut self,
        allow: Vec<String>,
        mut own_dirs: Vec<PathBuf>,
        max_in_flight_bytes: u64,
    ) -> Result<(), GlobError> {
        own_dirs.push(self.settings.state_dir.clone());
        self.guard = PathGuard::new(&allow, &own_dirs)?;
        (self.settings.allow, self.settings.own_dirs) = (allow, own_dirs);
        self.settings.max_in_flight_bytes = max_in_flight_bytes;
        let outside = self.files.values().filter(|file| !self.guard.keeps(&file.record.path, &file.real));
        for number in outside.map(|file| file.record.number).collect::<Vec<_>>() {
            if let Some(file) = self.files.get(&number) {
                tracing::info!(path = %file.record.path.display(), "file is let go: this agent doesn't allow it any more");
            }
            self.release(number);
        }
        Ok(())
    }
}
