//! What became of one rule on all agents that it is for.

use std::sync::Arc;

use logmesh_grpc::{not_found, unavailable};
use logmesh_proto::fleet::v1::fleet_service_client::FleetServiceClient;
use logmesh_proto::fleet::v1::{
    AgentRuleStatus, ListRuleStatusesRequest, ListRuleStatusesResponse, RuleState, RuleStatusCounts,
};
use logmesh_proto::time::unix_nanos;
use logmesh_types::RuleName;
use tonic::Status;

use super::merged::Fleet;
use super::registry::as_seen;
use crate::limits::{MAX_PAGE, REVISION_WAIT};
use crate::paging::page;
use crate::peers::{Listed, Part};
use crate::rules::LiveRule;

impl Listed for AgentRuleStatus {
    type Key = String;

    fn key(&self) -> String {
        self.agent_id.clone()
    }

    fn token(&self) -> String {
        self.agent_id.clone()
    }

    fn beats(&self, other: &Self) -> bool {
        let seen = |one: &Self| one.last_seen_time.as_ref().map(unix_nanos);
        (self.online, seen(self)) > (other.online, seen(other))
    }
}

impl Fleet {
    /// A page of what became of a rule, and the counts of all agents.
    pub(crate) async fn rule_statuses(
        &self,
        request: &ListRuleStatusesRequest,
        size: usize,
    ) -> Result<ListRuleStatusesResponse, Status> {
        let rule = self.rule(request).await?;
        let revision = rule.message.revision;
        if request.this_server_only {
            let Part { items, next_page_token } = self.own_statuses(&rule, &request.page_token, size, true);
            return Ok(ListRuleStatusesResponse { statuses: items, next_page_token, revision, ..Default::default() });
        }
        let (all, unreachable) = self.all_statuses(&rule).await;
        let mut counts = RuleStatusCounts::default();
        all.iter().for_each(|one| count(&mut counts, one));
        let wanted = all.into_iter().filter(|one| {
            let state = one.status.as_ref().map_or(0, |status| status.state);
            one.agent_id > request.page_token && (request.states.is_empty() || request.states.contains(&state))
        });
        let (statuses, next_page_token) = page(wanted.map(|one| (one.token(), one)), size);
        let unreachable_servers = unreachable;
        Ok(ListRuleStatusesResponse { statuses, next_page_token, counts: Some(counts), revision, unreachable_servers })
    }

    /// Each agent once, by id, and who didn't answer.
    async fn all_statuses(&self, rule: &Arc<LiveRule>) -> (Vec<AgentRuleStatus>, Vec<String>) {
        let (mut all, mut unreachable, mut behind) = (Vec::new(), Vec::new(), String::new());
        loop {
            let own = |after: &str, size| self.own_statuses(rule, after, size, false);
            let ask = |channel, page_token, page_size| {
                let request = ListRuleStatusesRequest {
                    rule: rule.message.name.clone(),
                    page_size,
                    page_token,
                    this_server_only: true,
                    // Or it might not know yet which agents the rule is for.
                    min_revision: rule.message.revision,
                    ..Default::default()
                };
                async move {
                    let list = FleetServiceClient::new(channel).list_rule_statuses(request).await?.into_inner();
                    Ok(Part { items: list.statuses, next_page_token: list.next_page_token })
                }
            };
            let page = self.peers.page(behind, MAX_PAGE, own, ask, None).await;
            let seen = |one: AgentRuleStatus| {
                let status = Some(as_seen(one.status.unwrap_or_default(), &rule.message));
                AgentRuleStatus { status, ..one }
            };
            all.extend(page.items.into_iter().map(seen));
            unreachable.extend(page.unreachable);
            behind = page.next_page_token;
            if behind.is_empty() {
                unreachable.sort();
                unreachable.dedup();
                return (all, unreachable);
            }
        }
    }

    fn own_statuses(&self, rule: &LiveRule, after: &str, size: usize, only_here: bool) -> Part<AgentRuleStatus> {
        let (items, next_page_token) = self
            .registry
            .statuses(rule, after, only_here, |statuses| page(statuses.map(|one| (one.token(), one)), size));
        Part { items, next_page_token }
    }

    /// The rule as agents get it, at the revision that is asked for.
    async fn rule(&self, request: &ListRuleStatusesRequest) -> Result<Arc<LiveRule>, Status> {
        let name: RuleName = (request.rule.parse())
            .map_err(|error: logmesh_types::NameError| crate::error::bad_field("rule", error.to_string()))?;
        let mut steps = self.registry.steps();
        let reached = steps.wait_for(|step| step.set.is_loaded() && step.revision() >= request.min_revision);
        let step = match tokio::time::timeout(REVISION_WAIT, reached).await {
            Ok(Ok(step)) => step.clone(),
            _ => {
                let message = format!("this server doesn't know revision {} yet", request.min_revision);
                return Err(unavailable("REVISION_NOT_KNOWN", message));
            }
        };
        let rule = step.set.rules.get(name.as_str()).cloned();
        rule.ok_or_else(|| not_found("RULE_NOT_FOUND", format!("there is no {name}")))
    }
}

fn count(counts: &mut RuleStatusCounts, one: &AgentRuleStatus) {
    let state = one.status.as_ref().map_or(RuleState::Unspecified, |status| status.state());
    counts.total += 1;
    let place = match state {
        RuleState::Applied => &mut counts.applied,
        RuleState::Applying => &mut counts.applying,
        RuleState::Failed => &mut counts.failed,
        RuleState::RolledBack => &mut counts.rolled_back,
        RuleState::Refused => &mut counts.refused,
        RuleState::Pending | RuleState::Unspecified if one.online => &mut counts.pending,
        RuleState::Pending | RuleState::Unspecified => &mut counts.offline,
    };
    *place += 1;
}
