//! The verdict: each line exactly once, and what's lost is listed.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::{Attention, Habit, Ledger, Line};
use crate::compare::message_of;
use crate::oracle::{self, Verdict};

/// A line that was destroyed before the agent could look at it for so long was never seen by anybody.
const UNSEEN: Duration = Duration::from_secs(1);

/// What was found of one writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What [`oracle::judge`] says.
    pub verdict: Verdict,
    /// Lines that are lost and whose ranges the audit lists.
    pub listed: u64,
    /// Lines that are lost and that the agent can't have seen.
    pub unseen: u64,
    /// Lines that are lost in silence: the first few, with their generation and offset.
    pub silent: Vec<String>,
    /// Gaps that are none: lines in them were found, or the file was never that long.
    pub false_gaps: Vec<String>,
}

impl Report {
    /// Panics unless each line is there once, or is one that nobody could save.
    #[track_caller]
    pub fn assert_clean(&self, habit: Habit) {
        let lost = if habit.destroys() { self.listed + self.unseen } else { 0 };
        let named = self.verdict.named.clone();
        let expected = Verdict { judged: self.verdict.judged, lost, named, ..Verdict::default() };
        let nothing = Vec::<String>::new();
        let found = (&self.verdict, &self.silent, &self.false_gaps);
        assert_eq!(found, (&expected, &nothing, &nothing), "{habit:?}: {self:?}");
    }
}

/// Judges the documents of a run for one writer. `audits` are the lines of `audit --json`.
pub fn judge(
    run: u32,
    habit: Habit,
    ledger: &Ledger,
    documents: &[Value],
    audits: &[Value],
    attention: &Attention,
) -> Report {
    let writer = habit.writer();
    let mut written = vec![0; writer as usize + 1];
    written[writer as usize] = ledger.lines.len() as u64;
    let mine: Vec<(u64, &Value)> = documents
        .iter()
        .filter_map(|document| match oracle::identify(&message_of(document)) {
            Some((found, who, seq)) if (found, who) == (run, writer) => Some((seq, document)),
            _ => None,
        })
        .collect();
    let own: Vec<Value> = mine.iter().map(|(_, document)| (*document).clone()).collect();
    let mut report = Report { verdict: oracle::judge(run, &written, &own), ..Report::default() };

    // Which streams hold a generation's lines.
    let mut streams: HashMap<usize, Vec<&str>> = HashMap::new();
    let mut found = vec![false; ledger.lines.len()];
    for (seq, document) in mine {
        let Some(line) = ledger.lines.get(seq as usize) else { continue };
        found[seq as usize] = true;
        let of_generation = streams.entry(line.generation).or_default();
        let stream = document["logmesh.stream"].as_str().unwrap_or_default();
        if !of_generation.contains(&stream) {
            of_generation.push(stream);
        }
    }
    let gaps = Gaps::new(audits, habit);
    let lines = ledger.lines.iter().zip(&found);
    report.false_gaps = gaps.refuted(lines.filter_map(|(line, found)| found.then_some(line)), ledger, &streams);
    for (seq, line) in ledger.lines.iter().enumerate().filter(|(seq, _)| !found[*seq]) {
        let known = streams.get(&line.generation).map(Vec::as_slice).unwrap_or_default();
        let end = ledger.destroyed[line.generation];
        if gaps.cover(known, line.offset, line.offset + line.length) {
            report.listed += 1;
        } else if end.is_some_and(|end| attention.longest_between(line.written, end) < UNSEEN) {
            report.unseen += 1;
        } else if report.silent.len() < 5 {
            report.silent.push(format!("line {seq}, generation {} {known:?}, offset {}", line.generation, line.offset));
        }
    }
    report
}

/// The gaps of the streams of a writer that destroys: its files stay in one folder.
struct Gaps<'a>(Vec<(&'a str, u64, u64)>);

impl<'a> Gaps<'a> {
    fn new(audits: &'a [Value], habit: Habit) -> Self {
        let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
        let of_file = audits.iter().filter(move |audit| habit.owns(audit["path"].as_str().unwrap_or_default()));
        let gaps = of_file.flat_map(move |audit| {
            let stream = audit["stream_id"].as_str().unwrap_or_default();
            let gaps = audit["gaps"].as_array().into_iter().flatten();
            gaps.map(move |gap| (stream, number(&gap["start_offset"]), number(&gap["end_offset"])))
        });
        Self(gaps.collect())
    }

    /// The gaps that overlap a line that was found, or end after all that their generation ever held.
    fn refuted<'l>(
        &self,
        found: impl Iterator<Item = &'l Line>,
        ledger: &Ledger,
        streams: &HashMap<usize, Vec<&str>>,
    ) -> Vec<String> {
        let generation = |stream: &str| {
            let mut known = streams.iter().filter(|(_, streams)| **streams == [stream]).map(|(number, _)| *number);
            known.next().filter(|_| known.next().is_none())
        };
        let length = |generation| {
            let lines = ledger.lines.iter().filter(|line| line.generation == generation);
            lines.map(|line| line.offset + line.length).max().unwrap_or_default()
        };
        // A stream whose generation isn't certain says nothing.
        let sure: Vec<_> = self.0.iter().filter_map(|gap| Some((gap, generation(gap.0)?))).collect();
        let mut refuted: Vec<String> = sure
            .iter()
            .filter(|((_, _, end), generation)| *end > length(*generation))
            .map(|(gap, generation)| format!("{gap:?} of generation {generation} of {} bytes", length(*generation)))
            .collect();
        for line in found {
            let hit = sure.iter().find(|((_, from, to), generation)| {
                *generation == line.generation && *from < line.offset + line.length && line.offset < *to
            });
            refuted.extend(hit.map(|(gap, _)| format!("{gap:?}, and a line at {} is there", line.offset)));
        }
        refuted.truncate(5);
        refuted
    }

    /// True if a gap covers the range: in one of these streams, or in any if none is known.
    fn cover(&self, streams: &[&str], start: u64, end: u64) -> bool {
        let mut known = self.0.iter().filter(|(stream, _, _)| streams.is_empty() || streams.contains(stream));
        known.any(|(_, from, to)| *from <= start && end <= *to)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use data_encoding::BASE64;
    use serde_json::json;

    use super::*;

    const RUN: u32 = 7;

    /// A ledger of five lines, of which the last three lie in a second generation.
    fn ledger(habit: Habit) -> (u32, Ledger) {
        let writer = habit.writer();
        let mut ledger = Ledger::default();
        ledger.next_generation(false);
        for seq in 0..5 {
            if seq == 2 {
                ledger.next_generation(habit.destroys());
            }
            ledger.wrote(seq * 10, 10);
        }
        (writer, ledger)
    }

    fn stream(number: u64) -> String {
        format!("{number:032x}")
    }

    fn documents(writer: u32, numbers: &[u64]) -> Vec<Value> {
        let document = |seq: &u64| {
            let (line, stream) = (oracle::line(RUN, writer, *seq), stream(seq / 2));
            json!({
                "_id": oracle::id_of(&stream, seq * 10, &line), "event.original_base64": BASE64.encode(&line),
                "logmesh.stream": stream, "logmesh.offset": seq * 10,
            })
        };
        numbers.iter().map(document).collect()
    }

    #[test]
    fn a_line_that_could_be_saved_must_be_there_once() {
        let (writer, ledger) = ledger(Habit::Rotate);
        let report = |numbers: &[u64]| {
            judge(RUN, Habit::Rotate, &ledger, &documents(writer, numbers), &[], &Attention::default())
        };
        report(&[0, 1, 2, 3, 4]).assert_clean(Habit::Rotate);
        assert_eq!(report(&[0, 1, 2, 3, 4, 4]).verdict.doubled, 1);
        let lost = report(&[0, 1, 3, 4]);
        assert_eq!((lost.verdict.lost, lost.silent.len(), lost.unseen), (1, 1, 0));
        assert!(std::panic::catch_unwind(|| lost.assert_clean(Habit::Rotate)).is_err());
    }

    #[test]
    fn what_was_destroyed_is_listed_or_was_never_seen() {
        let (writer, mut ledger) = ledger(Habit::Truncate);
        let (watched, asleep) = (Attention::default(), Attention::default());
        watched.begin();
        // The first generation was there for long enough to be seen.
        let now = Instant::now();
        ledger.lines.iter_mut().for_each(|line| line.written = now);
        ledger.destroyed[0] = Some(now + UNSEEN * 2);
        let found = documents(writer, &[0, 2, 3, 4]);
        let report = |audits: &[Value], attention| judge(RUN, Habit::Truncate, &ledger, &found, audits, attention);
        let silent = report(&[], &watched);
        assert_eq!(silent.silent.len(), 1, "{silent:?}");
        assert!(std::panic::catch_unwind(|| silent.assert_clean(Habit::Truncate)).is_err());
        report(&[], &asleep).assert_clean(Habit::Truncate);
        let audit = |stream: &str, end: u64| {
            let gaps = json!([{"start_offset": 10, "end_offset": end}]);
            [json!({"path": format!("/x/{}", Habit::Truncate.path().display()), "stream_id": stream, "gaps": gaps})]
        };
        report(&audit(&stream(0), 20), &watched).assert_clean(Habit::Truncate);
        assert_eq!(report(&audit(&stream(0), 19), &watched).silent.len(), 1, "not all of the line");
        assert_eq!(report(&audit(&stream(9), 20), &watched).silent.len(), 1, "of another stream");
        assert_eq!(report(&audit(&stream(0), 21), &watched).false_gaps.len(), 1, "the generation had 20 bytes");
        let there =
            judge(RUN, Habit::Truncate, &ledger, &documents(writer, &[0, 1, 2, 3, 4]), &audit(&stream(0), 20), &asleep);
        assert_eq!(there.false_gaps.len(), 1, "{there:?}");
    }
}
