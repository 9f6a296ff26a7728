//! Tasks with a name and an end: the process stops when one fails, and none outlives it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// The tasks of a process and the token that asks all of them to end. Clones share both.
///
/// A task ends well by itself or soon after the token is cancelled. One that fails or panics is logged and cancels the
/// token: half a process is never kept running.
#[derive(Clone, Default)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// How many tasks of each name run.
    running: BTreeMap<&'static str, usize>,
    /// The first failure.
    failure: Option<String>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("running", &self.state().running).finish_non_exhaustive()
    }
}

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs the future as a task. `name` is for the log and for saying which task doesn't end.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        *self.state().running.entry(name).or_default() += 1;
        let tasks = self.clone();
        // The task runs as a task of its own so that a panic in it arrives here as an error.
        let task = self.tracker.spawn(task);
        self.tracker.spawn(async move {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tasks.fail(name, &format!("{error:#}")),
                Err(panic) => tasks.fail(name, &panic.to_string()),
            }
            tasks.ended(name);
        });
    }

    /// Cancelled when the process is to stop. A task that must end before the others uses a child token.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Asks all tasks to end.
    pub fn shutdown(&self) {
        self.token.cancel();
    }

    /// True once a task has failed.
    pub fn is_failed(&self) -> bool {
        self.state().failure.is_some()
    }

    /// Waits until something asks for the end (a signal, a failure, [`shutdown`](Self::shutdown)), then until every task
    /// has ended, at most `grace` longer. An error: the first failure, or which tasks didn't end in time.
    pub async fn finish(&self, grace: Duration) -> anyhow::Result<()> {
        self.token.cancelled().await;
        self.tracker.close();
        let ended = tokio::time::timeout(grace, self.tracker.wait()).await;
        let state = self.state();
        if let Some(failure) = &state.failure {
            bail!("{failure}");
        }
        if ended.is_err() {
            bail!("did not end within {grace:?} of being asked to: {:?}", state.running.keys());
        }
        Ok(())
    }

    /// Cancels the token at the first SIGINT or SIGTERM. The second ends the process at once, with 128 plus the signal's
    /// number; nothing durable is lost by that.
    pub fn stop_on_signals(&self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let token = self.token();
        // Not one of the tracked tasks: it has to outlive them, to hear the second signal.
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(async move {
            let name = either(&mut interrupt, &mut terminate).await.0;
            info!(signal = name, "stopping; a second signal ends the process at once");
            token.cancel();
            let (name, code) = either(&mut interrupt, &mut terminate).await;
            warn!(signal = name, "ended at once by a second signal");
            std::process::exit(code);
        });
        Ok(())
    }

    fn fail(&self, name: &'static str, reason: &str) {
        error!(task = name, error = reason, "task failed; stopping the process");
        self.state().failure.get_or_insert_with(|| format!("{name} failed: {reason}"));
        self.shutdown();
    }

    fn ended(&self, name: &'static str) {
        let mut state = self.state();
        if let Some(count) = state.running.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(name);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of the next signal and the exit code that it stands for.
async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = interrupt.recv() => ("SIGINT", 130),
        _ = terminate.recv() => ("SIGTERM", 143),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn tasks_end_when_asked() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("waiter", async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.shutdown();
        tasks.finish(GRACE).await.unwrap();
        assert!(!tasks.is_failed());
    }

    #[tokio::test]
    async fn a_failure_stops_the_process() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("other", async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.spawn("broken", async { Err(anyhow::anyhow!("no disk").context("cannot write")) });
        let error = tasks.finish(GRACE).await.unwrap_err();
        assert_eq!(error.to_string(), "broken failed: cannot write: no disk");
        assert!(tasks.is_failed());
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let tasks = Tasks::new();
        tasks.spawn("broken", async { panic!("impossible") });
        let error = tasks.finish(GRACE).await.unwrap_err().to_string();
        assert!(error.contains("broken failed") && error.contains("panicked"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_named() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        tasks.shutdown();
        let error = tasks.finish(GRACE).await.unwrap_err().to_string();
        assert!(error.contains("deaf"), "{error}");
    }
}
