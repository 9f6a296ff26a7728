//! How streams are shown: one JSON document each, as rows of a table, or only those with faults and what is wrong there.

use logmesh_proto::audit::v1::{Finding, FindingCause};
use serde_json::{Value, json};

use super::{Failure, Output, Shown, Sum, bytes};

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
    if shown.faulty == 0 && shown.repaired_events == 0 {
        return Ok(());
    }
    out.line(&format!("{}  {}  {}  {}", stream.topic, stream.stream_id, stream.agent_id, stream.path))?;
    out.line(&format!(
        "  of {} bytes {} are read, {} acked, {} on their way (partition {}), {} indexed in {} documents, {} rejected",
        stream.size,
        stream.read_offset,
        stream.acked_offset,
        stream.on_its_way_bytes,
        stream.partition,
        stream.indexed_bytes,
        stream.documents,
        stream.dead_letter_bytes
    ))?;
    if shown.repaired_events > 0 {
        let (events, size) = (shown.repaired_events, bytes(shown.repaired_bytes));
        out.line(&format!("  repair  {events} events, {size}, were sent through the bus again"))?;
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
        "repaired_events": shown.repaired_events,
        "repaired_bytes": shown.repaired_bytes,
    })
}

fn finding(one: &Finding, known: bool) -> Value {
    json!({
        "start_offset": one.start_offset,
        "end_offset": one.end_offset,
        "cause": cause(one.cause()),
        "detail": one.detail,
        "lost_at_source": one.lost_at_source,
        "off_bus": one.off_bus,
        "known": known,
    })
}

fn cause(cause: FindingCause) -> String {
    let name = cause.as_str_name();
    name.strip_prefix("FINDING_CAUSE_").unwrap_or(name).to_ascii_lowercase()
}
