//! What was acked is read again, in ranges of any number of events.

use logmesh_types::ByteRange;

use super::*;
use crate::follow::{NotAgain, NotAgainCause};
use crate::pathguard::PathGuard;

impl World {
    /// Each file that is there gives again what it gave, whole or in parts.
    pub(super) fn check_again(&mut self) {
        let guard = PathGuard::new(&self.bench.it().settings.allow.clone(), &[]).unwrap();
        for (stream, events) in self.delivered.clone() {
            let Some(recall) = self.bench.it().recall(stream) else { continue };
            let mut again = match recall.open(&guard) {
                Ok(again) => again,
                Err(NotAgain { cause: NotAgainCause::Gone, .. }) => continue,
                Err(error) => panic!("{error:?}"),
            };
            let starts: Vec<u64> = events.keys().copied().collect();
            let acked = self.acked.get(&stream).copied().unwrap_or(0);
            for step in [1, 2, 3, 7, usize::MAX] {
                for part in starts.chunks(step.min(starts.len().max(1))) {
                    let end =
                        events.range(part[part.len() - 1]..).next().map_or(0, |(at, event)| at + event.len() as u64);
                    let range = ByteRange::new(part[0], end);
                    match read(&mut again, range) {
                        Ok(found) => {
                            assert!(found.iter().eq(events.range(range.start..range.end)), "{range} of {stream}")
                        }
                        Err(NotAgain { cause: NotAgainCause::NotCollected, .. }) if end > acked => {}
                        Err(error) => panic!("{range} of {stream}: {error:?}"),
                    }
                }
            }
        }
    }
}

/// The events of a range by their place.
fn read(again: &mut crate::Again, range: ByteRange) -> Result<BTreeMap<u64, Vec<u8>>, NotAgain> {
    let (mut events, mut at) = (BTreeMap::new(), range.start);
    while at < range.end {
        let chunk = again.read(ByteRange::new(at, range.end), &"t".parse().unwrap())?;
        assert_eq!(chunk.range.start, at);
        for event in split(&chunk) {
            events.insert(at, event.clone());
            at += event.len() as u64;
        }
    }
    Ok(events)
}
