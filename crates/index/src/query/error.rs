//! Why a query was refused, shown with the place of the fault.

use std::fmt;

/// How many characters of a long query are shown on each side of the fault.
const SHOWN_CHARS: usize = 40;

/// A text is no query. Displayed as the message, then the query with a caret under the fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError {
    /// What is wrong and what to write instead.
    pub message: String,
    /// Where: an offset in bytes into the query's text, at most its length.
    pub at: usize,
    /// The query's text around the fault, on one line.
    line: String,
    /// How many characters of `line` stand before the fault.
    indent: usize,
}

impl QueryError {
    pub(crate) fn new(text: &str, at: usize, message: impl Into<String>) -> Self {
        let (before, after) = text.split_at_checked(at).unwrap_or((text, ""));
        let skipped = before.chars().count().saturating_sub(SHOWN_CHARS);
        let mut line: String = before.chars().skip(skipped).map(printable).collect();
        if skipped > 0 {
            line.insert(0, '…');
        }
        let indent = line.chars().count();
        line.extend(after.chars().take(SHOWN_CHARS).map(printable));
        if after.chars().nth(SHOWN_CHARS).is_some() {
            line.push('…');
        }
        Self { message: message.into(), at: before.len(), line, indent }
    }
}

fn printable(c: char) -> char {
    if c.is_control() || c.is_whitespace() { ' ' } else { c }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}\n  {:indent$}^", self.message, self.line, "", indent = self.indent)
    }
}

impl std::error::Error for QueryError {}
