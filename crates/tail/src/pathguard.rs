//! The only way by which logmesh opens a file that someone else named.
//!
//! What counts is the opened object, never the string: the file is opened beneath the folder that the host's owner
//! allowed, without following links out of it, and the kernel is then asked where it really lies. Whatever the centre
//! says, nothing outside the allowed globs is opened, and some places never are.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use logmesh_glob::{GlobError, PathGlob};
use logmesh_types::UnixNanos;

/// Places that neither the centre nor the host's own settings can allow: views of the kernel, devices, secrets.
const NEVER: [&str; 9] = [
    "/proc/**",
    "/sys/**",
    "/dev/**",
    "/etc/shadow*",
    "/etc/gshadow*",
    "/**/.ssh/**",
    "/**/.gnupg/**",
    "/run/secrets/**",
    "/run/credentials/**",
];

/// How often a file is tried to be opened while folders are being renamed.
const MAX_TRIES: usize = 16;

/// Why a file isn't read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The object lies outside all allowed globs.
    #[error("{} is not under a path that this agent allows", .0.display())]
    NotAllowed(PathBuf),
    /// The object lies where logmesh never reads.
    #[error("{} lies where files are never collected", .0.display())]
    Never(PathBuf),
    /// The object is logmesh's own data, or what it writes its log to.
    #[error("{} belongs to logmesh itself", .0.display())]
    Own(PathBuf),
    /// A folder, pipe, socket or device.
    #[error("{} is not a regular file but a {kind}", path.display())]
    NotRegular {
        /// Where it lies.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Nothing is there.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// The system refuses to open it.
    #[error("{} cannot be opened: {error}", path.display())]
    Unreadable {
        /// Where it lies.
        path: PathBuf,
        /// What the system says.
        error: String,
    },
}

impl Refusal {
    /// A stable name of the reason, for reports and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAllowed(_) => "NOT_ALLOWED",
            Self::Never(_) => "NEVER_COLLECTED",
            Self::Own(_) => "OWN_FILE",
            Self::NotRegular { .. } => "NOT_A_REGULAR_FILE",
            Self::NotFound(_) => "NOT_FOUND",
            Self::Unreadable { .. } => "UNREADABLE",
        }
    }

    fn from_errno(path: &Path, errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::NotFound(path.to_owned()),
            errno => Self::Unreadable { path: path.to_owned(), error: errno.to_string() },
        }
    }
}

/// What the system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub key: FileKey,
    pub size: u64,
    /// How many names it has; 0: it is deleted and lives only while someone holds it open.
    pub links: u32,
    pub is_file: bool,
    /// When it was last written to.
    pub modified: UnixNanos,
}

/// What makes a file itself, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct FileKey {
    pub dev: u64,
    pub inode: u64,
    /// Birth time in nanoseconds; `None` where the file system keeps none.
    pub birth: Option<i64>,
}

/// An open file and where it really lies.
#[derive(Debug)]
pub(crate) struct Opened {
    pub file: File,
    pub real: PathBuf,
    pub meta: Meta,
}

/// Opens only what the owner of the host allowed.
#[derive(Debug)]
pub struct PathGuard {
    allow: Vec<PathGlob>,
    never: Vec<PathGlob>,
    own_dirs: Vec<PathBuf>,
    own_files: Vec<(u64, u64)>,
}

impl PathGuard {
    /// A guard that allows the given globs and no file beneath `own_dirs` (folders that exist).
    ///
    /// The files that this process's standard output and error go to are never opened either: a log that is collected
    /// would grow by being collected.
    pub fn new(allow: &[String], own_dirs: &[PathBuf]) -> Result<Self, GlobError> {
        let allow = allow.iter().map(|glob| PathGlob::new(glob)).collect::<Result<_, _>>()?;
        let never = NEVER.iter().map(|glob| PathGlob::new(glob)).collect::<Result<_, _>>()?;
        let own_dirs = own_dirs.iter().map(|dir| dir.canonicalize().unwrap_or_else(|_| dir.clone())).collect();
        let own_files = [meta_of(&rustix::stdio::stdout()), meta_of(&rustix::stdio::stderr())]
            .into_iter()
            .filter_map(Result::ok)
            .filter(|meta| meta.is_file)
            .map(|meta| (meta.key.dev, meta.key.inode))
            .collect();
        Ok(Self { allow, never, own_dirs, own_files })
    }

    /// The folders where a walk for `glob` may begin: the part of its static root that is allowed. Empty: none of it is.
    pub(crate) fn roots_for(&self, glob: &PathGlob) -> Vec<PathBuf> {
        let wanted = glob.static_root();
        let mut roots: Vec<PathBuf> = Vec::new();
        for allowed in &self.allow {
            let allowed_root = allowed.static_root();
            let root = if wanted.starts_with(&allowed_root) && allowed.progress(&wanted).is_some_and(|p| !p.is_dead()) {
                wanted.clone()
            } else if allowed_root.starts_with(&wanted) && glob.progress(&allowed_root).is_some_and(|p| !p.is_dead()) {
                allowed_root
            } else {
                continue;
            };
            if !roots.iter().any(|known| root.starts_with(known)) {
                roots.retain(|known| !known.starts_with(&root));
                roots.push(root);
            }
        }
        roots
    }

    /// Opens a regular file for reading, if it lies where that is allowed.
    pub(crate) fn open(&self, path: &Path) -> Result<Opened, Refusal> {
        match self.open_beneath(path) {
            // A link leads out of the allowed folder. Where it leads to may be allowed on its own account.
            Err(Refusal::NotAllowed(_)) => {
                let target = path.canonicalize().map_err(|e| io_refusal(path, &e))?;
                if target == path { Err(Refusal::NotAllowed(target)) } else { self.open_beneath(&target) }
            }
            result => result,
        }
    }

    /// Whether a file that is followed may be read on: where it lies now, or where it lay if it is there no more.
    pub(crate) fn keeps(&self, path: &Path, real: &Path) -> bool {
        match self.open(path) {
            Ok(_) => true,
            Err(Refusal::NotFound(_) | Refusal::Unreadable { .. }) => {
                self.allow.iter().any(|glob| glob.matches(real) || glob.matches(path))
            }
            Err(_) => false,
        }
    }

    fn open_beneath(&self, path: &Path) -> Result<Opened, Refusal> {
        let mut refusal = Refusal::NotAllowed(path.to_owned());
        for glob in &self.allow {
            let root = glob.static_root();
            let Ok(rest) = path.strip_prefix(&root) else { continue };
            match self.open_in(glob, &root, rest) {
                Err(Refusal::NotAllowed(real)) => refusal = Refusal::NotAllowed(real),
                result => return result,
            }
        }
        Err(refusal)
    }

    /// Opens `rest` beneath the static root of an allowed glob and checks what was opened.
    fn open_in(&self, glob: &PathGlob, root: &Path, rest: &Path) -> Result<Opened, Refusal> {
        let path = root.join(rest);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| Refusal::from_errno(&path, e))?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        // O_PATH first: opening a pipe or a device has effects of its own, and only a regular file shall be opened.
        let open = || rustix::fs::openat2(&dir, rest, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        // The kernel answers AGAIN when a rename elsewhere kept it from proving that the way stays beneath.
        let tries = (0..MAX_TRIES).map(|_| open()).find(|result| !matches!(result, Err(Errno::AGAIN)));
        let handle = match tries.unwrap_or(Err(Errno::AGAIN)) {
            Ok(handle) => handle,
            Err(Errno::XDEV) => return Err(Refusal::NotAllowed(path)),
            Err(errno) => return Err(Refusal::from_errno(&path, errno)),
        };
        let real = real_path(&handle).map_err(|e| Refusal::from_errno(&path, e))?;
        let real_root = real_path(&dir).map_err(|e| Refusal::from_errno(&path, e))?;
        // The glob is held against the path as the owner wrote its root, which may itself be a link (/var/run).
        let within = real.strip_prefix(&real_root).map_err(|_| Refusal::NotAllowed(real.clone()))?;
        if !glob.matches(&root.join(within)) {
            return Err(Refusal::NotAllowed(real));
        }
        self.check(&real, &handle)?;
        let file = reopen(&handle).map_err(|e| Refusal::from_errno(&path, e))?;
        let meta = meta_of(&file).map_err(|e| Refusal::from_errno(&path, e))?;
        Ok(Opened { file, real, meta })
    }

    fn check(&self, real: &Path, handle: &OwnedFd) -> Result<(), Refusal> {
        if self.never.iter().any(|glob| glob.matches(real)) {
            return Err(Refusal::Never(real.to_owned()));
        }
        if self.own_dirs.iter().any(|dir| real.starts_with(dir)) {
            return Err(Refusal::Own(real.to_owned()));
        }
        let stat = statx(handle).map_err(|e| Refusal::from_errno(real, e))?;
        let meta = meta_from(&stat);
        if self.own_files.contains(&(meta.key.dev, meta.key.inode)) {
            return Err(Refusal::Own(real.to_owned()));
        }
        if !meta.is_file {
            return Err(Refusal::NotRegular { path: real.to_owned(), kind: kind_name(&stat) });
        }
        Ok(())
    }
}

/// Where an open file lies now; a deleted one gets a ` (deleted)` at its end from the kernel.
pub(crate) fn real_path(fd: &impl AsFd) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let target = rustix::fs::readlinkat(CWD, link, Vec::new())?;
    Ok(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(target.into_bytes())))
}

/// Opens for reading the very object that a path handle holds.
fn reopen(handle: &OwnedFd) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", handle.as_raw_fd()), flags, Mode::empty()).map(File::from)
}

/// What the system says of an open file.
pub(crate) fn meta_of(fd: &impl AsFd) -> Result<Meta, Errno> {
    statx(fd).map(|stat| meta_from(&stat))
}

/// What the system says of the file at a path, links followed.
pub(crate) fn meta_at(path: &Path) -> Result<Meta, Refusal> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), mask).map_err(|e| Refusal::from_errno(path, e))?;
    Ok(meta_from(&stat))
}

fn statx(fd: &impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

fn meta_from(stat: &Statx) -> Meta {
    let UnixNanos(nanos) = nanos_of(stat.stx_btime);
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0 && nanos != 0;
    Meta {
        key: FileKey {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            birth: has_birth.then_some(nanos),
        },
        size: stat.stx_size,
        links: stat.stx_nlink,
        is_file: FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile,
        modified: nanos_of(stat.stx_mtime),
    }
}

fn nanos_of(time: StatxTimestamp) -> UnixNanos {
    UnixNanos(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec)))
}

fn kind_name(stat: &Statx) -> &'static str {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => "folder",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "special file",
    }
}

fn io_refusal(path: &Path, error: &std::io::Error) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::NotFound => Refusal::NotFound(path.to_owned()),
        _ => Refusal::Unreadable { path: path.to_owned(), error: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
        guard: PathGuard,
    }

    /// A folder with `in/` allowed, `also/*.log` allowed, `out/` not, and `in/own/` logmesh's own.
    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["in/own", "in/.ssh", "also", "out"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["in/a.log", "in/own/a.log", "in/.ssh/id", "also/b.log", "also/b.txt", "out/secret.log"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        let allow = [format!("{}/in/**", root.display()), format!("{}/also/*.log", root.display())];
        let guard = PathGuard::new(&allow, &[root.join("in/own")]).unwrap();
        Place { dir, guard }
    }

    impl Place {
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join(name)
        }
        fn reason(&self, name: &str) -> &'static str {
            match self.guard.open(&self.path(name)) {
                Ok(_) => "OPEN",
                Err(refusal) => refusal.reason(),
            }
        }
    }

    #[test]
    fn only_what_is_allowed_opens() {
        let place = place();
        let opened = place.guard.open(&place.path("in/a.log")).unwrap();
        assert_eq!((opened.meta.size, opened.real), (8, place.path("in/a.log")));
        assert_eq!(place.reason("also/b.log"), "OPEN");
        assert_eq!(place.reason("also/b.txt"), "NOT_ALLOWED");
        assert_eq!(place.reason("out/secret.log"), "NOT_ALLOWED");
        assert_eq!(place.reason("in/../out/secret.log"), "NOT_ALLOWED");
        assert_eq!(place.reason("in/own/a.log"), "OWN_FILE");
        assert_eq!(place.reason("in/.ssh/id"), "NEVER_COLLECTED");
        assert_eq!(place.reason("in/none.log"), "NOT_FOUND");
        assert_eq!(place.reason("in/own"), "OWN_FILE");
    }

    #[test]
    fn links_are_judged_by_where_they_lead() {
        let place = place();
        symlink(place.path("out/secret.log"), place.path("in/abs.log")).unwrap();
        symlink("../out/secret.log", place.path("in/rel.log")).unwrap();
        symlink("../out", place.path("in/dir")).unwrap();
        symlink(place.path("also/b.log"), place.path("in/also.log")).unwrap();
        symlink("a.log", place.path("in/near.log")).unwrap();
        symlink("loop.log", place.path("in/loop.log")).unwrap();
        symlink("nowhere", place.path("in/dangling.log")).unwrap();
        symlink("/proc/self/environ", place.path("in/environ")).unwrap();
        for refused in ["in/abs.log", "in/rel.log", "in/dir/secret.log", "in/environ"] {
            assert_eq!(place.reason(refused), "NOT_ALLOWED", "{refused}");
        }
        assert_eq!(place.guard.open(&place.path("in/also.log")).unwrap().real, place.path("also/b.log"));
        assert_eq!(place.guard.open(&place.path("in/near.log")).unwrap().real, place.path("in/a.log"));
        assert_eq!(place.reason("in/loop.log"), "UNREADABLE");
        assert_eq!(place.reason("in/dangling.log"), "NOT_FOUND");
    }

    #[test]
    fn special_files_are_refused_unopened() {
        let place = place();
        rustix::fs::mknodat(CWD, place.path("in/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place.path("in/socket")).unwrap();
        std::fs::create_dir(place.path("in/folder")).unwrap();
        for special in ["in/pipe", "in/socket", "in/folder"] {
            assert_eq!(place.reason(special), "NOT_A_REGULAR_FILE", "{special}");
        }
    }

    #[test]
    fn the_kernel_and_devices_cannot_be_allowed() {
        let guard = PathGuard::new(&["/**".to_owned()], &[]).unwrap();
        for path in
            ["/proc/self/environ", "/proc/self/root/etc/hostname", "/dev/null", "/etc/shadow", "/sys/kernel/notes"]
        {
            assert!(guard.open(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(guard.open(Path::new("/proc/version")).unwrap_err().reason(), "NEVER_COLLECTED");
    }

    #[test]
    fn a_walk_begins_only_where_allowed() {
        let guard = PathGuard::new(&["/var/log/**".into(), "/srv/*/logs/**".into()], &[]).unwrap();
        let roots = |glob: &str| guard.roots_for(&PathGlob::new(glob).unwrap());
        assert_eq!(roots("/var/log/nginx/*.log"), [PathBuf::from("/var/log/nginx")]);
        assert_eq!(roots("/**/*.log"), [PathBuf::from("/var/log"), PathBuf::from("/srv")]);
        assert_eq!(roots("/srv/a/logs/x.log"), [PathBuf::from("/srv/a/logs")]);
        assert!(roots("/etc/*").is_empty());
        assert!(roots("/srv/a/data/x.log").is_empty());
        assert!(roots("/var/logs/**").is_empty());
    }
}
