//! `search` and `tail`.

use logmesh_index::MAX_FACETS;
use logmesh_index::query::Query;
use logmesh_proto::search::v1::search_service_client::SearchServiceClient;
use logmesh_proto::search::v1::{FacetValue, FacetsRequest, FacetsResponse, Hit, SearchRequest, TailRequest};
use logmesh_proto::time::timestamp;
use logmesh_types::{Span, TopicName, UnixNanos};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::failure::note;
use super::output::Output;
use super::{Failure, Outcome, Session, request};

/// Hits asked for at a time. A larger `--limit` takes several pages.
const PAGE: u64 = 1_000;

/// The largest page that is decoded, in bytes: lines may be long.
const MAX_PAGE_BYTES: usize = 64 << 20;

/// How far back a search goes that doesn't say.
const DEFAULT_SINCE: &str = "1h";

/// The hits of a search that doesn't say.
const DEFAULT_LIMIT: u64 = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct SearchArgs {
    /// What to find: words, "phrases", field:value, AND, OR, NOT, (…); * finds everything
    query: String,
    /// How far back: 15m, 36h, 90d [default: 1h]
    #[arg(long, value_name = "SPAN", conflicts_with_all = ["from", "to"])]
    since: Option<Span>,
    /// From this time on: RFC 3339, a day (UTC), or now-1h
    #[arg(long, value_name = "TIME")]
    from: Option<UnixNanos>,
    /// Before this time: RFC 3339, a day (UTC: before it begins), now, or now-1h
    #[arg(long, value_name = "TIME")]
    to: Option<UnixNanos>,
    /// At most so many: the newest, or the most frequent values [default: 100 lines, 10 values]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only in this topic; may be given more than once
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<TopicName>,
    /// Print only how many there are, whatever the limit
    #[arg(long)]
    count: bool,
    /// Print the most frequent values of this field (host.name, _topic, labels.…) and how many lines have each
    #[arg(long, value_name = "FIELD", conflicts_with = "count")]
    facet: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TailArgs {
    /// What to show: words, "phrases", field:value, AND, OR, NOT, (…); * shows everything
    query: String,
    /// Only of this topic; may be given more than once
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<TopicName>,
}

pub(super) fn client(session: &Session) -> SearchServiceClient<Channel> {
    SearchServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_PAGE_BYTES)
}

/// Refuses a bad query before it is sent, with the place of the fault under it.
fn check(query: &str) -> Outcome {
    Query::parse(query).map(drop).map_err(|error| Failure::Usage(format!("bad query: {error}")))
}

impl SearchArgs {
    /// The times asked for: `[from, to)`.
    fn times(&self, now: UnixNanos) -> Result<(Option<UnixNanos>, Option<UnixNanos>), Failure> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            return Err(Failure::Usage(format!("--from {from} is not before --to {to}: nothing can lie between")));
        }
        if self.from.is_some() || self.to.is_some() {
            return Ok((self.from, self.to));
        }
        let text = self.since.map_or(DEFAULT_SINCE.to_owned(), |since| since.to_string());
        let from = UnixNanos::parse_at(&format!("now-{text}"), now);
        Ok((Some(from.map_err(|error| Failure::Usage(format!("--since: {error}")))?), None))
    }
}

fn topics(topics: &[TopicName]) -> Vec<String> {
    topics.iter().map(ToString::to_string).collect()
}

pub(super) async fn run(args: SearchArgs, session: &mut Session) -> Outcome {
    check(&args.query)?;
    let (from, to) = args.times(UnixNanos::now())?;
    let mut client = client(session);
    if let Some(field) = args.facet {
        let limit = args.limit.unwrap_or(0);
        let wanted = FacetsRequest {
            query: args.query,
            start_time: from.map(timestamp),
            end_time: to.map(timestamp),
            topics: topics(&args.topic),
            field,
            limit: i32::try_from(limit).ok().filter(|_| limit <= MAX_FACETS as u64).ok_or_else(too_many)?,
        };
        let facets = client.facets(request(wanted)).await?.into_inner();
        return print_facets(&facets, &mut session.out);
    }
    let mut search = SearchRequest {
        query: args.query,
        start_time: from.map(timestamp),
        end_time: to.map(timestamp),
        topics: topics(&args.topic),
        count_only: args.count,
        ..SearchRequest::default()
    };
    if args.count {
        let total = client.search(request(search)).await?.into_inner().total;
        return Ok(session.out.line(&total.to_string())?);
    }
    let mut lines = Lines::default();
    let mut left = args.limit.unwrap_or(DEFAULT_LIMIT);
    loop {
        search.page_size = left.min(PAGE) as i32;
        let page = client.search(request(search.clone())).await?.into_inner();
        for hit in page.hits.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            lines.print(hit, &mut session.out)?;
        }
        session.out.flush()?;
        left = left.saturating_sub(page.hits.len() as u64);
        search.page_token = page.next_page_token;
        if left == 0 || search.page_token.is_empty() {
            return Ok(());
        }
    }
}

fn too_many() -> Failure {
    Failure::Usage(format!("--limit: with --facet at most {MAX_FACETS}"))
}

/// Prints the values; what the list doesn't show goes to stderr.
fn print_facets(facets: &FacetsResponse, out: &mut Output) -> Outcome {
    if out.json {
        for FacetValue { value, count } in &facets.values {
            out.json(&json!({ "value": value, "count": count }))?;
        }
    } else {
        let shown = |value: &str| if value.is_empty() { "\"\"".to_owned() } else { value.to_owned() };
        let row = |facet: &FacetValue| [facet.count.to_string(), shown(&facet.value)];
        out.table(["COUNT", "VALUE"], &facets.values.iter().map(row).collect::<Vec<_>>())?;
    }
    out.flush()?;
    if facets.others > 0 {
        note(&format!("logmesh: values that are not shown: {} more in all; --limit shows more", facets.others), false);
    }
    if facets.error_bound > 0 {
        let most = facets.error_bound;
        note(&format!("logmesh: the field has very many values: a count may be too low by {most}"), false);
    }
    Ok(())
}

pub(super) async fn tail(args: TailArgs, session: &mut Session) -> Outcome {
    check(&args.query)?;
    let wanted = TailRequest { query: args.query, topics: topics(&args.topic) };
    tokio::select! {
        ended = follow(wanted, session) => ended,
        // Whoever follows ends it so; that's no failure.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

async fn follow(wanted: TailRequest, session: &mut Session) -> Outcome {
    let mut stream = client(session).tail(wanted).await?.into_inner();
    let mut lines = Lines::default();
    while let Some(some) = stream.message().await? {
        for text in &some.notes {
            note(&format!("logmesh: {text} (waiting for it)"), false);
        }
        for hit in &some.hits {
            lines.print(hit, &mut session.out)?;
        }
        session.out.flush()?;
        if some.skipped > 0 {
            note(&format!("logmesh: {} lines were left out: they come faster than they are read", some.skipped), false);
        }
    }
    Err(Failure::Gone("the server ended the tail; run it again to go on".to_owned()))
}

/// Prints hits in columns, which widen as longer names come.
#[derive(Default)]
pub(super) struct Lines {
    host: usize,
    file: usize,
}

/// Beyond this many characters a longer name doesn't widen its column.
const MAX_COLUMN: usize = 48;

impl Lines {
    pub(super) fn print(&mut self, hit: &Hit, out: &mut Output) -> Result<(), Failure> {
        if out.json {
            return Ok(out.json_text(&as_stored(hit)?)?);
        }
        let text = self.text(hit)?;
        Ok(out.line(&text)?)
    }

    /// The line of a hit.
    pub(super) fn text(&mut self, hit: &Hit) -> Result<String, Failure> {
        let document: Value = serde_json::from_str(&hit.document).map_err(|error| garbled(hit, &error.to_string()))?;
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or("-");
        let time = text("@timestamp");
        let host = text("host.name");
        let file = document.get("log.file.path").map_or_else(|| text("service.name"), |_| text("log.file.path"));
        self.host = self.host.max(host.chars().count().min(MAX_COLUMN));
        self.file = self.file.max(file.chars().count().min(MAX_COLUMN));
        let (host_width, file_width) = (self.host, self.file);
        Ok(format!("{time}  {host:host_width$}  {file:file_width$}  {}", text("message")))
    }
}

/// The document as it is stored, `_id` and `_topic` before its own fields. Its text isn't read and written anew, so that
/// no number changes.
fn as_stored(hit: &Hit) -> Result<String, Failure> {
    let rest = hit.document.trim().strip_prefix('{').ok_or_else(|| garbled(hit, "it is no JSON object"))?.trim_start();
    let separator = if rest.starts_with('}') { "" } else { "," };
    Ok(format!(
        "{{\"_id\":{},\"_topic\":{}{separator}{rest}",
        Value::from(hit.id.as_str()),
        Value::from(hit.topic.as_str())
    ))
}

fn garbled(hit: &Hit, why: &str) -> Failure {
    Failure::Garbled(format!("document {} of topic {}: {why}", hit.id, hit.topic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(document: &str) -> Hit {
        Hit { id: "x\"y".into(), topic: "t".into(), document: document.into() }
    }

    #[test]
    fn json_is_the_document_as_stored() {
        let text = as_stored(&hit(r#"{"n":12345678901234567890123,"message":"a"}"#)).unwrap();
        assert_eq!(text, r#"{"_id":"x\"y","_topic":"t","n":12345678901234567890123,"message":"a"}"#);
        assert_eq!(as_stored(&hit(" {} ")).unwrap(), r#"{"_id":"x\"y","_topic":"t"}"#);
        assert!(as_stored(&hit("7")).is_err());
    }

    #[test]
    fn hits_come_in_columns_and_cannot_steer_the_terminal() {
        let document =
            r#"{"@timestamp":"2026-01-31T12:00:00Z","host.name":"web-1","log.file.path":"/a","message":"x\u001b[2J"}"#;
        let (mut out, captured) = Output::captured(false, false);
        let mut lines = Lines::default();
        lines.print(&hit(document), &mut out).unwrap();
        lines
            .print(&hit(r#"{"@timestamp":"2026-01-31T12:00:01Z","service.name":"s","message":"y"}"#), &mut out)
            .unwrap();
        let expected = "2026-01-31T12:00:00Z  web-1  /a  x\\u{1b}[2J\n2026-01-31T12:00:01Z  -      s   y\n";
        assert_eq!(captured.text(), expected);

        let (mut out, captured) = Output::captured(true, true);
        Lines::default().print(&hit(document), &mut out).unwrap();
        assert!(captured.text().starts_with(r#"{"_id":"x\"y","_topic":"t","@timestamp""#));
    }

    #[test]
    fn values_come_in_columns_or_as_json() {
        let value = |value: &str, count| FacetValue { value: value.into(), count };
        let values = vec![value("web-1", 1234), value("a\u{1b}b", 7), value("", 1)];
        let facets = FacetsResponse { values, others: 0, error_bound: 0 };
        let (mut out, captured) = Output::captured(false, false);
        print_facets(&facets, &mut out).unwrap();
        assert_eq!(captured.text(), "COUNT  VALUE\n1234   web-1\n7      a\\u{1b}b\n1      \"\"\n");
        let (mut out, captured) = Output::captured(true, false);
        print_facets(&facets, &mut out).unwrap();
        assert!(captured.text().starts_with("{\"count\":1234,\"value\":\"web-1\"}\n"), "{}", captured.text());
        assert_eq!(captured.text().lines().count(), 3);
    }

    #[test]
    fn a_bad_query_is_shown_with_its_place() {
        let Err(Failure::Usage(text)) = check("level:error AND (") else { panic!("must be refused") };
        assert!(text.contains('^') && text.contains("level:error AND ("), "{text}");
        check("*").unwrap();
    }
}
