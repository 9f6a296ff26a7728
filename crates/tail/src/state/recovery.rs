//! Whatever part of its writes a crash leaves on the disk, the state opens with a committed state, or is set aside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use redb::StorageBackend;

use super::tests::record;
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// A disk in memory that remembers in which order it was written.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, Vec<Op>)>>);

fn apply(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write(offset, data) => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            bytes.resize(bytes.len().max(end), 0);
            bytes[start..end].copy_from_slice(data);
        }
        Op::Length(length) => bytes.resize(*length as usize, 0),
        Op::Sync => {}
    }
}

impl Disk {
    fn note(&self, op: Op) {
        let (bytes, ops) = &mut *self.0.lock().unwrap();
        apply(bytes, &op);
        ops.push(op);
    }

    fn ops(&self) -> Vec<Op> {
        self.0.lock().unwrap().1.clone()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        out.copy_from_slice(&self.0.lock().unwrap().0[offset as usize..offset as usize + out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), std::io::Error> {
        self.note(Op::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.note(Op::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.note(Op::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// What is on the disk after a crash at `at`: all that was synced before, of the writes since then some, one of them torn.
fn crashed(ops: &[Op], at: usize, kept: &[bool], torn: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let synced = ops[..at].iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |place| place + 1);
    ops[..synced].iter().for_each(|op| apply(&mut bytes, op));
    for (place, op) in ops[synced..at].iter().enumerate() {
        match op {
            Op::Write(offset, data) if place == torn % (at - synced) => {
                apply(&mut bytes, &Op::Write(*offset, data[..torn % data.len().max(1)].to_vec()));
            }
            Op::Write(..) if !kept[place % kept.len()] => {}
            op => apply(&mut bytes, op),
        }
    }
    bytes
}

type Acked = BTreeMap<u64, u64>;

fn acked(loaded: &Loaded) -> Acked {
    loaded.records.iter().map(|record| (record.number, record.acked)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_leaves_a_committed_state(
        batches in prop::collection::vec(prop::collection::btree_map(0u64..40, prop::option::of(0u64..1_000), 1..30), 1..6),
        crashes in prop::collection::vec((any::<prop::sample::Index>(), any::<usize>(), any::<bool>()), 1..12),
        kept in prop::collection::vec(any::<bool>(), 7),
    ) {
        let disk = Disk::default();
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(disk.clone()).unwrap();
        read(&database).unwrap().unwrap();
        // After so many writes, this is committed.
        let mut commits: Vec<(usize, Acked)> = vec![(disk.ops().len(), Acked::new())];
        for changes in &batches {
            let mut now = commits.last().unwrap().1.clone();
            let mut batch = Batch::default();
            for (number, change) in changes {
                match change {
                    Some(acked) => {
                        now.insert(*number, *acked);
                        batch.records.push(Record { acked: *acked, ..record(*number) });
                    }
                    None => {
                        now.remove(number);
                        batch.removed.push(*number);
                    }
                }
            }
            write(&database, &batch).unwrap();
            commits.push((disk.ops().len(), now));
        }
        let ops = disk.ops();
        let boundaries: BTreeSet<usize> =
            (0..ops.len()).filter(|place| matches!(ops[*place], Op::Sync)).map(|place| place + 1).collect();
        let anywhere = crashes.iter().map(|(place, torn, _)| (place.index(ops.len()) + 1, *torn));
        for (at, torn) in boundaries.into_iter().map(|at| (at, 0)).chain(anywhere) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), crashed(&ops, at, &kept, torn)).unwrap();
            let (_state, loaded, message) = State::open(dir.path()).unwrap();
            let Some(last) = commits.iter().rposition(|(place, _)| *place <= at) else { continue };
            prop_assert_eq!(message, None, "at {} of {}", at, ops.len());
            let possible: Vec<&Acked> = commits[last..].iter().take(2).map(|(_, state)| state).collect();
            prop_assert!(possible.contains(&&acked(&loaded)), "at {} of {}: {:?}", at, ops.len(), acked(&loaded));
        }
    }
}
