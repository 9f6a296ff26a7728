//! A damaged file: it's refused with a clear error, or everything is there. Never a panic, never a part.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::path::{Path, PathBuf};

use bytes::Bytes;
use logmesh_store::{ConfigStore, Entry, Precondition};
use logmesh_store_embedded::{EmbeddedStore, OpenError, Options};

/// What the file system's smallest piece is, and redb's page.
const PAGE: usize = 4096;

fn open(path: &Path) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(path, Options::default())
}

/// A store with some rules, of several commits.
async fn sound(path: &Path) -> (Vec<u8>, Vec<Entry>) {
    let store = open(path).unwrap();
    for n in 0..200 {
        let value = Bytes::from(format!("{{\"rule\": {n}}}").repeat(n % 50));
        store.put(&format!("/rules/{:02}", n % 70), value, Precondition::None).await.unwrap();
    }
    let entries = store.list("").await.unwrap().entries;
    drop(store);
    (std::fs::read(path).unwrap(), entries)
}

/// Opens the damaged file; true if it was refused.
async fn is_refused(path: &Path, bytes: &[u8], entries: &[Entry], what: &str) -> bool {
    std::fs::write(path, bytes).unwrap();
    match open(path) {
        Ok(store) => {
            let held = store.list("").await.unwrap().entries;
            assert!(held == entries, "{what}: it was opened, and {} of {} keys are there", held.len(), entries.len());
            false
        }
        Err(OpenError::Damaged { .. } | OpenError::NotAStore { .. } | OpenError::Version { .. }) => true,
        Err(other) => panic!("{what}: {other:?}"),
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_or_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("config.redb");
    let (sound, entries) = sound(&path).await;
    let mut refused = 0;
    for start in (0..sound.len()).step_by(PAGE) {
        // Pages that hold nothing can't be damaged.
        let page = &sound[start..sound.len().min(start + PAGE)];
        let Some(place) = page.iter().position(|byte| *byte != 0) else { continue };
        let mut flipped = sound.clone();
        flipped[start + place] ^= 0x40;
        refused += u32::from(is_refused(&path, &flipped, &entries, &format!("a bit at {}", start + place)).await);
        let mut lost = sound.clone();
        lost[start..start + page.len()].fill(0);
        refused += u32::from(is_refused(&path, &lost, &entries, &format!("the page at {start}")).await);
    }
    for length in [sound.len() / 2, sound.len() - PAGE, PAGE, 100] {
        refused += u32::from(is_refused(&path, &sound[..length], &entries, &format!("cut at {length}")).await);
    }
    assert!(refused > 50, "void: only {refused} damages were noticed");
    std::fs::write(&path, &sound).unwrap();
    assert_eq!(open(&path).unwrap().list("").await.unwrap().entries, entries);
}

#[tokio::test]
async fn the_error_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.redb");
    let (mut bytes, _) = sound(&path).await;
    let place = bytes.windows(7).rposition(|window| window == b"\"rule\":").expect("a rule is in it");
    bytes[place] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged { found, .. } if !found.is_empty()), "{error:?}");
    let said = error.to_string();
    for part in [&path.display().to_string(), "is damaged (", "put a copy in its place", "move it away"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}
