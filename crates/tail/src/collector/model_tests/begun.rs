//! What a truncated file may have kept to itself: its last event, if that wasn't ended.

use super::*;
use crate::pathguard::meta_at;

impl World {
    /// How many bytes at the end of a file weren't delivered, in the file's own stream: a copy of it that is a file of
    /// its own may have ended the same event, being cut by a newer framing.
    pub(super) fn begun(&mut self, file: u8, generation: &Generation) -> usize {
        let key = meta_at(&self.name(file)).unwrap().key;
        let number = self.bench.it().by_key[&key];
        let followed = &self.bench.it().files[&number];
        let (stream, framing) = (followed.stream, followed.record.assignment.framing.clone());
        let text = self.delivered.get(&stream).map(join).unwrap_or_default();
        assert!(is_start(&text, &generation.bytes), "{:?} of another generation", String::from_utf8_lossy(&text));
        let begun = generation.bytes.len() - text.len();
        let most = generation.bytes.len() - last_event(&generation.bytes, &framing);
        assert!(begun <= most, "{begun} bytes weren't read, of which {most} may wait: {generation:?} {framing:?}");
        if begun > 0 {
            self.missed.push((stream, ByteRange::new(text.len() as u64, generation.bytes.len() as u64)));
        }
        begun
    }

    /// What couldn't be had is told to be lost, each range of it.
    pub(super) fn check_losses(&mut self) {
        let status = self.bench.it().status();
        for (stream, range) in &self.missed {
            let mut losses = status.iter().filter(|file| file.stream == *stream).flat_map(|file| &file.losses);
            assert!(losses.any(|loss| loss.range == *range), "{range} of {stream} isn't told to be lost: {status:?}");
        }
    }
}

/// Where the last event of a file begins, if no more is known than its whole lines; its end, if that one is ended.
fn last_event(bytes: &[u8], framing: &FramingSpec) -> usize {
    let (mut last, mut at) = (0, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let (begins, ends) = match &framing.pattern {
            None => (false, true),
            Some(Pattern::Start(_)) => (line[0].is_ascii_digit(), false),
            Some(Pattern::Continue(_)) => (line[0] != b' ', false),
            Some(Pattern::End(_)) => (false, line[line.len() - 2] % 2 == 1 && line[line.len() - 2].is_ascii_digit()),
        };
        last = if begins { at } else { last };
        at += line.len();
        last = if ends { at } else { last };
    }
    last
}

/// The copy is read under the new framing, by which its last line is an event; the original under the old, by which
/// it waits for the next: what was sent before the crash must be cut alike.
#[test]
fn what_a_copy_ended_may_be_begun_in_its_original() {
    let mut world = World::new();
    let actions = [
        Action::Framing(1),
        Action::Lines(0, 4),
        Action::Poll(1, true),
        Action::Framing(3),
        Action::Copy(0),
        Action::Crash,
        Action::Truncate(0),
    ];
    for action in &actions {
        world.run(action);
    }
    assert!(world.contents().contains(&world.finished[0].bytes));
    assert!(world.finished.iter().any(|generation| generation.may_miss > 0));
    world.check();
}
