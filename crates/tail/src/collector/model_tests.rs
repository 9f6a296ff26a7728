//! The collector as an interpreter of what happens to files, held against a model that knows what was written.
//!
//! Invariants, over any sequence of actions: of each generation of a file, what was delivered is exactly what was
//! written, from its first byte to its last; a range that is delivered again is cut into the same events; what was
//! acked isn't told to be lost; what a truncated file kept to itself is, to the byte, and is no more than one event that
//! wasn't ended; what was acked and still lies in its file becomes the same events when it's read again.

mod again;
mod begun;

use std::collections::BTreeMap;

use logmesh_types::ByteRange;
use proptest::prelude::*;

use super::tests::Bench;
use super::*;
use crate::framing::{FramingSpec, Pattern};
use crate::state::Guard;

#[derive(Debug, Clone)]
enum Action {
    /// Appends lines to a file; it is made if it isn't there.
    Lines(u8, u8),
    /// Appends a piece of a line.
    Piece(u8),
    /// Renames a file to where no glob looks, or with `true` to where one does.
    Rotate(u8, bool),
    Truncate(u8),
    /// Copies a file, after it grew unseen, and truncates it; with `true` the copy's name is one that the glob matches.
    CopyTruncate(u8, bool),
    /// Copies a file that goes on.
    Copy(u8),
    Delete(u8),
    /// Polls so many chunks, with little credit or much.
    Poll(u8, bool),
    /// Acks so many of the oldest unacked chunks.
    Ack(u8),
    /// So many seconds pass.
    Pass(u8),
    Reconnect,
    Crash,
    /// Another framing: see [`framings`].
    Framing(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..3u8, 1..6u8).prop_map(|(file, lines)| Action::Lines(file, lines)),
        3 => (0..3u8).prop_map(Action::Piece),
        2 => (0..3u8, any::<bool>()).prop_map(|(file, matched)| Action::Rotate(file, matched)),
        1 => (0..3u8).prop_map(Action::Truncate),
        2 => (0..3u8, any::<bool>()).prop_map(|(file, matched)| Action::CopyTruncate(file, matched)),
        1 => (0..3u8).prop_map(Action::Copy),
        1 => (0..3u8).prop_map(Action::Delete),
        6 => (1..6u8, any::<bool>()).prop_map(|(chunks, much)| Action::Poll(chunks, much)),
        4 => (1..6u8).prop_map(Action::Ack),
        2 => (1..8u8).prop_map(Action::Pass),
        1 => Just(Action::Reconnect),
        2 => Just(Action::Crash),
        1 => (0..framings().len()).prop_map(Action::Framing),
    ]
}

fn framings() -> Vec<FramingSpec> {
    let lines = FramingSpec::default();
    let joined = |pattern| FramingSpec { pattern: Some(pattern), ..lines.clone() };
    vec![
        lines.clone(),
        joined(Pattern::Start(r"^\d".into())),
        joined(Pattern::Continue("^ ".into())),
        joined(Pattern::End("[13579]$".into())),
        FramingSpec { max_event_bytes: 5, ..lines.clone() },
        FramingSpec { max_event_bytes: 5, cut: true, ..joined(Pattern::Start(r"^\d".into())) },
        FramingSpec { max_event_bytes: 3, cut: true, ..lines },
    ]
}

/// What stands for a byte that was left out of a line.
const OMITTED: u8 = 0xff;

fn is_start(text: &[u8], of: &[u8]) -> bool {
    text.len() <= of.len() && text.iter().zip(of).all(|(a, b)| a == b || *a == OMITTED)
}

/// What was written into one generation of a file, and how much of it may be missing at its end.
#[derive(Debug, Default)]
struct Generation {
    bytes: Vec<u8>,
    /// An event that wasn't ended when the file was truncated: it can't be had any more.
    may_miss: usize,
}

struct World {
    bench: Bench,
    live: BTreeMap<u8, Generation>,
    finished: Vec<Generation>,
    counter: u32,
    /// By stream: event start to event bytes.
    delivered: HashMap<StreamId, BTreeMap<u64, Vec<u8>>>,
    unacked: VecDeque<Chunk>,
    /// By stream: how far it was acked.
    acked: HashMap<StreamId, u64>,
    /// A file was deleted since the last crash.
    deleted: bool,
    /// What truncated files kept to themselves.
    missed: Vec<(StreamId, ByteRange)>,
}

impl World {
    fn new() -> Self {
        Self {
            bench: Bench::new("*.log"),
            live: BTreeMap::new(),
            finished: Vec::new(),
            counter: 0,
            delivered: HashMap::new(),
            unacked: VecDeque::new(),
            acked: HashMap::new(),
            deleted: false,
            missed: Vec::new(),
        }
    }

    fn run(&mut self, action: &Action) {
        match *action {
            Action::Lines(file, lines) => (0..lines).for_each(|n| {
                let start = if n % 2 == 0 { "" } else { " " };
                self.write(file, &format!("{start}{{}}\n"));
            }),
            Action::Piece(file) => self.write(file, "<{}>"),
            Action::Rotate(file, matched) => {
                if let Some(generation) = self.seen(file) {
                    self.counter += 1;
                    let name = if matched {
                        format!("{}-{file}.log", self.counter)
                    } else {
                        format!("{file}.{}", self.counter)
                    };
                    std::fs::rename(self.name(file), self.bench.path(&name)).unwrap();
                    self.finished.push(generation);
                }
            }
            Action::Truncate(file) => {
                // What isn't read when a file is truncated is lost, by anyone: only a begun event may be.
                self.deliver_all();
                if let Some(mut generation) = self.live.remove(&file) {
                    generation.may_miss = self.begun(file, &generation);
                    std::fs::File::create(self.name(file)).unwrap();
                    self.finished.push(generation);
                    self.live.insert(file, Generation::default());
                }
            }
            Action::CopyTruncate(file, matched) => {
                if self.live.get(&file).is_some_and(|generation| !generation.bytes.is_empty()) {
                    self.lengthen(file);
                    while self.poll(u64::MAX) {}
                    // How it begins is on disk after the next.
                    self.poll(u64::MAX);
                    self.write(file, "{} unseen\n");
                    self.copy(file, matched);
                    std::fs::File::create(self.name(file)).unwrap();
                    self.finished.extend(self.live.insert(file, Generation::default()));
                }
            }
            Action::Copy(file) => {
                self.lengthen(file);
                if let Some(generation) = self.live.get(&file) {
                    let bytes = generation.bytes.clone();
                    while self.poll(u64::MAX) {}
                    self.copy(file, true);
                    self.finished.push(Generation { bytes, may_miss: 0 });
                    // It's looked at for as long as it may be half of a copytruncate.
                    while self.poll(u64::MAX) {}
                    self.bench.pass(Duration::from_secs(4));
                    while self.poll(u64::MAX) {}
                }
            }
            Action::Delete(file) => {
                if let Some(generation) = self.seen(file) {
                    std::fs::remove_file(self.name(file)).unwrap();
                    self.deleted = true;
                    self.finished.push(generation);
                }
            }
            Action::Poll(chunks, much) => {
                for _ in 0..chunks {
                    self.poll(if much { u64::MAX } else { 30 });
                }
            }
            Action::Ack(chunks) => {
                for chunk in self.unacked.drain(..usize::from(chunks).min(self.unacked.len())).collect::<Vec<_>>() {
                    self.bench.ack(&chunk);
                    self.acked.insert(chunk.stream, chunk.range.end);
                }
            }
            Action::Pass(seconds) => self.bench.pass(Duration::from_secs(seconds.into())),
            Action::Reconnect => {
                self.unacked.clear();
                self.bench.it().reconnect();
            }
            Action::Crash => self.crash(),
            Action::Framing(which) => {
                self.bench.rules[0].framing = framings().swap_remove(which);
                self.bench.rules[0].revision += 1;
                self.bench.apply();
            }
        }
    }

    fn crash(&mut self) {
        // What was deleted can't be opened again: it must have been delivered before.
        if std::mem::take(&mut self.deleted) {
            self.deliver_all();
            self.bench.pass(Duration::from_secs(6));
            self.deliver_all();
        }
        self.unacked.clear();
        self.bench.restart();
    }

    fn name(&self, file: u8) -> PathBuf {
        self.bench.path(&format!("{file}.log"))
    }

    /// Sees to it that a copy of a file can be told: by less it isn't.
    fn lengthen(&mut self, file: u8) {
        if self.live.get(&file).is_some_and(|generation| generation.bytes.len() < Guard::BYTES) {
            self.write(file, &format!("{{}} {}{{}}\n", "of many ".repeat(8)));
        }
    }

    fn copy(&mut self, file: u8, matched: bool) {
        self.counter += 1;
        let name = if matched { format!("{}-{file}.log", self.counter) } else { format!("{file}.{}", self.counter) };
        std::fs::copy(self.name(file), self.bench.path(&name)).unwrap();
    }

    /// Appends a text in which `{}` becomes a number of its own, so that no two lines are the same.
    fn write(&mut self, file: u8, text: &str) {
        self.counter += 1;
        let text = text.replace("{}", &self.counter.to_string());
        self.bench.append(&format!("{file}.log"), &text);
        self.live.entry(file).or_default().bytes.extend(text.as_bytes());
    }

    /// Takes a file away that the collector has seen: what comes and goes unseen can't be collected.
    fn seen(&mut self, file: u8) -> Option<Generation> {
        self.poll(u64::MAX);
        self.live.remove(&file)
    }

    fn poll(&mut self, credit: u64) -> bool {
        self.bench.now += Duration::from_millis(1);
        let now = self.bench.now;
        let Some(chunk) = self.bench.it().poll(now, credit) else { return false };
        assert!(chunk.data.len() as u64 <= credit);
        let events = self.delivered.entry(chunk.stream).or_default();
        let mut start = chunk.range.start;
        for event in split(&chunk) {
            if let Some(before) = events.insert(start, event.clone()) {
                assert_eq!(before, event, "sent again, cut differently, at {start} of {}", chunk.stream);
            }
            start += event.len() as u64;
        }
        assert_eq!(start, chunk.range.end);
        self.unacked.push_back(chunk);
        true
    }

    fn deliver_all(&mut self) {
        // The end of a long line is sought over several turns.
        while (0..4).any(|_| self.poll(u64::MAX)) || self.waits_for_acks() {
            self.run(&Action::Ack(u8::MAX));
        }
    }

    /// A new framing waits for the acks of the old.
    fn waits_for_acks(&self) -> bool {
        !self.unacked.is_empty()
    }

    /// What was delivered of each stream.
    fn contents(&self) -> Vec<Vec<u8>> {
        self.delivered.values().map(join).collect()
    }

    /// Lets all settle, and compares.
    fn check(mut self) {
        for _ in 0..4 {
            self.deliver_all();
            self.bench.pass(Duration::from_secs(6));
        }
        self.deliver_all();
        self.check_again();
        let mut contents = self.contents();
        for generation in self.finished.iter().chain(self.live.values()).filter(|g| !g.bytes.is_empty()) {
            let least = generation.bytes.len() - generation.may_miss;
            let fits = |text: &Vec<u8>| is_start(text, &generation.bytes) && text.len() >= least;
            match contents.iter().position(fits) {
                Some(at) => drop(contents.swap_remove(at)),
                None => assert_eq!(least, 0, "missing: {:?}", String::from_utf8_lossy(&generation.bytes)),
            }
        }
        assert!(contents.is_empty(), "never written: {:?}", contents);
        assert_eq!(self.bench.it().totals().in_flight_bytes, 0);
        self.check_losses();
        for file in self.bench.it().status() {
            let acked = self.acked.get(&file.stream).copied().unwrap_or(0);
            assert!(file.losses.iter().all(|loss| loss.range.start >= acked), "{acked} acked: {file:?}");
        }
        let lag: Vec<_> = self.bench.it().status().into_iter().filter(|file| file.lag() > 0).collect();
        assert!(lag.is_empty(), "{lag:?}");
    }
}

/// The events of a stream, without gap or overlap.
fn join(events: &BTreeMap<u64, Vec<u8>>) -> Vec<u8> {
    let mut text = Vec::new();
    for (start, event) in events {
        assert_eq!(*start, text.len() as u64, "a gap or an overlap");
        text.extend(event);
    }
    text
}

fn split(chunk: &Chunk) -> Vec<Vec<u8>> {
    match &chunk.lengths {
        None => chunk.data.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect(),
        Some(lengths) => {
            let mut rest = &chunk.data[..];
            let mut events: Vec<Vec<u8>> =
                lengths.iter().map(|length| rest.split_off(..*length as usize).unwrap().to_vec()).collect();
            assert!(rest.is_empty());
            if chunk.omitted() > 0 {
                assert_eq!(events.len(), 1);
                events[0].resize(chunk.range.len() as usize, OMITTED);
            }
            events
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_repeats_are_cut_alike(actions in prop::collection::vec(action(), 1..60)) {
        let mut world = World::new();
        for action in &actions {
            world.run(action);
        }
        world.check();
    }
}
