//! One simulated agent: its connection, as `services/agent` makes it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use logmesh_proto::fleet::v1::agent_config_service_client::AgentConfigServiceClient;
use logmesh_proto::fleet::v1::watch_config_response::Update;
use logmesh_proto::fleet::v1::{
    ReportStatusRequest, RuleEffect, RuleState, RuleStatus, WatchConfigRequest, WatchConfigResponse,
};
use logmesh_proto::time::{std_duration, timestamp};
use logmesh_runtime::RetryPolicy;
use logmesh_types::UnixNanos;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::{Options, Record};

/// As a real agent's: how long an answer may take, how long a server may be silent, how often it's reported to.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);

/// The label `group` tells apart so many parts of the fleet.
const GROUPS: usize = 4;

type Client = AgentConfigServiceClient<Channel>;

/// See the module.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) id: String,
    pub(super) labels: BTreeMap<String, String>,
    session: String,
    number: usize,
    options: Arc<Options>,
    record: Mutex<Record>,
}

impl Agent {
    pub(super) fn new(options: Arc<Options>, number: usize) -> Self {
        let id = format!("{}-{number}", options.name);
        let ip = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
        let mut labels = options.labels.clone();
        let group = (number % GROUPS).to_string();
        let own = [("host", id.clone()), ("os", "linux".to_owned()), ("ip", ip), ("group", group)];
        labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
        let session = format!("{:016x}", rand::random::<u64>());
        Self { id, labels, session, number, options, record: Mutex::default() }
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries one server after the other, for ever.
    pub(super) async fn run(&self) {
        let retry = RetryPolicy::default();
        let mut attempt = 0;
        let servers = self.options.servers.iter().cycle().skip(self.number % self.options.servers.len());
        for server in servers {
            let end = self.connect(server).await;
            let was_connected = std::mem::take(&mut self.record().connected);
            if was_connected {
                attempt = 0;
            }
            match end {
                Ok(pause) => sleep(pause).await,
                Err(error) => {
                    self.record().problem = Some(format!("{server}: {error:#}"));
                    sleep(retry.delay(attempt)).await;
                    attempt += 1;
                }
            }
        }
    }

    /// One connection, up to a go-away; how long to wait then.
    async fn connect(&self, server: &str) -> anyhow::Result<Duration> {
        let mut client = AgentConfigServiceClient::new(logmesh_grpc::channel(server)?);
        let opened = timeout(ANSWER_TIMEOUT, client.watch_config(self.introduction())).await;
        let mut stream = opened.context("no answer")??.into_inner();
        let news = Notify::new();
        let reports = self.report(client, &news);
        tokio::pin!(reports);
        loop {
            let message = tokio::select! {
                message = timeout(SILENCE_TIMEOUT, stream.message()) => message,
                never = &mut reports => match never {},
            };
            let message = message.context("nothing was heard for 30 s")??;
            let message = message.ok_or_else(|| anyhow!("the server ended the stream"))?;
            if let Some(pause) = self.take(message, &news) {
                return Ok(pause);
            }
        }
    }

    fn introduction(&self) -> WatchConfigRequest {
        let record = self.record();
        WatchConfigRequest {
            agent_id: self.id.clone(),
            labels: self.labels.clone(),
            held: record.revisions(),
            incarnation: record.incarnation.clone(),
            revision: record.revision,
            session: self.session.clone(),
            version: "simulated".to_owned(),
        }
    }

    /// Takes a message in; the wait that a go-away asks for.
    fn take(&self, message: WatchConfigResponse, news: &Notify) -> Option<Duration> {
        let mut record = self.record();
        if !record.connected {
            record.connected = true;
            record.connections += 1;
        }
        match message.update {
            Some(Update::GoAway(away)) => {
                return Some(away.retry_after.as_ref().and_then(std_duration).unwrap_or_default());
            }
            Some(Update::Delta(delta)) => {
                record.reach(&message.incarnation, message.revision);
                record.take(message.revision, delta);
                record.nonce = message.nonce;
                news.notify_one();
            }
            Some(Update::Bookmark(_) | Update::Command(_)) | None => {
                record.reach(&message.incarnation, message.revision);
            }
        }
        None
    }

    /// Tells the server what changed, at most once a second; all of it at first.
    async fn report(&self, mut client: Client, news: &Notify) -> Infallible {
        let mut told: Option<BTreeMap<String, i64>> = None;
        loop {
            news.notified().await;
            let (held, request) = {
                let record = self.record();
                let held = record.revisions();
                let (nonce, revision) = (record.nonce.clone(), record.revision);
                let request = ReportStatusRequest { nonce, revision, ..self.status(&held, told.as_ref()) };
                (held, request)
            };
            let answer = timeout(ANSWER_TIMEOUT, client.report_status(request)).await;
            let taken = answer.is_ok_and(|answer| answer.is_ok_and(|answer| !answer.into_inner().want_full));
            if taken {
                self.record().ack(&held);
                told = Some(held);
            } else {
                told = None;
                news.notify_one();
            }
            sleep(PAUSE).await;
        }
    }

    /// The report of what is held and wasn't told. A rule that is no more isn't named: only a full report lets it go.
    fn status(&self, held: &BTreeMap<String, i64>, told: Option<&BTreeMap<String, i64>>) -> ReportStatusRequest {
        let told = told.filter(|told| told.keys().all(|name| held.contains_key(name)));
        let is_new = |(name, revision): &(&String, &i64)| told.and_then(|told| told.get(*name)) != Some(*revision);
        let now = timestamp(UnixNanos::now());
        let status = |(name, revision): (&String, &i64)| RuleStatus {
            name: name.clone(),
            desired_revision: *revision,
            attempted_revision: *revision,
            running_revision: *revision,
            state: RuleState::Applied.into(),
            since: Some(now),
            effect: Some(RuleEffect { files_matched: 1, ..RuleEffect::default() }),
            ..RuleStatus::default()
        };
        ReportStatusRequest {
            agent_id: self.id.clone(),
            session: self.session.clone(),
            full: told.is_none(),
            rules: held.iter().filter(is_new).map(status).collect(),
            ..ReportStatusRequest::default()
        }
    }
}
