//! The query language: a text becomes a tree once, and each index translates the tree.
//!
//! | written | finds documents |
//! |---|---|
//! | `timeout` | with this word in `message`; case doesn't matter |
//! | `"connection reset"`, `10.0.0.1` | with these words side by side in `message` |
//! | `err*`, `v?` | with a word like this: `*` stands for any characters, `?` for one |
//! | `host.name:web-1`, `service.name:"my shop"` | whose field has exactly this value; patterns work too |
//! | `labels:web`, `parsed:web` | with this value anywhere in that object |
//! | `log.level:(ERROR OR FATAL)` | whose field has one of these values |
//! | `attributes.status:[400 TO 499]`, `{400 TO 500}`, `>=400`, `<5` | in the range; `[` includes the end, `{` doesn't, `*` leaves it open |
//! | `@timestamp:>=now-1h`, `@timestamp:2026-01-31` | of that time; a date alone is its whole UTC day |
//! | `trace.id:*` | that have the field, or one below it |
//! | `a b`, `a AND b`, `a && b` | with both: words side by side mean AND |
//! | `a OR b`, `a \|\| b` | with one of them; AND binds tighter |
//! | `NOT a`, `-a`, `!a` | without it |
//! | `+a` | with it (as without the sign) |
//! | `*`, or nothing | all |
//!
//! Operators are upper-case. A backslash takes the meaning from the character after it; in quotes only `"` and `\` have
//! one. `[`, `{`, `>` and `<` mean a range only after a field's name. Words are cut by [`tokenize`]. A field that no
//! document has is found in none: that is no error.

mod error;
mod evaluate;
pub mod field;
mod parse;
mod pattern;
mod predicate;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::ops::Bound;

use logmesh_types::UnixNanos;

pub use error::QueryError;
pub use evaluate::matches;
pub use pattern::{Glyph, Pattern};
pub use predicate::{KeywordTest, Predicate, WordTest};
pub use text::{MAX_TOKEN_CHARS, TokenRanges, is_word_char, push_lower, token_ranges, tokenize};

use field::MESSAGE;

/// A query that was read. Displayed, it is a text that reads as the same query.
#[derive(Clone, Debug)]
pub struct Query {
    root: Node,
    now: UnixNanos,
}

/// A part of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Everything.
    All,
    /// All of these, at least two.
    And(Vec<Node>),
    /// Any of these, at least two.
    Or(Vec<Node>),
    /// Not this.
    Not(Box<Node>),
    /// A field has a value that passes.
    Field(FieldTest),
}

/// A field and what it's tested for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTest {
    /// The field's name.
    pub field: String,
    /// What a value of it must be.
    pub test: Test,
}

/// What a value must be, as it was written. What a text means depends on the field's kind: see [`Query::resolve`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Anything.
    Exists,
    /// This value or, in `message`, these words.
    Is(String),
    /// A value like this.
    Like(Pattern),
    /// A value in this range. At least one end is bounded.
    Range {
        /// Where it begins.
        low: Bound<String>,
        /// Where it ends.
        high: Bound<String>,
    },
}

impl Query {
    /// Reads a query; `now` in it is the present.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        Self::parse_at(text, UnixNanos::now())
    }

    /// Reads a query; `now` in it is this time.
    pub fn parse_at(text: &str, now: UnixNanos) -> Result<Self, QueryError> {
        Ok(Self { root: parse::parse(text, now)?, now })
    }

    /// The query that finds everything.
    pub fn all() -> Self {
        Self { root: Node::All, now: UnixNanos(0) }
    }

    /// Its tree.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The time that `now` in it stands for.
    pub fn now(&self) -> UnixNanos {
        self.now
    }
}

impl Node {
    /// All of these; nested ANDs fall together.
    fn and(nodes: Vec<Node>) -> Node {
        Self::join(nodes, Node::And, |node| match node {
            Node::And(nodes) => Ok(nodes),
            other => Err(other),
        })
    }

    /// Any of these; nested ORs fall together.
    fn or(nodes: Vec<Node>) -> Node {
        Self::join(nodes, Node::Or, |node| match node {
            Node::Or(nodes) => Ok(nodes),
            other => Err(other),
        })
    }

    fn join(nodes: Vec<Node>, whole: fn(Vec<Node>) -> Node, open: fn(Node) -> Result<Vec<Node>, Node>) -> Node {
        let mut flat: Vec<Node> =
            nodes.into_iter().flat_map(|node| open(node).unwrap_or_else(|node| vec![node])).collect();
        match flat.pop() {
            Some(only) if flat.is_empty() => only,
            Some(last) => {
                flat.push(last);
                whole(flat)
            }
            None => Node::All,
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::And(nodes) => write_joined(f, nodes, " AND "),
            Self::Or(nodes) => write_joined(f, nodes, " OR "),
            Self::Not(node) => {
                f.write_str("NOT ")?;
                write_part(f, node)
            }
            Self::Field(test) => test.fmt(f),
        }
    }
}

fn write_joined(f: &mut fmt::Formatter<'_>, nodes: &[Node], between: &str) -> fmt::Result {
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        write_part(f, node)?;
    }
    Ok(())
}

fn write_part(f: &mut fmt::Formatter<'_>, node: &Node) -> fmt::Result {
    match node {
        Node::And(_) | Node::Or(_) => write!(f, "({node})"),
        _ => write!(f, "{node}"),
    }
}

impl fmt::Display for FieldTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field != MESSAGE || matches!(self.test, Test::Exists) {
            for c in self.field.chars() {
                let plain = c.is_alphanumeric() || matches!(c, '_' | '.' | '@');
                write!(f, "{}{c}", if plain { "" } else { "\\" })?;
            }
            f.write_str(":")?;
        }
        match &self.test {
            Test::Exists => f.write_str("*"),
            Test::Is(text) => write_text(f, text),
            Test::Like(pattern) => pattern.fmt(f),
            Test::Range { low, high } => {
                f.write_str(if matches!(low, Bound::Excluded(_)) { "{" } else { "[" })?;
                write_bound(f, low)?;
                f.write_str(" TO ")?;
                write_bound(f, high)?;
                f.write_str(if matches!(high, Bound::Excluded(_)) { "}" } else { "]" })
            }
        }
    }
}

fn write_bound(f: &mut fmt::Formatter<'_>, bound: &Bound<String>) -> fmt::Result {
    match bound {
        Bound::Unbounded => f.write_str("*"),
        Bound::Included(text) | Bound::Excluded(text) => write_text(f, text),
    }
}

/// Writes a text bare where it reads as itself, else in quotes.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let bare = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    if bare && !text.is_empty() && !parse::is_operator_word(text) {
        return f.write_str(text);
    }
    f.write_str("\"")?;
    for c in text.chars() {
        write!(f, "{}{c}", if matches!(c, '"' | '\\') { "\\" } else { "" })?;
    }
    f.write_str("\"")
}
