//! How lines lie in files: in which encoding, in what container runtimes wrap around them, and by which patterns several
//! of them are one event.
//!
//! The tailer cuts files by this and the document builder reads what was cut, so both mean the same by a line. Pure.

mod charset;
pub mod container;

pub use charset::Charset;
use regex::bytes::{Regex, RegexBuilder};

/// The most memory that a compiled pattern may take, in bytes. Matching is linear in the line whatever the pattern; this
/// bounds what each agent holds for it.
const PATTERN_MEMORY_BYTES: usize = 1 << 20;

/// Compiles a pattern that says which lines belong together.
///
/// # Errors
/// In words, if it is no regular expression, or one that would take too much memory.
pub fn pattern(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .size_limit(PATTERN_MEMORY_BYTES)
        .dfa_size_limit(PATTERN_MEMORY_BYTES)
        .build()
        .map_err(|error| format!("is not a regular expression: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_pattern_is_refused_in_words() {
        assert!(pattern(r"^\d").unwrap().is_match(b"1\xff"));
        assert!(pattern("(").unwrap_err().starts_with("is not a regular expression: "));
        assert!(pattern(r"(\w{1000}){1000}").is_err());
    }
}
