//! Agents that rules are for, and of which it isn't known yet what they collect: an audit can't judge what it doesn't know of.

use std::collections::BTreeSet;

use logmesh_grpc::Upstream;
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{Agent, ListAgentsRequest, RuleState, RuleStatus};
use tonic::Status;

use super::AuditError;
use super::page::Filter;

/// Agents asked of config at a time, the most that it gives.
const AGENTS_PAGE: i32 = 1_000;

/// The ids of agents that have yet to say what a rule does there.
#[derive(Debug, Default)]
pub(super) struct Untold {
    /// They are connected, and about to say it.
    pub(super) online: Vec<String>,
    /// They aren't, and config remembers no word of theirs.
    pub(super) offline: Vec<String>,
    /// Config services that didn't answer.
    pub(super) silent: BTreeSet<String>,
}

impl Untold {
    /// Asks config.
    pub(super) async fn ask(config: &Upstream, filter: &Filter) -> Result<Self, AuditError> {
        let mut untold = Self::default();
        let mut agents = untold.pending(config, filter).await.map_err(AuditError::Fleet)?;
        if let Some(topic) = &filter.topic
            && !agents.is_empty()
        {
            let rules = logmesh_grpc::rules(config, &format!("topic=\"{topic}\"")).await.map_err(AuditError::Fleet)?;
            let names: BTreeSet<String> = rules.into_iter().map(|rule| rule.name).collect();
            agents.retain(|agent| agent.rules.iter().any(|rule| names.contains(&rule.name)));
        }
        for agent in agents {
            let list = if agent.online { &mut untold.online } else { &mut untold.offline };
            list.push(agent.id);
        }
        Ok(untold)
    }

    /// The agents that are asked for, as far as they have rules of which they have said nothing: with these rules alone.
    async fn pending(&mut self, config: &Upstream, filter: &Filter) -> Result<Vec<Agent>, Status> {
        let mut client = FleetServiceClient::new(config.clone());
        let only = if filter.agent.is_empty() { String::new() } else { format!("id=\"{}\"", filter.agent) };
        let (mut pending, mut page_token) = (Vec::new(), String::new());
        loop {
            let list =
                ListAgentsRequest { page_size: AGENTS_PAGE, page_token, filter: only.clone(), ..Default::default() };
            let page = client.list_agents(list).await?.into_inner();
            for mut agent in page.agents {
                agent.rules.retain(is_pending);
                if !agent.rules.is_empty() {
                    pending.push(agent);
                }
            }
            self.silent.extend(page.unreachable_servers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(pending);
            }
        }
    }
}

/// True if nothing was said of what the rule does. A rule that is being applied and has no effect was taken in, and no file was
/// looked for yet; one with an effect is told with its streams.
fn is_pending(rule: &RuleStatus) -> bool {
    match rule.state() {
        RuleState::Pending | RuleState::Unspecified => true,
        RuleState::Applying => rule.effect.is_none(),
        _ => false,
    }
}
