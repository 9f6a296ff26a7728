//! What became of one rule on all agents that it is for.

use std::collections::BTreeSet;
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

/// The counts of all agents' statuses as they come, by id, and of the statuses themselves no more than a page needs.
struct Tally<'a> {
    request: &'a ListRuleStatusesRequest,
    size: usize,
    counts: RuleStatusCounts,
    /// Those that are wanted, and one more if there is one: it says that this isn't the last page.
    kept: Vec<AgentRuleStatus>,
}

impl Tally<'_> {
    fn take(&mut self, one: AgentRuleStatus) {
        count(&mut self.counts, &one);
        let states = &self.request.states;
        let state = one.status.as_ref().map_or(0, |status| status.state);
        let is_wanted = one.agent_id > self.request.page_token && (states.is_empty() || states.contains(&state));
        if is_wanted && self.kept.len() <= self.size {
            self.kept.push(one);
        }
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
        let mut tally = Tally { request, size, counts: RuleStatusCounts::default(), kept: Vec::new() };
        let unreachable_servers = self.count_all(&rule, &mut tally).await;
        let Tally { counts, kept, .. } = tally;
        let (statuses, next_page_token) = page(kept.into_iter().map(|one| (one.token(), one)), size);
        Ok(ListRuleStatusesResponse { statuses, next_page_token, counts: Some(counts), revision, unreachable_servers })
    }

    /// Counts each agent once, by id; answers who didn't answer.
    async fn count_all(&self, rule: &Arc<LiveRule>, tally: &mut Tally<'_>) -> Vec<String> {
        let (mut lost, mut behind) = (BTreeSet::new(), String::new());
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
            let page = self.peers.page(behind, MAX_PAGE, own, ask, None, &mut lost).await;
            for one in page.items {
                let status = Some(as_seen(one.status.unwrap_or_default(), &rule.message));
                tally.take(AgentRuleStatus { status, ..one });
            }
            behind = page.next_page_token;
            if behind.is_empty() {
                return lost.into_iter().collect();
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
        RuleState::Shadowed => &mut counts.shadowed,
        RuleState::Applying => &mut counts.applying,
        RuleState::Failed => &mut counts.failed,
        RuleState::RolledBack => &mut counts.rolled_back,
        RuleState::Refused => &mut counts.refused,
        RuleState::Pending | RuleState::Unspecified if one.online => &mut counts.pending,
        RuleState::Pending | RuleState::Unspecified => &mut counts.offline,
    };
    *place += 1;
}

#[cfg(test)]
mod tests {
    use logmesh_proto::fleet::v1::RuleStatus;

    use super::*;

    #[test]
    fn all_are_counted_and_no_more_than_a_page_is_kept() {
        let (applied, failed) = (RuleState::Applied.into(), RuleState::Failed.into());
        let request = ListRuleStatusesRequest {
            states: vec![failed],
            page_token: "a02".into(),
            ..ListRuleStatusesRequest::default()
        };
        let mut tally = Tally { request: &request, size: 2, counts: RuleStatusCounts::default(), kept: Vec::new() };
        for number in 0..20 {
            let state = if number % 2 == 0 { failed } else { applied };
            let status = Some(RuleStatus { state, ..RuleStatus::default() });
            tally.take(AgentRuleStatus { agent_id: format!("a{number:02}"), status, ..AgentRuleStatus::default() });
        }
        let expected = RuleStatusCounts { total: 20, applied: 10, failed: 10, ..RuleStatusCounts::default() };
        assert_eq!(tally.counts, expected);
        let kept: Vec<&str> = tally.kept.iter().map(|one| one.agent_id.as_str()).collect();
        assert_eq!(kept, ["a04", "a06", "a08"], "a page, and that it isn't the last");
    }
}
