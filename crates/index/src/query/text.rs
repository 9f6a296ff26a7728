//! How the text of `message` becomes words, for every index, for the live tail and for queries: one function, so that
//! what is asked and what is stored are always cut the same way.

use std::ops::Range;

/// The longest word, in units of UTF-16: a longer run of letters and digits is cut after the character that reaches
/// this. It is how Elasticsearch's `char_group` tokenizer cuts, and keeps every word far below what an index takes as
/// one term.
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

/// Appends a word lower-cased. Character by character, so that it doesn't depend on what stands beside it, and one
/// character for each (`İ` becomes `i`), as Elasticsearch's `lowercase` filter does.
pub fn push_lower(word: &str, into: &mut String) {
    if word.is_ascii() {
        let from = into.len();
        into.push_str(word);
        if let Some(added) = into.get_mut(from..) {
            added.make_ascii_lowercase();
        }
    } else {
        into.extend(word.chars().map(lower));
    }
}

pub(super) fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

/// True for the characters that words are made of: letters and digits. A letter in a circle or square (`Ⓐ`) is a symbol.
pub fn is_word_char(c: char) -> bool {
    let enclosed = matches!(c, '\u{24b6}'..='\u{24e9}' | '\u{1f130}'..='\u{1f149}' | '\u{1f150}'..='\u{1f169}' | '\u{1f170}'..='\u{1f189}');
    c.is_ascii_alphanumeric() || (!c.is_ascii() && c.is_alphanumeric() && !enclosed)
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
        let mut units = 0;
        let ends = |(_, c): &(usize, char)| {
            let ends = units >= MAX_TOKEN_CHARS || !is_word_char(*c);
            units += c.len_utf16();
            ends
        };
        let len = word.char_indices().find(ends).map_or(word.len(), |(at, _)| at);
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
        assert_eq!(words("\u{1b}[31mred \u{24b6}x e\u{301}f \u{a0}\u{130}x"), ["31mred", "x", "e", "f", "ix"]);
    }

    #[test]
    fn a_very_long_word_is_cut_into_pieces() {
        let long = "x".repeat(2 * MAX_TOKEN_CHARS + 3);
        assert_eq!(words(&long).iter().map(String::len).collect::<Vec<_>>(), [255, 255, 3]);
        let wide = "ä".repeat(MAX_TOKEN_CHARS + 1);
        assert_eq!(words(&wide).iter().map(|word| word.chars().count()).collect::<Vec<_>>(), [255, 1]);
        let astral = "\u{10400}".repeat(200);
        assert_eq!(words(&astral).iter().map(|word| word.chars().count()).collect::<Vec<_>>(), [128, 72]);
    }
}
