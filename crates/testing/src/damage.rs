//! Damage as disks make it.

use std::path::Path;

/// The size of redb's pages, in bytes.
const PAGE: usize = 4096;

/// Flips bytes in every page of a redb file that holds something, but the first two: these are its header.
pub fn flip_pages(path: &Path) {
    let mut bytes = std::fs::read(path).expect("the file can be read");
    for page in bytes.chunks_mut(PAGE).skip(2).filter(|page| page.iter().any(|byte| *byte != 0)) {
        page[200..204].iter_mut().for_each(|byte| *byte ^= 0xff);
    }
    std::fs::write(path, bytes).expect("the file can be written");
}
