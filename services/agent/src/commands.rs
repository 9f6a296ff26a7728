//! Answers what the centre asks of this host: which files a rule would match, before it is applied; and to read again what
//! was lost behind the gateway ([`reread`](crate::reread)).
//!
//! Each takes a thread of its own, with the host's own limits on what may be read, and neither waits for the collector nor
//! makes it wait. Each is bounded in time and in what it answers; there is one of a kind at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use logmesh_proto::config::v1 as rules;
use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::{AnswerCommandRequest, Command, FilesPreview, PreviewFiles, RuleError};
use logmesh_runtime::CancellationToken;
use logmesh_tail::pathguard::PathGuard;
use logmesh_tail::{FilePreview, Preview, TailRule};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

use crate::collect::Handle;
use crate::host::Identity;
use crate::reread::read_again;
use crate::rules::asked_about;
use crate::settings::Settings;

/// Commands that may wait; what comes beyond goes unanswered.
const WAITING: usize = 4;

/// How long a look may take, so that its answer comes within the 5 s that the centre waits.
const LOOK: Duration = Duration::from_secs(3);

/// A command that has waited for so long isn't begun: its answer would come too late.
const TOO_OLD: Duration = Duration::from_secs(4);

/// How much longer than it may a look can take where a disk doesn't answer.
const GRACE: Duration = Duration::from_secs(1);

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A command, where the answer goes, and the rules that ran when it came.
#[derive(Debug)]
pub(crate) struct Asked {
    pub command: Command,
    pub channel: Channel,
    pub running: Vec<TailRule>,
    pub at: Instant,
}

/// See the module.
pub(crate) struct Commands {
    settings: watch::Receiver<Arc<Settings>>,
    identity: Arc<Identity>,
    collector: Handle,
    /// A look is under way, perhaps one that was given up.
    looks: Arc<AtomicBool>,
    /// A file is read again; likewise.
    reads: Arc<AtomicBool>,
    asked: Option<mpsc::Receiver<Asked>>,
}

impl Commands {
    pub(crate) fn new(
        settings: watch::Receiver<Arc<Settings>>,
        identity: Arc<Identity>,
        collector: Handle,
    ) -> (Self, mpsc::Sender<Asked>) {
        let (sender, asked) = mpsc::channel(WAITING);
        let (looks, reads) = Default::default();
        (Self { settings, identity, collector, looks, reads, asked: Some(asked) }, sender)
    }

    /// Answers until the token is cancelled.
    pub(crate) async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let Some(mut asked) = self.asked.take() else { return Ok(()) };
        let ((look, looks), (read, reads)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
        // A look needn't wait for what is read again, nor that for a look.
        let sort = async move {
            while let Some(one) = asked.recv().await {
                let queue = if matches!(one.command.kind, Some(Kind::ReadRanges(_))) { &read } else { &look };
                // One too many goes unanswered.
                queue.try_send(one).ok();
            }
        };
        tokio::select! {
            () = token.cancelled() => {}
            _ = futures::future::join3(sort, self.serve(looks), self.serve(reads)) => {}
        }
        Ok(())
    }

    async fn serve(&self, mut asked: mpsc::Receiver<Asked>) {
        while let Some(asked) = asked.recv().await {
            if asked.at.elapsed() <= TOO_OLD {
                self.answer(asked).await;
            }
        }
    }

    async fn answer(&self, Asked { command, channel, running, at }: Asked) {
        let answer = match command.kind {
            Some(Kind::PreviewFiles(PreviewFiles { rule: Some(rule) })) => {
                self.look(rule, running, at + LOOK).await.map(Answer::FilesPreview)
            }
            Some(Kind::ReadRanges(command)) => {
                let settings = self.settings.borrow().clone();
                read_again(command, &self.collector, settings, &self.reads, at).await.map(Answer::RangesRead)
            }
            Some(Kind::PreviewFiles(_)) => Err("the command names no rule".to_owned()),
            None => Err("this agent's version doesn't know the command".to_owned()),
        };
        let (answer, error) = match answer {
            Ok(answer) => (Some(answer), String::new()),
            Err(error) => (None, error),
        };
        let request = AnswerCommandRequest {
            agent_id: self.identity.id.to_string(),
            session: self.identity.session.clone(),
            command_id: command.id,
            error,
            answer,
        };
        let mut client = AgentConfigServiceClient::new(channel);
        match tokio::time::timeout(ANSWER_TIMEOUT, client.answer_command(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                tracing::debug!(error = %logmesh_grpc::describe(&status), "an answer was not taken");
            }
            Err(_) => tracing::debug!("an answer was not taken in time"),
        }
    }

    /// Looks which files a rule would match; an error in words.
    async fn look(&self, rule: rules::Rule, running: Vec<TailRule>, until: Instant) -> Result<FilesPreview, String> {
        let rule = asked_about(&rule).map_err(|error| in_words(&error))?;
        let settings = self.settings.borrow().clone();
        let busy = Busy::begin(&self.looks)?;
        let (sender, found) = oneshot::channel();
        // Not a task of the runtime's: one that a disk holds up must not hold up the end of the process.
        let thread = std::thread::Builder::new().name("preview".into()).spawn(move || {
            let _busy = busy;
            // If nobody waits any more, that is as well.
            sender.send(look_now(rule, running, &settings, until)).ok();
        });
        thread.map_err(|error| format!("cannot look: {error}"))?;
        let given_up = (until + GRACE).into();
        let found = tokio::time::timeout_at(given_up, found).await;
        let found = found.map_err(|_| "the disk did not answer in time".to_owned())?;
        found.map_err(|_| "the look ended without an answer".to_owned())?.map(message)
    }
}

/// A thread is at work as long as this lives.
pub(crate) struct Busy(Arc<AtomicBool>);

impl Busy {
    /// Fails while another one of its kind lives.
    pub(crate) fn begin(one: &Arc<AtomicBool>) -> Result<Self, String> {
        match one.swap(true, Ordering::AcqRel) {
            true => Err("an earlier command of this kind has not ended".to_owned()),
            false => Ok(Self(one.clone())),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What these settings allow to be read.
pub(crate) fn guard_of(settings: &Settings) -> Result<PathGuard, String> {
    let own: Vec<PathBuf> = settings.own_dirs.iter().chain([&settings.state_dir]).cloned().collect();
    PathGuard::new(&settings.allow, &own).map_err(|error| format!("allow: {error}"))
}

fn look_now(rule: TailRule, running: Vec<TailRule>, settings: &Settings, until: Instant) -> Result<Preview, String> {
    let guard = guard_of(settings)?;
    logmesh_tail::preview(rule, running, &guard, until).map_err(|error| {
        let logmesh_tail::RuleError { reason, field, message } = error;
        in_words(&RuleError { reason: reason.to_owned(), field, message })
    })
}

/// `NOT_ALLOWED: paths[1]: /x/* is outside …`
fn in_words(error: &RuleError) -> String {
    let place = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
    format!("{}: {place}{}", error.reason, error.message)
}

fn message(preview: Preview) -> FilesPreview {
    let changes = preview.changes.into_iter().map(|((present, owner), files)| rules::OwnerChange {
        present_owner: present.to_string(),
        owner: owner.to_string(),
        files,
    });
    FilesPreview {
        files: preview.files,
        bytes: preview.bytes,
        new_files: preview.new_files,
        refused_files: preview.refused_files,
        owner_changes: changes.collect(),
        sample: preview.sample.into_iter().map(file).collect(),
        incomplete: preview.incomplete,
    }
}

fn file(file: FilePreview) -> rules::FilePreview {
    rules::FilePreview {
        path: file.path.to_string_lossy().into_owned(),
        bytes: file.bytes,
        present_owner: file.present_owner.map(|name| name.to_string()).unwrap_or_default(),
        owner: file.owner.to_string(),
        problem: file.problem.unwrap_or_default().to_owned(),
    }
}
