//! `transfer pause|resume`.

use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{PauseRequest, ResumeRequest};
use logmesh_types::TopicName;
use serde_json::json;

use super::{Outcome, Session, request};

/// What can be said to all transfer workers of a mesh.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum TransferCommand {
    /// Hold the way from the bus to the index, for all workers, until it is resumed; the bus fills meanwhile
    Pause {
        /// Only of this topic
        #[arg(long, value_name = "TOPIC")]
        topic: Option<TopicName>,
    },
    /// Go on with what was paused, where it was
    Resume {
        /// Only with this topic
        #[arg(long, value_name = "TOPIC")]
        topic: Option<TopicName>,
    },
}

pub(super) async fn run(command: TransferCommand, session: &mut Session) -> Outcome {
    let mut client = TransferServiceClient::new(session.channel.clone());
    let named = |topic: Option<TopicName>| topic.map(|topic| topic.to_string()).unwrap_or_default();
    let resumed = match &command {
        TransferCommand::Resume { topic: Some(topic) } => Some(topic.clone()),
        _ => None,
    };
    let (all, topics) = match command {
        TransferCommand::Pause { topic } => {
            let paused = client.pause(request(PauseRequest { topic: named(topic) })).await?.into_inner();
            (paused.all, paused.topics)
        }
        TransferCommand::Resume { topic } => {
            let resumed = client.resume(request(ResumeRequest { topic: named(topic) })).await?.into_inner();
            (resumed.all, resumed.topics)
        }
    };
    if session.out.json {
        return Ok(session.out.json(&json!({"all": all, "topics": topics}))?);
    }
    let line = match (all, topics.as_slice()) {
        (true, _) => "all topics are paused".to_owned(),
        (false, []) => "nothing is paused".to_owned(),
        (false, topics) => {
            let goes_on = resumed.map(|topic| format!("{topic} isn't paused; ")).unwrap_or_default();
            format!("{goes_on}paused: {}", topics.join(" "))
        }
    };
    Ok(session.out.line(&line)?)
}
