//! The one document builder: an event becomes a JSON object with flat keys, the same wherever it is built.
//!
//! Fixed fields first; typed fields that the topic declares under `attributes.*`; everything else that a client sent
//! under `parsed`, one object with caps. What doesn't fit its type goes there too, and what exceeds the caps is left out; both are
//! named in `logmesh.unmapped`. So the mapping never rejects a line.

use bytes::Bytes;
use data_encoding::BASE64;
use logmesh_index::{FieldType, FieldTypes};
use logmesh_proto::ingest::v1::{Chunk, Event, Source};
use logmesh_proto::time::unix_nanos;
use logmesh_types::{ByteRange, Day, DocId, StreamId, UnixNanos};
use serde_json::{Map, Value};

use crate::chunk::{EventSlice, events};
use crate::codec::Document;
use crate::message::{Reading, fields_of_path};

/// The deepest nesting, the most keys in all, and the longest text in bytes, that are kept under `parsed`.
const PARSED_DEPTH: usize = 8;
const PARSED_KEYS: usize = 256;
const PARSED_TEXT: usize = 8_192;

/// The documents of a chunk that [`crate::chunk::check`] let through, in order, and the date of their slice.
///
/// `@timestamp` is the read time or, of a container's line, the runtime's: the slice is always that of the read time.
/// All bodies share one buffer.
pub fn of_chunk(chunk: &Chunk) -> Vec<Document> {
    let Some(builder) = Builder::of(chunk) else { return Vec::new() };
    let mut buffer = Vec::with_capacity(chunk.data.len() * 2 + (builder.overhead() + 96) * 16);
    let parts: Vec<(DocId, ByteRange, usize)> = events(chunk)
        .map(|event| {
            builder.write(&mut buffer, &event);
            (builder.id(&event), event.range, buffer.len())
        })
        .collect();
    let buffer = Bytes::from(buffer);
    let mut start = 0;
    parts
        .into_iter()
        .map(|(id, range, end)| {
            let body = buffer.slice(start..end);
            start = end;
            Document { id: Some(id), stream: Some((builder.stream, range)), date: builder.date, body }
        })
        .collect()
}

/// What all documents of a chunk have in common: as JSON it is written once.
pub(crate) struct Builder {
    stream: StreamId,
    /// The UTC day of the read time.
    pub(crate) date: Day,
    reading: Reading,
    /// Up to the message.
    before: String,
    after: Vec<u8>,
    omitted: u64,
}

impl Builder {
    /// Of a chunk that was checked: of another there may be none.
    pub(crate) fn of(chunk: &Chunk) -> Option<Self> {
        let read_time = chunk.read_time.as_ref().map_or(UnixNanos(0), unix_nanos);
        let reading = Reading::of(chunk);
        let mut after = Vec::new();
        if reading.container {
            let path = chunk.source.as_ref().map_or("", |source| &source.path);
            fields_of_path(path).into_iter().for_each(|(name, value)| text_field(&mut after, name, value));
        }
        after.extend(common_fields(chunk, read_time));
        Some(Self {
            stream: chunk.stream_id.parse().ok()?,
            date: Day::of(read_time),
            reading,
            before: format!("{TIMESTAMP}{read_time}{MESSAGE}"),
            after,
            omitted: chunk.omitted_bytes,
        })
    }

    /// Bytes that every document has, and a few for its numbers.
    pub(crate) fn overhead(&self) -> usize {
        self.before.len() + self.after.len() + 96
    }

    /// The id of an event.
    pub(crate) fn id(&self, event: &EventSlice<'_>) -> DocId {
        DocId::of_event(&self.stream, event.range.start, event.bytes)
    }

    /// Writes an event's document.
    pub(crate) fn write(&self, out: &mut Vec<u8>, event: &EventSlice<'_>) {
        let message = self.reading.message(event);
        let is_time_kept;
        match message.written.as_ref().map(|written| written.time) {
            Some(Some(time)) => {
                is_time_kept = time.0 >= 0;
                out.extend_from_slice(format!("{TIMESTAMP}{}{MESSAGE}", UnixNanos(time.0.max(0))).as_bytes());
            }
            other => {
                is_time_kept = other.is_none();
                out.extend_from_slice(self.before.as_bytes());
            }
        }
        text(out, &message.text);
        if let Some(original) = &message.original {
            text_field(out, "event.original_base64", &BASE64.encode(original));
        }
        if let Some(written) = &message.written {
            text_field(out, "log.iostream", written.iostream.name());
        }
        number_field(out, ",\"log.offset\":", event.range.start);
        number_field(out, ",\"logmesh.offset\":", event.range.start);
        number_field(out, ",\"logmesh.length\":", event.range.len());
        if event.continuation {
            out.extend_from_slice(b",\"logmesh.continuation\":true");
        }
        if self.omitted > 0 {
            out.extend_from_slice(b",\"logmesh.truncated\":true");
            number_field(out, ",\"logmesh.omitted\":", self.omitted);
        }
        if !is_time_kept {
            out.extend_from_slice(b",\"logmesh.unmapped\":[\"@timestamp\"]");
        }
        out.extend_from_slice(&self.after);
    }
}

const TIMESTAMP: &str = "{\"@timestamp\":\"";
const MESSAGE: &str = "\",\"message\":";

/// The fields that every event of the chunk has, from a comma to the closing brace.
pub(crate) fn common_fields(chunk: &Chunk, read_time: UnixNanos) -> Vec<u8> {
    let none = Source::default();
    let source = chunk.source.as_ref().unwrap_or(&none);
    let mut fields = Vec::with_capacity(512);
    text_field(&mut fields, "log.file.path", &source.path);
    text_field(&mut fields, "host.name", &source.host_name);
    if !source.host_ips.is_empty() {
        key(&mut fields, "host.ip");
        json(&mut fields, &source.host_ips);
    }
    text_field(&mut fields, "service.name", &source.service);
    for (name, value) in &source.labels {
        text_field(&mut fields, &format!("labels.{name}"), value);
    }
    text_field(&mut fields, "logmesh.stream", &chunk.stream_id);
    text_field(&mut fields, "logmesh.rule", &chunk.rule);
    key(&mut fields, "logmesh.revision");
    json(&mut fields, &chunk.rule_revision);
    text_field(&mut fields, "logmesh.agent", &source.agent_id);
    text_field(&mut fields, "logmesh.read_time", &read_time.to_string());
    fields.push(b'}');
    fields
}

/// The document of an event that a client wrote. `taken` is when the gateway took it.
pub fn of_event(topic: &str, event: &Event, taken: UnixNanos, types: &FieldTypes) -> Document {
    let mut unmapped = Vec::new();
    let mut time = event.time.as_ref().map_or(taken, unix_nanos);
    if time.0 < 0 || event.time.as_ref().is_some_and(|time| unix_nanos(time).0 == i64::MAX) {
        // Elasticsearch's `date_nanos` ends at the epoch.
        unmapped.push("@timestamp".to_owned());
        time = UnixNanos(time.0.max(0));
    }
    let mut body = Vec::with_capacity(event.message.len() + 256);
    body.extend_from_slice(format!("{{\"@timestamp\":\"{time}\",\"message\":").as_bytes());
    json(&mut body, &event.message);
    text_field(&mut body, "log.level", &event.level);
    text_field(&mut body, "host.name", &event.host_name);
    text_field(&mut body, "service.name", &event.service);
    for (name, value) in &event.labels {
        text_field(&mut body, &format!("labels.{name}"), value);
    }
    if let Some(attributes) = &event.attributes {
        write_attributes(&mut body, attributes, types, &mut unmapped);
    }
    if !unmapped.is_empty() {
        key(&mut body, "logmesh.unmapped");
        json(&mut body, &unmapped);
    }
    text_field(&mut body, "logmesh.read_time", &taken.to_string());
    body.push(b'}');
    let id = (!event.event_id.is_empty()).then(|| DocId::of_client_event(topic, &event.event_id));
    Document { id, stream: None, date: Day::of(taken), body: Bytes::from(body) }
}

fn write_attributes(
    out: &mut Vec<u8>,
    attributes: &prost_types::Struct,
    types: &FieldTypes,
    unmapped: &mut Vec<String>,
) {
    let mut parsed = Map::new();
    let mut keys = PARSED_KEYS;
    for (name, value) in &attributes.fields {
        let value = plain(value, PARSED_DEPTH, &mut keys);
        match (types.get(name), value) {
            (_, None) => unmapped.push(name.clone()),
            (None, Some(value)) => {
                parsed.insert(name.clone(), value);
            }
            (Some(kind), Some(value)) => match fit(*kind, &value) {
                Some(value) => {
                    key(out, &format!("attributes.{name}"));
                    json(out, &value);
                }
                // Under `parsed` no mapping rejects it.
                None => {
                    unmapped.push(name.clone());
                    parsed.insert(name.clone(), value);
                }
            },
        }
    }
    unmapped.truncate(PARSED_KEYS);
    if !parsed.is_empty() {
        key(out, "parsed");
        json(out, &parsed);
    }
}

/// The value within the caps: `None` if it is nested too deep or there are too many keys; long texts are cut.
fn plain(value: &prost_types::Value, depth: usize, keys: &mut usize) -> Option<Value> {
    use prost_types::value::Kind;
    *keys = keys.checked_sub(1)?;
    let depth = depth.checked_sub(1)?;
    Some(match value.kind.as_ref()? {
        Kind::NullValue(_) => Value::Null,
        Kind::NumberValue(number) => whole(*number).map_or_else(|| Value::from(*number), Value::from),
        Kind::BoolValue(flag) => Value::from(*flag),
        Kind::StringValue(text) => Value::from(cut(text, PARSED_TEXT)),
        Kind::ListValue(list) => list.values.iter().map(|value| plain(value, depth, keys)).collect::<Option<_>>()?,
        Kind::StructValue(fields) => fields
            .fields
            .iter()
            .map(|(name, value)| Some((cut(name, PARSED_TEXT).to_owned(), plain(value, depth, keys)?)))
            .collect::<Option<Map<_, _>>>()?
            .into(),
    })
}

/// The number as an integer if it is one that a float holds exactly: JSON clients send `200` as `200.0`.
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
}

fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// The value as the declared type wants it, or `None`. Texts that read as the type are taken as it.
fn fit(kind: FieldType, value: &Value) -> Option<Value> {
    match (kind, value) {
        (FieldType::Long, Value::Number(number)) => number.as_i64().map(Value::from),
        (FieldType::Long, Value::String(text)) => text.trim().parse::<i64>().ok().map(Value::from),
        (FieldType::Double, Value::Number(number)) => number.as_f64().map(Value::from),
        (FieldType::Double, Value::String(text)) => {
            text.trim().parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from)
        }
        (FieldType::Boolean, Value::Bool(_)) => Some(value.clone()),
        (FieldType::Boolean, Value::String(text)) => text.parse::<bool>().ok().map(Value::from),
        (FieldType::Keyword, Value::String(_)) => Some(value.clone()),
        (FieldType::Keyword, Value::Number(_) | Value::Bool(_)) => Some(Value::from(value.to_string())),
        (FieldType::Date, Value::String(text)) => {
            let time: UnixNanos = text.parse().ok()?;
            (time.0 >= 0).then(|| Value::from(time.to_string()))
        }
        _ => None,
    }
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.push(b',');
    json(out, name);
    out.push(b':');
}

/// Writes a field, unless its text is empty: an absent field costs no index anything.
fn text_field(out: &mut Vec<u8>, name: &str, text: &str) {
    if !text.is_empty() {
        key(out, name);
        json(out, text);
    }
}

/// Writes a line's text. Most have nothing to escape, which is seen many bytes at a time.
fn text(out: &mut Vec<u8>, text: &str) {
    let to_escape = |byte: &u8| *byte < b' ' || *byte == b'"' || *byte == b'\\';
    // Without a way out early, so that it's done by vectors.
    if text.as_bytes().iter().fold(false, |found, byte| found | to_escape(byte)) {
        return json(out, text);
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Writes a number behind its key, which is JSON already.
fn number_field(out: &mut Vec<u8>, key: &str, number: u64) {
    out.extend_from_slice(key.as_bytes());
    json(out, &number);
}

fn json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    // Writing to a vector can't fail, and none of the types written here has a failing `Serialize`.
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use logmesh_proto::ingest::v1::DataFormat;

    use super::*;
    use crate::chunk::tests::chunk;

    fn bodies(chunk: &Chunk) -> Vec<Map<String, Value>> {
        of_chunk(chunk).iter().map(|document| serde_json::from_slice(&document.body).unwrap()).collect()
    }

    #[test]
    fn a_line_becomes_a_document_with_flat_names() {
        let documents = bodies(&chunk(40, b"hello \"world\"\r\n", &[]));
        let expected = serde_json::json!({
            "@timestamp": "2026-01-31T12:00:00.000000005Z",
            "message": "hello \"world\"",
            "log.file.path": "/var/log/app.log",
            "log.offset": 40,
            "host.name": "web-1.example",
            "host.ip": ["192.0.2.1"],
            "service.name": "app",
            "labels.env": "prod",
            "logmesh.stream": "217a55e0e277d86e24b960c80282a1c5",
            "logmesh.offset": 40,
            "logmesh.length": 15,
            "logmesh.rule": "rules/collect",
            "logmesh.revision": 3,
            "logmesh.agent": "web-1",
            "logmesh.read_time": "2026-01-31T12:00:00.000000005Z",
        });
        assert_eq!(Value::from(documents[0].clone()), expected);
    }

    #[test]
    fn every_text_is_json() {
        for code in (0..=0x2ff).chain([0x2028, 0xffff, 0x1_f600]) {
            let line = format!("{}{}", "x".repeat(code as usize % 70), char::from_u32(code).unwrap());
            let mut out = Vec::new();
            text(&mut out, &line);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), line);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_beside_it() {
        let documents = bodies(&chunk(0, b"caf\xe9\n", &[]));
        assert_eq!(documents[0]["message"], "caf\u{fffd}");
        assert_eq!(documents[0]["event.original_base64"], BASE64.encode(b"caf\xe9"));
    }

    #[test]
    fn bytes_are_decoded_as_the_chunk_says() {
        let mut gbk = chunk(0, b"\xc4\xe3\xba\xc3\r\n\xc4\n", &[]);
        gbk.encoding = "GBK".into();
        let documents = bodies(&gbk);
        assert_eq!((&documents[0]["message"], documents[0].get("event.original_base64")), (&"你好".into(), None));
        assert_eq!(documents[1]["message"], "\u{fffd}");
        assert_eq!(documents[1]["event.original_base64"], BASE64.encode(b"\xc4"));
        let data: Vec<u8> = "\u{feff}ä\r\nb\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut utf16 = chunk(0, &data, &[8, 4]);
        utf16.encoding = "UTF-16LE".into();
        let messages: Vec<_> = bodies(&utf16).into_iter().map(|mut body| body.remove("message").unwrap()).collect();
        assert_eq!(messages, ["ä", "b"]);
        assert_eq!(bodies(&chunk(0, "\u{feff}a\n".as_bytes(), &[]))[0]["message"], "a");
    }

    #[test]
    fn what_a_container_runtime_wrote_is_unwrapped() {
        let lines = [
            "{\"log\":\"half \",\"stream\":\"stderr\",\"time\":\"2026-01-30T23:00:00.5Z\"}\n",
            "{\"log\":\"and half\\r\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-30T23:00:01Z\"}\n",
            "2026-01-30T23:00:02.000000001+01:00 stdout F  two\n",
            "2026-01-30T23:00:02Z stdout F words\n",
            "{\"log\": \"broken\n",
            "{\"log\":\"x\\n\",\"stream\":\"stdout\",\"time\":\"now\"}\n",
            "1969-01-01T00:00:00Z stdout F old\n",
        ];
        let n = |from: usize, to: usize| lines[from..to].concat().len() as u32;
        let lengths = [n(0, 2), n(2, 4), n(4, 5), n(5, 6), n(6, 7)];
        let mut written = chunk(0, lines.concat().as_bytes(), &lengths);
        written.format = DataFormat::Container.into();
        written.source.as_mut().unwrap().path = "/var/log/pods/shop_web_1-2/app/0.log".into();
        let documents = bodies(&written);
        let field = |name: &str| -> Vec<Value> {
            documents.iter().map(|document| document.get(name).cloned().unwrap_or_default()).collect()
        };
        let messages = ["half and half", " two\nwords", "{\"log\": \"broken", "x", "old"];
        assert_eq!(field("message"), messages);
        let read = "2026-01-31T12:00:00.000000005Z";
        let times = [
            "2026-01-30T23:00:00.500000000Z",
            "2026-01-30T22:00:02.000000001Z",
            read,
            read,
            "1970-01-01T00:00:00.000000000Z",
        ];
        assert_eq!(field("@timestamp"), times);
        assert_eq!(
            field("log.iostream"),
            ["stderr".into(), "stdout".into(), Value::Null, "stdout".into(), "stdout".into()]
        );
        let noted = serde_json::json!(["@timestamp"]);
        assert_eq!(field("logmesh.unmapped"), [Value::Null, Value::Null, Value::Null, noted.clone(), noted]);
        assert_eq!(field("k8s.pod.name"), ["web"; 5]);
        assert!(
            of_chunk(&written).iter().all(|document| document.date.to_string() == "2026-01-31"),
            "the slice is the read time's"
        );
    }

    #[test]
    fn a_line_that_was_cut_says_so() {
        let mut cut = chunk(7, b"abc", &[3]);
        (cut.end_offset, cut.omitted_bytes) = (20, 10);
        let documents = of_chunk(&cut);
        let (stream, range) = documents[0].stream.unwrap();
        assert_eq!((range, documents[0].id), (ByteRange::new(7, 20), Some(DocId::of_event(&stream, 7, b"abc"))));
        let body = &bodies(&cut)[0];
        assert_eq!((&body["message"], &body["logmesh.length"]), (&"abc".into(), &13.into()));
        assert_eq!((&body["logmesh.truncated"], &body["logmesh.omitted"]), (&true.into(), &10.into()));
    }

    proptest::proptest! {
        /// Each event's document is the one that it has in a chunk of its own.
        #[test]
        fn documents_don_t_depend_on_how_events_are_packed(
            events in proptest::collection::vec((proptest::sample::select(vec![
                "a\n".as_bytes(), b"\xef\xbb\xbfb\r\n", b"\xff\xfe\x0a\x00", b"\xc4", b"\x00\n\x00",
                b"2026-01-30T23:00:00Z stdout P a\n2026-01-30T23:00:00Z stdout F b\n",
                b"2026-01-30T23:00:00Z stderr P \xff\n",
                b"{\"log\":\"c\\n\",\"stream\":\"stdout\",\"time\":\"x\"}\n",
            ]), proptest::bool::ANY), 1..8),
            (start, container) in (0..3u64, proptest::bool::ANY),
            encoding in proptest::sample::select(vec!["", "gbk", "utf-16le", "utf-16be", "iso-2022-jp"]),
        ) {
            let lengths: Vec<u32> = events.iter().map(|(event, _)| event.len() as u32).collect();
            let data: Vec<u8> = events.iter().flat_map(|(event, _)| event.iter().copied()).collect();
            let dressed = |mut chunk: Chunk| {
                chunk.encoding = encoding.into();
                chunk.format = i32::from(container);
                chunk
            };
            let mut packed = dressed(chunk(start, &data, &lengths));
            packed.continuations = (0..events.len() as u32).filter(|place| events[*place as usize].1).collect();
            crate::chunk::check(&packed).unwrap();
            let mut at = start;
            let alone = events.iter().flat_map(|(event, continued)| {
                let mut one = dressed(chunk(at, event, &[event.len() as u32]));
                one.continuations = if *continued { vec![0] } else { vec![] };
                at += event.len() as u64;
                of_chunk(&one)
            });
            proptest::prop_assert_eq!(alone.collect::<Vec<_>>(), of_chunk(&packed));
        }
    }

    #[test]
    fn only_the_last_terminator_goes() {
        let documents = bodies(&chunk(0, b"a\r\n b\n\n\r\n\rx", &[6, 1, 2, 2]));
        let messages: Vec<_> = documents.iter().map(|document| document["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["a\r\n b", "", "", "\rx"]);
    }

    #[test]
    fn ids_and_ranges_are_those_of_the_events() {
        let documents = of_chunk(&chunk(7, b"a\nb\n", &[]));
        let stream: StreamId = "217a55e0e277d86e24b960c80282a1c5".parse().unwrap();
        assert_eq!(documents[1].id, Some(DocId::of_event(&stream, 9, b"b\n")));
        assert_eq!(documents[1].stream, Some((stream, ByteRange::new(9, 11))));
        assert_eq!(documents[1].date.to_string(), "2026-01-31");
    }

    fn client_event(attributes: Value) -> Event {
        fn value(json: &Value) -> prost_types::Value {
            use prost_types::value::Kind;
            let kind = match json {
                Value::Null => Kind::NullValue(0),
                Value::Bool(flag) => Kind::BoolValue(*flag),
                Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
                Value::String(text) => Kind::StringValue(text.clone()),
                Value::Array(list) => {
                    Kind::ListValue(prost_types::ListValue { values: list.iter().map(value).collect() })
                }
                Value::Object(map) => Kind::StructValue(prost_types::Struct {
                    fields: map.iter().map(|(name, json)| (name.clone(), value(json))).collect(),
                }),
            };
            prost_types::Value { kind: Some(kind) }
        }
        let Some(prost_types::value::Kind::StructValue(fields)) = value(&attributes).kind else { panic!() };
        Event { message: "hi".to_owned(), attributes: Some(fields), ..Event::default() }
    }

    fn built(event: &Event, types: &FieldTypes) -> Map<String, Value> {
        serde_json::from_slice(&of_event("logs", event, UnixNanos(1_000), types).body).unwrap()
    }

    #[test]
    fn declared_fields_are_typed_and_what_does_not_fit_is_named() {
        let types: FieldTypes = [("status".to_owned(), FieldType::Long), ("ok".to_owned(), FieldType::Boolean)].into();
        let event = client_event(serde_json::json!({"status": "200", "ok": "perhaps", "user": {"name": "ann"}}));
        let document = built(&event, &types);
        assert_eq!(document["attributes.status"], 200);
        assert_eq!(document["logmesh.unmapped"], serde_json::json!(["ok"]));
        assert_eq!(document["parsed"], serde_json::json!({"ok": "perhaps", "user": {"name": "ann"}}));
        assert!(!document.contains_key("attributes.ok"));
    }

    #[test]
    fn caps_hold_for_hostile_attributes() {
        let mut deep = serde_json::json!(1);
        for _ in 0..50 {
            deep = serde_json::json!({ "a": deep });
        }
        let many: Map<String, Value> = (0..5_000).map(|n| (format!("k{n}"), Value::from(n))).collect();
        let document = built(&client_event(serde_json::json!({"deep": deep})), &FieldTypes::new());
        assert_eq!(document["logmesh.unmapped"], serde_json::json!(["deep"]));
        let document = built(&client_event(Value::from(many)), &FieldTypes::new());
        assert!(document["parsed"].as_object().unwrap().len() <= PARSED_KEYS);
        assert!(document["logmesh.unmapped"].as_array().unwrap().len() <= PARSED_KEYS);
    }

    #[test]
    fn a_time_before_the_epoch_is_clamped_and_noted() {
        let time = Some(prost_types::Timestamp { seconds: -5, nanos: 0 });
        let document = built(&Event { time, ..Event::default() }, &FieldTypes::new());
        assert_eq!(document["@timestamp"], "1970-01-01T00:00:00.000000000Z");
        assert_eq!(document["logmesh.unmapped"], serde_json::json!(["@timestamp"]));
    }
}
