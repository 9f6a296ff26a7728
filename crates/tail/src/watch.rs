//! Hints from the kernel that something changed in a folder, and the one place where the tailer's thread sleeps.
//!
//! Hints only make things fast: whatever is missed here, the next scan finds.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The most folders that are watched; what lies in others is found by scans.
const MAX_WATCHES: usize = 16_384;

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// A file grew or shrank.
    Changed(PathBuf),
    /// A name came, went or now means another file.
    Named(PathBuf),
    /// Folders changed, or hints were lost: scan.
    Scan,
}

/// Wakes the tailer's thread out of [`crate::Collector::wait`].
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Wakes it, or keeps it from its next sleep.
    pub fn wake(&self) {
        // The counter can only be full when it is set already.
        rustix::io::write(&*self.0, &1u64.to_ne_bytes()).ok();
    }
}

#[derive(Debug)]
pub(crate) struct Watcher {
    inotify: Option<Inotify>,
    folders: HashMap<PathBuf, WatchDescriptor>,
    paths: HashMap<WatchDescriptor, PathBuf>,
    waker: Waker,
    /// Some folder couldn't be watched: only scans see it.
    pub incomplete: bool,
}

impl Watcher {
    pub(crate) fn new() -> std::io::Result<Self> {
        let waker = Waker(Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?));
        let inotify = Inotify::init().inspect_err(|error| {
            tracing::warn!(%error, "no inotify: changes are found by scans alone");
        });
        let incomplete = inotify.is_err();
        Ok(Self { inotify: inotify.ok(), folders: HashMap::new(), paths: HashMap::new(), waker, incomplete })
    }

    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Watches a folder; one that is watched already, or doesn't exist, is left as it is.
    pub(crate) fn watch(&mut self, folder: &Path) {
        let Some(inotify) = &self.inotify else { return };
        if self.folders.contains_key(folder) {
            return;
        }
        if self.folders.len() >= MAX_WATCHES {
            self.incomplete = true;
            return;
        }
        let mask = WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        match inotify.watches().add(folder, mask) {
            Ok(descriptor) => {
                // A folder may be known by two paths; the kernel names it once.
                if let Some(other) = self.paths.insert(descriptor.clone(), folder.to_owned()) {
                    self.folders.remove(&other);
                }
                self.folders.insert(folder.to_owned(), descriptor);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                if !self.incomplete {
                    tracing::warn!(folder = %folder.display(), %error, "cannot watch a folder: it is scanned more often");
                }
                self.incomplete = true;
            }
        }
    }

    /// Stops watching folders that nobody asked for since.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Path) -> bool) {
        let gone: Vec<_> = self.folders.keys().filter(|folder| !keep(folder)).cloned().collect();
        for folder in gone {
            self.forget(&folder);
        }
    }

    fn forget(&mut self, folder: &Path) {
        if let Some(descriptor) = self.folders.remove(folder) {
            self.paths.remove(&descriptor);
            if let Some(inotify) = &self.inotify {
                // The kernel may have dropped it already.
                inotify.watches().remove(descriptor).ok();
            }
        }
    }

    /// All hints that are there now.
    pub(crate) fn hints(&mut self) -> Vec<Hint> {
        let mut hints = Vec::new();
        let mut gone = Vec::new();
        let mut buffer = [0; 16 * 1024];
        let Some(inotify) = &mut self.inotify else { return hints };
        while let Ok(events) = inotify.read_events(&mut buffer) {
            for event in events {
                let folder = self.paths.get(&event.wd);
                if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                    gone.extend(folder.cloned());
                }
                let path = folder.zip(event.name).map(|(folder, name)| folder.join(name));
                push(&mut hints, event.mask, path);
            }
        }
        for folder in gone {
            self.forget(&folder);
        }
        hints
    }

    /// Sleeps until something happens or the time is over. `hints`: changes of files count too.
    pub(crate) fn sleep(&self, time: Duration, hints: bool) {
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&*self.waker.0, PollFlags::IN)];
        if let (true, Some(inotify)) = (hints, &self.inotify) {
            fds.push(PollFd::new(inotify, PollFlags::IN));
        }
        // An interrupted sleep is a short one.
        poll(&mut fds, Some(&timeout)).ok();
        let mut counter = [0; 8];
        rustix::io::read(&*self.waker.0, &mut counter).ok();
    }
}

/// What of a folder within a folder calls for a scan; its attributes and writes don't.
const FOLDER_NEWS: EventMask = EventMask::CREATE
    .union(EventMask::MOVED_FROM)
    .union(EventMask::MOVED_TO)
    .union(EventMask::DELETE)
    .union(EventMask::Q_OVERFLOW);

fn push(hints: &mut Vec<Hint>, mask: EventMask, path: Option<PathBuf>) {
    let hint = match path {
        Some(path) if !mask.contains(EventMask::ISDIR) => {
            let named =
                EventMask::CREATE | EventMask::MOVED_FROM | EventMask::MOVED_TO | EventMask::DELETE | EventMask::ATTRIB;
            if mask.intersects(named) { Hint::Named(path) } else { Hint::Changed(path) }
        }
        Some(_) if !mask.intersects(FOLDER_NEWS) => return,
        _ => Hint::Scan,
    };
    if hints.last() != Some(&hint) {
        hints.push(hint);
    }
}
