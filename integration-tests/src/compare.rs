//! Comparing what the index holds with what the files hold, byte by byte.

use std::collections::BTreeMap;
use std::path::Path;

use data_encoding::BASE64;
use serde_json::Value;

/// The longest event; a longer line comes as several.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// An event as the file holds it or as the index does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length, terminator included.
    pub length: u64,
    /// Its bytes, without the terminator.
    pub message: Vec<u8>,
}

/// The events that a file's bytes are, one a line.
pub fn events_of_file(bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    let mut offset = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        for piece in line.chunks(MAX_EVENT_BYTES) {
            events.push(Event { offset, length: piece.len() as u64, message: strip(piece).to_vec() });
            offset += piece.len() as u64;
        }
    }
    events
}

/// The event that a document says it is.
pub fn event_of(document: &Value) -> Event {
    let number = |key: &str| document[key].as_u64().unwrap_or_else(|| panic!("no {key} in {document}"));
    Event { offset: number("logmesh.offset"), length: number("logmesh.length"), message: message_of(document) }
}

/// The bytes of the event, as they were in the file.
pub fn message_of(document: &Value) -> Vec<u8> {
    match document["event.original_base64"].as_str() {
        Some(original) => strip(&BASE64.decode(original.as_bytes()).expect("base64")).to_vec(),
        None => document["message"].as_str().unwrap_or_else(|| panic!("no message in {document}")).as_bytes().to_vec(),
    }
}

/// Without its line terminator, LF or CRLF.
pub fn strip(line: &[u8]) -> &[u8] {
    match line.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => line,
    }
}

/// The documents of each file by its path.
pub fn by_path(documents: &[Value]) -> BTreeMap<String, Vec<&Value>> {
    let mut files: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for document in documents {
        files.entry(document["log.file.path"].as_str().unwrap_or_default().to_owned()).or_default().push(document);
    }
    files
}

/// Panics unless these documents are exactly the lines of the file: none lost, doubled, changed or made up.
#[track_caller]
pub fn assert_equal(path: &Path, documents: &[&Value]) {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut found: Vec<Event> = documents.iter().map(|document| event_of(document)).collect();
    found.sort();
    let expected = events_of_file(&bytes);
    let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    let at = differs.unwrap_or(found.len().min(expected.len()));
    assert!(
        found == expected,
        "{}: {} events in the file, {} in the index; they differ from number {at} on:\n  file:  {}\n  index: {}",
        path.display(),
        expected.len(),
        found.len(),
        show(expected.get(at)),
        show(found.get(at)),
    );
}

fn show(event: Option<&Event>) -> String {
    match event {
        None => "(none)".to_owned(),
        Some(event) => {
            let message = String::from_utf8_lossy(&event.message);
            let start: String = message.chars().take(100).collect();
            format!("[{}, +{}) {start:?}", event.offset, event.length)
        }
    }
}
