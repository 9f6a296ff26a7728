//! Rules as YAML files: one or several documents, each a rule. Errors give line, column and the field's path.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::spec::RuleSpec;

/// The largest file, in bytes: many rules, and little memory for a reader that expands aliases.
const MAX_YAML_BYTES: usize = 4 << 20;

/// A text is not a file of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// The column in characters, from 1, where it is known.
    pub column: Option<u64>,
    /// The path of the field, such as `pace.bytes_per_second`; empty if it is the whole document.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl std::error::Error for YamlError {}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// A rule of a file, with the places of its fields.
#[derive(Clone, Debug)]
pub struct Document {
    /// The rule.
    pub spec: RuleSpec,
    places: Places,
}

impl Document {
    /// Line and column, from 1, of the field of this path; of the nearest field around it where it is left out.
    pub fn place(&self, field: &str) -> Option<(u64, u64)> {
        let mut field = field;
        loop {
            if let Some(place) = self.places.0.get(field) {
                return Some(*place);
            }
            field = &field[..field.rfind(['.', '[']).unwrap_or(0)];
            if field.is_empty() {
                return self.places.0.get("").copied();
            }
        }
    }
}

/// Reads a file of rules. What the rules say isn't checked: see [`RuleSpec::compile`].
///
/// # Errors
/// When it is no YAML, or a document is no rule: an unknown, missing or doubled field, a value of the wrong type.
pub fn parse_yaml(text: &str) -> Result<Vec<Document>, YamlError> {
    if text.len() > MAX_YAML_BYTES {
        let message = format!("the file is larger than {MAX_YAML_BYTES} bytes");
        return Err(YamlError { line: None, column: None, field: String::new(), message });
    }
    let options = || serde_saphyr::options! { with_snippet: false };
    let specs = serde_saphyr::from_multiple_with_options::<RuleSpec>(text, options()).map_err(|error| {
        let tracked = serde_saphyr::from_multiple_with_options::<Tracked>(text, options());
        explain(&error, tracked.err())
    })?;
    let places = serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options());
    let mut places = places.unwrap_or_default().into_iter();
    let document = |spec| Document { spec, places: places.next().map(Places::of).unwrap_or_default() };
    Ok(specs.into_iter().map(document).collect())
}

/// A rule as a YAML document, as [`parse_yaml`] reads it.
///
/// # Errors
/// None in practice: every field has a YAML form.
pub fn to_yaml(spec: &RuleSpec) -> Result<String, YamlError> {
    serde_saphyr::to_string(spec).map_err(|error| YamlError {
        line: None,
        column: None,
        field: String::new(),
        message: error.to_string(),
    })
}

/// `error` knows place and message, `tracked` the field's path.
fn explain(error: &serde_saphyr::Error, tracked: Option<serde_saphyr::Error>) -> YamlError {
    let place = error.location();
    let text = error.without_snippet().to_string();
    let message = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    // The library's advice is for programmers, not for who writes the file.
    let message = ADVICE.iter().fold(message, |message, advice| message.trim_end_matches(advice)).to_owned();
    let field = match tracked {
        Some(serde_saphyr::Error::Message { msg, .. }) => {
            msg.strip_prefix(PATH).filter(|path| *path != "?").map(str::to_owned)
        }
        _ => None,
    };
    YamlError {
        line: place.map(|place| place.line()),
        column: place.map(|place| place.column()),
        field: field.unwrap_or_default(),
        message,
    }
}

const ADVICE: [&str; 2] = [", set DuplicateKeyPolicy in Options if acceptable", "; use Option<String>"];

/// Marks an error's text as the path of a field.
const PATH: &str = "path ";

/// Reads a rule for the sake of the path at which that fails.
struct Tracked;

impl<'de> Deserialize<'de> for Tracked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        match serde_path_to_error::deserialize::<_, RuleSpec>(deserializer) {
            Ok(_) => Ok(Self),
            Err(error) if error.path().iter().len() == 0 => Err(error.into_inner()),
            Err(error) => Err(D::Error::custom(format!("{PATH}{}", error.path()))),
        }
    }
}

/// Where each field of a document stands, by its path; the document itself has the empty path.
#[derive(Clone, Debug, Default)]
struct Places(HashMap<String, (u64, u64)>);

impl Places {
    fn of(node: Spanned<Node>) -> Self {
        let mut places = Self::default();
        places.add(String::new(), &node);
        places
    }

    fn add(&mut self, path: String, node: &Spanned<Node>) {
        match &node.value {
            Node::Leaf => {}
            Node::Map(fields) => fields.iter().for_each(|(key, value)| {
                let separator = if path.is_empty() { "" } else { "." };
                self.add(format!("{path}{separator}{key}"), value);
            }),
            Node::List(items) => {
                items.iter().enumerate().for_each(|(place, item)| self.add(format!("{path}[{place}]"), item));
            }
        }
        self.0.insert(path, (node.referenced.line(), node.referenced.column()));
    }
}

/// A document of any form.
enum Node {
    Leaf,
    List(Vec<Spanned<Node>>),
    Map(Vec<(String, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

macro_rules! leaves {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Node, E> {
            Ok(Node::Leaf)
        })*
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64,
        visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = fields.next_key::<String>()? {
            map.push((key, fields.next_value()?));
        }
        Ok(Node::Map(map))
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, data: A) -> Result<Node, A::Error> {
        data.variant::<IgnoredAny>().map(|_| Node::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use logmesh_types::ByteSize;

    use super::*;
    use crate::spec::{LongEvents, StartAt};

    const FULL: &str = r#"
name: rules/nginx-access
selector: "role=web"
paths: ["/var/log/nginx/access*.log"]
exclude: ["*.gz"]
topic: nginx                           # partitions, format and typed fields are the topic's own settings
priority: 0
service: nginx
pace: { bytes_per_second: 5MiB }      # the seed's send_rate, also lines_per_second
start_at: beginning                    # or end, for files first seen
multiline: { start_pattern: '^\d{4}-', timeout: 2s }
max_event_bytes: 256KiB
long_events: cut                       # or split
format: lines                          # or container
encoding: gbk
ignore_older: 7d
"#;

    #[test]
    fn the_rule_of_the_design_reads() {
        let documents = parse_yaml(FULL).unwrap();
        let spec = &documents[0].spec;
        assert_eq!(documents.len(), 1);
        assert_eq!(spec.name, "rules/nginx-access");
        assert_eq!(spec.pace.bytes_per_second, Some(ByteSize(5 << 20)));
        assert_eq!(spec.start_at, StartAt::Beginning);
        assert_eq!((spec.max_event_bytes, spec.long_events), (Some(ByteSize(256 << 10)), LongEvents::Cut));
        assert_eq!(spec.multiline.as_ref().unwrap().patterns(), [("start_pattern", r"^\d{4}-")]);
        spec.compile().unwrap();
        assert_eq!(parse_yaml(&to_yaml(spec).unwrap()).unwrap()[0].spec, *spec);
    }

    #[test]
    fn several_documents_are_several_rules() {
        let text = "---\nname: a\ntopic: t\npaths: [/a]\n---\nname: b\ntopic: t\npaths:\n  - /b\n  - c\n";
        let documents = parse_yaml(text).unwrap();
        assert_eq!(documents.iter().map(|one| one.spec.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(documents[1].place("paths[1]"), Some((10, 5)));
        assert_eq!(documents[1].place("pace.bytes_per_second"), Some((6, 1)));
        assert!(parse_yaml("").unwrap().is_empty());
    }

    #[test]
    fn an_error_says_line_column_and_field() {
        let rule = "name: a\ntopic: t\npaths: [/a]\n";
        for (text, expected) in [
            (
                format!("{rule}process: x\n"),
                "line 4, column 1: process: unknown field `process`, expected one of name,",
            ),
            ("name: a\ntopic: t\npaths: /a\n".into(), "line 3, column 8: paths: expected sequence start"),
            (
                format!("{rule}pace:\n  bytes_per_second: fast\n"),
                "line 5, column 21: pace.bytes_per_second: \"fast\" is not a size such as 512, 64KiB or 5MiB",
            ),
            (
                format!("{rule}multiline: {{ begin: x }}\n"),
                "line 4, column 14: multiline.begin: unknown field `begin`, expected one of start_pattern,",
            ),
            (format!("{rule}format: json\n"), "line 4, column 9: format: unknown variant `json`"),
            (format!("{rule}start_at: middle\n"), "line 4, column 11: start_at: unknown variant `middle`"),
            ("name: a\ntopic: t\n".into(), "line 2, column 1: missing field `paths`"),
            (format!("name: b\n{rule}"), "line 2, column 1: duplicate mapping key: name"),
            ("name: a\npaths: [/a\n".into(), "line 2, column 8: paths: unclosed bracket '['"),
            (format!("{rule}---\n{rule}priority: high\n"), "line 8, column 11: priority: invalid i32"),
            ("- a\n".into(), "line 1, column 1: expected mapping start"),
            ("paths: [/a, null]\n".into(), "line 1, column 13: paths[1]: cannot deserialize null into string"),
        ] {
            let error = parse_yaml(&text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}\nnot as expected:\n{expected}");
            assert!(!error.contains(" at line "), "{error}");
        }
    }

    #[test]
    fn a_file_is_bounded() {
        assert!(parse_yaml(&" ".repeat(MAX_YAML_BYTES + 1)).is_err());
        let bomb =
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n";
        assert!(parse_yaml(bomb).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(name|topic|paths|pace|: |- |\\[|\\]|\\{|\n|---|&a|\\*a|[ -~]){0,24}") {
            drop(parse_yaml(&text));
        }
    }
}
