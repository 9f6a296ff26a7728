//! Walks a term dictionary by a pattern with `*` and `?`.
//!
//! A set of places in the pattern is carried from character to character, instead of a table of all sets: a pattern
//! such as `*a????????????????` has more sets than memory, but only a few of them at a time.

use logmesh_index::query::Glyph;
use tantivy_fst::Automaton;

/// Matches the terms `prefix` + a text that the pattern matches.
#[derive(Debug)]
pub(crate) struct PatternAutomaton {
    glyphs: Vec<Glyph>,
}

/// Where in the pattern the characters so far may have led.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Places in the pattern, rising.
    places: Vec<u32>,
    /// The bytes of a character that isn't complete yet.
    partial: [u8; 4],
    partial_len: u8,
}

impl PatternAutomaton {
    pub(crate) fn new(prefix: &str, pattern: &[Glyph]) -> Self {
        Self { glyphs: prefix.chars().map(Glyph::Char).chain(pattern.iter().copied()).collect() }
    }

    fn glyph(&self, place: u32) -> Option<Glyph> {
        self.glyphs.get(place as usize).copied()
    }

    /// Adds a place, and those after it that a `*` lets one go on to without a character.
    fn reach(&self, places: &mut Vec<u32>, mut place: u32) {
        loop {
            if places.last().is_none_or(|last| *last < place) {
                places.push(place);
            }
            if self.glyph(place) != Some(Glyph::Many) {
                return;
            }
            place += 1;
        }
    }

    fn step(&self, from: &[u32], c: char) -> Vec<u32> {
        let mut places = Vec::with_capacity(from.len() + 1);
        for place in from {
            match self.glyph(*place) {
                Some(Glyph::Many) => self.reach(&mut places, *place),
                Some(Glyph::One) => self.reach(&mut places, place + 1),
                Some(Glyph::Char(wanted)) if wanted == c => self.reach(&mut places, place + 1),
                Some(Glyph::Char(_)) | None => {}
            }
        }
        places
    }
}

impl Automaton for PatternAutomaton {
    type State = State;

    fn start(&self) -> State {
        let mut places = Vec::new();
        self.reach(&mut places, 0);
        State { places, partial: [0; 4], partial_len: 0 }
    }

    fn is_match(&self, state: &State) -> bool {
        state.partial_len == 0 && state.places.last().is_some_and(|place| *place as usize == self.glyphs.len())
    }

    fn can_match(&self, state: &State) -> bool {
        !state.places.is_empty()
    }

    fn will_always_match(&self, state: &State) -> bool {
        let in_last_star = self.glyphs.last() == Some(&Glyph::Many)
            && state.places.iter().any(|place| *place as usize + 1 == self.glyphs.len());
        in_last_star && state.partial_len == 0
    }

    fn accept(&self, state: &State, byte: u8) -> State {
        let mut next = State { places: Vec::new(), partial: state.partial, partial_len: state.partial_len + 1 };
        if let Some(slot) = next.partial.get_mut(usize::from(state.partial_len)) {
            *slot = byte;
        }
        let bytes = next.partial.get(..usize::from(next.partial_len)).unwrap_or_default();
        match std::str::from_utf8(bytes).ok().and_then(|text| text.chars().next()) {
            Some(c) => State { places: self.step(&state.places, c), partial: [0; 4], partial_len: 0 },
            // Terms are UTF-8, so that four bytes are always a character; others lead nowhere.
            None if next.partial_len < 4 => {
                next.places.clone_from(&state.places);
                next
            }
            None => State { places: Vec::new(), partial: [0; 4], partial_len: 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use logmesh_index::query::Pattern;
    use proptest::prelude::*;

    use super::*;

    fn run(automaton: &PatternAutomaton, text: &str) -> bool {
        let mut state = automaton.start();
        for byte in text.bytes() {
            if automaton.will_always_match(&state) {
                return true;
            }
            state = automaton.accept(&state, byte);
            if !automaton.can_match(&state) {
                return false;
            }
        }
        automaton.is_match(&state)
    }

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text.chars().map(|c| match c {
            '*' => Glyph::Many,
            '?' => Glyph::One,
            c => Glyph::Char(c),
        }))
    }

    proptest! {
        #[test]
        fn it_matches_what_the_pattern_matches(glyphs in "[abä€?*]{0,8}", text in "[abä€😀]{0,8}") {
            let pattern = pattern(&glyphs);
            let automaton = PatternAutomaton::new("f\0", pattern.glyphs());
            prop_assert_eq!(run(&automaton, &format!("f\0{text}")), pattern.matches(&text));
            let other = format!("g\0{text}");
            prop_assert!(!run(&automaton, &other));
        }
    }

    #[test]
    fn a_pattern_of_many_question_marks_is_no_explosion() {
        let automaton = PatternAutomaton::new("", pattern(&format!("*a{}", "?".repeat(2_000))).glyphs());
        assert!(run(&automaton, &"a".repeat(3_000)));
    }
}
