//! How the text of `message` becomes words, for every index, for the live tail and for queries: one function, so that
//! what is asked and what is stored are always cut the same way.

use std::ops::Range;

/// The longest word, in characters: a longer run of letters and digits is cut into words of this length. It is the
/// bound of Elasticsearch's `char_group` tokenizer, and keeps every word far below what an index takes as one term.
pub const MAX_TOKEN_CHARS: usize = 255;

/// The words of a text, lower-cased, in order: it is split at everything that is neither letter nor digit.
pub fn tokenize(text: &str) -> impl Iterator<Item = String> + '_ {
    token_ranges(text).filter_map(|range| text.get(range)).map(|word| {
        let mut token = String::with_capacity(word.len());
        push_lower(word, &mut token);
        token
    })
}

/// Where the words of a text lie in it, as byte ranges.
pub fn token_ranges(text: &str) -> TokenRanges<'_> {
    TokenRanges { text, at: 0 }
}

/// Appends a word lower-cased. Character by character, so that it doesn't depend on what stands beside it.
pub fn push_lower(word: &str, into: &mut String) {
    if word.is_ascii() {
        let from = into.len();
        into.push_str(word);
        if let Some(added) = into.get_mut(from..) {
            added.make_ascii_lowercase();
        }
    } else {
        into.extend(word.chars().flat_map(char::to_lowercase));
    }
}

/// True for the characters that words are made of.
pub fn is_word_char(c: char) -> bool {
    c.is_alphanumeric()
}

/// Gives the byte ranges of a text's words; see [`token_ranges`].
#[derive(Debug, Clone)]
pub struct TokenRanges<'a> {
    text: &'a str,
    at: usize,
}

impl Iterator for TokenRanges<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let rest = self.text.get(self.at..)?;
        let start = self.at + rest.find(is_word_char)?;
        let word = self.text.get(start..)?;
        let len = word
            .char_indices()
            .enumerate()
            .find(|(count, (_, c))| *count == MAX_TOKEN_CHARS || !is_word_char(*c))
            .map_or(word.len(), |(_, (at, _))| at);
        self.at = start + len;
        Some(start..self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        tokenize(text).collect()
    }

    #[test]
    fn text_is_split_at_what_is_neither_letter_nor_digit() {
        assert_eq!(words("GET /api/v1?q=A_b HTTP/1.1"), ["get", "api", "v1", "q", "a", "b", "http", "1", "1"]);
        assert_eq!(words("Größe 12µs ÄÖ"), ["größe", "12µs", "äö"]);
        assert_eq!(words("a\u{fffd}b\0c\td"), ["a", "b", "c", "d"]);
        assert_eq!(words("-- !! \u{2014}"), Vec::<String>::new());
    }

    #[test]
    fn a_very_long_word_is_cut_into_pieces() {
        let long = "x".repeat(2 * MAX_TOKEN_CHARS + 3);
        assert_eq!(words(&long).iter().map(String::len).collect::<Vec<_>>(), [255, 255, 3]);
        let wide = "ä".repeat(MAX_TOKEN_CHARS + 1);
        assert_eq!(words(&wide).iter().map(|word| word.chars().count()).collect::<Vec<_>>(), [255, 1]);
    }
}
