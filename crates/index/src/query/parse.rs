//! Reads the text of a query. By hand and by descent: the language is small, and what it owes its users is an error that
//! says what to write instead.

use std::ops::Bound;

use logmesh_types::UnixNanos;
use logmesh_types::limits::{MAX_QUERY_BYTES, MAX_QUERY_DEPTH};

use super::field::{self, Kind, MESSAGE};
use super::pattern::{Glyph, Pattern};
use super::{FieldTest, Node, QueryError, Test, predicate};

pub(super) fn parse(text: &str, now: UnixNanos) -> Result<Node, QueryError> {
    if text.len() > MAX_QUERY_BYTES {
        let message = format!("the query is {} bytes long; at most {MAX_QUERY_BYTES} are allowed", text.len());
        return Err(QueryError::new(text, 0, message));
    }
    let mut parser = Parser { text, at: 0, depth: 0, now };
    parser.skip_space();
    if parser.peek().is_none() {
        return Ok(Node::All);
    }
    let node = parser.or(None)?;
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.error("this `)` closes nothing: remove it, or put it in quotes")),
    }
}

/// True for the words that join others.
pub(super) fn is_operator_word(word: &str) -> bool {
    matches!(word, "AND" | "OR" | "NOT" | "TO")
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    now: UnixNanos,
}

/// A word as it was read, until something ended it.
struct Word {
    start: usize,
    glyphs: Vec<Glyph>,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn error(&self, message: impl Into<String>) -> QueryError {
        self.error_at(self.at, message)
    }

    fn error_at(&self, at: usize, message: impl Into<String>) -> QueryError {
        QueryError::new(self.text, at, message)
    }

    /// Takes an operator that is a word (`AND`) or a sign (`&&`).
    fn take_operator(&mut self, word: &str, sign: &str) -> bool {
        let ends =
            |after: &str| after.starts_with(|c: char| c.is_whitespace() || "()\"".contains(c)) || after.is_empty();
        if self.rest().strip_prefix(word).is_some_and(ends) {
            return self.take(word);
        }
        self.take(sign)
    }

    fn or(&mut self, field: Option<&str>) -> Result<Node, QueryError> {
        let mut nodes = vec![self.and(field)?];
        while self.take_operator("OR", "||") {
            nodes.push(self.and(field)?);
        }
        Ok(Node::or(nodes))
    }

    /// Parts side by side, up to an `OR`, a `)` or the end.
    fn and(&mut self, field: Option<&str>) -> Result<Node, QueryError> {
        let mut nodes = vec![self.unary(field)?];
        loop {
            self.skip_space();
            let here = self.at;
            if matches!(self.peek(), None | Some(')')) {
                break;
            }
            if self.take_operator("OR", "||") {
                self.at = here;
                break;
            }
            self.take_operator("AND", "&&");
            nodes.push(self.unary(field)?);
        }
        Ok(Node::and(nodes))
    }

    fn unary(&mut self, field: Option<&str>) -> Result<Node, QueryError> {
        self.skip_space();
        let start = self.at;
        let not = self.take_operator("NOT", "!") || self.take("-");
        if !not && !self.take("+") {
            return self.primary(field);
        }
        let sign = self.text.get(start..self.at).unwrap_or_default();
        if sign.len() == 1 && self.peek().is_none_or(char::is_whitespace) {
            return Err(self.error_at(start, format!("`{sign}` must stand directly before what it belongs to")));
        }
        let node = self.nested(start, |parser| parser.unary(field))?;
        Ok(if not { Node::Not(Box::new(node)) } else { node })
    }

    fn nested<T>(
        &mut self,
        start: usize,
        inner: impl FnOnce(&mut Self) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        if self.depth == MAX_QUERY_DEPTH {
            return Err(self.error_at(start, format!("the query is nested more than {MAX_QUERY_DEPTH} deep")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// A group, phrase, range or word. With a field it is a value of that; without, a word may name one.
    fn primary(&mut self, field: Option<&str>) -> Result<Node, QueryError> {
        let start = self.at;
        match (self.peek(), field) {
            (None, _) => Err(self.error("something to search for is missing here")),
            (Some(')'), _) => Err(self.error("something to search for is missing before this `)`")),
            (Some('('), _) => self.group(start, field),
            (Some('"'), _) => {
                let phrase = self.phrase()?;
                self.test(start, field.unwrap_or(MESSAGE), Test::Is(phrase))
            }
            (Some('[' | '{'), Some(field)) => self.range(start, field),
            (Some('<' | '>'), Some(field)) => self.comparison(start, field),
            (Some(_), Some(field)) => {
                let word = self.word(false)?;
                self.value(word, field)
            }
            (Some(_), None) if self.at_operator() => {
                Err(self.error("an operator needs something before and after it; put it in quotes to find the word"))
            }
            (Some(_), None) => {
                let word = self.word(true)?;
                if self.take(":") { self.field(word) } else { self.bare_word(word) }
            }
        }
    }

    fn at_operator(&mut self) -> bool {
        let here = self.at;
        let found = self.take_operator("AND", "&&") || self.take_operator("OR", "||");
        self.at = here;
        found
    }

    fn group(&mut self, start: usize, field: Option<&str>) -> Result<Node, QueryError> {
        self.take("(");
        let node = self.nested(start, |parser| parser.or(field))?;
        if !self.take(")") {
            return Err(self.error_at(start, "this `(` is not closed"));
        }
        Ok(node)
    }

    fn bare_word(&mut self, word: Word) -> Result<Node, QueryError> {
        if Pattern::new(word.glyphs.iter().copied()).is_any() {
            return Ok(Node::All);
        }
        self.value(word, MESSAGE)
    }

    fn value(&mut self, word: Word, field: &str) -> Result<Node, QueryError> {
        let pattern = Pattern::new(word.glyphs);
        let test = match pattern.literal() {
            Some(text) => Test::Is(text),
            None if pattern.is_any() => Test::Exists,
            None => Test::Like(pattern),
        };
        self.test(word.start, field, test)
    }

    /// What follows `name:`.
    fn field(&mut self, name: Word) -> Result<Node, QueryError> {
        let written = self.text.get(name.start..self.at - 1).unwrap_or_default();
        let quote = |why: &str| format!("{why}; to find the text itself, put it in quotes");
        let pattern = Pattern::new(name.glyphs);
        let Some(field) = pattern.literal() else {
            if pattern.is_any() && self.take("*") {
                return Ok(Node::All);
            }
            return Err(self.error_at(name.start, quote("the name of a field can't have `*` or `?` in it")));
        };
        if !written.starts_with(|c: char| c.is_alphabetic() || matches!(c, '@' | '_' | '\\')) {
            return Err(self.error_at(name.start, quote(&format!("`{written}` before `:` is not the name of a field"))));
        }
        let path = self.rest().strip_prefix(':').is_some_and(|after| !after.starts_with(':'));
        if path || self.rest().starts_with("//") {
            return Err(self.error_at(name.start, quote(&format!("this reads as a field named `{written}`"))));
        }
        self.skip_space();
        match self.peek() {
            None | Some(')') => Err(self.error(quote(&format!("a value is missing after `{written}:`")))),
            Some(_) => self.primary(Some(&field)),
        }
    }

    /// Checks what can be checked without knowing a topic's types.
    fn test(&self, start: usize, field: &str, test: Test) -> Result<Node, QueryError> {
        if let (Some(kind), false) = (field::fixed_kind(field), test == Test::Exists)
            && predicate::of_kind(kind, field, &test, self.now).is_none()
        {
            let message = match (kind, &test) {
                (Kind::Text, Test::Range { .. }) => format!("{field} is text: it has no ranges"),
                (Kind::Text, _) => {
                    "there is neither a letter nor a digit here, and only these are found in text".into()
                }
                (Kind::Date, Test::Like(_)) => format!("{field} is a time: write a range, not a pattern"),
                (Kind::Date, _) => {
                    format!("{field} is a time: write 2026-01-31T12:00:00Z, 2026-01-31, now or now-1h")
                }
                _ => format!("{field} is a number: write one, or a range"),
            };
            return Err(self.error_at(start, message));
        }
        Ok(Node::Field(FieldTest { field: field.to_owned(), test }))
    }

    /// Reads a word up to white space, a parenthesis or a quote; with `stop_at_colon` also up to an unescaped `:`.
    fn word(&mut self, stop_at_colon: bool) -> Result<Word, QueryError> {
        let start = self.at;
        let mut glyphs = Vec::new();
        while let Some(c) = self.peek() {
            if c.is_whitespace() || matches!(c, '(' | ')' | '"') || (stop_at_colon && c == ':') {
                break;
            }
            glyphs.push(self.glyph()?);
        }
        Ok(Word { start, glyphs })
    }

    fn glyph(&mut self) -> Result<Glyph, QueryError> {
        let at = self.at;
        Ok(match self.bump() {
            Some('*') => Glyph::Many,
            Some('?') => Glyph::One,
            Some('\\') => match self.bump() {
                Some(c) => Glyph::Char(c),
                None => return Err(self.error_at(at, "there is nothing after this `\\`; write `\\\\` for one")),
            },
            Some(c) => Glyph::Char(c),
            None => return Err(self.error("something is missing here")),
        })
    }

    /// Reads a quoted text.
    fn phrase(&mut self) -> Result<String, QueryError> {
        let start = self.at;
        self.take("\"");
        let mut text = String::new();
        loop {
            match self.bump() {
                None => return Err(self.error_at(start, "this `\"` is not closed")),
                Some('"') => break,
                Some('\\') => text.extend(self.bump()),
                Some(c) => text.push(c),
            }
        }
        match self.peek() {
            Some(c @ ('~' | '^')) => Err(self.error(format!("`{c}` after a phrase is not supported: leave it out"))),
            _ => Ok(text),
        }
    }

    /// `[a TO b]`, with `{` and `}` for an end that isn't included.
    fn range(&mut self, start: usize, field: &str) -> Result<Node, QueryError> {
        let low_included = self.bump() == Some('[');
        let low = self.bound(low_included)?;
        self.skip_space();
        if !self.take("TO") {
            return Err(self.error("a range is written `[a TO b]`: ` TO ` is missing here"));
        }
        self.skip_space();
        let here = self.at;
        let high = self.bound(true)?;
        self.skip_space();
        let high = match (self.bump(), high) {
            (Some(']'), high) => high,
            (Some('}'), Bound::Included(text)) => Bound::Excluded(text),
            (Some('}'), high) => high,
            _ => return Err(self.error_at(start.min(here), "this range is not closed by `]` or `}`")),
        };
        self.range_test(start, field, low, high)
    }

    fn comparison(&mut self, start: usize, field: &str) -> Result<Node, QueryError> {
        let above = self.bump() == Some('>');
        let included = self.take("=");
        self.skip_space();
        let bound = match self.peek() {
            None | Some(')') => return Err(self.error("a value to compare with is missing here")),
            Some('"') => self.phrase()?,
            Some(_) => self.plain(|c| c.is_whitespace() || matches!(c, '(' | ')' | '"'))?,
        };
        let bound = if included { Bound::Included(bound) } else { Bound::Excluded(bound) };
        let (low, high) = if above { (bound, Bound::Unbounded) } else { (Bound::Unbounded, bound) };
        self.range_test(start, field, low, high)
    }

    fn range_test(
        &self,
        start: usize,
        field: &str,
        low: Bound<String>,
        high: Bound<String>,
    ) -> Result<Node, QueryError> {
        let test = match (&low, &high) {
            (Bound::Unbounded, Bound::Unbounded) => Test::Exists,
            _ => Test::Range { low, high },
        };
        self.test(start, field, test)
    }

    /// One end of a range: `*`, a quoted text, or a word.
    fn bound(&mut self, included: bool) -> Result<Bound<String>, QueryError> {
        self.skip_space();
        let start = self.at;
        let text = match self.peek() {
            Some('"') => self.phrase()?,
            _ => self.plain(|c| c.is_whitespace() || matches!(c, ']' | '}'))?,
        };
        if self.text.get(start..self.at) == Some("*") {
            return Ok(Bound::Unbounded);
        }
        if start == self.at {
            return Err(self.error("one end of the range is missing here; write `*` to leave it open"));
        }
        Ok(if included { Bound::Included(text) } else { Bound::Excluded(text) })
    }

    /// Reads a word in which `*` and `?` mean themselves.
    fn plain(&mut self, ends: impl Fn(char) -> bool) -> Result<String, QueryError> {
        let mut text = String::new();
        while self.peek().is_some_and(|c| !ends(c)) {
            text.push(match self.glyph()? {
                Glyph::Char(c) => c,
                Glyph::One => '?',
                Glyph::Many => '*',
            });
        }
        Ok(text)
    }
}
