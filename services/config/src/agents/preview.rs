//! What a rule would do: which agents it selects, and which files it would match on them, asked of them now.
//!
//! An agent is asked by the server that it is connected to. Each is asked once, at bounded concurrency, and all have the same
//! time to answer; who doesn't is shown with the reason.

use futures::StreamExt;
use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_proto::config::v1::{self as message, AgentPreview, PreviewRuleRequest, PreviewRuleResponse};
use logmesh_proto::fleet::v1::answer_command_request::Answer;
use logmesh_proto::fleet::v1::command::Kind;
use logmesh_proto::fleet::v1::{FilesPreview, PreviewFiles};
use logmesh_rules::Rule;
use logmesh_types::AgentId;
use logmesh_types::limits::MAX_PATH_BYTES;
use tokio::time::Instant;
use tonic::Status;

use super::commands::Commands;
use super::registry::Registry;
use super::report::cut;
use crate::limits::{COMMANDS_AT_A_TIME, MAX_PREVIEW_FILES, MAX_REPORT_TEXT_BYTES, PEER_TIMEOUT, PREVIEW_TIME};
use crate::paging::{page, page_size};
use crate::peers::{Listed, Part, Peers, merge};

/// Shows what rules would do.
#[derive(Clone, Debug)]
pub(crate) struct Previews {
    registry: Registry,
    commands: Commands,
    peers: Peers,
}

impl Listed for AgentPreview {
    type Key = String;

    fn key(&self) -> String {
        self.agent_id.clone()
    }

    fn token(&self) -> String {
        self.agent_id.clone()
    }

    /// Where it is connected it could be asked.
    fn beats(&self, other: &Self) -> bool {
        (self.online, self.answered) > (other.online, other.answered)
    }
}

impl Previews {
    pub(crate) fn new(registry: Registry, commands: Commands, peers: Peers) -> Self {
        Self { registry, commands, peers }
    }

    /// A page of what a checked rule would do.
    pub(crate) async fn preview(
        &self,
        rule: &Rule,
        request: PreviewRuleRequest,
    ) -> Result<PreviewRuleResponse, Status> {
        let size = page_size(request.page_size)?;
        let mut selected = self.registry.selected(&rule.selector);
        if request.this_server_only {
            selected.retain(|(_, online)| *online);
            let (part, matched_agents) =
                (self.own_part(rule, &selected, &request.page_token, size).await, selected.len());
            let Part { items: agents, next_page_token } = part;
            let matched_agents = u32::try_from(matched_agents).unwrap_or(u32::MAX);
            return Ok(PreviewRuleResponse { agents, next_page_token, matched_agents, ..Default::default() });
        }
        let ask = PreviewRuleRequest { rule: Some(rule.spec().into()), this_server_only: true, ..request.clone() };
        let others = self.peers.ask(PREVIEW_TIME + PEER_TIMEOUT, |channel| {
            let ask = ask.clone();
            async move { Ok(RuleServiceClient::new(channel).preview_rule(ask).await?.into_inner()) }
        });
        let (own, others) = tokio::join!(self.own_part(rule, &selected, &request.page_token, size), others);
        let parts = others
            .answers
            .into_iter()
            .map(|(_, PreviewRuleResponse { agents, next_page_token, .. })| Part { items: agents, next_page_token });
        let Part { items, next_page_token: behind } = merge(parts.chain([own]).collect());
        let matched_agents = u32::try_from(selected.len().max(items.len())).unwrap_or(u32::MAX);
        let (agents, cut) = page(items.into_iter().map(|one| (one.token(), one)), size);
        let next_page_token = if cut.is_empty() { behind } else { cut };
        Ok(PreviewRuleResponse { agents, next_page_token, matched_agents, unreachable_servers: others.unreachable })
    }

    /// What the agents say that are connected here; the others are named.
    async fn own_part(
        &self,
        rule: &Rule,
        selected: &[(AgentId, bool)],
        after: &str,
        size: usize,
    ) -> Part<AgentPreview> {
        let until = Instant::now() + PREVIEW_TIME;
        let behind: Vec<_> = selected.iter().filter(|(id, _)| id.as_str() > after).cloned().collect();
        let more = behind.len() > size;
        let asked: Vec<_> =
            behind.into_iter().take(size).map(|(id, online)| self.one(rule, id, online, until)).collect();
        let previews: Vec<AgentPreview> = futures::stream::iter(asked).buffered(COMMANDS_AT_A_TIME).collect().await;
        let last = previews.last().map(|preview| preview.agent_id.clone()).unwrap_or_default();
        let (items, cut) = page(previews.into_iter().map(|one| (one.token(), one)), size);
        let next_page_token = if cut.is_empty() && more { last } else { cut };
        Part { items, next_page_token }
    }

    async fn one(&self, rule: &Rule, id: AgentId, online: bool, until: Instant) -> AgentPreview {
        if !online {
            let error = "it is not connected".to_owned();
            return AgentPreview { agent_id: id.to_string(), error, ..AgentPreview::default() };
        }
        let kind = Kind::PreviewFiles(PreviewFiles { rule: Some(rule.spec().into()) });
        match self.commands.ask(&id, kind, until).await {
            Ok(Answer::FilesPreview(found)) => answered(&id, found),
            Ok(Answer::RangesRead(_)) => {
                let error = "it answered something else".to_owned();
                AgentPreview { agent_id: id.to_string(), online, error, ..AgentPreview::default() }
            }
            Err(none) => AgentPreview { agent_id: id.to_string(), online, error: none.why, ..AgentPreview::default() },
        }
    }
}

/// What an agent found, cut to its limits.
fn answered(id: &AgentId, mut found: FilesPreview) -> AgentPreview {
    found.sample.truncate(MAX_PREVIEW_FILES);
    for message::FilePreview { path, present_owner, owner, problem, .. } in &mut found.sample {
        cut(path, MAX_PATH_BYTES);
        [present_owner, owner, problem].into_iter().for_each(|text| cut(text, MAX_REPORT_TEXT_BYTES));
    }
    found.owner_changes.truncate(MAX_PREVIEW_FILES);
    for message::OwnerChange { present_owner, owner, .. } in &mut found.owner_changes {
        [present_owner, owner].into_iter().for_each(|text| cut(text, MAX_REPORT_TEXT_BYTES));
    }
    AgentPreview {
        agent_id: id.to_string(),
        online: true,
        answered: true,
        error: String::new(),
        files: found.files,
        bytes: found.bytes,
        new_files: found.new_files,
        refused_files: found.refused_files,
        sample: found.sample,
        owner_changes: found.owner_changes,
        incomplete: found.incomplete,
    }
}
