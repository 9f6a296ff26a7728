//! Losses at the source that are known: what an earlier `audit --json` listed. They are shown no more and count no more, so that
//! an audit can be clean again; a new loss counts. Only what nobody has any more can be known so: a gap on the way can be mended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use logmesh_proto::audit::v1::Finding;
use logmesh_types::{ByteRange, Ranges};
use serde::Deserialize;

use super::Failure;

/// The largest file that is read, in bytes: some hundred thousand losses.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What is known, by stream.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<String, Losses>);

#[derive(Debug, Default)]
struct Losses {
    ranges: Ranges,
    /// Of losses without a range: what they said.
    details: BTreeSet<String>,
}

/// What is wanted of a line of `audit --json`.
#[derive(Deserialize)]
struct Line {
    stream_id: String,
    #[serde(default)]
    gaps: Vec<Gap>,
}

#[derive(Deserialize)]
struct Gap {
    start_offset: u64,
    end_offset: u64,
    #[serde(default)]
    detail: String,
    lost_at_source: bool,
}

impl Known {
    /// Reads a file of lines that `audit --json` printed.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |error: String| Failure::Usage(format!("--known-losses {}: {error}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(failed(format!("it has {size} bytes, and more than {MAX_FILE_BYTES} aren't read")));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut known = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| format!("line {} is none that `audit --json` prints: {error}", number + 1))?;
            let losses = known.0.entry(line.stream_id).or_default();
            for gap in line.gaps.into_iter().filter(|gap| gap.lost_at_source) {
                losses.ranges.insert(ByteRange::new(gap.start_offset, gap.end_offset));
                if gap.start_offset == gap.end_offset {
                    losses.details.insert(gap.detail);
                }
            }
        }
        Ok(known)
    }

    /// True if the finding is a loss at the source that was listed in whole.
    pub(super) fn holds(&self, stream: &str, one: &Finding) -> bool {
        let Some(losses) = self.0.get(stream).filter(|_| one.lost_at_source) else { return false };
        let range: Ranges = [ByteRange::new(one.start_offset, one.end_offset)].into_iter().collect();
        if range.is_empty() { losses.details.contains(&one.detail) } else { range.without(&losses.ranges).is_empty() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(start_offset: u64, end_offset: u64, detail: &str) -> Finding {
        Finding { start_offset, end_offset, detail: detail.into(), lost_at_source: true, ..Finding::default() }
    }

    #[test]
    fn what_was_listed_is_known_and_nothing_else() {
        let text = r#"{"stream_id": "a", "clean": false, "gaps": [
            {"start_offset": 0, "end_offset": 10, "detail": "gone", "lost_at_source": true},
            {"start_offset": 10, "end_offset": 15, "detail": "gone", "lost_at_source": true},
            {"start_offset": 20, "end_offset": 30, "detail": "no document", "lost_at_source": false},
            {"start_offset": 40, "end_offset": 40, "detail": "7 bytes were gone", "lost_at_source": true}]}"#;
        let known = Known::parse(&format!("{}\n\n{}", text.replace('\n', ""), r#"{"stream_id": "b"}"#)).unwrap();
        assert!(known.holds("a", &loss(0, 10, "")) && known.holds("a", &loss(5, 15, "in other words")));
        assert!(!known.holds("a", &loss(5, 16, "gone")), "a part of it is new");
        assert!(!known.holds("a", &loss(20, 30, "")), "that was no loss at the source");
        assert!(!known.holds("a", &Finding { lost_at_source: false, ..loss(0, 10, "") }), "nor is this");
        assert!(!known.holds("b", &loss(0, 10, "")) && !known.holds("c", &loss(0, 10, "")));
        assert!(known.holds("a", &loss(50, 50, "7 bytes were gone")), "the place is the agent's, and moves");
        assert!(!known.holds("a", &loss(40, 40, "9 bytes were gone")));
    }

    #[test]
    fn a_bad_file_is_refused_by_line() {
        let error = Known::parse("{\"stream_id\": \"a\"}\nnonsense\n").unwrap_err();
        assert!(error.starts_with("line 2 is none"), "{error}");
        let missing = Known::read(Path::new("/nowhere/at/all"));
        assert!(matches!(&missing, Err(Failure::Usage(text)) if text.contains("/nowhere/at/all")), "{missing:?}");
    }
}
