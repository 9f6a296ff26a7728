//! `logmesh.fleet.v1.AgentConfigService`.

use std::sync::Arc;

use logmesh_proto::fleet::v1::agent_config_service_server::AgentConfigService;
use logmesh_proto::fleet::v1::{
    AnswerCommandRequest, AnswerCommandResponse, ReportStatusRequest, ReportStatusResponse, WatchConfigRequest,
    WatchConfigResponse,
};
use logmesh_types::limits::MAX_NAME_BYTES;
use logmesh_types::{AgentId, NameError};
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::info;

use super::commands::Commands;
use super::registry::{Introduction, Registry};
use super::session::Session;
use super::wanted::Held;
use crate::error::bad_field;
use crate::incarnation::Incarnation;
use crate::limits::{MAX_AGENT_RULES, MAX_LABEL_BYTES, MAX_LABELS, MAX_SESSION_BYTES};
use crate::push::{Push, Stream};
use crate::revision::on_wire;
use crate::rules::RuleView;
use crate::settings::Settings;

/// The API that agents use.
#[derive(Clone, Debug)]
pub(crate) struct AgentConfigApi {
    registry: Registry,
    commands: Commands,
    view: RuleView,
    incarnations: watch::Receiver<Option<Incarnation>>,
    settings: Arc<Settings>,
    push: Push,
}

#[tonic::async_trait]
impl AgentConfigService for AgentConfigApi {
    type WatchConfigStream = Stream<WatchConfigResponse>;

    async fn watch_config(
        &self,
        request: Request<WatchConfigRequest>,
    ) -> Result<Response<Self::WatchConfigStream>, Status> {
        let request = request.into_inner();
        let introduction = introduction(&request)?;
        let permit = self.push.admit()?;
        let connected = self.registry.connect(introduction.clone())?;
        info!(agent = %introduction.id, version = ?introduction.version, held = request.held.len(), "agent connected");
        let age = self.settings.max_stream_age.0.mul_f64(rand::rng().random_range(0.9..1.1));
        let newest_held = request.held.values().copied().max().unwrap_or(0);
        let session = Session {
            id: introduction.id,
            labels: connected.labels.clone(),
            held_from: request.incarnation.into(),
            seen: newest_held.max(request.revision),
            newest_held,
            known: on_wire(self.view.latest().revision),
            began: Instant::now(),
            held: Held::said(request.held),
            wanted: None,
            incarnations: self.incarnations.clone(),
            steps: self.registry.steps(),
            registry: self.registry.clone(),
            connected,
            stopping: self.push.token.clone(),
            bookmark_interval: self.settings.bookmark_interval.0,
            ends: Instant::now() + age,
            _permit: permit,
            sent: 0,
            gone: false,
        };
        Ok(Response::new(session.into_stream()))
    }

    async fn report_status(
        &self,
        request: Request<ReportStatusRequest>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        let want_full = self.registry.report(request.into_inner())?;
        Ok(Response::new(ReportStatusResponse { want_full }))
    }

    async fn answer_command(
        &self,
        request: Request<AnswerCommandRequest>,
    ) -> Result<Response<AnswerCommandResponse>, Status> {
        self.commands.answer(request.into_inner())?;
        Ok(Response::new(AnswerCommandResponse {}))
    }
}

impl AgentConfigApi {
    pub(crate) fn new(
        registry: Registry,
        commands: Commands,
        view: RuleView,
        incarnations: watch::Receiver<Option<Incarnation>>,
        settings: Arc<Settings>,
        push: Push,
    ) -> Self {
        Self { registry, commands, view, incarnations, settings, push }
    }
}

/// Checks how an agent introduces itself.
fn introduction(request: &WatchConfigRequest) -> Result<Introduction, Status> {
    let id: AgentId = request.agent_id.parse().map_err(|error: NameError| bad_field("agent_id", error.to_string()))?;
    if request.session.is_empty() || request.session.len() > MAX_SESSION_BYTES {
        return Err(bad_field("session", format!("is not 1 to {MAX_SESSION_BYTES} bytes long")));
    }
    if request.version.len() > MAX_SESSION_BYTES {
        return Err(bad_field("version", format!("is longer than {MAX_SESSION_BYTES} bytes")));
    }
    if request.incarnation.len() > MAX_SESSION_BYTES {
        return Err(bad_field("incarnation", format!("is longer than {MAX_SESSION_BYTES} bytes")));
    }
    if request.labels.len() > MAX_LABELS {
        return Err(bad_field("labels", format!("has more than {MAX_LABELS} entries")));
    }
    for (key, value) in &request.labels {
        if key.is_empty() || key.len() > MAX_NAME_BYTES || value.len() > MAX_LABEL_BYTES {
            let limits =
                format!("has a key that is not 1 to {MAX_NAME_BYTES} bytes or a value of more than {MAX_LABEL_BYTES}");
            return Err(bad_field("labels", limits));
        }
    }
    if request.held.len() > MAX_AGENT_RULES {
        return Err(bad_field("held", format!("has more than {MAX_AGENT_RULES} entries")));
    }
    let (session, labels, version) = (request.session.clone(), request.labels.clone(), request.version.clone());
    Ok(Introduction { id, session, labels, version })
}
