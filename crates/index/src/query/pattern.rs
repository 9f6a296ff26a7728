//! Patterns with `*` and `?`, matched against whole values.

use std::fmt;

/// One element of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Glyph {
    /// This character.
    Char(char),
    /// `?`: exactly one character.
    One,
    /// `*`: any number of characters, also none.
    Many,
}

/// A pattern: it matches a value as a whole. Two `*` never stand side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Glyph>);

impl Pattern {
    /// The pattern of these glyphs.
    pub fn new(glyphs: impl IntoIterator<Item = Glyph>) -> Self {
        let mut glyphs: Vec<Glyph> = glyphs.into_iter().collect();
        glyphs.dedup_by(|a, b| *a == Glyph::Many && *b == Glyph::Many);
        Self(glyphs)
    }

    /// Its elements.
    pub fn glyphs(&self) -> &[Glyph] {
        &self.0
    }

    /// True for `*` alone.
    pub fn is_any(&self) -> bool {
        self.0 == [Glyph::Many]
    }

    /// The text that the pattern stands for, if it has neither `*` nor `?`.
    pub fn literal(&self) -> Option<String> {
        self.0
            .iter()
            .map(|glyph| match glyph {
                Glyph::Char(c) => Some(*c),
                Glyph::One | Glyph::Many => None,
            })
            .collect()
    }

    /// True if the pattern matches all of `text`. Takes at most `text.len() * glyphs` steps.
    pub fn matches(&self, text: &str) -> bool {
        let mut rest = text.chars();
        let mut at = 0;
        // The last `*` and the text that was left when it was met: where to go on from when what follows fails.
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            let before = rest.clone();
            match (self.0.get(at), rest.next()) {
                (Some(Glyph::Many), _) => {
                    at += 1;
                    retry = Some((at, before.clone()));
                    rest = before;
                    continue;
                }
                (Some(Glyph::One), Some(_)) => at += 1,
                (Some(Glyph::Char(wanted)), Some(c)) if *wanted == c => at += 1,
                (None, None) => return true,
                _ => match &mut retry {
                    Some((after_star, left)) => {
                        if left.next().is_none() {
                            return false;
                        }
                        at = *after_star;
                        rest = left.clone();
                    }
                    None => return false,
                },
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for glyph in &self.0 {
            match glyph {
                Glyph::Char(c) if c.is_alphanumeric() || matches!(c, '_' | '.') => write!(f, "{c}")?,
                Glyph::Char(c) => write!(f, "\\{c}")?,
                Glyph::One => f.write_str("?")?,
                Glyph::Many => f.write_str("*")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text.chars().map(|c| match c {
            '*' => Glyph::Many,
            '?' => Glyph::One,
            c => Glyph::Char(c),
        }))
    }

    /// The plainest definition there is.
    fn by_definition(glyphs: &[Glyph], text: &[char]) -> bool {
        match (glyphs.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((Glyph::Many, rest)), None) => by_definition(rest, text),
            (Some((Glyph::Many, rest)), Some((_, left))) => by_definition(rest, text) || by_definition(glyphs, left),
            (Some((Glyph::One, rest)), Some((_, left))) => by_definition(rest, left),
            (Some((Glyph::Char(wanted), rest)), Some((c, left))) => wanted == c && by_definition(rest, left),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_follows_the_definition(glyphs in "[ab?*]{0,8}", text in "[abä]{0,8}") {
            let pattern = pattern(&glyphs);
            let chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(pattern.matches(&text), by_definition(pattern.glyphs(), &chars));
        }
    }

    #[test]
    fn stars_fall_together() {
        assert!(pattern("***").is_any());
        assert_eq!(pattern("a**b").to_string(), "a*b");
    }
}
