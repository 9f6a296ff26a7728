//! Reads of one snapshot of the file.

use bytes::Bytes;
use logmesh_store::{Change, Entry, KeyChange, LeaseId, Revision, Snapshot, Versioned};
use redb::{Database, ReadableDatabase, ReadableTable};

use crate::disk::{CURRENT, HISTORY, META, META_COMPACTED, META_REVISION, NO_LEASE};

pub(crate) fn get(database: &Database, key: &str) -> Result<Option<Versioned>, redb::Error> {
    let current = database.begin_read()?.open_table(CURRENT)?;
    Ok(current.get(key)?.map(|stored| versioned(stored.value())))
}

pub(crate) fn list(database: &Database, prefix: &str) -> Result<Snapshot, redb::Error> {
    let transaction = database.begin_read()?;
    let revision = Revision(meta(&transaction.open_table(META)?, META_REVISION)?);
    let mut entries = Vec::new();
    for entry in transaction.open_table(CURRENT)?.range(prefix..)? {
        let (key, stored) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        entries.push(Entry { key: key.value().to_owned(), versioned: versioned(stored.value()) });
    }
    Ok(Snapshot { revision, entries })
}

pub(crate) fn keys(database: &Database, prefix: &str) -> Result<Vec<String>, redb::Error> {
    let mut keys = Vec::new();
    for entry in database.begin_read()?.open_table(CURRENT)?.range(prefix..)? {
        let (key, _) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        keys.push(key.value().to_owned());
    }
    Ok(keys)
}

/// Part of history.
#[derive(Debug)]
pub(crate) enum History {
    /// The changes of a prefix in all revisions up to `through`.
    Changes { changes: Vec<Change>, through: Revision },
    /// What should come first has been compacted.
    Compacted { oldest: Revision },
}

/// The changes of `prefix` after a revision, or the first of them: about `max_rows` keys or `max_bytes` bytes are read.
pub(crate) fn history(
    database: &Database,
    prefix: &str,
    after: Revision,
    max_rows: usize,
    max_bytes: usize,
) -> Result<History, redb::Error> {
    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(META)?;
    let (compacted, current) = (meta(&numbers, META_COMPACTED)?, meta(&numbers, META_REVISION)?);
    if after.0.saturating_add(1) < compacted {
        return Ok(History::Compacted { oldest: Revision(compacted) });
    }
    let mut changes: Vec<Change> = Vec::new();
    let mut through = after;
    let (mut rows, mut bytes) = (0, 0);
    for entry in transaction.open_table(HISTORY)?.range((after.0.saturating_add(1), "")..)? {
        let (place, stored) = entry?;
        let (revision, key) = place.value();
        if revision > through.0 && (rows >= max_rows || bytes >= max_bytes) {
            return Ok(History::Changes { changes, through });
        }
        through = Revision(revision);
        rows += 1;
        if key.starts_with(prefix) {
            let value = stored.value().map(versioned);
            bytes += key.len() + value.as_ref().map_or(0, |value| value.value.len());
            let key_change = KeyChange { key: key.to_owned(), value };
            match changes.last_mut() {
                Some(change) if change.revision == through => change.keys.push(key_change),
                _ => changes.push(Change { revision: through, keys: vec![key_change] }),
            }
        }
    }
    Ok(History::Changes { changes, through: through.max(Revision(current)) })
}

pub(crate) fn versioned((revision, lease, value): (u64, u64, &[u8])) -> Versioned {
    Versioned {
        value: Bytes::copy_from_slice(value),
        mod_revision: Revision(revision),
        lease: (lease != NO_LEASE).then_some(LeaseId(lease)),
    }
}

/// A number that every store has from its making.
pub(crate) fn meta(numbers: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, redb::Error> {
    let number = numbers.get(name)?.map(|number| number.value());
    number.ok_or_else(|| redb::Error::Corrupted(format!("the config store has no `{name}`")))
}
