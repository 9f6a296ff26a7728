//! In what form a document is sent, and how its bytes come back.
//!
//! - **As it is**: every value has a field of its own (see [`crate::template`]). So are the lines of files.
//! - **With terms before it**: some values have no field (`parsed`, attributes that aren't declared), or no stream or
//!   time orders it. Then `"logmesh.derived": {…},` is put after its first brace, with the terms by which it's found.
//! - **Wrapped**: Elasticsearch refuses its JSON or would read it otherwise than we do (a line break, a key twice, a value
//!   that doesn't fit its field, `host` beside `host.name`). It's rebuilt from the values that fit, and its own bytes lie
//!   in `logmesh.derived.body`. The mapping never rejects a document.
//!
//! In each form a search gives back the bytes that were written. Most lines are as they are, which [`crate::plain`] sees without
//! keeping anything of them; all others are read here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use logmesh_index::query::field::{self, Kind, TIMESTAMP};
use logmesh_index::{FieldTypes, IndexError};
use logmesh_types::{DocId, UnixNanos};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::client::unavailable;
use crate::template::{DERIVED, Place, place};

/// What a source with terms before it, or wrapped, begins with.
const OPENING: &[u8] = b"{\"logmesh.derived\":";
/// The longest term, in bytes; Lucene takes 32,766.
const MAX_TERM_BYTES: usize = 32_000;
/// `logmesh.derived.early` of a document without a time.
pub(crate) const NO_TIME: i64 = i64::MIN;

/// A document that was read.
pub(crate) struct Read {
    leaves: Map<String, Value>,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Form {
    AsIs,
    WithTerms,
    Wrapped,
}

/// What is added to a document. The names stand in [`crate::template`].
#[derive(Debug, Default, Serialize, Deserialize)]
struct Derived {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    early: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    paths: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    values: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

/// Reads a document and chooses its form. The error says why it is no document.
pub(crate) fn read(body: &[u8], types: &FieldTypes) -> Result<Read, String> {
    let leaves: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("the body is not a JSON object: {error}"))?;
    let mut form = Form::AsIs;
    let (mut has_time, mut has_stream) = (false, false);
    field::for_each_leaf(&leaves, &mut |path, value| {
        has_time |= path == TIMESTAMP;
        has_stream |= path == "logmesh.stream";
        form = form.max(match place(path, types) {
            place if is_named(&place, path) && Leaf::of(value).is_as_it_is(&place) => Form::AsIs,
            Place::Derived if path != DERIVED && !field::is_below(path, DERIVED) => Form::WithTerms,
            _ => Form::Wrapped,
        });
    });
    if !has_time || !has_stream {
        form = form.max(Form::WithTerms);
    }
    if !is_one_line(body) {
        form = Form::Wrapped;
    }
    Ok(Read { leaves, form })
}

/// True if the bytes can stand in a bulk, which is cut at line breaks; in JSON they can only stand between values.
pub(crate) fn is_one_line(body: &[u8]) -> bool {
    body.starts_with(b"{") && memchr::memchr2(b'\n', b'\r', body).is_none()
}

/// One value of a document that isn't `null`.
#[derive(Clone, Copy)]
pub(crate) enum Leaf<'a> {
    Text(&'a str),
    /// Whether it is an integer that 64 bits hold, and with a sign.
    Number {
        is_whole: bool,
        is_long: bool,
    },
    Bool,
    /// Not reached: what [`field::for_each_leaf`] visits is none.
    Other,
}

impl<'a> Leaf<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::String(text) => Leaf::Text(text),
            Value::Number(number) => {
                let is_long = number.is_i64();
                Leaf::Number { is_whole: is_long || number.is_u64(), is_long }
            }
            Value::Bool(_) => Leaf::Bool,
            _ => Leaf::Other,
        }
    }

    /// True if Elasticsearch reads the value at this place as we do, without further terms.
    pub(crate) fn is_as_it_is(self, place: &Place) -> bool {
        match place {
            Place::Field(kind) => fits(*kind, self),
            Place::Label => fits(Kind::Keyword, self),
            Place::Derived => false,
        }
    }
}

/// True if Elasticsearch reads the value as we do: numbers of keywords as they're written, times in one format.
fn fits(kind: Kind, leaf: Leaf<'_>) -> bool {
    match (kind, leaf) {
        (_, Leaf::Other) => false,
        (Kind::Text | Kind::Keyword, Leaf::Number { is_whole, .. }) => is_whole,
        (Kind::Text | Kind::Keyword, _) => true,
        (Kind::Long, leaf) => matches!(leaf, Leaf::Number { is_long: true, .. }),
        (Kind::Double, leaf) => matches!(leaf, Leaf::Number { .. }),
        (Kind::Boolean, Leaf::Bool | Leaf::Text("true" | "false")) => true,
        (Kind::Date, Leaf::Text(text)) => is_canonical(text) && field::time_of(text).is_some_and(|nanos| nanos >= 0),
        (Kind::Boolean | Kind::Date, _) => false,
    }
}

/// `2026-01-31T12:00:00Z`, with up to nine digits after the seconds, and `Z` or `+01:00`.
fn is_canonical(text: &str) -> bool {
    let shape = |c: u8, like: u8| if like == b'0' { c.is_ascii_digit() } else { c == like };
    let matches =
        |text: &[u8], like: &[u8]| text.len() == like.len() && text.iter().zip(like).all(|(c, l)| shape(*c, *l));
    let Some((time, rest)) = text.as_bytes().split_at_checked("2026-01-31T12:00:00".len()) else { return false };
    let fraction = match rest.split_first() {
        Some((b'.', digits)) => 1 + digits.iter().take_while(|c| c.is_ascii_digit()).count(),
        _ => 0,
    };
    let zone = rest.get(fraction..).unwrap_or_default();
    matches(time, b"0000-00-00T00:00:00")
        && !time.ends_with(b"60")
        && (fraction == 0 || (2..=10).contains(&fraction))
        && (zone == b"Z" || matches(zone, b"+00:00") || matches(zone, b"-00:00"))
}

/// The value as a time that `date_nanos` can hold.
fn storable_time(value: &Value) -> Option<i64> {
    field::document_time(value).filter(|nanos| *nanos >= 0)
}

/// True if a value at this place has a name that Elasticsearch takes: only those of labels are made by others.
pub(crate) fn is_named(place: &Place, path: &str) -> bool {
    !matches!(place, Place::Label) || is_sane(path)
}

/// True for a path that Elasticsearch takes as the name of a field.
fn is_sane(path: &str) -> bool {
    path.len() <= 512 && path.split('.').all(|part| !part.is_empty() && part.trim() == part)
}

impl Read {
    /// True if it is wrapped already: there is no other form left to try.
    pub(crate) fn is_wrapped(&self) -> bool {
        self.form == Form::Wrapped
    }

    /// Wraps it, because Elasticsearch refused it as it was.
    pub(crate) fn wrap(mut self) -> Self {
        self.form = Form::Wrapped;
        self
    }

    /// Appends what is sent for the document. `body` is what was read.
    pub(crate) fn write(&self, body: &[u8], id: &DocId, types: &FieldTypes, out: &mut Vec<u8>) {
        match self.form {
            Form::AsIs => out.extend_from_slice(body),
            Form::WithTerms => {
                let derived = self.derive(id, types, &mut |_, _| {});
                out.extend_from_slice(OPENING);
                json(out, &derived);
                let rest = body.get(1..).unwrap_or_default();
                if !rest.trim_ascii_start().starts_with(b"}") {
                    out.push(b',');
                }
                out.extend_from_slice(rest);
            }
            Form::Wrapped => {
                let mut fields: BTreeMap<String, Vec<Value>> = BTreeMap::new();
                let mut keep = |path: &str, value: Value| fields.entry(path.to_owned()).or_default().push(value);
                let mut derived = self.derive(id, types, &mut keep);
                derived.body = Some(String::from_utf8_lossy(body).into_owned());
                out.extend_from_slice(OPENING);
                json(out, &derived);
                for (path, values) in &fields {
                    out.push(b',');
                    json(out, path);
                    out.push(b':');
                    json(out, values);
                }
                out.push(b'}');
            }
        }
    }

    /// The terms for what has no field. Calls `keep` with what a wrapped document has fields for.
    fn derive(&self, id: &DocId, types: &FieldTypes, keep: &mut dyn FnMut(&str, Value)) -> Derived {
        let mut derived = Derived { early: Some(NO_TIME), ..Derived::default() };
        let wrapped = self.is_wrapped();
        let mut has_stream = false;
        field::for_each_leaf(&self.leaves, &mut |path, value| {
            has_stream |= path == "logmesh.stream";
            if path == TIMESTAMP {
                derived.early = field::document_time(value).filter(|nanos| *nanos < 0 && *nanos > NO_TIME);
                if derived.early.is_none() && storable_time(value).is_none() {
                    derived.early = Some(NO_TIME);
                }
            }
            match place(path, types) {
                Place::Field(kind) => match normal(kind, value) {
                    Some(value) => keep(path, value),
                    None => derived.add(path, value),
                },
                Place::Label if !wrapped => {}
                Place::Label | Place::Derived => derived.add(path, value),
            }
        });
        derived.id = (!has_stream).then(|| HEXLOWER.encode(id.as_bytes()));
        derived
    }
}

/// The value as its field takes it; `None` if it doesn't fit.
fn normal(kind: Kind, value: &Value) -> Option<Value> {
    match kind {
        Kind::Text | Kind::Keyword => Some(match value {
            Value::String(_) => value.clone(),
            other => Value::from(other.to_string()),
        }),
        Kind::Date => storable_time(value).map(|nanos| Value::from(UnixNanos(nanos).to_string())),
        _ => fits(kind, Leaf::of(value)).then(|| value.clone()),
    }
}

impl Derived {
    fn add(&mut self, path: &str, value: &Value) {
        if path.len() > MAX_TERM_BYTES {
            return;
        }
        self.paths.insert(path.to_owned());
        self.paths.extend(path.match_indices('.').filter_map(|(at, _)| path.get(..at)).map(str::to_owned));
        let Some(text) = field::keyword_text(value) else { return };
        for name in std::iter::once(path).chain(field::flattened_root(path)) {
            let term = value_term(name, &text);
            if term.len() <= MAX_TERM_BYTES {
                self.values.insert(term);
            }
        }
    }
}

/// The term of a keyword without a field. No value can be taken for one of another field: what stands before the first
/// NUL is the path.
pub(crate) fn value_term(path: &str, value: &str) -> String {
    format!("{path}\0{value}")
}

/// The bytes that were written, from what Elasticsearch holds.
pub(crate) fn original(source: Bytes) -> Result<Bytes, IndexError> {
    let Some(after) = source.strip_prefix(OPENING) else { return Ok(source) };
    let damaged = |what: String| unavailable(format!("a document has a damaged {DERIVED}: {what}"));
    let mut values = serde_json::Deserializer::from_slice(after).into_iter::<Derived>();
    let derived = values.next().transpose().map_err(|error| damaged(error.to_string()))?;
    if let Some(body) = derived.and_then(|derived| derived.body) {
        return Ok(body.into());
    }
    let rest = after.get(values.byte_offset()..).unwrap_or_default();
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    Ok([b"{", rest].concat().into())
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing to a vector can't fail, and none of the types written here has a failing `Serialize`.
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use logmesh_index::FieldType;
    use proptest::prelude::*;

    use super::*;
    use crate::plain::is_plain;

    const LINE: &str =
        r#"{"@timestamp":"2026-01-31T12:00:00.000000005Z","message":"x","labels.env":"a","logmesh.stream":"s"}"#;

    fn types() -> FieldTypes {
        [("status".to_owned(), FieldType::Long)].into()
    }

    fn sent(body: &str) -> (Form, String) {
        let read = read(body.as_bytes(), &types()).unwrap();
        let mut out = Vec::new();
        read.write(body.as_bytes(), &DocId::from_bytes([7; 16]), &types(), &mut out);
        assert!(!out.contains(&b'\n'), "{body}");
        assert_eq!(original(out.clone().into()).unwrap(), body, "{body}");
        assert!(!is_plain(body.as_bytes(), &types()) || read.form == Form::AsIs, "{body}");
        (read.form, String::from_utf8(out).unwrap())
    }

    fn with(field: &str) -> String {
        format!("{},{field}}}", LINE.strip_suffix('}').unwrap())
    }

    #[test]
    fn a_line_of_a_file_is_sent_as_it_is() {
        assert_eq!(sent(LINE), (Form::AsIs, LINE.to_owned()));
        for field in [r#""attributes.status":200"#, r#""host.ip":["a","b"]"#, r#""log.offset":5,"labels.é":"\\n""#] {
            assert!(is_plain(with(field).as_bytes(), &types()), "{field}");
        }
        for field in
            [r#""attributes.status":200"#, r#""host":{"name":"a"}"#, r#""trace.id":[null,"a"]"#, r#""log.offset":5"#]
        {
            assert_eq!(sent(&with(field)).0, Form::AsIs, "{field}");
        }
    }

    #[test]
    fn what_has_no_field_gets_terms() {
        let (form, text) = sent(&with(r#""parsed":{"a":{"b":[7,"x"]}},"attributes.other":1.50"#));
        assert_eq!(form, Form::WithTerms);
        let derived = serde_json::from_str::<Value>(&text).unwrap()["logmesh.derived"].clone();
        let expected = serde_json::json!({
            "paths": ["attributes", "attributes.other", "parsed", "parsed.a", "parsed.a.b"],
            "values": ["attributes.other\u{0}1.5", "parsed\u{0}7", "parsed\u{0}x", "parsed.a.b\u{0}7", "parsed.a.b\u{0}x"],
        });
        assert_eq!(derived, expected);
        for body in ["{}", "{ }", r#"{"message":"no time"}"#, r#"{ "a" : 1 }"#] {
            let (form, text) = sent(body);
            assert_eq!(form, Form::WithTerms);
            assert!(text.contains(r#""id":"07070707"#) && text.contains("\"early\":-9223372036854775808"), "{text}");
        }
    }

    #[test]
    fn what_elasticsearch_would_not_take_is_wrapped() {
        for field in [
            r#""attributes.status":"many""#,
            r#""attributes.status":1.5"#,
            "\"a\":\n1",
            r#""service.name":1.50"#,
            r#""labels..x":"a""#,
            r#""logmesh.derived":{"id":"x"}"#,
            r#""logmesh.derived.id":"x""#,
        ] {
            assert_eq!(sent(&with(field)).0, Form::Wrapped, "{field}");
        }
        for time in ["1969-12-31T23:59:59Z", "2026-01-31 12:00:00Z", "2026-01-31", "never"] {
            assert_eq!(sent(&LINE.replace("2026-01-31T12:00:00.000000005Z", time)).0, Form::Wrapped, "{time}");
        }
        let (_, text) = sent(&LINE.replace("2026-01-31T12:00:00.000000005Z", "1969-12-31T23:59:59Z"));
        assert!(text.contains("\"early\":-1000000000,"), "{text}");
        let (_, text) = sent(&LINE.replace("2026-01-31T12:00:00.000000005Z", "2026-01-31 13:00:00+01"));
        assert!(
            text.contains(r#""@timestamp":["2026-01-31T12:00:00.000000000Z"]"#) && !text.contains("early"),
            "{text}"
        );
    }

    #[test]
    fn only_one_way_to_write_a_time_is_taken_as_it_is() {
        for good in ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.1Z", "2026-01-31T12:00:00.123456789+01:00"] {
            assert!(is_canonical(good), "{good}");
        }
        for bad in [
            "2026-01-31T12:00:60Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.1234567890Z",
            "2026-01-31T12:00:00",
            "x",
            "2026-01-31t12:00:00z",
            "ä026-01-31T12:00:00Z",
        ] {
            assert!(!is_canonical(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for bad in ["", "[1]", "{\"a\":", "null", "{}{}"] {
            assert!(read(bad.as_bytes(), &types()).is_err(), "{bad}");
            assert!(!is_plain(bad.as_bytes(), &types()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_bytes_come_back(key in "[a-z.@]{0,6}", text in any::<String>(), space in "[ \t\r\n]{0,2}") {
            let (key, text) = (Value::from(key), Value::from(text));
            sent(&format!("{{{space}{key}:{space}[{text},{{\"b\":{space}{text}}}]{space}}}{space}"));
        }
    }
}
