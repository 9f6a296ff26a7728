//! One write transaction of the file: several transactions of callers, each with a revision of its own.

use std::time::Duration;

use logmesh_store::{Lease, LeaseId, Op, Revision, StoreError, Txn};
use redb::{Durability, MultimapTable, ReadableMultimapTable, ReadableTable, Table, WriteTransaction};

use crate::disk::{
    CURRENT, HISTORY, LEASE_KEYS, LEASES, META, META_COMPACTED, META_LEASE, META_REVISION, NO_LEASE, StoredValue,
};
use crate::read::meta;

/// What a caller is answered, unless the file fails.
pub(crate) type Answer<T> = Result<Result<T, StoreError>, redb::Error>;

/// The open tables of a write transaction.
pub(crate) struct Batch<'a> {
    current: Table<'a, &'static str, StoredValue>,
    history: Table<'a, (u64, &'static str), Option<StoredValue>>,
    leases: Table<'a, u64, u64>,
    lease_keys: MultimapTable<'a, u64, &'static str>,
    meta: Table<'a, &'static str, u64>,
    revision: u64,
    changed: bool,
}

/// Runs `work` in one write transaction, which is durable when this returns. Nothing is written if nothing changed.
pub(crate) fn commit<T>(
    database: &redb::Database,
    work: impl FnOnce(&mut Batch<'_>) -> Result<T, redb::Error>,
) -> Result<(T, Revision), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut batch = Batch::open(&transaction)?;
    let done = work(&mut batch)?;
    batch.meta.insert(META_REVISION, batch.revision)?;
    let (revision, changed) = (Revision(batch.revision), batch.changed);
    drop(batch);
    if changed {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok((done, revision))
}

impl<'a> Batch<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        let numbers = transaction.open_table(META)?;
        Ok(Self {
            current: transaction.open_table(CURRENT)?,
            history: transaction.open_table(HISTORY)?,
            leases: transaction.open_table(LEASES)?,
            lease_keys: transaction.open_multimap_table(LEASE_KEYS)?,
            revision: meta(&numbers, META_REVISION)?,
            meta: numbers,
            changed: false,
        })
    }

    /// Does a caller's transaction, if its conditions hold.
    pub(crate) fn apply(&mut self, txn: &Txn) -> Answer<Revision> {
        for (key, precondition) in &txn.conditions {
            let actual = self.current.get(key.as_str())?.map(|stored| Revision(stored.value().0));
            if !precondition.holds(actual) {
                return Ok(Err(StoreError::PreconditionFailed { key: key.clone(), actual }));
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && self.leases.get(lease.0)?.is_none()
            {
                return Ok(Err(StoreError::LeaseNotFound(*lease)));
            }
        }
        let revision = self.revision + 1;
        for op in &txn.ops {
            match op {
                Op::Put { key, value, lease } => self.put(revision, key, value, *lease)?,
                Op::Delete { key } => self.delete(revision, key)?,
            }
        }
        Ok(Ok(Revision(self.revision)))
    }

    fn put(&mut self, revision: u64, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<(), redb::Error> {
        let lease = lease.map_or(NO_LEASE, |lease| lease.0);
        let stored = (revision, lease, value);
        let former = self.current.insert(key, stored)?.map_or(NO_LEASE, |former| former.value().1);
        self.history.insert((revision, key), Some(stored))?;
        if former != lease && former != NO_LEASE {
            self.lease_keys.remove(former, key)?;
        }
        if former != lease && lease != NO_LEASE {
            self.lease_keys.insert(lease, key)?;
        }
        self.made(revision);
        Ok(())
    }

    fn delete(&mut self, revision: u64, key: &str) -> Result<(), redb::Error> {
        let Some(lease) = self.current.remove(key)?.map(|former| former.value().1) else { return Ok(()) };
        self.history.insert((revision, key), None)?;
        if lease != NO_LEASE {
            self.lease_keys.remove(lease, key)?;
        }
        self.made(revision);
        Ok(())
    }

    fn made(&mut self, revision: u64) {
        self.revision = revision;
        self.changed = true;
    }

    pub(crate) fn grant(&mut self, ttl: Duration) -> Result<Lease, redb::Error> {
        let id = meta(&self.meta, META_LEASE)? + 1;
        self.meta.insert(META_LEASE, id)?;
        self.leases.insert(id, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
        self.changed = true;
        Ok(Lease { id: LeaseId(id), ttl })
    }

    /// Ends a lease with its keys, in one revision.
    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Result<(), redb::Error> {
        if self.leases.remove(lease.0)?.is_none() {
            return Ok(());
        }
        self.changed = true;
        let mut keys = Vec::new();
        for key in self.lease_keys.get(lease.0)? {
            keys.push(key?.value().to_owned());
        }
        let revision = self.revision + 1;
        keys.iter().try_for_each(|key| self.delete(revision, key))
    }

    /// The leases with their times to live, in milliseconds.
    pub(crate) fn leases(&self) -> Result<Vec<(LeaseId, Duration)>, redb::Error> {
        let lease = |row: Result<(redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, u64>), _>| {
            row.map(|(id, ttl)| (LeaseId(id.value()), Duration::from_millis(ttl.value())))
        };
        Ok(self.leases.iter()?.map(lease).collect::<Result<_, redb::StorageError>>()?)
    }

    /// Forgets the changes before `revision`.
    pub(crate) fn compact(&mut self, revision: Revision) -> Answer<()> {
        if revision.0 > self.revision {
            let current = self.revision;
            return Ok(Err(StoreError::Invalid(format!("revision {revision} is in the future; it is {current} now"))));
        }
        if revision.0 > meta(&self.meta, META_COMPACTED)? {
            self.history.retain_in(..(revision.0, ""), |_, _| false)?;
            self.meta.insert(META_COMPACTED, revision.0)?;
            self.changed = true;
        }
        Ok(Ok(()))
    }

    /// Keeps history between `keep` revisions and a tenth more.
    pub(crate) fn bound_history(&mut self, keep: u64) -> Result<(), redb::Error> {
        let length = self.revision - meta(&self.meta, META_COMPACTED)?;
        if length > keep + keep / 10 {
            self.compact(Revision(self.revision - keep))?.ok();
        }
        Ok(())
    }
}
