//! How a topic's indices are made: settings and mapping, and the index template that holds them.
//!
//! Nothing that a document holds makes a field, but labels, and these up to a limit. What isn't mapped here is found
//! through [`crate::form`]'s own terms.

use logmesh_index::query::field::{self, ATTRIBUTES, Kind, MAX_KEYWORD_CHARS, WELL_KNOWN};
use logmesh_index::query::{MAX_TOKEN_CHARS, is_word_char};
use logmesh_index::{FieldType, FieldTypes};
use logmesh_types::limits::MAX_PAGE_SIZE;
use serde_json::{Map, Value, json};

use crate::settings::Settings;

/// The keywords that have a field of their own. Others are found as well; these can be aggregated by other tools.
pub(crate) const KEYWORDS: [&str; 23] = [
    "container.id",
    "event.original_base64",
    "host.ip",
    "host.name",
    "k8s.container.name",
    "k8s.container.restart_count",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.pod.uid",
    "log.file.path",
    "log.iostream",
    "log.level",
    "logmesh.agent",
    "logmesh.continuation",
    "logmesh.omitted",
    "logmesh.read_time",
    "logmesh.rule",
    "logmesh.stream",
    "logmesh.truncated",
    "logmesh.unmapped",
    "service.name",
    "span.id",
    "trace.id",
];

pub(crate) const LABELS: &str = "labels";
/// Every value of every label.
pub(crate) const ANY_LABEL: &str = "logmesh.any_label";
/// What [`crate::form`] adds to a document.
pub(crate) const DERIVED: &str = "logmesh.derived";
/// `@timestamp` in nanoseconds where `date_nanos` can't hold it: before 1970. `i64::MIN` if there is no time at all.
pub(crate) const EARLY: &str = "logmesh.derived.early";
/// The id, of documents without a stream: what orders those of one time.
pub(crate) const ID: &str = "logmesh.derived.id";
/// `path NUL value` of each keyword without a field.
pub(crate) const VALUES: &str = "logmesh.derived.values";
/// The paths that have a value but no field, and every path above them.
pub(crate) const PATHS: &str = "logmesh.derived.paths";

/// RFC 3339 with up to nine digits.
pub(crate) const DATE_FORMAT: &str = "strict_date_optional_time_nanos";

/// The most fields of an index. A label beyond it is kept, but can't be found.
const MAX_FIELDS: usize = 1_000;
/// Of this version of the mapping.
const VERSION: u64 = 2;

/// The settings of an index.
pub(crate) fn settings(settings: &Settings) -> Value {
    json!({
        "number_of_shards": settings.shards.to_string(),
        "number_of_replicas": settings.replicas.to_string(),
        // Stated, so that an index that nobody searched lately is refreshed too: a line is found within seconds.
        "refresh_interval": "1s",
        // A bulk that was acked survives `kill -9`.
        "translog": { "durability": "request" },
        // One more than a page, to know whether there is another.
        "max_result_window": (MAX_PAGE_SIZE + 1).to_string(),
        "mapping": { "total_fields": { "limit": MAX_FIELDS.to_string(), "ignore_dynamic_beyond_limit": "true" } },
        "analysis": {
            "tokenizer": { "logmesh": {
                "type": "char_group",
                "tokenize_on_chars": split_at(),
                "max_token_length": MAX_TOKEN_CHARS.to_string(),
            } },
            "analyzer": { "logmesh": { "type": "custom", "tokenizer": "logmesh", "filter": ["lowercase"] } },
        },
    })
}

/// Characters that are neither letters nor digits, nor in `char_group`'s classes: control characters, formats and marks of
/// the basic plane, of Unicode 14.
#[rustfmt::skip]
const NEITHER: [(u16, u16); 118] = [
    (0x0, 0x8), (0xe, 0x1b), (0x7f, 0xa0), (0xad, 0xad), (0x300, 0x344), (0x346, 0x362), (0x483, 0x489),
    (0x591, 0x5af), (0x600, 0x605), (0x61c, 0x61c), (0x658, 0x658), (0x6dd, 0x6dd), (0x6df, 0x6e0), (0x6ea, 0x6ec),
    (0x70f, 0x70f), (0x740, 0x74a), (0x7eb, 0x7f3), (0x7fd, 0x7fd), (0x818, 0x819), (0x82d, 0x82d), (0x859, 0x85b),
    (0x890, 0x891), (0x898, 0x89f), (0x8ca, 0x8d3), (0x8e0, 0x8e2), (0x8ea, 0x8ef), (0x93c, 0x93c), (0x94d, 0x94d),
    (0x951, 0x954), (0x9bc, 0x9bc), (0x9cd, 0x9cd), (0x9fe, 0x9fe), (0xa3c, 0xa3c), (0xa4d, 0xa4d), (0xabc, 0xabc),
    (0xacd, 0xacd), (0xafd, 0xaff), (0xb3c, 0xb3c), (0xb4d, 0xb4d), (0xb55, 0xb55), (0xbcd, 0xbcd), (0xc3c, 0xc3c),
    (0xc4d, 0xc4d), (0xcbc, 0xcbc), (0xccd, 0xccd), (0xd3b, 0xd3c), (0xd4d, 0xd4d), (0xdca, 0xdca), (0xe47, 0xe4c),
    (0xe4e, 0xe4e), (0xeba, 0xeba), (0xec8, 0xecc), (0xf18, 0xf19), (0xf35, 0xf35), (0xf37, 0xf37), (0xf39, 0xf39),
    (0xf3e, 0xf3f), (0xf84, 0xf84), (0xf86, 0xf87), (0xfc6, 0xfc6), (0x1037, 0x1037), (0x1039, 0x103a),
    (0x135d, 0x135f), (0x1714, 0x1715), (0x1734, 0x1734), (0x17b4, 0x17b5), (0x17c9, 0x17d3), (0x17dd, 0x17dd),
    (0x180b, 0x180f), (0x1939, 0x193b), (0x1a60, 0x1a60), (0x1a75, 0x1a7c), (0x1a7f, 0x1a7f), (0x1ab0, 0x1abe),
    (0x1ac1, 0x1acb), (0x1b34, 0x1b34), (0x1b44, 0x1b44), (0x1b6b, 0x1b73), (0x1baa, 0x1bab), (0x1be6, 0x1be6),
    (0x1bf2, 0x1bf3), (0x1c37, 0x1c37), (0x1cd0, 0x1cd2), (0x1cd4, 0x1ce8), (0x1ced, 0x1ced), (0x1cf4, 0x1cf4),
    (0x1cf7, 0x1cf9), (0x1dc0, 0x1dd2), (0x1df5, 0x1dff), (0x2007, 0x2007), (0x200b, 0x200f), (0x202a, 0x202f),
    (0x2060, 0x2064), (0x2066, 0x206f), (0x20d0, 0x20f0), (0x2cef, 0x2cf1), (0x2d7f, 0x2d7f), (0x302a, 0x302f),
    (0x3099, 0x309a), (0xa66f, 0xa672), (0xa67c, 0xa67d), (0xa6f0, 0xa6f1), (0xa806, 0xa806), (0xa82c, 0xa82c),
    (0xa8c4, 0xa8c4), (0xa8e0, 0xa8f1), (0xa92b, 0xa92d), (0xa953, 0xa953), (0xa9b3, 0xa9b3), (0xa9c0, 0xa9c0),
    (0xaabf, 0xaabf), (0xaac1, 0xaac1), (0xaaf6, 0xaaf6), (0xabec, 0xabed), (0xfe00, 0xfe0f), (0xfe20, 0xfe2f),
    (0xfeff, 0xfeff), (0xfff9, 0xfffb),
];

/// What `char_group` splits at, so that its words are those of [`logmesh_index::query::tokenize`].
fn split_at() -> Vec<String> {
    let classes = ["whitespace", "punctuation", "symbol"].map(str::to_owned);
    let others = NEITHER.iter().flat_map(|(first, last)| *first..=*last);
    let others = others.filter_map(|unit| char::from_u32(u32::from(unit))).filter(|c| !is_word_char(*c));
    classes.into_iter().chain(others.map(String::from)).collect()
}

/// The mapping of a topic with these declared fields.
pub(crate) fn mappings(fields: &FieldTypes) -> Value {
    let mut properties = Map::new();
    for name in KEYWORDS {
        properties.insert(name.to_owned(), keyword());
    }
    for (name, kind) in WELL_KNOWN {
        let property = match kind {
            Kind::Text => json!({ "type": "text", "analyzer": "logmesh", "norms": false }),
            Kind::Date => date(),
            _ => long(),
        };
        properties.insert(name.to_owned(), property);
    }
    properties.insert(ANY_LABEL.to_owned(), keyword());
    properties.insert(EARLY.to_owned(), json!({ "type": "long" }));
    properties.insert(ID.to_owned(), json!({ "type": "keyword" }));
    // Found by and counted; the paths are only found by.
    properties.insert(VALUES.to_owned(), json!({ "type": "keyword" }));
    properties.insert(PATHS.to_owned(), json!({ "type": "keyword", "doc_values": false }));
    properties.insert(LABELS.to_owned(), json!({ "type": "object", "dynamic": true, "subobjects": false }));
    properties.insert(
        "parsed".to_owned(),
        json!({ "type": "flattened", "ignore_above": MAX_KEYWORD_CHARS, "depth_limit": 20 }),
    );
    properties.insert("attributes".to_owned(), attributes(fields));
    let any_label = json!({ "type": "keyword", "ignore_above": MAX_KEYWORD_CHARS, "copy_to": ANY_LABEL });
    json!({
        "dynamic": false,
        "date_detection": false,
        "dynamic_templates": [
            { "labels": { "path_match": "labels.*", "match_mapping_type": "*", "mapping": any_label } }
        ],
        "properties": properties,
    })
}

/// The declared fields. Without sub-objects, so that `a` and `a.b` can both be declared.
pub(crate) fn attributes(fields: &FieldTypes) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, kind)| {
            let property = match kind {
                FieldType::Long => long(),
                FieldType::Double => json!({ "type": "double", "coerce": false, "ignore_malformed": true }),
                FieldType::Boolean => json!({ "type": "boolean", "ignore_malformed": true }),
                FieldType::Keyword => keyword(),
                FieldType::Date => date(),
            };
            (name.clone(), property)
        })
        .collect();
    json!({ "type": "object", "dynamic": false, "subobjects": false, "properties": properties })
}

fn keyword() -> Value {
    json!({ "type": "keyword", "ignore_above": MAX_KEYWORD_CHARS })
}

fn long() -> Value {
    json!({ "type": "long", "coerce": false, "ignore_malformed": true })
}

fn date() -> Value {
    json!({ "type": "date_nanos", "format": DATE_FORMAT, "ignore_malformed": true })
}

/// The index template of a topic. It holds the declared fields for [`declared`] to read, and itself as text, to tell
/// whether it must be written again.
pub(crate) fn template(pattern: &str, settings: Value, fields: &FieldTypes) -> Value {
    let mut template = json!({
        "index_patterns": [pattern],
        "priority": 500,
        "version": VERSION,
        "template": { "settings": { "index": settings }, "mappings": mappings(fields) },
    });
    let digest = crate::digest(template.to_string().as_bytes());
    template["_meta"] = json!({ "logmesh": { "fields": fields, "digest": digest } });
    template
}

/// A template as it is in Elasticsearch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Declared {
    pub(crate) fields: FieldTypes,
    pub(crate) digest: String,
}

/// Reads a template back; `None` if it is none of ours.
pub(crate) fn declared(template: &Value) -> Option<Declared> {
    let meta = template.get("_meta")?.get("logmesh")?;
    let fields = serde_json::from_value(meta.get("fields")?.clone()).ok()?;
    Some(Declared { fields, digest: meta.get("digest")?.as_str()?.to_owned() })
}

/// How a value of this path lies in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a field of its own, of this kind.
    Field(Kind),
    /// In a field that Elasticsearch makes for the label.
    Label,
    /// Among [`VALUES`] and [`PATHS`].
    Derived,
}

/// Where a value of this path lies, in a topic with these declared fields.
pub(crate) fn place(path: &str, fields: &FieldTypes) -> Place {
    if WELL_KNOWN.iter().any(|(name, _)| *name == path) {
        return Place::Field(field::kind(path, fields));
    }
    if let Some(name) = path.strip_prefix(ATTRIBUTES) {
        return if fields.contains_key(name) { Place::Field(field::kind(path, fields)) } else { Place::Derived };
    }
    if field::is_below(path, LABELS) {
        return Place::Label;
    }
    match KEYWORDS.binary_search(&path) {
        Ok(_) => Place::Field(Kind::Keyword),
        Err(_) => Place::Derived,
    }
}

/// The names of all fields but labels.
pub(crate) fn field_names(fields: &FieldTypes) -> impl Iterator<Item = String> + '_ {
    let fixed = KEYWORDS.iter().copied().chain(WELL_KNOWN.iter().map(|(name, _)| *name)).map(str::to_owned);
    fixed.chain(fields.keys().map(|name| format!("{ATTRIBUTES}{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_sorted_and_kept_apart_from_other_kinds() {
        assert!(KEYWORDS.is_sorted());
        assert!(KEYWORDS.iter().all(|name| field::fixed_kind(name) == Some(Kind::Keyword)));
    }

    #[test]
    fn a_template_reads_back() {
        let fields: FieldTypes = [("status".to_owned(), FieldType::Long)].into();
        let made = template("logmesh-a@*", settings(&Settings::default()), &fields);
        let read = declared(&made).unwrap();
        assert_eq!(read.fields, fields);
        let other = template("logmesh-a@*", settings(&Settings { replicas: 0, ..Settings::default() }), &fields);
        assert_ne!(declared(&other).unwrap().digest, read.digest);
        assert_eq!(declared(&json!({ "index_patterns": ["x"] })), None);
    }

    #[test]
    fn words_are_split_at_every_ascii_character_that_is_no_letter_or_digit() {
        let split = split_at();
        for c in (0..=0x1f_u8)
            .chain([0x7f])
            .map(char::from)
            .filter(|c| !c.is_whitespace() && !('\u{1c}'..='\u{1f}').contains(c))
        {
            assert!(split.contains(&c.to_string()), "{c:?}");
        }
        assert!(split.len() < 700, "{} entries lie in the settings of every index", split.len());
    }
}
