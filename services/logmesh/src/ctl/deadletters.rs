//! `deadletters list`.

use std::collections::BTreeSet;

use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{DeadLetter, GetStatusRequest, ListDeadLettersRequest};
use logmesh_types::TopicName;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::output::time;
use super::{LIST_PAGE, Outcome, Session, request};

/// The largest page that is decoded, in bytes: a dead letter holds its whole event.
const MAX_PAGE_BYTES: usize = 64 << 20;

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
    },
}

pub(super) async fn run(args: DeadlettersArgs, session: &mut Session) -> Outcome {
    let DeadlettersCommand::List { topic } = args.command;
    let client = TransferServiceClient::new(session.channel.clone());
    let mut client = client.max_decoding_message_size(MAX_PAGE_BYTES);
    let topics = match topic {
        Some(topic) => BTreeSet::from([topic.to_string()]),
        None => {
            let status = client.get_status(request(GetStatusRequest {})).await?.into_inner();
            status.partitions.into_iter().map(|partition| partition.topic).collect()
        }
    };
    for topic in topics {
        list(&topic, &mut client, session).await?;
    }
    Ok(())
}

async fn list(topic: &str, client: &mut TransferServiceClient<Channel>, session: &mut Session) -> Outcome {
    let mut page_token = String::new();
    loop {
        let list = ListDeadLettersRequest { topic: topic.to_owned(), page_size: LIST_PAGE, page_token };
        let page = client.list_dead_letters(request(list)).await?.into_inner();
        for letter in &page.dead_letters {
            if session.out.json {
                session.out.json(&to_json(letter))?;
            } else {
                session.out.line(&to_line(letter))?;
            }
        }
        session.out.flush()?;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

fn to_line(letter: &DeadLetter) -> String {
    let at = letter.time.as_ref().map_or("-".to_owned(), |time| logmesh_proto::time::unix_nanos(time).to_string());
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
