//! `deadletters list|redrive`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use logmesh_proto::time::unix_nanos;
use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{
    DeadLetter, DeadLetterGroup, ListDeadLettersRequest, RedriveDeadLettersRequest, RedriveDeadLettersResponse,
    SummarizeDeadLettersRequest,
};
use logmesh_types::TopicName;
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::Status;
use tonic::transport::Channel;

use super::failure::note;
use super::output::{bytes, time};
use super::{Failure, LIST_PAGE, Outcome, Session, request};

/// The largest page that is decoded, in bytes: a dead letter holds its whole event.
const MAX_PAGE_BYTES: usize = 64 << 20;

/// How long a redrive may go without a letter being done before it is given up. What was sent goes on by itself.
const STANDSTILL: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct DeadlettersArgs {
    #[command(subcommand)]
    command: DeadlettersCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DeadlettersCommand {
    /// Show the dead letters, topic by topic, oldest first
    List {
        /// Only those whose events were for this topic
        #[arg(long, value_name = "TOPIC")]
        topic: Option<TopicName>,
        /// Only those with this reason: a whole one, or one of the summary
        #[arg(long, value_name = "REASON", default_value = "", hide_default_value = true, conflicts_with = "summary")]
        reason: String,
        /// Count them by reason instead
        #[arg(long)]
        summary: bool,
    },
    /// Send dead letters through again; each stays one until its event is in the index. Exit 1: some were refused again,
    /// or there is none such
    Redrive {
        /// Those whose events were for this topic
        #[arg(long, value_name = "TOPIC")]
        topic: TopicName,
        /// Only those with this reason: a whole one, or one of the summary
        #[arg(long, value_name = "REASON", default_value = "", hide_default_value = true)]
        reason: String,
        /// Only the one with this document id; may be given more than once
        #[arg(long = "id", value_name = "ID", allow_hyphen_values = true)]
        ids: Vec<String>,
    },
}

type Client = TransferServiceClient<Channel>;

pub(super) async fn run(args: DeadlettersArgs, session: &mut Session) -> Outcome {
    let client = TransferServiceClient::new(session.channel.clone());
    let mut client = client.max_decoding_message_size(MAX_PAGE_BYTES);
    let name = |topic: Option<TopicName>| topic.map(|topic| topic.to_string()).unwrap_or_default();
    match args.command {
        DeadlettersCommand::List { topic, summary: true, .. } => summarize(&name(topic), &mut client, session).await,
        DeadlettersCommand::List { topic, reason, .. } => list(&name(topic), &reason, &mut client, session).await,
        DeadlettersCommand::Redrive { topic, reason, ids } => {
            let wanted = RedriveDeadLettersRequest { topic: topic.to_string(), reason, ids, page_token: String::new() };
            redrive(wanted, &mut client, session).await
        }
    }
}

async fn list(topic: &str, reason: &str, client: &mut Client, session: &mut Session) -> Outcome {
    let (mut page_token, mut empty) = (String::new(), true);
    loop {
        let (topic, reason) = (topic.to_owned(), reason.to_owned());
        let list = ListDeadLettersRequest { topic, page_size: LIST_PAGE, page_token, reason };
        let page = client.list_dead_letters(request(list)).await?.into_inner();
        for letter in &page.dead_letters {
            if session.out.json {
                session.out.json(&to_json(letter))?;
            } else {
                session.out.line(&to_line(letter))?;
            }
        }
        session.out.flush()?;
        empty &= page.dead_letters.is_empty();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if empty && !session.out.json {
        note(&format!("logmesh: {}", none(topic, if reason.is_empty() { "" } else { WITH_REASON })), false);
    }
    Ok(())
}

/// What a letter is that has the reason asked for.
const WITH_REASON: &str = " with this reason";

/// That there is no letter such as was asked for, of all topics if none is named.
fn none(topic: &str, such: &str) -> String {
    let who = if topic.is_empty() { "there is".to_owned() } else { format!("topic {topic} has") };
    format!("{who} no dead letter{such}")
}

async fn summarize(topic: &str, client: &mut Client, session: &mut Session) -> Outcome {
    let mut sum: BTreeMap<(String, String), DeadLetterGroup> = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let wanted = SummarizeDeadLettersRequest { topic: topic.to_owned(), page_token };
        let page = client.summarize_dead_letters(request(wanted)).await?.into_inner();
        for group in page.groups {
            let key = (group.topic.clone(), group.reason.clone());
            match sum.get_mut(&key) {
                Some(before) => add(before, group),
                None => drop(sum.insert(key, group)),
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if session.out.json {
        for group in sum.values() {
            session.out.json(&group_to_json(group))?;
        }
        return Ok(());
    }
    if sum.is_empty() {
        note(&format!("logmesh: {}", none(topic, "")), false);
        return Ok(());
    }
    let rows: Vec<[String; 5]> = sum.into_values().map(to_row).collect();
    session.out.table(["TOPIC", "LETTERS", "BYTES", "LAST", "REASON"], &rows)?;
    Ok(())
}

/// Adds what a later page says of the same topic and reason.
fn add(sum: &mut DeadLetterGroup, more: DeadLetterGroup) {
    let order = |time: &Timestamp| (time.seconds, time.nanos);
    sum.letters += more.letters;
    sum.bytes += more.bytes;
    sum.first_time = [sum.first_time, more.first_time].into_iter().flatten().min_by_key(order);
    sum.last_time = [sum.last_time, more.last_time].into_iter().flatten().max_by_key(order);
}

async fn redrive(mut wanted: RedriveDeadLettersRequest, client: &mut Client, session: &mut Session) -> Outcome {
    let mut moved = (Instant::now(), 0);
    let last = loop {
        let answer = client.redrive_dead_letters(request(wanted.clone())).await?.into_inner();
        wanted.page_token.clone_from(&answer.next_page_token);
        if wanted.page_token.is_empty() {
            break answer;
        }
        let done = answer.sent - answer.pending.min(answer.sent);
        if moved.1 != done || answer.pending == 0 {
            moved = (Instant::now(), done);
        } else if moved.0.elapsed() > STANDSTILL {
            show(&answer, session)?;
            let text = "transfer doesn't get on with the letters; they go through when it does: see logmesh status";
            return Err(Status::unavailable(text).into());
        }
    };
    if last.sent == 0 {
        let such = match (wanted.ids.is_empty(), wanted.reason.is_empty()) {
            (false, _) => " of those that were named",
            (true, false) => WITH_REASON,
            (true, true) => "",
        };
        let text = format!("{}: see logmesh deadletters list", none(&wanted.topic, such));
        return Err(Status::not_found(text).into());
    }
    show(&last, session)?;
    if last.refused == 0 { Ok(()) } else { Err(Failure::Wanting) }
}

fn show(answer: &RedriveDeadLettersResponse, session: &mut Session) -> Result<(), Failure> {
    if session.out.json {
        let refusals: Vec<Value> = answer
            .refusals
            .iter()
            .map(|refusal| json!({ "reason": refusal.reason, "letters": refusal.letters }))
            .collect();
        return Ok(session.out.json(&json!({
            "sent": answer.sent,
            "indexed": answer.indexed,
            "already_there": answer.already_there,
            "refused": answer.refused,
            "pending": answer.pending,
            "refusals": refusals,
        }))?);
    }
    let RedriveDeadLettersResponse { sent, indexed, already_there, refused, pending, .. } = answer;
    let mut line = format!("{sent} sent: {indexed} indexed, {already_there} already there, {refused} refused again");
    if *pending > 0 {
        line.push_str(&format!(", {pending} under way"));
    }
    session.out.line(&line)?;
    for refusal in &answer.refusals {
        session.out.line(&format!("  {}  {}", refusal.letters, refusal.reason))?;
    }
    Ok(())
}

fn said(time: Option<&Timestamp>) -> String {
    time.map_or("-".to_owned(), |time| unix_nanos(time).to_string())
}

fn to_row(group: DeadLetterGroup) -> [String; 5] {
    let last = said(group.last_time.as_ref());
    [group.topic, group.letters.to_string(), bytes(group.bytes), last, group.reason]
}

fn group_to_json(group: &DeadLetterGroup) -> Value {
    json!({
        "topic": group.topic,
        "reason": group.reason,
        "letters": group.letters,
        "bytes": group.bytes,
        "first_time": time(group.first_time.as_ref()),
        "last_time": time(group.last_time.as_ref()),
        "samples": group.samples.iter().map(to_json).collect::<Vec<_>>(),
    })
}

fn to_line(letter: &DeadLetter) -> String {
    let at = said(letter.time.as_ref());
    let place = match letter.stream_id.as_str() {
        "" => letter.id.clone(),
        stream => format!("{stream} [{}, {})", letter.start_offset, letter.end_offset),
    };
    format!("{at}  {}  {place}  {}", letter.topic, letter.reason)
}

/// The dead letter with its document as JSON, or as text where it is none.
fn to_json(letter: &DeadLetter) -> Value {
    let document = serde_json::from_slice(&letter.document)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&letter.document)));
    json!({
        "topic": letter.topic,
        "id": letter.id,
        "reason": letter.reason,
        "time": time(letter.time.as_ref()),
        "stream_id": letter.stream_id,
        "start_offset": letter.start_offset,
        "end_offset": letter.end_offset,
        "document": document,
    })
}
