//! Commands to connected agents: each a message that is told once, answered by a call of its own.
//!
//! Nothing is kept of a command but who waits for its answer. An agent that is away, takes no messages, or is of a version
//! that doesn't know the command is a reason in words, never a caller that hangs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logmesh_grpc::not_found;
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{AnswerCommandRequest, Command};
use logmesh_types::AgentId;
use rand::Rng;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::registry::Registry;
use super::report::cut;
use crate::limits::{COMMANDS_AT_A_TIME, MAX_REPORT_TEXT_BYTES};

/// Asks agents that are connected here. Clones share what waits.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    registry: Registry,
    waiting: Arc<Mutex<HashMap<String, Waiting>>>,
    room: Arc<Semaphore>,
}

/// Who waits for an answer.
#[derive(Debug)]
struct Waiting {
    agent: AgentId,
    answer: oneshot::Sender<AnswerCommandRequest>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// The agent is there and takes no command now: it may be asked again.
    pub(crate) busy: bool,
    /// In words.
    pub(crate) why: String,
}

impl NoAnswer {
    fn of(why: impl Into<String>) -> Self {
        Self { busy: false, why: why.into() }
    }
}

/// Takes a command that nobody waits for any more out of those that wait.
struct Forget<'a>(&'a Commands, String);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}

impl Commands {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, waiting: Arc::default(), room: Arc::new(Semaphore::new(COMMANDS_AT_A_TIME)) }
    }

    /// What an agent answers until then.
    pub(crate) async fn ask(&self, agent: &AgentId, kind: Kind, until: Instant) -> Result<Answer, NoAnswer> {
        let busy = |why| NoAnswer { busy: true, why };
        let Ok(Ok(_room)) = timeout_at(until, self.room.acquire()).await else {
            return Err(busy(format!("{COMMANDS_AT_A_TIME} other agents were being asked all the time")));
        };
        // Nobody else can answer what can't be guessed.
        let id = format!("{:032x}", rand::rng().random::<u128>());
        let (answer, answered) = oneshot::channel();
        self.waiting().insert(id.clone(), Waiting { agent: agent.clone(), answer });
        let _forget = Forget(self, id.clone());
        let told = self.registry.tell(agent, Update::Command(Command { id, kind: Some(kind) }));
        told.map_err(|status| match status.code() {
            Code::ResourceExhausted => busy(logmesh_grpc::describe(&status)),
            _ => NoAnswer::of(logmesh_grpc::describe(&status)),
        })?;
        let answer = timeout_at(until, answered).await.map_err(|_| NoAnswer::of("it did not answer in time"))?;
        let AnswerCommandRequest { answer, error, .. } = answer.map_err(|_| NoAnswer::of("it did not answer"))?;
        match answer {
            Some(answer) if error.is_empty() => Ok(answer),
            None if error.is_empty() => Err(NoAnswer::of("its answer is empty")),
            _ => Err(NoAnswer::of(error)),
        }
    }

    /// Takes an agent's answer in.
    pub(crate) fn answer(&self, mut answer: AnswerCommandRequest) -> Result<(), Status> {
        cut(&mut answer.error, MAX_REPORT_TEXT_BYTES);
        let mut waiting = self.waiting();
        let known = waiting.get(&answer.command_id).is_some_and(|one| one.agent.as_str() == answer.agent_id);
        let waits = if known { waiting.remove(&answer.command_id) } else { None };
        let late = || not_found("COMMAND_NOT_FOUND", "nobody waits for an answer to this command, any more");
        waits.and_then(|waits| waits.answer.send(answer).ok()).ok_or_else(late)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
