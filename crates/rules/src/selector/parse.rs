//! Reads selectors by recursive descent; text and nesting are bounded.

use super::Expr;

/// The longest selector, in bytes.
const MAX_SELECTOR_BYTES: usize = 4096;

/// The deepest nesting of parentheses and NOT, which the call stack follows.
const MAX_DEPTH: usize = 32;

/// The longest key of a label, in bytes.
const MAX_KEY_BYTES: usize = logmesh_types::limits::MAX_NAME_BYTES;

/// The words that can't be keys, so that no selector reads in two ways.
const RESERVED: [&str; 6] = ["and", "or", "not", "in", "notin", "exists"];

/// A text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {}: {message}", .at + 1)]
pub struct SelectorError {
    /// How many characters stand before the fault.
    pub at: usize,
    /// What is wrong and what to write.
    pub message: String,
}

/// True for the characters of which keys and unquoted values are made.
pub(super) fn is_word(c: char) -> bool {
    !(c.is_whitespace() || c.is_control() || matches!(c, '(' | ')' | ',' | '=' | '!' | '"' | '\'' | '\\'))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Equal,
    NotEqual,
    Not,
    Open,
    Close,
    Comma,
    End,
}

impl Token {
    /// True for this keyword, in any case.
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("{word:?}"),
            Self::Quoted(text) => format!("the value {text:?}"),
            Self::Equal => "'='".into(),
            Self::NotEqual => "'!='".into(),
            Self::Not => "'!'".into(),
            Self::Open => "'('".into(),
            Self::Close => "')'".into(),
            Self::Comma => "','".into(),
            Self::End => "the end".into(),
        }
    }
}

/// Reads a selector as the requirements between its commas; none if the text is blank.
pub(super) fn selector(text: &str) -> Result<Vec<Expr>, SelectorError> {
    if text.len() > MAX_SELECTOR_BYTES {
        return Err(SelectorError {
            at: 0,
            message: format!("the selector is longer than {MAX_SELECTOR_BYTES} bytes"),
        });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0 };
    if *parser.peek() == Token::End {
        return Ok(Vec::new());
    }
    let requirements = parser.list(0)?;
    match parser.peek() {
        Token::End => Ok(requirements),
        other => Err(parser.error(format!("expected ',', AND, OR or the end, found {}", other.describe()))),
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, SelectorError> {
    let mut chars = text.chars().enumerate().peekable();
    let mut tokens = Vec::new();
    while let Some((at, c)) = chars.next() {
        let token = match c {
            c if c.is_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' => {
                chars.next_if(|(_, c)| *c == '=');
                Token::Equal
            }
            '!' if chars.next_if(|(_, c)| *c == '=').is_some() => Token::NotEqual,
            '!' => Token::Not,
            '"' => Token::Quoted(quoted(at, &mut chars)?),
            c if is_word(c) => {
                let mut word = String::from(c);
                while let Some((_, c)) = chars.next_if(|(_, c)| is_word(*c)) {
                    word.push(c);
                }
                Token::Word(word)
            }
            '\'' => return Err(SelectorError { at, message: "write values in double quotes".into() }),
            c => return Err(SelectorError { at, message: format!("{c:?} can only stand in double quotes") }),
        };
        tokens.push((at, token));
    }
    tokens.push((text.chars().count(), Token::End));
    Ok(tokens)
}

fn quoted(start: usize, chars: &mut impl Iterator<Item = (usize, char)>) -> Result<String, SelectorError> {
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok(value),
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\\'))) => value.push(c),
                _ => return Err(SelectorError { at, message: r#"after '\' only '\' or '"' can stand"#.into() }),
            },
            c => value.push(c),
        }
    }
    Err(SelectorError { at: start, message: "this quote is never closed".into() })
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn take_if(&mut self, wanted: impl FnOnce(&Token) -> bool) -> bool {
        let yes = wanted(self.peek());
        self.next += usize::from(yes);
        yes
    }

    /// An error at the token that comes next.
    fn error(&self, message: impl Into<String>) -> SelectorError {
        let at = self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |(at, _)| *at);
        SelectorError { at, message: message.into() }
    }

    fn expect(&mut self, wanted: Token) -> Result<(), SelectorError> {
        if *self.peek() == wanted {
            self.next += 1;
            return Ok(());
        }
        Err(self.error(format!("expected {}, found {}", wanted.describe(), self.peek().describe())))
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Expr>, SelectorError> {
        let mut parts = vec![self.any(depth)?];
        while self.take_if(|token| *token == Token::Comma) {
            parts.push(self.any(depth)?);
        }
        Ok(parts)
    }

    fn any(&mut self, depth: usize) -> Result<Expr, SelectorError> {
        let mut parts = vec![self.all(depth)?];
        while self.take_if(|token| token.is("or")) {
            parts.push(self.all(depth)?);
        }
        Ok(one_or(parts, Expr::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Expr, SelectorError> {
        let mut parts = vec![self.unary(depth)?];
        while self.take_if(|token| token.is("and")) {
            parts.push(self.unary(depth)?);
        }
        Ok(one_or(parts, Expr::All))
    }

    fn unary(&mut self, depth: usize) -> Result<Expr, SelectorError> {
        if depth >= MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        if self.take_if(|token| *token == Token::Not || token.is("not")) {
            return Ok(Expr::Not(Box::new(self.unary(depth + 1)?)));
        }
        if self.take_if(|token| *token == Token::Open) {
            let parts = self.list(depth + 1)?;
            self.expect(Token::Close)?;
            return Ok(one_or(parts, Expr::All));
        }
        if self.take_if(|token| token.is("exists")) {
            self.expect(Token::Open)?;
            let key = self.key()?;
            self.expect(Token::Close)?;
            return Ok(Expr::Exists { key });
        }
        self.requirement()
    }

    fn requirement(&mut self) -> Result<Expr, SelectorError> {
        let key = self.key()?;
        let negated = match self.peek() {
            Token::NotEqual => true,
            token if token.is("notin") => true,
            Token::Equal => false,
            token if token.is("in") => false,
            other => {
                let expected = format!("expected =, !=, in or notin after {key:?}, found {}", other.describe());
                return Err(self.error(format!("{expected}; to ask only for the label, write exists({key})")));
            }
        };
        let values = match self.take() {
            Token::Word(_) => self.values()?,
            _ => vec![self.value()?],
        };
        let found = Expr::In { key, values };
        Ok(if negated { Expr::Not(Box::new(found)) } else { found })
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let Token::Word(word) = self.peek().clone() else {
            return Err(self.error(format!("expected a label's key, found {}", self.peek().describe())));
        };
        if RESERVED.iter().any(|reserved| word.eq_ignore_ascii_case(reserved)) {
            return Err(self.error(format!("expected a label's key, found the operator {word:?}")));
        }
        let good = word.len() <= MAX_KEY_BYTES
            && word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'));
        if !good {
            let allowed = format!("1 to {MAX_KEY_BYTES} of A-Z, a-z, 0-9, '.', '_', '-' and '/'");
            return Err(self.error(format!("{word:?} is no label's key, which is {allowed}")));
        }
        self.next += 1;
        Ok(word)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        self.expect(Token::Open)?;
        let mut values = vec![self.value()?];
        while self.take_if(|token| *token == Token::Comma) {
            values.push(self.value()?);
        }
        self.expect(Token::Close)?;
        Ok(values)
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        match self.peek().clone() {
            Token::Word(value) | Token::Quoted(value) => {
                self.next += 1;
                Ok(value)
            }
            other => Err(self.error(format!("expected a value, found {}", other.describe()))),
        }
    }
}

/// The one part, or several put together.
fn one_or(mut parts: Vec<Expr>, together: impl FnOnce(Vec<Expr>) -> Expr) -> Expr {
    match parts.len() {
        1 => parts.remove(0),
        _ => together(parts),
    }
}

#[cfg(test)]
mod tests {
    use crate::Selector;

    fn error(text: &str) -> String {
        text.parse::<Selector>().unwrap_err().to_string()
    }

    #[test]
    fn an_error_says_where_and_what_to_write() {
        assert_eq!(
            error("gpu"),
            "at character 4: expected =, !=, in or notin after \"gpu\", found the end; to ask only for the label, \
             write exists(gpu)"
        );
        assert_eq!(error("env=prod,"), "at character 10: expected a label's key, found the end");
        assert_eq!(error("env="), "at character 5: expected a value, found the end");
        assert_eq!(error("role in (a b)"), "at character 12: expected ')', found \"b\"");
        assert_eq!(error("a=1 b=2"), "at character 5: expected ',', AND, OR or the end, found \"b\"");
        assert_eq!(error("a='x'"), "at character 3: write values in double quotes");
        assert_eq!(error("ä=1, a=\"x"), "at character 8: this quote is never closed");
        assert_eq!(error("in=1"), "at character 1: expected a label's key, found the operator \"in\"");
        assert!(error("ä=1").contains("is no label's key"));
    }

    #[test]
    fn text_and_nesting_are_bounded() {
        assert!(error(&"(".repeat(4000)).contains("nested deeper than 32"));
        assert!(error(&"!".repeat(4000)).contains("nested deeper than 32"));
        assert!(error(&"a=1,".repeat(2000)).contains("longer than 4096 bytes"));
        assert!(format!("{}a=1{}", "(".repeat(31), ")".repeat(31)).parse::<Selector>().is_ok());
    }
}
