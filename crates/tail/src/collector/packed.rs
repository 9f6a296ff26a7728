//! What a compressed copy tells of a file that nobody watched to its end: how long it was, so that what wasn't read of it
//! is listed and not silent. The copy itself isn't read: see docs/decisions/0011-copies-and-losses.md.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use crate::pathguard::PathGuard;
use crate::state::{Guard, Record};

/// The most copies that are looked at for one file.
const MAX_COPIES: usize = 64;

/// The most bytes of a copy that are unpacked: room for the header's file name beside the head.
const MAX_UNPACKED_FROM: u64 = 64 << 10;

/// Copies that were looked into: each is opened once, however many files it may be a copy of.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// How each one begins, and its length modulo 2^32; `None`: it is no such copy.
    seen: HashMap<PathBuf, Option<(Guard, u32)>>,
}

impl Packed {
    /// How long the record's file was by the word of a gzip file in its folder that is called as it was, and more, and
    /// begins as it did; `None`: there is no such file, or it says less than is known.
    pub(super) fn length(&mut self, record: &Record, names: &HashMap<u64, PathBuf>, guard: &PathGuard) -> Option<u64> {
        let name = record.matched.file_name()?.as_bytes();
        let is_copy = |path: &Path| {
            let other = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
            other.starts_with(name) && other.ends_with(b".gz")
        };
        // Fewer bytes prove nothing.
        if usize::from(record.head.length) < Guard::BYTES {
            return None;
        }
        let wrapped = record.size & !u64::from(u32::MAX);
        let copies = names.values().filter(|path| is_copy(path)).take(MAX_COPIES);
        let length = copies.filter_map(|path| {
            let (head, length) = (*self.seen.entry(path.clone()).or_insert_with(|| look_into(path, guard)))?;
            if head == record.head { wrapped.checked_add(length.into()) } else { None }
        });
        length.max().filter(|length| *length > record.size)
    }
}

fn look_into(path: &Path, guard: &PathGuard) -> Option<(Guard, u32)> {
    let opened = guard.open(path).ok()?;
    let mut head = [0; Guard::BYTES];
    GzDecoder::new((&opened.file).take(MAX_UNPACKED_FROM)).read_exact(&mut head).ok()?;
    // RFC 1952: the last four bytes are the length modulo 2^32.
    let mut length = [0; 4];
    opened.file.read_exact_at(&mut length, opened.meta.size.checked_sub(4)?).ok()?;
    Some((Guard::of(&head), u32::from_le_bytes(length)))
}
