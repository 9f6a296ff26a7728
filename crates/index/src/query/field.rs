//! What kind of value each field holds, and how a document falls apart into fields.

use serde_json::{Map, Value};

use crate::{FieldType, FieldTypes};

/// The text that a query searches when it names no field.
pub const MESSAGE: &str = "message";
/// The field that hits are ordered by.
pub const TIMESTAMP: &str = "@timestamp";
/// The document's id; no key of the document itself.
pub const ID: &str = "_id";
/// The document's topic; no key of the document itself.
pub const TOPIC: &str = "_topic";
/// Before the names of the fields that a topic declares.
pub const ATTRIBUTES: &str = "attributes.";
/// Objects whose own name searches all values in them: `labels:web` is any label of the value `web`.
pub const FLATTENED: [&str; 2] = ["labels", "parsed"];
/// A keyword of more units of UTF-16 than this is found by `field:*` only (Elasticsearch: `ignore_above`).
pub const MAX_KEYWORD_CHARS: usize = 8_191;

/// How a field's values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By its words.
    Text,
    /// As a whole, exactly; ordered by its bytes.
    Keyword,
    /// As an integer of 64 bits.
    Long,
    /// As a floating-point number.
    Double,
    /// `true` or `false`.
    Boolean,
    /// As a time.
    Date,
}

/// The fields that aren't keywords, whatever the topic.
pub const WELL_KNOWN: [(&str, Kind); 6] = [
    (MESSAGE, Kind::Text),
    (TIMESTAMP, Kind::Date),
    ("log.offset", Kind::Long),
    ("logmesh.offset", Kind::Long),
    ("logmesh.length", Kind::Long),
    ("logmesh.revision", Kind::Long),
];

/// The kind of a field that doesn't depend on the topic; `None` for `attributes.*`.
pub fn fixed_kind(field: &str) -> Option<Kind> {
    match WELL_KNOWN.iter().find(|(name, _)| *name == field) {
        Some((_, kind)) => Some(*kind),
        None if field.starts_with(ATTRIBUTES) => None,
        None => Some(Kind::Keyword),
    }
}

/// The kind of a field in a topic with these declared types. What isn't declared is a keyword.
pub fn kind(field: &str, types: &FieldTypes) -> Kind {
    fixed_kind(field).unwrap_or_else(|| match field.strip_prefix(ATTRIBUTES).and_then(|name| types.get(name)) {
        Some(FieldType::Long) => Kind::Long,
        Some(FieldType::Double) => Kind::Double,
        Some(FieldType::Boolean) => Kind::Boolean,
        Some(FieldType::Date) => Kind::Date,
        Some(FieldType::Keyword) | None => Kind::Keyword,
    })
}

/// Calls `visit` with the dotted path and value of every text, number, `true` and `false` in the document, whether its
/// keys are flat (`"host.name"`) or nested; each value of an array by itself. `null` is no value.
pub fn for_each_leaf<'a>(document: &'a Map<String, Value>, visit: &mut dyn FnMut(&str, &'a Value)) {
    let mut path = String::new();
    visit_object(&mut path, document, visit);
}

fn visit_object<'a>(path: &mut String, object: &'a Map<String, Value>, visit: &mut dyn FnMut(&str, &'a Value)) {
    let parent = path.len();
    for (key, value) in object {
        if parent > 0 {
            path.push('.');
        }
        path.push_str(key);
        visit_value(path, value, visit);
        path.truncate(parent);
    }
}

fn visit_value<'a>(path: &mut String, value: &'a Value, visit: &mut dyn FnMut(&str, &'a Value)) {
    match value {
        Value::Null => {}
        Value::Object(object) => visit_object(path, object, visit),
        Value::Array(values) => values.iter().for_each(|value| visit_value(path, value, visit)),
        Value::String(_) | Value::Number(_) | Value::Bool(_) => visit(path, value),
    }
}

/// The flattened object that the path lies in, if any.
pub fn flattened_root(path: &str) -> Option<&'static str> {
    FLATTENED.into_iter().find(|root| is_below(path, root))
}

/// True if `path` is `parent.` and more.
pub fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'))
}

/// The value as a keyword; `None` if it's too long to be found as one.
pub fn keyword_text(value: &Value) -> Option<std::borrow::Cow<'_, str>> {
    match value {
        Value::String(text) => fits_keyword(text).then(|| text.as_str().into()),
        other => Some(other.to_string().into()),
    }
}

fn fits_keyword(text: &str) -> bool {
    text.len() <= MAX_KEYWORD_CHARS || text.encode_utf16().nth(MAX_KEYWORD_CHARS).is_none()
}

/// The value as a time in nanoseconds since the Unix epoch, if it is RFC 3339 and between the years 1677 and 2262.
pub fn document_time(value: &Value) -> Option<i64> {
    time_of(value.as_str()?)
}

/// The same of its text.
pub fn time_of(text: &str) -> Option<i64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}
