//! The verdict: each line that was written is in the index once, whole, where it lies in its file, and under the name and in the
//! slice that are its own. Of a line a few numbers are kept, some 60 bytes, so that millions can be judged.

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::Value;

use super::{identify, line};
use crate::compare::message_of;

/// How many faults of each kind are named.
const NAMED: u64 = 5;

/// What the judge found. All but `judged` should be 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Lines that had to be there.
    pub judged: u64,
    /// Of those, without a document.
    pub lost: u64,
    /// Documents beyond the first of a line.
    pub doubled: u64,
    /// Documents whose text isn't the line that they say they are.
    pub corrupt: u64,
    /// Documents of lines that nobody wrote.
    pub spurious: u64,
    /// Documents whose offset or length isn't the line's in its file, or whose stream is another than the file's. Only
    /// counted of a judge who knows the files.
    pub misplaced: u64,
    /// Documents whose `_id` isn't that of their stream, their offset and the line.
    pub misnamed: u64,
    /// Documents in the index of another topic than the file's, or of another day than the one on which they say they were read.
    /// Only counted of a judge who knows the files.
    pub astray: u64,
    /// Neighbours in a stream whose offsets and numbers run against each other.
    pub disordered: u64,
    /// The first faults of each kind, by line, stream and offset.
    pub named: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Lost,
    Doubled,
    Corrupt,
    Spurious,
    Misplaced,
    Misnamed,
    Astray,
    Disordered,
}

impl Verdict {
    /// Panics unless nothing is wrong.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(*self, Self { judged: self.judged, ..Self::default() });
    }

    fn add(&mut self, fault: Fault, what: &dyn Debug) {
        let count = match fault {
            Fault::Lost => &mut self.lost,
            Fault::Doubled => &mut self.doubled,
            Fault::Corrupt => &mut self.corrupt,
            Fault::Spurious => &mut self.spurious,
            Fault::Misplaced => &mut self.misplaced,
            Fault::Misnamed => &mut self.misnamed,
            Fault::Astray => &mut self.astray,
            Fault::Disordered => &mut self.disordered,
        };
        *count += 1;
        if *count <= NAMED {
            self.named.push(format!("{fault:?}: {what:?}"));
        }
    }
}

/// What a document is.
#[derive(Clone, Debug)]
pub struct Found {
    /// The run, writer and number of its line; `None` if its text is no whole line of ours.
    line: Option<(u32, u32, u64)>,
    stream: String,
    offset: u64,
    length: u64,
    id: String,
    /// The id of its stream, its offset and its line.
    own_id: Option<String>,
    /// That of Elasticsearch; empty if it wasn't asked.
    index: String,
    /// The UTC day on which it says it was read, as indices are named: `2026.01.31`.
    day: String,
}

impl Found {
    /// Looks at a document with its `_id` and, for a judge who knows the files, `_index`.
    pub fn new(document: &Value) -> Self {
        let message = message_of(document);
        let text = |key: &str| document[key].as_str().unwrap_or_default();
        let number = |key: &str| document[key].as_u64().unwrap_or_default();
        let (stream, offset, id) = (text("logmesh.stream"), number("logmesh.offset"), text("_id"));
        let known = identify(&message).map(|(run, writer, seq)| ((run, writer, seq), line(run, writer, seq)));
        let whole = known.filter(|(_, event)| event.strip_suffix(b"\n") == Some(&message[..]));
        let own_id = whole.as_ref().and_then(|(_, event)| id_of(stream, offset, event));
        Self {
            line: whole.map(|(line, _)| line),
            stream: stream.to_owned(),
            offset,
            length: number("logmesh.length"),
            id: id.to_owned(),
            own_id,
            index: text("_index").to_owned(),
            day: text("logmesh.read_time").split('T').next().unwrap_or_default().replace('-', "."),
        }
    }

    /// Whether it lies in the index of this topic and of its own day.
    fn is_of(&self, topic: &str) -> bool {
        let slice = self.index.strip_prefix("logmesh-").and_then(|slice| slice.split_once('@'));
        slice == Some((topic, &self.day))
    }
}

/// What an event is called: the first 128 bits of BLAKE3 of its stream's id, its offset and its bytes, each behind its length, in
/// base64url; `None` if that is no stream's id. Not the product's own function, which is judged by this.
pub(crate) fn id_of(stream: &str, offset: u64, event: &[u8]) -> Option<String> {
    let stream = HEXLOWER.decode(stream.as_bytes()).ok()?;
    let mut hasher = blake3::Hasher::new();
    for field in [&stream[..], &offset.to_le_bytes(), event] {
        hasher.update(&(field.len() as u64).to_le_bytes()).update(field);
    }
    Some(BASE64URL_NOPAD.encode(&hasher.finalize().as_bytes()[..16]))
}

/// Judges documents one after the other.
#[derive(Debug)]
pub struct Judge {
    run: u32,
    /// By writer and number.
    lines: Vec<Vec<Line>>,
    files: Vec<LogFile>,
    streams: HashMap<String, Stream>,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// How often.
    found: u32,
    place: Option<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    file: u32,
    length: u32,
    offset: u64,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    /// The one that its rule sends it to.
    topic: &'static str,
    /// That of the first document of one of its lines.
    stream: Option<String>,
}

#[derive(Debug, Default)]
struct Stream {
    /// That of the first document that lies in it.
    file: Option<u32>,
    /// Writer, offset and number of each document.
    events: Vec<(u32, u64, u64)>,
}

impl Judge {
    /// Knows only what was written: `written[w]` is how many lines writer `w` has finished, from 0.
    pub fn new(run: u32, written: &[u64]) -> Self {
        let lines = written.iter().map(|count| vec![Line::default(); *count as usize]).collect();
        let verdict = Verdict { judged: written.iter().sum(), ..Verdict::default() };
        Self { run, lines, files: Vec::new(), streams: HashMap::new(), verdict }
    }

    /// Knows too where each line lies, from the files of a folder: each file is one stream, of the topic that `topic_of` says by
    /// its name.
    ///
    /// Panics unless the files hold each line once, and nothing else.
    #[must_use]
    pub fn with_files(mut self, folder: &Path, topic_of: impl Fn(&str) -> &'static str) -> Self {
        let mut lines = 0;
        for (file, entry) in (0..).zip(folder.read_dir().expect("the folder of logs can be read")) {
            let path = entry.expect("the folder of logs can be read").path();
            let mut reader = BufReader::new(File::open(&path).expect("a log can be read"));
            let (mut offset, mut bytes) = (0, Vec::new());
            while reader.read_until(b'\n', &mut bytes).expect("a log can be read") > 0 {
                let known = identify(&bytes).filter(|(run, writer, seq)| line(*run, *writer, *seq) == bytes);
                let known = known.and_then(|line| self.line(line)).filter(|line| line.place.is_none());
                let known = known.unwrap_or_else(|| panic!("void: {} has a strange line at {offset}", path.display()));
                known.place = Some(Place { file, length: bytes.len() as u32, offset });
                lines += 1;
                offset += bytes.len() as u64;
                bytes.clear();
            }
            let topic = topic_of(&path.file_name().unwrap_or_default().to_string_lossy());
            self.files.push(LogFile { path, topic, stream: None });
        }
        assert_eq!(lines, self.verdict.judged, "void: the files don't hold all that was written");
        self
    }

    fn line(&mut self, (run, writer, seq): (u32, u32, u64)) -> Option<&mut Line> {
        let lines = self.lines.get_mut(writer as usize).filter(|_| run == self.run)?;
        lines.get_mut(seq as usize)
    }

    /// Takes in a document.
    pub fn take(&mut self, found: &Found) {
        let Some(id) = found.line else { return self.verdict.add(Fault::Corrupt, found) };
        let Some(line) = self.line(id) else { return self.verdict.add(Fault::Spurious, found) };
        line.found += 1;
        let line = *line;
        if line.found > 1 {
            self.verdict.add(Fault::Doubled, found);
        }
        if found.own_id.as_ref() != Some(&found.id) {
            self.verdict.add(Fault::Misnamed, found);
        }
        if !self.streams.contains_key(&found.stream) {
            self.streams.insert(found.stream.clone(), Stream::default());
        }
        let stream = self.streams.get_mut(&found.stream).expect("it's there by now");
        stream.events.push((id.1, found.offset, id.2));
        let Some(place) = line.place else { return };
        let of_stream = *stream.file.get_or_insert(place.file);
        let file = &mut self.files[place.file as usize];
        let of_file = file.stream.get_or_insert_with(|| found.stream.clone());
        let range = (place.offset, u64::from(place.length));
        if of_stream != place.file || *of_file != found.stream || (found.offset, found.length) != range {
            self.verdict.add(Fault::Misplaced, found);
        }
        if !found.is_of(file.topic) {
            self.verdict.add(Fault::Astray, found);
        }
    }

    /// The verdict on all that was taken in.
    pub fn verdict(mut self) -> Verdict {
        for (writer, lines) in self.lines.iter().enumerate() {
            for (seq, line) in lines.iter().enumerate().filter(|(_, line)| line.found == 0) {
                let Some(Place { file, offset, .. }) = line.place else {
                    self.verdict.add(Fault::Lost, &format_args!("line {seq} of writer {writer}"));
                    continue;
                };
                let LogFile { path, stream, .. } = &self.files[file as usize];
                let place = format_args!("line {seq} of writer {writer}, {} at {offset}, {stream:?}", path.display());
                self.verdict.add(Fault::Lost, &place);
            }
        }
        for (id, stream) in &mut self.streams {
            stream.events.sort_unstable();
            for pair in stream.events.windows(2).filter(|pair| pair[0].0 == pair[1].0 && pair[0].2 > pair[1].2) {
                self.verdict.add(Fault::Disordered, &(id, pair));
            }
        }
        self.verdict
    }
}

/// Judges all documents of a run at once. `written` as [`Judge::new`] has it.
pub fn judge(run: u32, written: &[u64], documents: &[Value]) -> Verdict {
    let mut judge = Judge::new(run, written);
    documents.iter().for_each(|document| judge.take(&Found::new(document)));
    judge.verdict()
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use logmesh_testing::Folder;
    use serde_json::json;

    use super::*;

    const RUN: u32 = 7;

    /// A document without its id. Of each file a stream and a topic are named.
    fn document(text: &[u8], file: &str, offset: u64) -> Value {
        let original = BASE64.encode(text);
        json!({
            "event.original_base64": original, "logmesh.stream": file.repeat(32), "logmesh.offset": offset,
            "logmesh.length": text.len(), "logmesh.read_time": "2026-01-31T23:59:59.999999999Z",
            "_index": format!("logmesh-{file}@2026.01.31"),
        })
    }

    /// Those that have no id get their own.
    fn named(mut documents: Vec<Value>) -> Vec<Value> {
        for document in documents.iter_mut().filter(|document| document["_id"].is_null()) {
            let text = BASE64.decode(document["event.original_base64"].as_str().unwrap().as_bytes()).unwrap();
            let (stream, offset) = (&document["logmesh.stream"], &document["logmesh.offset"]);
            document["_id"] = id_of(stream.as_str().unwrap(), offset.as_u64().unwrap(), &text).into();
        }
        documents
    }

    fn topic_of(file: &str) -> &'static str {
        if file == "a" { "a" } else { "b" }
    }

    /// Two files of three lines each, which are all that writer 0 wrote, and the documents of their lines.
    fn files() -> (Folder, Vec<Value>) {
        let (folder, mut documents) = (Folder::new(), Vec::new());
        for (file, numbers) in [("a", 0..3), ("b", 3..6)] {
            let mut bytes = Vec::new();
            for line in numbers.map(|seq| line(RUN, 0, seq)) {
                documents.push(document(&line, file, bytes.len() as u64));
                bytes.extend(line);
            }
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        (folder, documents)
    }

    /// The verdict by the files, after the documents were changed.
    fn verdict(change: impl FnOnce(&mut Vec<Value>)) -> Verdict {
        let (folder, mut documents) = files();
        change(&mut documents);
        let mut judge = Judge::new(RUN, &[6]).with_files(&folder, topic_of);
        named(documents).iter().for_each(|document| judge.take(&Found::new(document)));
        judge.verdict()
    }

    /// Without what was named.
    fn counts(verdict: Verdict) -> Verdict {
        Verdict { named: Vec::new(), ..verdict }
    }

    #[test]
    fn what_is_written_and_found_is_clean() {
        verdict(|_| ()).assert_clean();
        verdict(|documents| documents.reverse()).assert_clean();
        judge(RUN, &[6], &named(files().1)).assert_clean();
    }

    #[test]
    fn each_kind_of_fault_is_seen_and_named() {
        let clean = Verdict { judged: 6, ..Verdict::default() };
        let lost = verdict(|documents| drop(documents.remove(4)));
        let offset = line(RUN, 0, 3).len();
        assert!(lost.named[0].contains("/b at") && lost.named[0].contains(&offset.to_string()), "{:?}", lost.named);
        assert_eq!(counts(lost), Verdict { lost: 1, ..clean.clone() });
        let doubled = verdict(|documents| documents.push(documents[1].clone()));
        assert!(doubled.named[0].starts_with("Doubled") && doubled.named[0].contains("stream: \"aaaa"), "{doubled:?}");
        assert_eq!(counts(doubled), Verdict { doubled: 1, ..clean.clone() });
        let spurious = verdict(|documents| {
            documents.push(document(&line(RUN, 0, 6), "b", 9_999));
            documents.push(document(&line(RUN, 1, 0), "b", 9_999));
            documents.push(document(&line(RUN + 1, 0, 0), "b", 9_999));
        });
        assert_eq!(counts(spurious), Verdict { spurious: 3, ..clean.clone() });
        let corrupt = verdict(|documents| {
            documents[0] = document(&line(RUN, 0, 0)[..30], "a", 0);
            documents[1] = document(b"none of ours\n", "a", 9_999);
        });
        assert_eq!(counts(corrupt), Verdict { corrupt: 2, lost: 2, ..clean.clone() });
        let swapped = verdict(|documents| {
            let first = documents[0]["logmesh.offset"].take();
            documents[0]["logmesh.offset"] = documents[2]["logmesh.offset"].take();
            documents[2]["logmesh.offset"] = first;
        });
        assert_eq!(counts(swapped), Verdict { misplaced: 2, disordered: 2, ..clean });
    }

    #[test]
    fn a_document_lies_where_its_line_does() {
        let misplaced = |change: fn(&mut Vec<Value>)| {
            let found = verdict(change);
            assert!(found.named[0].starts_with("Misplaced"), "{found:?}");
            let Verdict { misplaced, disordered, .. } = found;
            assert_eq!(counts(found), Verdict { judged: 6, misplaced, disordered, ..Verdict::default() });
            misplaced
        };
        assert_eq!(misplaced(|documents| documents[2]["logmesh.offset"] = 9_999.into()), 1);
        assert_eq!(misplaced(|documents| documents[2]["logmesh.length"] = 1.into()), 1);
        assert_eq!(
            misplaced(|documents| documents[2]["logmesh.stream"] = "c".repeat(32).into()),
            1,
            "two streams of a file"
        );
        let one = |documents: &mut Vec<Value>| {
            let first = documents[0]["logmesh.stream"].clone();
            documents.iter_mut().for_each(|one| one["logmesh.stream"] = first.clone());
        };
        assert_eq!(misplaced(one), 3, "two files in a stream");
    }

    /// As everywhere where logmesh ran: ids live in indices for years.
    #[test]
    fn an_event_is_called_by_its_stream_offset_and_bytes() {
        let stream = "217a55e0e277d86e24b960c80282a1c5";
        assert_eq!(id_of(stream, 12, b"hello\n").as_deref(), Some("7FnC3KmojTedSF98vLOGQg"));
        assert_eq!(id_of("Web 1", 12, b"hello\n"), None);
    }

    #[test]
    fn a_document_bears_the_name_of_its_line() {
        let (line, stream) = (line(RUN, 0, 0), "a".repeat(32));
        let strange = [
            id_of(&"b".repeat(32), 0, &line),
            id_of(&stream, 1, &line),
            id_of(&stream, 0, line.strip_suffix(b"\n").unwrap()),
            Some(String::new()),
        ];
        for id in strange {
            let found = verdict(|documents| documents[0]["_id"] = id.clone().into());
            assert!(found.named[0].starts_with("Misnamed") && found.named[0].contains(&id.unwrap()), "{found:?}");
            assert_eq!(counts(found), Verdict { judged: 6, misnamed: 1, ..Verdict::default() });
        }
    }

    #[test]
    fn a_document_lies_in_the_slice_of_its_topic_and_day() {
        let strange = [
            ("_index", "logmesh-b@2026.01.31"),
            ("_index", "logmesh-a@2026.02.01"),
            ("_index", "logmesh-a@2026-01-31"),
            ("_index", "other-a@2026.01.31"),
            ("logmesh.read_time", "2026-02-01T00:00:00.000000000Z"),
            ("logmesh.read_time", ""),
        ];
        for (key, value) in strange {
            let found = verdict(|documents| documents[0][key] = value.into());
            assert!(found.named[0].starts_with("Astray"), "{found:?}");
            assert_eq!(counts(found), Verdict { judged: 6, astray: 1, ..Verdict::default() }, "{key}: {value}");
        }
    }

    #[test]
    fn without_files_the_order_counts() {
        let swapped = vec![document(&line(RUN, 0, 1), "a", 0), document(&line(RUN, 0, 0), "a", 1)];
        assert_eq!(
            counts(judge(RUN, &[2], &named(swapped))),
            Verdict { judged: 2, disordered: 1, ..Verdict::default() }
        );
    }

    #[test]
    fn files_that_hold_anything_else_void_the_run() {
        let (folder, _) = files();
        let is_void = || std::panic::catch_unwind(|| Judge::new(RUN, &[6]).with_files(&folder, topic_of)).is_err();
        assert!(!is_void());
        let whole = std::fs::read(folder.join("b")).unwrap();
        for text in [&whole[..whole.len() - 1], &[&whole[..], b"strange\n"].concat(), &line(RUN, 0, 3)] {
            std::fs::write(folder.join("b"), text).unwrap();
            assert!(is_void(), "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn of_many_faults_a_few_are_named() {
        let verdict = judge(RUN, &[1_000], &[]);
        assert_eq!((verdict.lost, verdict.named.len() as u64), (1_000, NAMED));
    }
}
