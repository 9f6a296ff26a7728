//! How a document lies in tantivy.
//!
//! A keyword is a term `path NUL value`, so that every field there is needs no schema of its own, and a range, a prefix
//! or a pattern of one field is one stretch of the term dictionary. A number or time lies in a column.

use std::collections::BTreeMap;

use logmesh_index::NewDoc;
use logmesh_index::query::field::{self, ATTRIBUTES, Kind, MESSAGE, TIMESTAMP};
use logmesh_index::query::{TokenRanges, push_lower, token_ranges};
use logmesh_types::{DocId, StreamId};
use serde_json::Value;
use tantivy::schema::{
    FAST, Field, IndexRecordOption, JsonObjectOptions, OwnedValue, STORED, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::tokenizer::{Token, TokenStream, Tokenizer};
use tantivy::{Index, TantivyDocument};

/// The name under which [`MessageTokenizer`] is known to tantivy.
const TOKENIZER: &str = "logmesh";

pub(crate) const TIMESTAMP_COLUMN: &str = "timestamp";
pub(crate) const OFFSET_COLUMN: &str = "offset";
pub(crate) const LENGTH_COLUMN: &str = "length";
pub(crate) const STREAM_COLUMNS: [&str; 2] = ["stream_high", "stream_low"];
pub(crate) const ID_COLUMNS: [&str; 2] = ["id_high", "id_low"];
pub(crate) const STREAM_FIELD: &str = "logmesh.stream";
const OFFSET_FIELD: &str = "logmesh.offset";

/// The fields of the tantivy schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    /// The id's text.
    pub(crate) id: Field,
    /// The words of `message`.
    pub(crate) message: Field,
    /// `path NUL value` of each keyword.
    pub(crate) values: Field,
    /// The paths that have a value, and every path above them.
    pub(crate) paths: Field,
    /// The body, as it was given.
    pub(crate) body: Field,
    /// Numbers of `attributes.*`, whole or not.
    pub(crate) numbers: Field,
    /// Times of `attributes.*`, in nanoseconds.
    pub(crate) dates: Field,
    timestamp: Field,
    log_offset: Field,
    offset: Field,
    length: Field,
    revision: Field,
    id_halves: [Field; 2],
    stream_halves: [Field; 2],
}

/// The schema and its fields.
pub(crate) fn schema() -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let terms = |tokenizer: &str, option| {
        let indexing = TextFieldIndexing::default().set_tokenizer(tokenizer).set_index_option(option);
        TextOptions::default().set_indexing_options(indexing.set_fieldnorms(false))
    };
    let column = JsonObjectOptions::default().set_fast("raw").set_expand_dots_enabled();
    let fields = Fields {
        id: builder.add_text_field("id", terms("raw", IndexRecordOption::Basic)),
        message: builder.add_text_field(MESSAGE, terms(TOKENIZER, IndexRecordOption::WithFreqsAndPositions)),
        values: builder.add_text_field("values", terms("raw", IndexRecordOption::Basic)),
        paths: builder.add_text_field("paths", terms("raw", IndexRecordOption::Basic)),
        body: builder.add_bytes_field("body", STORED),
        numbers: builder.add_json_field("numbers", column.clone()),
        dates: builder.add_json_field("dates", column),
        timestamp: builder.add_i64_field(TIMESTAMP_COLUMN, FAST),
        log_offset: builder.add_i64_field("log_offset", FAST),
        offset: builder.add_i64_field(OFFSET_COLUMN, FAST),
        length: builder.add_i64_field(LENGTH_COLUMN, FAST),
        revision: builder.add_i64_field("revision", FAST),
        id_halves: ID_COLUMNS.map(|name| builder.add_u64_field(name, FAST)),
        stream_halves: STREAM_COLUMNS.map(|name| builder.add_u64_field(name, FAST)),
    };
    (builder.build(), fields)
}

/// Makes the tokenizer known to an index.
pub(crate) fn register_tokenizer(index: &Index) {
    index.tokenizers().register(TOKENIZER, MessageTokenizer::default());
}

impl Fields {
    /// The column of a field of numbers or times that isn't the topic's own.
    pub(crate) fn column(&self, field: &str) -> Option<Field> {
        match field {
            TIMESTAMP => Some(self.timestamp),
            "log.offset" => Some(self.log_offset),
            OFFSET_FIELD => Some(self.offset),
            "logmesh.length" => Some(self.length),
            "logmesh.revision" => Some(self.revision),
            _ => None,
        }
    }

    /// The column that hits are ordered and bounded by.
    pub(crate) fn timestamp(&self) -> Field {
        self.timestamp
    }

    /// The column of offsets in streams.
    pub(crate) fn offset(&self) -> Field {
        self.offset
    }

    /// Makes a document of tantivy's. The error says why the body is no document.
    pub(crate) fn document(&self, doc: &NewDoc) -> Result<TantivyDocument, String> {
        let body: serde_json::Map<String, Value> =
            serde_json::from_slice(&doc.body).map_err(|error| format!("the body is not a JSON object: {error}"))?;
        let mut builder = DocumentBuilder { fields: self, ..DocumentBuilder::new(self) };
        builder.add_id(&doc.id);
        field::for_each_leaf(&body, &mut |path, value| builder.add_leaf(path, value));
        Ok(builder.finish(&doc.body))
    }
}

struct DocumentBuilder<'a> {
    fields: &'a Fields,
    document: TantivyDocument,
    /// The last path added: values of one array share theirs.
    last_path: String,
    numbers: BTreeMap<String, OwnedValue>,
    dates: BTreeMap<String, OwnedValue>,
}

impl<'a> DocumentBuilder<'a> {
    fn new(fields: &'a Fields) -> Self {
        Self {
            fields,
            document: TantivyDocument::default(),
            last_path: String::new(),
            numbers: BTreeMap::new(),
            dates: BTreeMap::new(),
        }
    }

    fn add_id(&mut self, id: &DocId) {
        self.document.add_text(self.fields.id, id.to_string());
        for (field, half) in self.fields.id_halves.into_iter().zip(halves(id.as_bytes())) {
            self.document.add_u64(field, half);
        }
    }

    fn add_leaf(&mut self, path: &str, value: &Value) {
        self.add_path(path);
        match (field::fixed_kind(path), self.fields.column(path)) {
            (Some(Kind::Text), _) => match value {
                Value::String(text) => self.document.add_text(self.fields.message, text),
                other => self.document.add_text(self.fields.message, other.to_string()),
            },
            (Some(Kind::Date), Some(column)) => {
                if let Some(time) = field::document_time(value) {
                    self.document.add_i64(column, time);
                }
            }
            (Some(Kind::Long), Some(column)) => {
                if let Some(number) = value.as_i64() {
                    self.document.add_i64(column, number);
                }
            }
            _ => self.add_keyword(path, value),
        }
    }

    fn add_path(&mut self, path: &str) {
        if path == self.last_path {
            return;
        }
        self.document.add_text(self.fields.paths, path);
        for (at, _) in path.match_indices('.') {
            let Some(above) = path.get(..at) else { continue };
            // A sibling has added the paths above both already.
            if !field::is_below(&self.last_path, above) {
                self.document.add_text(self.fields.paths, above);
            }
        }
        path.clone_into(&mut self.last_path);
    }

    fn add_keyword(&mut self, path: &str, value: &Value) {
        if let Some(text) = field::keyword_text(value) {
            self.document.add_text(self.fields.values, value_term(path, &text));
            if let Some(root) = field::flattened_root(path) {
                self.document.add_text(self.fields.values, value_term(root, &text));
            }
            if path == STREAM_FIELD {
                self.add_stream(&text);
            }
        }
        if let Some(name) = path.strip_prefix(ATTRIBUTES) {
            self.add_attribute(name, value);
        }
    }

    fn add_stream(&mut self, text: &str) {
        if let Ok(stream) = text.parse::<StreamId>() {
            for (field, half) in self.fields.stream_halves.into_iter().zip(halves(stream.as_bytes())) {
                self.document.add_u64(field, half);
            }
        }
    }

    /// Numbers and times are kept whatever the topic declares, so that a type declared later finds them too.
    fn add_attribute(&mut self, name: &str, value: &Value) {
        let number = value.as_i64().map(OwnedValue::I64).or_else(|| value.as_f64().map(OwnedValue::F64));
        if let Some(number) = number {
            push(&mut self.numbers, name, number);
        }
        if let Some(time) = field::document_time(value) {
            push(&mut self.dates, name, OwnedValue::I64(time));
        }
    }

    fn finish(mut self, body: &[u8]) -> TantivyDocument {
        for (field, values) in [(self.fields.numbers, self.numbers), (self.fields.dates, self.dates)] {
            if !values.is_empty() {
                self.document.add_object(field, values);
            }
        }
        self.document.add_bytes(self.fields.body, body);
        self.document
    }
}

/// Adds a value to those of its name.
fn push(values: &mut BTreeMap<String, OwnedValue>, name: &str, value: OwnedValue) {
    match values.get_mut(name) {
        Some(OwnedValue::Array(array)) => array.push(value),
        Some(first) => *first = OwnedValue::Array(vec![first.clone(), value]),
        None => {
            values.insert(name.to_owned(), value);
        }
    }
}

/// The term of a keyword. No value can be taken for one of another field, because a path has no NUL in a query's way:
/// what stands before the first NUL is the path.
pub(crate) fn value_term(path: &str, value: &str) -> String {
    let mut term = String::with_capacity(path.len() + 1 + value.len());
    term.push_str(path);
    term.push('\0');
    term.push_str(value);
    term
}

/// The two big-endian halves of an id, so that they order as the id does.
pub(crate) fn halves(id: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_be_bytes(*id);
    [(whole >> 64) as u64, whole as u64]
}

/// [`logmesh_index::query::tokenize`], as tantivy wants it.
#[derive(Clone, Default)]
struct MessageTokenizer {
    token: Token,
}

struct MessageTokens<'a> {
    text: &'a str,
    ranges: TokenRanges<'a>,
    token: &'a mut Token,
}

impl Tokenizer for MessageTokenizer {
    type TokenStream<'a> = MessageTokens<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> MessageTokens<'a> {
        self.token.reset();
        MessageTokens { text, ranges: token_ranges(text), token: &mut self.token }
    }
}

impl TokenStream for MessageTokens<'_> {
    fn advance(&mut self) -> bool {
        let Some(range) = self.ranges.next() else { return false };
        self.token.text.clear();
        push_lower(self.text.get(range.clone()).unwrap_or_default(), &mut self.token.text);
        self.token.offset_from = range.start;
        self.token.offset_to = range.end;
        self.token.position = self.token.position.wrapping_add(1);
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}
