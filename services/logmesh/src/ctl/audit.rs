//! `audit`: exits with 0 if nothing is missing and nothing is there twice, else with 1 and a list. `--repair` puts back what
//! still lies on the bus or in its file, removes copies from the index, and what counts is what is left.

mod known;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use logmesh_proto::audit::v1::audit_service_client::AuditServiceClient;
use logmesh_proto::audit::v1::{AuditFleetRequest, FindingCause, RepairRequest, StreamAudit, StreamKey, StreamRepair};
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_types::{AgentId, TopicName};
use tonic::Status;
use tonic::transport::Channel;

use super::agents::Unread;
use super::failure::note;
use super::output::{Output, bytes, count};
use super::{Failure, Outcome, Session, agents, request_within};
use known::Known;

/// Streams asked for at a time; those with faults are compared document by document.
const PAGE: i32 = 500;

/// Streams repaired at a time, the most that a console takes: it reads the bus once for them.
const REPAIRED: usize = 1_000;

/// How often a stream is repaired that has more faults than one repair mends: a million gaps, ten million copies.
const MAX_ROUNDS: usize = 100;

/// The most agents that are named in a line.
const NAMED: usize = 10;

/// How long a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How long it may take if all files of an index are read for it.
const THOROUGH_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// How long a repair may take: it may read all that the bus holds.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

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
    /// Put what is missing back: send it through the bus again; what the bus no longer holds is read from its file again. And
    /// remove copies of documents from the index
    #[arg(long)]
    repair: bool,
    /// Show every stream in a table: how far it is read, acked, indexed, and what was rejected
    #[arg(long)]
    streams: bool,
    /// Compare every document's range, also of streams whose sums are right. What documents say is never compared: one that was
    /// overwritten under its own id isn't noticed
    #[arg(long)]
    thorough: bool,
    /// Exit with 1 also if events that were audited lie in the dead letters, and so not in the index
    #[arg(long)]
    no_dead_letters: bool,
    /// Losses at the source that this file lists don't count: what an earlier `audit --json` printed
    #[arg(long, value_name = "FILE")]
    known_losses: Option<PathBuf>,
}

type Client = AuditServiceClient<Channel>;

/// A stream to show.
struct Shown {
    audit: StreamAudit,
    /// Findings that count.
    faulty: usize,
    /// Losses at the source that are known.
    known: usize,
    repaired: StreamRepair,
}

/// What was found in all.
#[derive(Default)]
struct Sum {
    known: Known,
    streams: u64,
    faulty: u64,
    gaps: u64,
    /// Gaps whose bytes were gone before the agent could collect them.
    lost_at_source: u64,
    /// Those of them that are known, which aren't gaps any more.
    known_losses: u64,
    doubles: u64,
    /// Streams that no connected agent reports.
    unreported: u64,
    documents: u64,
    on_its_way: u64,
    dead_letters: u64,
    retired: u64,
    /// Files that rules match and agents don't read.
    unread: u64,
    /// Config services that didn't answer.
    silent: BTreeSet<String>,
    /// Agents, connected and not, of which it isn't known what they collect.
    untold: Vec<String>,
    untold_offline: Vec<String>,
    /// Topics that couldn't be audited, and why.
    unaudited: BTreeMap<String, String>,
    /// Why there is nothing to audit, where that's known.
    idle: Option<&'static str>,
    repaired_events: u64,
    repaired_bytes: u64,
    file_events: u64,
    file_bytes: u64,
    removed: u64,
}

pub(super) async fn run(args: AuditArgs, session: &mut Session) -> Outcome {
    let mut client = AuditServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_PAGE_BYTES);
    let mut wanted = AuditFleetRequest {
        topic: args.topic.map(|topic| topic.to_string()).unwrap_or_default(),
        agent_id: args.agent.map(|agent| agent.to_string()).unwrap_or_default(),
        page_size: PAGE,
        page_token: String::new(),
        thorough: args.thorough,
    };
    let timeout = if args.thorough { THOROUGH_TIMEOUT } else { PAGE_TIMEOUT };
    let nothing = nothing_matches(&wanted);
    let known = args.known_losses.as_deref().map(Known::read).transpose()?.unwrap_or_default();
    let mut sum = Sum { known, ..Sum::default() };
    let mut broken = Vec::new();
    loop {
        let page = client.audit_fleet(request_within(timeout, wanted.clone())).await?.into_inner();
        let mut shown = Vec::new();
        for audit in page.streams {
            match args.repair && is_repairable(&audit) {
                true => broken.push(StreamKey { topic: audit.topic, stream_id: audit.stream_id }),
                false => shown.push(sum.add(StreamRepair { audit: Some(audit), ..StreamRepair::default() })),
            }
        }
        sum.silent.extend(page.unreachable_servers);
        sum.untold.extend(page.untold_agents);
        sum.untold_offline.extend(page.untold_offline_agents);
        sum.unaudited.extend(page.unaudited_topics);
        show(&shown, &sum, args.streams, &mut session.out)?;
        wanted.page_token = page.next_page_token;
        if wanted.page_token.is_empty() {
            break;
        }
    }
    for streams in broken.chunks(REPAIRED) {
        let repaired = repair(&mut client, streams, &mut sum.silent).await?;
        let shown: Vec<Shown> = repaired.into_iter().map(|one| sum.add(one)).collect();
        show(&shown, &sum, args.streams, &mut session.out)?;
    }
    look_at_agents(&wanted, session, &mut sum).await;
    conclude(&sum, nothing, args.no_dead_letters, &mut session.out)
}

/// Notes what no audit of streams tells: files that rules match and agents don't read, and why there may be no stream at all.
/// Nothing if agents can't be asked, or a topic was asked for.
async fn look_at_agents(wanted: &AuditFleetRequest, session: &Session, sum: &mut Sum) {
    if session.out.json || !wanted.topic.is_empty() {
        return;
    }
    let Ok(mut agents) = agents::all(&mut FleetServiceClient::new(session.channel.clone())).await else { return };
    agents.retain(|agent| wanted.agent_id.is_empty() || agent.id == wanted.agent_id);
    sum.unread = Unread::of_agents(&agents).files;
    sum.idle = match &agents[..] {
        [] => Some("no agent is known"),
        all if all.iter().all(|agent| agent.rules.is_empty()) => Some("no rule is for an agent"),
        _ => None,
    };
}

/// True if something of the stream is missing that isn't gone for good, or is twice in one topic.
fn is_repairable(audit: &StreamAudit) -> bool {
    audit.gaps.iter().any(|gap| !gap.lost_at_source && !gap.off_bus)
        || audit.doubles.iter().any(|double| double.cause() != FindingCause::OtherTopic)
}

/// Repairs streams until a repair finds nothing more to do: one mends a bounded number of ranges.
async fn repair(
    client: &mut Client,
    streams: &[StreamKey],
    silent: &mut BTreeSet<String>,
) -> Result<Vec<StreamRepair>, Failure> {
    let mut done: Vec<StreamRepair> = vec![StreamRepair::default(); streams.len()];
    let mut left: Vec<usize> = (0..streams.len()).collect();
    for _ in 0..MAX_ROUNDS {
        if left.is_empty() {
            break;
        }
        let asked = RepairRequest { streams: left.iter().map(|place| streams[*place].clone()).collect() };
        let answer = client.repair(request_within(REPAIR_TIMEOUT, asked)).await?.into_inner();
        if answer.streams.len() != left.len() {
            return Err(Failure::Garbled("a repair was answered for other streams than were named".to_owned()));
        }
        silent.extend(answer.unreachable_servers);
        let mut again = Vec::new();
        for (place, answered) in left.into_iter().zip(answer.streams) {
            let one = &mut done[place];
            let more = answered.again && answered.events + answered.file_events + answered.removed_documents > 0;
            (one.events, one.bytes) = (one.events + answered.events, one.bytes + answered.bytes);
            one.file_events += answered.file_events;
            one.file_bytes += answered.file_bytes;
            one.ranges.extend(answered.ranges);
            one.removed_documents += answered.removed_documents;
            one.removed.extend(answered.removed);
            one.audit = answered.audit;
            again.extend(more.then_some(place));
        }
        left = again;
    }
    Ok(done)
}

fn show(streams: &[Shown], sum: &Sum, all: bool, out: &mut Output) -> Result<(), Failure> {
    if out.json {
        streams.iter().try_for_each(|stream| out.json(&show::to_json(stream, sum)))?;
        return out.flush();
    }
    if all && !streams.is_empty() {
        show::table(streams, out)?;
    }
    streams.iter().try_for_each(|stream| show::faults(stream, out))?;
    out.flush()
}

/// Shows the sum and judges it, with `strict` the dead letters too. `nothing` is what to say where no stream was found.
fn conclude(sum: &Sum, nothing: Option<String>, strict: bool, out: &mut Output) -> Outcome {
    let doubts = sum.doubts();
    // A misspelt name must not look like a proof. That a topic wasn't audited is told below instead: what was asked for is in it.
    if let (0, true, Some(text)) = (sum.streams, sum.unaudited.is_empty(), nothing) {
        return Err(match doubts.is_empty() {
            true => Status::not_found(text).into(),
            false => Status::unavailable(format!("{text}; but {}", doubts.join("; "))).into(),
        });
    }
    if !out.json {
        out.line(&sum.to_line())?;
    }
    doubts
        .iter()
        .for_each(|doubt| note(&format!("logmesh: {doubt}: this proves nothing of what only they know"), false));
    for (topic, why) in &sum.unaudited {
        note(&format!("logmesh: topic {topic} was not audited: {why}"), false);
    }
    let letters = strict && sum.dead_letters > 0;
    if sum.faulty == 0 && !letters && sum.is_proof() { Ok(()) } else { Err(Failure::Wanting) }
}

/// `web-1, web-2, web-3 and 4 more`.
fn named(agents: &[String]) -> String {
    let names = agents.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match agents.len().saturating_sub(NAMED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
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
    fn add(&mut self, mut one: StreamRepair) -> Shown {
        let audit = one.audit.take().unwrap_or_default();
        let known = audit.gaps.iter().filter(|gap| self.known.holds(&audit.stream_id, gap)).count();
        let faulty = audit.gaps.len() + audit.doubles.len() - known;
        let lost = audit.gaps.iter().filter(|gap| gap.lost_at_source).count() - known;
        self.streams += 1;
        self.faulty += u64::from(faulty > 0);
        self.gaps += (audit.gaps.len() - known) as u64;
        self.lost_at_source += lost as u64;
        self.known_losses += known as u64;
        self.doubles += audit.doubles.len() as u64;
        self.unreported += u64::from(!audit.agent_reported);
        self.documents += audit.documents;
        self.on_its_way += audit.on_its_way_bytes;
        self.dead_letters += audit.dead_letter_bytes;
        self.retired += audit.retired_bytes;
        self.repaired_events += one.events;
        self.repaired_bytes += one.bytes;
        self.file_events += one.file_events;
        self.file_bytes += one.file_bytes;
        self.removed += one.removed_documents;
        Shown { audit, faulty, known, repaired: one }
    }

    /// Why nothing is proved, although nothing was found: whose word is missing.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        doubts.extend(agents::silence(&self.silent));
        if !self.untold.is_empty() {
            doubts.push(format!("agents that have not said yet what their rules collect: {}", named(&self.untold)));
        }
        // Where books know streams, agents that are gone for good aren't waited for.
        if !self.untold_offline.is_empty() && self.streams == 0 {
            doubts.push(format!(
                "agents that are not connected, and have not said what their rules collect: {}",
                named(&self.untold_offline)
            ));
        }
        doubts
    }

    /// False if something wasn't audited, or somebody's word is missing.
    fn is_proof(&self) -> bool {
        self.unaudited.is_empty() && self.doubts().is_empty()
    }

    fn to_line(&self) -> String {
        let audited = format!("{}, {}", count(self.streams, "stream"), count(self.documents, "document"));
        let mut line = match self.faulty {
            0 if self.streams == 0 && !self.is_proof() => "0 streams: nothing was audited".to_owned(),
            0 => format!("{audited}: no gap, no double"),
            faulty => {
                let at_source = match self.lost_at_source {
                    0 => String::new(),
                    lost => format!(" ({lost} lost at the source)"),
                };
                let [faulty, gaps, doubles] = [(faulty, "stream"), (self.gaps, "gap"), (self.doubles, "double")]
                    .map(|(number, noun)| count(number, noun));
                format!("{audited}: {faulty} with faults, {gaps}{at_source}, {doubles}")
            }
        };
        for (events, size, how) in [
            (self.repaired_events, self.repaired_bytes, show::FROM_BUS),
            (self.file_events, self.file_bytes, show::FROM_FILE),
        ] {
            if events > 0 {
                line.push_str(&format!("; {}, {}, {how}", count(events, "event"), bytes(size)));
            }
        }
        if self.removed > 0 {
            line.push_str(&format!("; {} {}", count(self.removed, "copy"), show::REMOVED));
        }
        let apart = [
            (self.on_its_way, "on their way"),
            (self.dead_letters, "in the dead letters"),
            (self.retired, "retired with their days"),
        ];
        for (size, what) in apart {
            if size > 0 {
                line.push_str(&format!("; {} {what}", bytes(size)));
            }
        }
        if self.known_losses > 0 {
            line.push_str(&format!("; {} known losses at the source", self.known_losses));
        }
        if self.unreported > 0 {
            let streams = count(self.unreported, "stream");
            line.push_str(&format!("; {streams} not reported by a connected agent, checked by what is booked"));
        }
        if !self.untold_offline.is_empty() {
            let names = named(&self.untold_offline);
            line.push_str(&format!("; not connected, and not heard of since config began: {names}"));
        }
        if let (0, Some(idle)) = (self.streams, self.idle) {
            line.push_str(&format!("; {idle}"));
        }
        if self.unread > 0 {
            line.push_str(&format!(
                "; {} match rules and aren't read: `logmesh rules status` says why",
                count(self.unread, "file")
            ));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use logmesh_proto::audit::v1::{Finding, RangeRemoval};

    use super::*;

    fn conclusion(streams: &[StreamAudit], topic: &str, agent: &str) -> (Outcome, String) {
        let wanted = AuditFleetRequest { topic: topic.into(), agent_id: agent.into(), ..Default::default() };
        let mut sum = Sum::default();
        for audit in streams {
            sum.add(StreamRepair { audit: Some(audit.clone()), ..StreamRepair::default() });
        }
        let (mut out, captured) = Output::captured(false, false);
        let outcome = conclude(&sum, nothing_matches(&wanted), false, &mut out);
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
        let untold = StreamAudit { agent_reported: false, retired_bytes: 30, ..told.clone() };
        let (outcome, text) = conclusion(&[told.clone(), untold], "", "");
        assert!(text.contains("; 30 B retired with their days;"), "{text}");
        assert!(outcome.is_ok() && text.contains("; 1 stream not reported by a connected agent"), "{text}");
        assert!(!conclusion(&[told], "", "").1.contains("not reported"));
    }

    #[test]
    fn dead_letters_and_files_that_are_not_read_are_told_and_fail_it_where_asked() {
        let audit = StreamAudit { clean: true, agent_reported: true, dead_letter_bytes: 9, ..StreamAudit::default() };
        let mut sum = Sum { unread: 2, ..Sum::default() };
        sum.add(StreamRepair { audit: Some(audit), ..StreamRepair::default() });
        let (mut out, captured) = Output::captured(false, false);
        assert!(conclude(&sum, None, false, &mut out).is_ok());
        assert!(matches!(conclude(&sum, None, true, &mut out), Err(Failure::Wanting)));
        assert!(
            captured.text().contains("; 9 B in the dead letters; 2 files match rules and aren't read"),
            "{}",
            captured.text()
        );
        assert!(conclude(&Sum::default(), None, true, &mut out).is_ok());
    }

    #[test]
    fn an_audit_without_all_config_services_proves_nothing() {
        let mut sum = Sum { silent: ["config-2".to_owned()].into(), ..Sum::default() };
        let (mut out, _) = Output::captured(false, false);
        let missing = conclude(&sum, Some("no such agent".to_owned()), false, &mut out);
        assert!(matches!(&missing, Err(Failure::Call(status)) if status.message().contains("config-2")), "{missing:?}");
        let clean = StreamAudit { clean: true, agent_reported: true, ..StreamAudit::default() };
        sum.add(StreamRepair { audit: Some(clean), ..StreamRepair::default() });
        assert!(matches!(conclude(&sum, None, false, &mut out), Err(Failure::Wanting)));
    }

    #[test]
    fn an_audit_without_the_word_of_agents_proves_nothing() {
        let concluded = |sum: &Sum| {
            let (mut out, captured) = Output::captured(false, false);
            (conclude(sum, None, false, &mut out), captured.text())
        };
        let untold = Sum { untold: vec!["web-1".into()], ..Sum::default() };
        let (outcome, text) = concluded(&untold);
        assert!(matches!(outcome, Err(Failure::Wanting)) && !text.contains("no gap"), "{text}");
        assert!(untold.doubts()[0].ends_with("collect: web-1"), "{:?}", untold.doubts());

        let mut offline = Sum { untold_offline: vec!["web-2".into()], ..Sum::default() };
        let (outcome, text) = concluded(&offline);
        assert!(matches!(outcome, Err(Failure::Wanting)) && text.contains("config began: web-2"), "{text}");
        let clean = StreamAudit { clean: true, ..StreamAudit::default() };
        offline.add(StreamRepair { audit: Some(clean), ..StreamRepair::default() });
        let (outcome, text) = concluded(&offline);
        assert!(outcome.is_ok() && text.contains("config began: web-2"), "its books were audited: {text}");

        let (outcome, text) = concluded(&Sum { idle: Some("no agent is known"), ..Sum::default() });
        assert!(outcome.is_ok() && text.contains("no gap, no double; no agent is known"), "{text}");
    }

    #[test]
    fn a_topic_that_was_not_audited_is_not_proved() {
        let unaudited = [("conf".to_owned(), "its index is a stranger's".to_owned())].into();
        let mut sum = Sum { unaudited, ..Sum::default() };
        let (mut out, captured) = Output::captured(false, false);
        let alone = conclude(&sum, Some("no such agent".to_owned()), false, &mut out);
        assert!(matches!(alone, Err(Failure::Wanting)), "the agent is known, its topic was not audited: {alone:?}");
        let clean = StreamAudit { clean: true, ..StreamAudit::default() };
        sum.add(StreamRepair { audit: Some(clean), ..StreamRepair::default() });
        assert!(matches!(conclude(&sum, None, false, &mut out), Err(Failure::Wanting)), "{}", captured.text());
    }

    #[test]
    fn a_finding_without_a_range_is_a_place() {
        let (start_offset, end_offset, lost_at_source) = (15, 15, true);
        let lost = Finding {
            start_offset,
            end_offset,
            detail: "7 bytes were gone".into(),
            lost_at_source,
            ..Finding::default()
        };
        let stream = StreamAudit { gaps: vec![lost], ..StreamAudit::default() };
        let (mut out, captured) = Output::captured(false, false);
        let mut sum = Sum::default();
        let shown = sum.add(StreamRepair {
            audit: Some(stream.clone()),
            events: 3,
            bytes: 30,
            file_events: 2,
            file_bytes: 20,
            removed_documents: 4,
            removed: vec![RangeRemoval {
                end_offset: 15,
                documents: 4,
                slice: "2026-02-01".into(),
                ..Default::default()
            }],
            ..StreamRepair::default()
        });
        show(&[shown], &sum, true, &mut out).unwrap();
        let text = captured.text();
        assert!(text.contains("gap     at 15  7 bytes were gone"), "{text}");
        assert!(text.contains("3 events, 30 B, sent") && text.starts_with("TOPIC"), "{text}");
        assert!(sum.to_line().contains("3 events, 30 B, sent"), "{}", sum.to_line());
        assert!(text.contains("removed  [0, 15)  4 copies, from 2026-02-01\n"), "{text}");
        assert!(sum.to_line().contains("4 copies removed from the index"), "{}", sum.to_line());
        assert!(sum.to_line().contains("2 events, 20 B, read from the file"), "{}", sum.to_line());
        let (outcome, text) = conclusion(&[stream], "", "");
        assert!(outcome.is_err() && text.contains("1 gap (1 lost at the source), 0 doubles"), "{text}");
    }
}
