//! `context`: the lines around one line of a file.

use logmesh_proto::search::v1::{GetContextRequest, GetContextResponse, Hit};
use logmesh_types::{DocId, StreamId, TopicName};
use serde_json::Value;

use super::failure::note;
use super::output::Output;
use super::search::{Lines, client};
use super::{Failure, Outcome, Session, request};

#[derive(Debug, clap::Args)]
pub(crate) struct ContextArgs {
    /// The topic that the line is in
    topic: TopicName,
    /// The line: its _id, or its logmesh.stream with OFFSET; `search --json` and `audit` show them
    // One _id of 64 begins with a hyphen.
    #[arg(value_name = "ID|STREAM", allow_hyphen_values = true)]
    event: String,
    /// Of a stream: the line's logmesh.offset, or the place of any byte of it
    offset: Option<u64>,
    /// At most so many lines before it, up to 500 [default: 5]
    #[arg(short = 'B', long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=500))]
    before: Option<i32>,
    /// At most so many lines after it, up to 500 [default: 5]
    #[arg(short = 'A', long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=500))]
    after: Option<i32>,
}

impl ContextArgs {
    fn request(self) -> Result<GetContextRequest, Failure> {
        let Self { topic, event, offset, before, after } = self;
        let wanted = GetContextRequest { topic: topic.to_string(), before, after, ..Default::default() };
        match (event.parse::<StreamId>(), event.parse::<DocId>(), offset) {
            (Ok(_), _, Some(offset)) => Ok(GetContextRequest { stream_id: event, offset, ..wanted }),
            (Ok(_), Err(_), None) => Err(Failure::Usage(format!("{event} is a stream: which OFFSET of it is meant?"))),
            (_, Ok(_), None) => Ok(GetContextRequest { id: event, ..wanted }),
            (_, Ok(_), Some(_)) => Err(Failure::Usage(format!("{event} is a document: it has no OFFSETs"))),
            _ => Err(Failure::Usage(format!("{event:?} is neither a document's _id nor a stream's id, 32 hex digits"))),
        }
    }
}

pub(super) async fn run(args: ContextArgs, session: &mut Session) -> Outcome {
    let wanted = args.request()?;
    let what = match wanted.id.as_str() {
        "" => format!("line with byte {} of the stream", wanted.offset),
        id => format!("document {id}"),
    };
    let context = client(session).get_context(request(wanted)).await?.into_inner();
    show(&context, &mut session.out)?;
    session.out.flush()?;
    if context.position.is_none() {
        let text = format!("logmesh: the index holds no {what}; these are around it");
        note(&text, false);
        return Err(Failure::Wanting);
    }
    Ok(())
}

/// Prints the lines, the one that was asked for with a sign before it, and where bytes between two aren't in the index.
fn show(context: &GetContextResponse, out: &mut Output) -> Outcome {
    let mut lines = Lines::default();
    let mut reached = None;
    for (place, hit) in context.hits.iter().enumerate() {
        if out.json {
            lines.print(hit, out)?;
            continue;
        }
        let (start, end) = range(hit);
        if let Some(missing) = reached.map(|reached| start.saturating_sub(reached)).filter(|missing| *missing > 0) {
            out.line(&format!("-- {missing} bytes are not in the index"))?;
        }
        reached = Some(end);
        let sign = if context.position.is_some_and(|position| position as usize == place) { ">" } else { " " };
        let text = lines.text(hit)?;
        out.line(&format!("{sign} {text}"))?;
    }
    Ok(())
}

/// The bytes of the stream that a document holds.
fn range(hit: &Hit) -> (u64, u64) {
    let document: Value = serde_json::from_str(&hit.document).unwrap_or_default();
    let number = |field: &str| document.get(field).and_then(Value::as_u64).unwrap_or_default();
    let start = number("logmesh.offset");
    (start, start + number("logmesh.length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(event: &str, offset: Option<u64>) -> ContextArgs {
        ContextArgs { topic: "logs".parse().unwrap(), event: event.into(), offset, before: None, after: Some(0) }
    }

    #[test]
    fn a_line_is_named_by_its_document_or_its_place() {
        let (stream, id) = ("0123456789abcdef0123456789abcdef", DocId::of_client_event("logs", "x").to_string());
        let of_stream = args(stream, Some(7)).request().unwrap();
        assert_eq!((of_stream.stream_id.as_str(), of_stream.offset, of_stream.after), (stream, 7, Some(0)));
        let of_document = args(&id, None).request().unwrap();
        assert_eq!((of_document.id, of_document.stream_id.as_str()), (id.clone(), ""));
        for (event, offset) in [(stream, None), (id.as_str(), Some(7)), ("what?", None)] {
            assert!(matches!(args(event, offset).request(), Err(Failure::Usage(_))), "{event}");
        }
    }

    #[test]
    fn an_id_may_begin_with_a_hyphen() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: ContextArgs,
        }
        let id = DocId::from_bytes([0xfa; 16]).to_string();
        assert!(id.starts_with('-'));
        for words in [&["logs", &id, "-B", "1"][..], &["logs", "-B", "1", &id], &["-B", "1", "logs", "--", &id]] {
            let Cli { args } = clap::Parser::try_parse_from([&["context"], words].concat()).unwrap();
            assert_eq!((args.before, args.request().unwrap().id), (Some(1), id.clone()), "{words:?}");
        }
    }

    #[test]
    fn the_line_and_the_gaps_are_marked() {
        let hit = |offset: u64, message: &str| Hit {
            document: format!(
                r#"{{"@timestamp":"2026-01-31T12:00:00Z","host.name":"h","log.file.path":"/a","message":"{message}","logmesh.offset":{offset},"logmesh.length":4}}"#
            ),
            ..Hit::default()
        };
        let hits = vec![hit(0, "one"), hit(4, "two"), hit(13, "five")];
        let context = GetContextResponse { hits, position: Some(1), ..Default::default() };
        let (mut out, captured) = Output::captured(false, false);
        show(&context, &mut out).unwrap();
        let line = |message: &str| format!("2026-01-31T12:00:00Z  h  /a  {message}\n");
        let gap = "-- 5 bytes are not in the index\n";
        assert_eq!(captured.text(), format!("  {}> {}{gap}  {}", line("one"), line("two"), line("five")));
        let (mut out, captured) = Output::captured(true, false);
        show(&context, &mut out).unwrap();
        assert_eq!(captured.text().lines().count(), 3);
    }
}
