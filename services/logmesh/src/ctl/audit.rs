//! `audit`: exits with 0 if nothing is missing and nothing is there twice, else with 1 and a list.

use std::collections::BTreeSet;
use std::time::Duration;

use logmesh_proto::audit::v1::audit_service_client::AuditServiceClient;
use logmesh_proto::audit::v1::{AuditFleetRequest, Finding, StreamAudit};
use logmesh_types::{AgentId, TopicName};
use serde_json::{Value, json};
use tonic::Status;

use super::failure::note;
use super::output::{Output, bytes};
use super::{Failure, Outcome, Session, agents, request_within};

/// Streams asked for at a time; each is compared document by document.
const PAGE: i32 = 500;

/// How long a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The largest page that is decoded, in bytes: each stream lists up to 200 findings.
const MAX_PAGE_BYTES: usize = 64 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    /// Only streams of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<TopicName>,
    /// Only streams of this agent
    #[arg(long, value_name = "ID")]
    agent: Option<AgentId>,
}

/// What was found in all.
#[derive(Default)]
struct Sum {
    streams: u64,
    faulty: u64,
    gaps: u64,
    /// Gaps whose bytes were gone before the agent could collect them.
    lost_at_source: u64,
    doubles: u64,
    /// Streams that no connected agent reports.
    unreported: u64,
    documents: u64,
    on_its_way: u64,
    dead_letters: u64,
    /// Config services that didn't answer.
    silent: BTreeSet<String>,
}

pub(super) async fn run(args: AuditArgs, session: &mut Session) -> Outcome {
    let mut client = AuditServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_PAGE_BYTES);
    let mut wanted = AuditFleetRequest {
        topic: args.topic.map(|topic| topic.to_string()).unwrap_or_default(),
        agent_id: args.agent.map(|agent| agent.to_string()).unwrap_or_default(),
        page_size: PAGE,
        page_token: String::new(),
    };
    let nothing = nothing_matches(&wanted);
    let mut sum = Sum::default();
    loop {
        let page = client.audit_fleet(request_within(PAGE_TIMEOUT, wanted.clone())).await?.into_inner();
        for stream in &page.streams {
            sum.add(stream);
            show(stream, &mut session.out)?;
        }
        sum.silent.extend(page.unreachable_servers);
        session.out.flush()?;
        wanted.page_token = page.next_page_token;
        if wanted.page_token.is_empty() {
            break;
        }
    }
    conclude(&sum, nothing, &mut session.out)
}

/// Shows the sum and judges it. `nothing` is what to say where no stream was found.
fn conclude(sum: &Sum, nothing: Option<String>, out: &mut Output) -> Outcome {
    // A misspelt name must not look like a proof.
    if let (0, Some(text)) = (sum.streams, nothing) {
        return Err(match agents::silence(&sum.silent) {
            None => Status::not_found(text).into(),
            Some(silent) => Status::unavailable(format!("{text}; but {silent}")).into(),
        });
    }
    if !out.json {
        out.line(&sum.to_line())?;
    }
    if let Some(silent) = agents::silence(&sum.silent) {
        note(&format!("logmesh: {silent}: this proves nothing of the agents that are connected to them"), false);
        return Err(Failure::Wanting);
    }
    if sum.faulty == 0 { Ok(()) } else { Err(Failure::Wanting) }
}

/// What it means that no stream was found; `None` if all were asked for: an empty mesh is in order.
fn nothing_matches(wanted: &AuditFleetRequest) -> Option<String> {
    match (wanted.topic.as_str(), wanted.agent_id.as_str()) {
        ("", "") => None,
        (topic, "") => Some(format!("no such topic is known, or it has no stream yet: {topic}")),
        ("", agent) => Some(format!("no such agent is known, or it has no stream yet: {agent}")),
        (topic, agent) => {
            Some(format!("no such agent or topic is known, or agent {agent} has no stream in topic {topic}"))
        }
    }
}

impl Sum {
    fn add(&mut self, stream: &StreamAudit) {
        self.streams += 1;
        self.faulty += u64::from(!stream.clean);
        self.gaps += stream.gaps.len() as u64;
        self.lost_at_source += stream.gaps.iter().filter(|gap| gap.lost_at_source).count() as u64;
        self.doubles += stream.doubles.len() as u64;
        self.unreported += u64::from(!stream.agent_reported);
        self.documents += stream.documents;
        self.on_its_way += stream.on_its_way_bytes;
        self.dead_letters += stream.dead_letter_bytes;
    }

    fn to_line(&self) -> String {
        let mut line = match self.faulty {
            0 => format!("{} streams, {} documents: no gap, no double", self.streams, self.documents),
            faulty => {
                let at_source = match self.lost_at_source {
                    0 => String::new(),
                    lost => format!(" ({lost} lost at the source)"),
                };
                format!(
                    "{} streams, {} documents: {faulty} streams with faults, {} gaps{at_source}, {} doubles",
                    self.streams, self.documents, self.gaps, self.doubles
                )
            }
        };
        for (count, what) in [(self.on_its_way, "on their way"), (self.dead_letters, "in the dead letters")] {
            if count > 0 {
                line.push_str(&format!("; {} {what}", bytes(count)));
            }
        }
        if self.unreported > 0 {
            let count = self.unreported;
            line.push_str(&format!("; {count} streams not reported by a connected agent, checked by what is booked"));
        }
        line
    }
}

/// One JSON document for each stream; for people only what is wrong.
fn show(stream: &StreamAudit, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        return Ok(out.json(&to_json(stream))?);
    }
    if stream.clean {
        return Ok(());
    }
    out.line(&format!("{}  {}  {}  {}", stream.topic, stream.stream_id, stream.agent_id, stream.path))?;
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

fn to_json(stream: &StreamAudit) -> Value {
    json!({
        "stream_id": stream.stream_id,
        "topic": stream.topic,
        "agent_id": stream.agent_id,
        "path": stream.path,
        "start_offset": stream.start_offset,
        "size": stream.size,
        "read_offset": stream.read_offset,
        "acked_offset": stream.acked_offset,
        "indexed_offset": stream.indexed_offset,
        "documents": stream.documents,
        "on_its_way_bytes": stream.on_its_way_bytes,
        "dead_letter_bytes": stream.dead_letter_bytes,
        "gaps": stream.gaps.iter().map(finding).collect::<Vec<_>>(),
        "doubles": stream.doubles.iter().map(finding).collect::<Vec<_>>(),
        "clean": stream.clean,
        "agent_reported": stream.agent_reported,
    })
}

fn finding(one: &Finding) -> Value {
    json!({
        "start_offset": one.start_offset,
        "end_offset": one.end_offset,
        "detail": one.detail,
        "lost_at_source": one.lost_at_source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conclusion(streams: &[StreamAudit], topic: &str, agent: &str) -> (Outcome, String) {
        let wanted = AuditFleetRequest { topic: topic.into(), agent_id: agent.into(), ..Default::default() };
        let mut sum = Sum::default();
        streams.iter().for_each(|stream| sum.add(stream));
        let (mut out, captured) = Output::captured(false, false);
        let outcome = conclude(&sum, nothing_matches(&wanted), &mut out);
        (outcome, captured.text())
    }

    #[test]
    fn a_filter_that_matches_nothing_is_no_proof() {
        let (outcome, text) = conclusion(&[], "", "");
        assert!(outcome.is_ok() && text.starts_with("0 streams"), "{text}");
        for (topic, agent, said) in [
            ("nope", "", "no such topic is known"),
            ("", "nobody", "no such agent is known"),
            ("a", "b", "no such agent"),
        ] {
            let (outcome, text) = conclusion(&[], topic, agent);
            assert_eq!(text, "");
            assert!(matches!(&outcome, Err(Failure::Call(status)) if status.message().contains(said)), "{outcome:?}");
        }
    }

    #[test]
    fn streams_without_their_agents_word_are_counted() {
        let told = StreamAudit { clean: true, agent_reported: true, ..StreamAudit::default() };
        let untold = StreamAudit { agent_reported: false, ..told.clone() };
        let (outcome, text) = conclusion(&[told.clone(), untold], "", "");
        assert!(outcome.is_ok() && text.contains("; 1 streams not reported by a connected agent"), "{text}");
        assert!(!conclusion(&[told], "", "").1.contains("not reported"));
    }

    #[test]
    fn an_audit_without_all_config_services_proves_nothing() {
        let mut sum = Sum { silent: ["config-2".to_owned()].into(), ..Sum::default() };
        let (mut out, _) = Output::captured(false, false);
        let missing = conclude(&sum, Some("no such agent".to_owned()), &mut out);
        assert!(matches!(&missing, Err(Failure::Call(status)) if status.message().contains("config-2")), "{missing:?}");
        sum.add(&StreamAudit { clean: true, agent_reported: true, ..StreamAudit::default() });
        assert!(matches!(conclude(&sum, None, &mut out), Err(Failure::Wanting)));
    }

    #[test]
    fn a_finding_without_a_range_is_a_place() {
        let lost =
            Finding { start_offset: 15, end_offset: 15, detail: "7 bytes were gone".into(), lost_at_source: true };
        let stream = StreamAudit { gaps: vec![lost], ..StreamAudit::default() };
        let (mut out, captured) = Output::captured(false, false);
        show(&stream, &mut out).unwrap();
        assert!(captured.text().contains("gap     at 15  7 bytes were gone"), "{}", captured.text());
        let (outcome, text) = conclusion(&[stream], "", "");
        assert!(outcome.is_err() && text.contains("1 gaps (1 lost at the source), 0 doubles"), "{text}");
    }
}
