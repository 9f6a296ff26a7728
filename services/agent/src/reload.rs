//! Settings that change while the agent runs: on SIGHUP, and when the settings file is another.
//!
//! Settings that can't be used are refused whole, and the last good ones go on. The agent stays ready then: whoever
//! restarted it for that would end what still works, and it wouldn't start again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use logmesh_runtime::{CancellationToken, Readiness, telemetry};
use logmesh_types::metric;
use metrics::{counter, gauge};
use rustix::fs::Stat;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{Agent, Settings};

/// How often the file is looked at. A change is taken up when the file was found the same twice: half of a file that is
/// being written may be valid, and mean something else.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Reloader<L> {
    load: L,
    file: SettingsFile,
    hangups: Signal,
}

impl<L> Reloader<L>
where
    L: Fn() -> Result<Settings, String> + Send + Sync + 'static,
{
    /// From now on SIGHUP means to load the settings again. `load` gives them with all their sources.
    pub fn new(file: SettingsFile, load: L) -> anyhow::Result<Self> {
        let hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        Ok(Self { load, file, hangups })
    }

    /// Keeps the agent's settings those of their sources until the token is cancelled.
    pub async fn run(mut self, agent: Agent, readiness: Readiness, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = self.hangups.recv() => self.file.note(),
                () = self.file.changed() => {}
            }
            let refused = self.reload(&agent).await.err().map(|error| format!("{error:#}"));
            gauge!(metric::AGENT_SETTINGS_REFUSED).set(if refused.is_some() { 1.0 } else { 0.0 });
            let outcome = if refused.is_some() { "refused" } else { "applied" };
            counter!(metric::AGENT_RELOADS, "outcome" => outcome).increment(1);
            let note = match refused {
                None => String::new(),
                Some(error) => {
                    tracing::error!(error, "the changed settings are refused: the last good ones go on");
                    format!("the changed settings are refused, the last good ones go on: {error}")
                }
            };
            readiness.set("settings", true, note);
        }
    }

    async fn reload(&self, agent: &Agent) -> anyhow::Result<()> {
        let settings = (self.load)().map_err(anyhow::Error::msg)?;
        let level = telemetry::level(&settings.log.level)?;
        let fixed = agent.reload(settings).await?;
        telemetry::set_level(level)?;
        if !fixed.is_empty() {
            tracing::warn!(settings = ?fixed, "these have changed too, which takes a restart: their old values hold");
        }
        Ok(())
    }
}

/// The file that settings come from, if there is one. It has changed when its name means another or when it was written to.
#[derive(Debug)]
pub struct SettingsFile {
    path: Option<PathBuf>,
    loaded: Look,
    last: Look,
}

/// What a look at the file shows; `None`: it isn't there.
type Look = Option<(u64, u64, i64, i64, i64, i64)>;

impl SettingsFile {
    /// The file as it is now. It is to be loaded after this, so that no change is missed.
    pub fn new(path: Option<PathBuf>) -> Self {
        let loaded = path.as_deref().and_then(look);
        Self { path, loaded, last: loaded }
    }

    /// Resolves when the file is another than when it was loaded last, and complete as far as can be told.
    async fn changed(&mut self) {
        let Some(path) = &self.path else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK).await;
            let now = look(path);
            if now == self.last && now != self.loaded {
                self.loaded = now;
                return;
            }
            self.last = now;
        }
    }

    /// It is loaded now.
    fn note(&mut self) {
        self.loaded = self.path.as_deref().and_then(look);
    }
}

fn look(path: &Path) -> Look {
    let Stat { st_dev, st_ino, st_size, st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec, .. } =
        rustix::fs::stat(path).ok()?;
    let nanos = (st_mtime_nsec as i64) ^ ((st_ctime_nsec as i64) << 32);
    Some((st_dev, st_ino, st_size, st_mtime, st_ctime, nanos))
}
