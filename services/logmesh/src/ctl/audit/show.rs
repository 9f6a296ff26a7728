//! How streams are shown: one JSON document each, as rows of a table, or only those with faults and what is wrong there.

use logmesh_proto::audit::v1::{Finding, FindingCause, RangeRemoval, RangeRepair, RepairSource};
use logmesh_proto::fleet::v1::ReadOutcome;
use serde_json::{Value, json};

use super::{Failure, Output, Shown, Sum, bytes, count};

/// What is said of repaired events.
pub(super) const FROM_BUS: &str = "sent through the bus again";
pub(super) const FROM_FILE: &str = "read from the file again";
pub(super) const REMOVED: &str = "removed from the index";

const HEADER: [&str; 12] = [
    "TOPIC",
    "STREAM",
    "AGENT",
    "PATH",
    "SIZE",
    "READ",
    "ACKED",
    "ON ITS WAY",
    "INDEXED",
    "DOCUMENTS",
    "REJECTED",
    "FAULTS",
];

/// Shows all streams as rows of a table.
pub(super) fn table(streams: &[Shown], out: &mut Output) -> Result<(), Failure> {
    let rows: Vec<[String; 12]> = streams.iter().map(row).collect();
    Ok(out.table(HEADER, &rows)?)
}

fn row(shown: &Shown) -> [String; 12] {
    let stream = &shown.audit;
    let faults = match (stream.gaps.len() + stream.doubles.len(), shown.known) {
        (0, _) => "-".to_owned(),
        (all, 0) => all.to_string(),
        (all, known) => format!("{all} ({known} known)"),
    };
    [
        stream.topic.clone(),
        stream.stream_id.clone(),
        stream.agent_id.clone(),
        stream.path.clone(),
        stream.size.to_string(),
        stream.read_offset.to_string(),
        stream.acked_offset.to_string(),
        stream.on_its_way_bytes.to_string(),
        stream.indexed_offset.to_string(),
        stream.documents.to_string(),
        stream.dead_letter_events.to_string(),
        faults,
    ]
}

/// Shows what is wrong with a stream, and what was done about it.
pub(super) fn faults(shown: &Shown, out: &mut Output) -> Result<(), Failure> {
    let stream = &shown.audit;
    let repairs = [
        (shown.repaired.events, shown.repaired.bytes, FROM_BUS),
        (shown.repaired.file_events, shown.repaired.file_bytes, FROM_FILE),
    ];
    let removed = shown.repaired.removed_documents;
    if shown.faulty == 0 && removed == 0 && repairs.iter().all(|(events, ..)| *events == 0) {
        return Ok(());
    }
    out.line(&format!("{}  {}  {}  {}", stream.topic, stream.stream_id, stream.agent_id, stream.path))?;
    out.line(&format!(
        "  of {} bytes {} are read, {} acked, {} on their way (partition {}), {} indexed in {}, {} rejected",
        stream.size,
        stream.read_offset,
        stream.acked_offset,
        stream.on_its_way_bytes,
        stream.partition,
        stream.indexed_bytes,
        count(stream.documents, "document"),
        stream.dead_letter_bytes
    ))?;
    for (events, size, how) in repairs.into_iter().filter(|(events, ..)| *events > 0) {
        out.line(&format!("  repair  {}, {}, {how}", count(events, "event"), bytes(size)))?;
    }
    for one in &shown.repaired.removed {
        let place = format!("[{}, {})", one.start_offset, one.end_offset);
        out.line(&format!("  removed  {place}  {}, from {}", count(one.documents, "copy"), one.slice))?;
    }
    if removed > 0 {
        out.line(&format!("  repair  {} {REMOVED}", count(removed, "copy")))?;
    }
    for (kind, findings) in [("gap   ", &stream.gaps), ("double", &stream.doubles)] {
        for one in findings {
            out.line(&format!("  {kind}  {}  {}", place(one), one.detail))?;
        }
    }
    Ok(())
}

fn place(one: &Finding) -> String {
    if one.start_offset == one.end_offset {
        return format!("at {}", one.start_offset);
    }
    format!("[{}, {})", one.start_offset, one.end_offset)
}

/// One JSON document for a stream.
pub(super) fn to_json(shown: &Shown, sum: &Sum) -> Value {
    let stream = &shown.audit;
    let finding = |one: &Finding| finding(one, sum.known.holds(&stream.stream_id, one));
    json!({
        "stream_id": stream.stream_id,
        "topic": stream.topic,
        "partition": stream.partition,
        "agent_id": stream.agent_id,
        "path": stream.path,
        "start_offset": stream.start_offset,
        "size": stream.size,
        "read_offset": stream.read_offset,
        "acked_offset": stream.acked_offset,
        "indexed_offset": stream.indexed_offset,
        "indexed_bytes": stream.indexed_bytes,
        "documents": stream.documents,
        "on_its_way_bytes": stream.on_its_way_bytes,
        "waiting_offset": stream.waiting_offset,
        "dead_letter_bytes": stream.dead_letter_bytes,
        "dead_letter_events": stream.dead_letter_events,
        "retired_bytes": stream.retired_bytes,
        "retired": stream.retired.iter().map(|range| json!([range.start_offset, range.end_offset])).collect::<Vec<_>>(),
        "gaps": stream.gaps.iter().map(finding).collect::<Vec<_>>(),
        "doubles": stream.doubles.iter().map(finding).collect::<Vec<_>>(),
        "clean": stream.clean,
        "agent_reported": stream.agent_reported,
        "repaired_events": shown.repaired.events,
        "repaired_bytes": shown.repaired.bytes,
        "file_events": shown.repaired.file_events,
        "file_bytes": shown.repaired.file_bytes,
        "repaired_ranges": shown.repaired.ranges.iter().map(repaired).collect::<Vec<_>>(),
        "removed_documents": shown.repaired.removed_documents,
        "removed_ranges": shown.repaired.removed.iter().map(removed).collect::<Vec<_>>(),
    })
}

/// Copies that a repair removed from one slice of the index.
fn removed(one: &RangeRemoval) -> Value {
    json!({
        "start_offset": one.start_offset,
        "end_offset": one.end_offset,
        "documents": one.documents,
        "slice": one.slice,
    })
}

/// What a repair did about a range: `source` is `bus`, `file` or, with why not, null.
fn repaired(one: &RangeRepair) -> Value {
    let source = match one.source() {
        RepairSource::Bus => Some("bus"),
        RepairSource::File => Some("file"),
        RepairSource::Unspecified => None,
    };
    json!({
        "start_offset": one.start_offset,
        "end_offset": one.end_offset,
        "source": source,
        "reason": source.is_none().then(|| reason(one.read_outcome())),
        "detail": one.detail,
    })
}

fn reason(outcome: ReadOutcome) -> String {
    let name = outcome.as_str_name();
    name.strip_prefix("READ_OUTCOME_").unwrap_or(name).to_ascii_lowercase()
}

fn finding(one: &Finding, known: bool) -> Value {
    json!({
        "start_offset": one.start_offset,
        "end_offset": one.end_offset,
        "cause": cause(one.cause()),
        "detail": one.detail,
        "lost_at_source": one.lost_at_source,
        "off_bus": one.off_bus,
        "file": one.off_bus.then(|| reason(one.read_outcome())),
        "known": known,
    })
}

fn cause(cause: FindingCause) -> String {
    let name = cause.as_str_name();
    name.strip_prefix("FINDING_CAUSE_").unwrap_or(name).to_ascii_lowercase()
}
