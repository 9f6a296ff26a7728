//! Finds the files that a glob matches, listing only folders in which a match can lie.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use logmesh_types::limits::MAX_PATH_BYTES;

use crate::status::FileProblem;
use logmesh_glob::{PathGlob, Progress};

/// The most folder entries that one scan looks at, over all rules.
pub(crate) const MAX_ENTRIES: usize = 2_000_000;

/// The deepest that `**` goes.
const MAX_DEPTH: usize = 64;

/// What walks find.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Folders that should be watched.
    pub folders: HashSet<PathBuf>,
    /// Folders that couldn't be listed, and why.
    pub problems: Vec<FileProblem>,
    until: Option<Instant>,
    /// It has stopped because it was time.
    pub is_late: bool,
    entries: usize,
}

impl Walk {
    /// One that stops when it is `until`.
    pub(crate) fn bounded(until: Instant) -> Self {
        Self { until: Some(until), ..Self::default() }
    }

    /// Calls `found` with each path that `glob` matches at or beneath `root`; folders are left out, except by name.
    ///
    /// Links to folders aren't followed by wildcards, so that no walk goes in circles. `enter` sees each folder before
    /// it's listed, so that a watch is there before the look.
    pub(crate) fn run(
        &mut self,
        glob: &PathGlob,
        root: &Path,
        enter: &mut dyn FnMut(&Path),
        found: &mut dyn FnMut(PathBuf),
    ) {
        let Some(progress) = glob.progress(root) else { return };
        if !root.is_dir() {
            // It may appear later: watch where it would.
            let ancestor = root.ancestors().skip(1).find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
            enter(ancestor);
            self.folders.insert(ancestor.to_owned());
            return;
        }
        self.folder(glob, progress, root, 0, enter, found);
    }

    fn folder(
        &mut self,
        glob: &PathGlob,
        progress: Progress,
        folder: &Path,
        depth: usize,
        enter: &mut dyn FnMut(&Path),
        found: &mut dyn FnMut(PathBuf),
    ) {
        if self.folders.insert(folder.to_owned()) {
            enter(folder);
        }
        if let Some(name) = glob.only_next(progress) {
            let path = folder.join(name);
            let next = glob.step(progress, name);
            return self.entry(glob, next, path, None, depth, enter, found);
        }
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.problem(folder, &error),
        };
        for entry in entries.flatten() {
            self.entries += 1;
            self.is_late |= self.until.is_some_and(|until| Instant::now() >= until);
            if self.is_late {
                return;
            }
            if self.entries > MAX_ENTRIES {
                let error = std::io::Error::other(format!("more than {MAX_ENTRIES} entries in one scan"));
                return self.problem(folder, &error);
            }
            let next = glob.step(progress, &entry.file_name());
            if !next.is_dead() {
                self.entry(glob, next, entry.path(), entry.file_type().ok(), depth, enter, found);
            }
        }
    }

    /// Goes on with one entry; `kind` is unknown for one that was named without listing its folder.
    #[allow(clippy::too_many_arguments)]
    fn entry(
        &mut self,
        glob: &PathGlob,
        next: Progress,
        path: PathBuf,
        kind: Option<std::fs::FileType>,
        depth: usize,
        enter: &mut dyn FnMut(&Path),
        found: &mut dyn FnMut(PathBuf),
    ) {
        let is_folder = match kind {
            Some(kind) => kind.is_dir(),
            None => path.is_dir(),
        };
        if is_folder {
            if kind.is_none() && glob.is_end(next) {
                // Named without a wildcard: the opener says what is wrong with it.
                found(path);
            } else if !glob.is_end(next) && depth < MAX_DEPTH && path.as_os_str().as_bytes().len() < MAX_PATH_BYTES {
                self.folder(glob, next, &path, depth + 1, enter, found);
            }
            return;
        }
        let exists = kind.is_some() || path.symlink_metadata().is_ok();
        if exists && glob.accepts(next) && !(kind.is_some_and(|kind| kind.is_symlink()) && path.is_dir()) {
            found(path);
        }
    }

    fn problem(&mut self, folder: &Path, error: &std::io::Error) {
        if error.kind() != std::io::ErrorKind::NotFound && self.problems.len() < crate::status::MAX_PROBLEMS {
            let reason = "UNREADABLE";
            self.problems.push(FileProblem { path: folder.to_owned(), reason, detail: error.to_string() });
        }
    }
}

/// What lies in a folder, by inode; `None` if that can't be told.
pub(crate) fn inodes_in(folder: &Path) -> Option<HashMap<u64, PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Some(HashMap::new());
        }
        Err(_) => return None,
    };
    Some(entries.flatten().take(MAX_ENTRIES).map(|entry| (entry.ino(), entry.path())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_find_matches_and_no_circles() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["a/b/c", "d"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["x.log", "a/y.log", "a/b/c/z.log", "a/b/c/z.txt"] {
            std::fs::write(root.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("a/loop")).unwrap();
        std::os::unix::fs::symlink(root.join("a/y.log"), root.join("d/y.log")).unwrap();
        let find = |glob: &str| {
            let glob = PathGlob::new(&format!("{}{glob}", root.display())).unwrap();
            let (mut walk, mut found) = (Walk::default(), Vec::new());
            walk.run(&glob, &glob.static_root(), &mut |_| {}, &mut |path| {
                found.push(path.strip_prefix(root).unwrap().display().to_string());
            });
            found.sort();
            (found, walk.folders.len())
        };
        assert_eq!(find("/**/*.log").0, ["a/b/c/z.log", "a/y.log", "d/y.log", "x.log"]);
        assert_eq!(find("/*/*.log"), (vec!["a/y.log".into(), "d/y.log".into()], 3));
        assert_eq!(find("/x.log").0, ["x.log"]);
        assert_eq!(find("/a/loop/a/*.log").0, ["a/loop/a/y.log"]);
        assert_eq!(find("/later/*.log"), (vec![], 1));
        assert_eq!(find("/a").0, ["a"]);
        assert_eq!(find("/*"), (vec!["x.log".into()], 1));
    }
}
