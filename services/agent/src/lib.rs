//! The agent: collects files of its host as the centre's rules say and the host's owner allows, and pushes them to a
//! gateway until they are durable.
//!
//! Six tasks, each simple by itself: the collector's thread ([`collect`]), the connection to the centre ([`centre`]),
//! the list of gateways ([`gateways`]), the connection to one of them ([`push`]), the reports ([`report`]) and the answers
//! to what the centre asks ([`commands`]). Data goes on flowing when the centre is gone; files are the buffer when the gateways are.

mod centre;
mod collect;
mod commands;
mod gateways;
mod host;
mod push;
mod reload;
mod repeats;
mod report;
mod reread;
mod rules;
mod settings;

use std::sync::Arc;

use anyhow::Context;
use logmesh_runtime::{CancellationToken, Readiness, Tasks, files};
use logmesh_tail::Collector;
use logmesh_types::AgentId;
use tokio::sync::watch;

pub use reload::{Reloader, SettingsFile};
pub use settings::{Compression, Settings, parse_label};

use centre::{Centre, Link};
use collect::Handle;
use commands::Commands;
use host::Identity;
use push::Push;
use report::Reporter;
use rules::Rules;

/// A running agent. It ends with its tasks.
#[derive(Debug, Clone)]
pub struct Agent {
    identity: Arc<Identity>,
    settings: watch::Sender<Arc<Settings>>,
    collector: Handle,
    link: watch::Receiver<Option<Link>>,
    gateway: watch::Receiver<bool>,
}

impl Agent {
    /// Checks the settings, opens the state and begins to collect: the last good rules at once, without the centre.
    ///
    /// Fails on bad settings, and on a state folder that another agent uses or that can't be written.
    pub fn start(settings: Settings, tasks: &Tasks) -> anyhow::Result<Self> {
        settings.check()?;
        files::allow_open_files();
        let settings = Arc::new(settings);
        std::fs::create_dir_all(&settings.state_dir)
            .with_context(|| format!("cannot make the state folder {}", settings.state_dir.display()))?;
        let identity = Arc::new(Identity::new(&settings)?);
        let mut tail =
            logmesh_tail::Settings::new(identity.id.clone(), settings.state_dir.clone(), settings.allow.clone());
        tail.own_dirs = settings.own_dirs.clone();
        tail.max_in_flight_bytes = settings.max_in_flight.0;
        // The collector outlives the connection, to hear of the last acks.
        let drained = CancellationToken::new();
        let tail_file = settings.state_dir.join(logmesh_tail::STATE_FILE);
        // The collector's state is made before there are rules: only what was lost is missing beside some.
        if settings.state_dir.join(rules::FILE_NAME).exists() && files::is_lost(&tail_file) {
            tracing::error!(path = %tail_file.display(),
                "the collector's state is missing or empty in a state folder that isn't new: files are read again from \
                 where their rules say, repeated lines are found by their ids; with `start_at: end`, what wasn't collected \
                 yet is left out");
        }
        let collector = collect::start(Collector::open(tail)?, tasks, drained.clone())?;

        let gateways_file = gateways::file_in(&settings.state_dir);
        let rules = Rules::load(&settings.state_dir);
        let (settings, settings_seen) = watch::channel(settings);
        let (commands, asked) = Commands::new(settings_seen.clone(), identity.clone(), collector.clone());
        let (centre, view) = Centre::new(settings_seen.clone(), identity.clone(), collector.clone(), rules, asked);
        let (gateways, gateways_seen) = watch::channel(gateways::load(&gateways_file));
        let (connected, gateway) = watch::channel(false);
        let link = view.link.clone();
        let push = Push {
            settings: settings_seen,
            identity: identity.clone(),
            collector: collector.clone(),
            gateways: gateways_seen,
            connected,
            drained: drained.drop_guard(),
        };
        tasks.spawn("agent-gateways", gateways::run(link.clone(), gateways, gateways_file, tasks.token()));
        tasks.spawn("agent-push", push.run(tasks.token()));
        tasks.spawn("agent-report", Reporter::new(identity.clone(), collector.clone(), view).run(tasks.token()));
        tasks.spawn("agent-commands", commands.run(tasks.token()));
        tasks.spawn("agent-centre", centre.run(tasks.token()));
        Ok(Self { identity, settings, collector, link, gateway })
    }

    /// Its id.
    pub fn id(&self) -> &AgentId {
        &self.identity.id
    }

    /// Takes other settings while it runs, and answers which can't change before the next start: these keep their values.
    /// After an error all is as it was.
    ///
    /// The rules are judged anew, files that aren't allowed any more are let go, and the centre is connected to again.
    pub async fn reload(&self, settings: Settings) -> anyhow::Result<Vec<&'static str>> {
        settings.check()?;
        let present = self.settings.borrow().clone();
        let (settings, fixed) = settings.with_fixed_of(&present);
        if settings != *present {
            let settings = Arc::new(settings);
            self.collector.reconfigure(settings.clone()).await?;
            self.settings.send_replace(settings);
            tracing::info!("the settings have changed");
        }
        Ok(fixed)
    }

    /// Keeps the components `centre` and `gateway` of a process up to date.
    pub fn show_readiness(&self, readiness: &Readiness, tasks: &Tasks) {
        let (mut agent, readiness, token) = (self.clone(), readiness.clone(), tasks.token());
        tasks.spawn("agent-readiness", async move {
            loop {
                let centre = agent.link.borrow_and_update().is_some();
                readiness.set(
                    "centre",
                    centre,
                    if centre { "" } else { "connecting; the last good rules are in force" },
                );
                let gateway = *agent.gateway.borrow_and_update();
                readiness.set("gateway", gateway, if gateway { "" } else { "connecting; nothing is lost meanwhile" });
                tokio::select! {
                    () = token.cancelled() => return Ok(()),
                    Ok(()) = agent.link.changed() => {}
                    Ok(()) = agent.gateway.changed() => {}
                    else => return Ok(()),
                }
            }
        });
    }
}
