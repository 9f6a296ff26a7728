//! What a writer has written, and where it lay.

use std::time::Instant;

/// A line that a writer finished. Its number is its place in the ledger.
#[derive(Clone, Debug)]
pub struct Line {
    /// The generation that it was written to.
    pub generation: usize,
    /// Where it begins there.
    pub offset: u64,
    /// Its length, terminator included.
    pub length: u64,
    /// When it was there.
    pub written: Instant,
}

/// The lines of one writer and the generations of its file.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By their numbers.
    pub lines: Vec<Line>,
    /// When each generation's bytes were destroyed, if they were. A rename destroys nothing.
    pub destroyed: Vec<Option<Instant>>,
}

impl Ledger {
    /// Notes a line at the end of the present generation.
    pub fn wrote(&mut self, offset: u64, length: u64) {
        let generation = self.destroyed.len() - 1;
        self.lines.push(Line { generation, offset, length, written: Instant::now() });
    }

    /// Begins a generation; `destroyed` tells whether the bytes of the present one are gone with that.
    pub fn next_generation(&mut self, destroyed: bool) {
        if let (true, Some(last)) = (destroyed, self.destroyed.last_mut()) {
            *last = Some(Instant::now());
        }
        self.destroyed.push(None);
    }
}
