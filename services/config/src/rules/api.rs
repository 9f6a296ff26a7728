//! `logmesh.config.v1.RuleService`.

use std::sync::Arc;

use logmesh_grpc::{aborted, already_exists, internal, not_found, resource_exhausted};
use logmesh_proto::config::v1::rule_service_server::RuleService;
use logmesh_proto::config::v1::{
    CreateRuleRequest, DeleteRuleRequest, DeleteRuleResponse, GetRuleRequest, ListRulesRequest, ListRulesResponse,
    Rule, UpdateRuleRequest, WatchRulesRequest, WatchRulesResponse,
};
use logmesh_rules::RuleSpec;
use logmesh_store::{ConfigStore, Precondition, Revision, StoreError};
use logmesh_types::RuleName;
use tonic::{Request, Response, Status};
use tracing::info;

use super::mask;
use super::stored::{StoredRule, etag};
use super::view::{RuleSet, RuleView};
use crate::error::{bad_field, bad_rule, store};
use crate::keys;
use crate::limits::{MAX_RULES, MAX_RULES_BYTES, UPDATE_ATTEMPTS};
use crate::paging::{page, page_size};
use crate::push::{Push, Stream};

/// The API of rules.
#[derive(Clone, Debug)]
pub(crate) struct RuleApi {
    store: Arc<dyn ConfigStore>,
    view: RuleView,
    push: Push,
}

#[tonic::async_trait]
impl RuleService for RuleApi {
    async fn create_rule(&self, request: Request<CreateRuleRequest>) -> Result<Response<Rule>, Status> {
        let CreateRuleRequest { rule, validate_only } = request.into_inner();
        let rule = rule.ok_or_else(|| bad_field("rule", "is missing"))?;
        let (name, spec) = check(&rule)?;
        if self.find(&name).await?.is_some() {
            return Err(exists(&name));
        }
        self.write(&name, StoredRule::new(spec, None), None, validate_only)
            .await?
            .map(Response::new)
            .ok_or(exists(&name))
    }

    async fn get_rule(&self, request: Request<GetRuleRequest>) -> Result<Response<Rule>, Status> {
        let name = parse_name("name", &request.into_inner().name)?;
        let (stored, revision) = self.find(&name).await?.ok_or_else(|| missing(&name))?;
        Ok(Response::new(stored.message(revision)))
    }

    async fn list_rules(&self, request: Request<ListRulesRequest>) -> Result<Response<ListRulesResponse>, Status> {
        let ListRulesRequest { page_size: asked, page_token } = request.into_inner();
        let size = page_size(asked)?;
        let snapshot = self.store.list(keys::RULES).await.map_err(store)?;
        let from = format!("{}{page_token}", keys::RULES);
        // One that can't be read is named in the log by the view; the others are shown.
        let rules =
            (snapshot.entries.iter()).filter(|entry| page_token.is_empty() || entry.key > from).filter_map(|entry| {
                let stored = StoredRule::read(&entry.versioned).ok()?;
                let id = entry.key.strip_prefix(keys::RULES)?.to_owned();
                Some((id, stored.message(entry.versioned.mod_revision)))
            });
        let (rules, next_page_token) = page(rules, size);
        Ok(Response::new(ListRulesResponse { rules, next_page_token }))
    }

    async fn update_rule(&self, request: Request<UpdateRuleRequest>) -> Result<Response<Rule>, Status> {
        let mut request = request.into_inner();
        let rule = request.rule.take().ok_or_else(|| bad_field("rule", "is missing"))?;
        let name = parse_name("rule.name", &rule.name)?;
        for _ in 0..UPDATE_ATTEMPTS {
            if let Some(written) = self.try_update(&name, &rule, &request).await? {
                return Ok(Response::new(written));
            }
        }
        Err(aborted("CONFLICT", format!("others keep changing {name}; try again")))
    }

    async fn delete_rule(&self, request: Request<DeleteRuleRequest>) -> Result<Response<DeleteRuleResponse>, Status> {
        let request = request.into_inner();
        let name = parse_name("name", &request.name)?;
        // Not by find(): a rule that can't be read can still be deleted.
        let held = self.store.get(&keys::rule(&name)).await.map_err(store)?.ok_or_else(|| missing(&name))?;
        check_etag(&name, &request.etag, held.mod_revision)?;
        let condition =
            if request.etag.is_empty() { Precondition::None } else { Precondition::RevisionIs(held.mod_revision) };
        match self.store.delete(&keys::rule(&name), condition).await {
            Ok(revision) => {
                info!(rule = %name, %revision, "rule deleted");
                Ok(Response::new(DeleteRuleResponse {}))
            }
            Err(StoreError::PreconditionFailed { .. }) => Err(changed(&name)),
            Err(error) => Err(store(error)),
        }
    }

    type WatchRulesStream = Stream<WatchRulesResponse>;

    async fn watch_rules(&self, _: Request<WatchRulesRequest>) -> Result<Response<Self::WatchRulesStream>, Status> {
        let show = |set: &RuleSet| {
            set.is_loaded().then(|| WatchRulesResponse {
                rules: set.rules.values().map(|rule| rule.message.clone()).collect(),
                revision: i64::try_from(set.revision.0).unwrap_or(i64::MAX),
            })
        };
        Ok(Response::new(self.push.states(self.view.subscribe(), show)?))
    }
}

impl RuleApi {
    pub(crate) fn new(store: Arc<dyn ConfigStore>, view: RuleView, push: Push) -> Self {
        Self { store, view, push }
    }

    /// The stored rule and the revision that wrote it.
    async fn find(&self, name: &RuleName) -> Result<Option<(StoredRule, Revision)>, Status> {
        let Some(versioned) = self.store.get(&keys::rule(name)).await.map_err(store)? else { return Ok(None) };
        let stored = StoredRule::read(&versioned).map_err(|problem| internal(format!("{name}: {problem:#}")))?;
        Ok(Some((stored, versioned.mod_revision)))
    }

    /// Changes the rule from the state that it has now; `None` if somebody else wrote in between.
    async fn try_update(
        &self,
        name: &RuleName,
        rule: &Rule,
        request: &UpdateRuleRequest,
    ) -> Result<Option<Rule>, Status> {
        let former = self.find(name).await?;
        let (spec, stored) = match &former {
            None if !request.allow_missing => return Err(missing(name)),
            // An etag names a state that it had: somebody deleted it.
            None if !rule.etag.is_empty() => return Err(changed(name)),
            None => (check(rule)?.1, None),
            Some((stored, revision)) => {
                check_etag(name, &rule.etag, *revision)?;
                let merged = mask::merge(&stored.message(*revision), rule, request.update_mask.as_ref())?;
                let spec = check(&merged)?.1;
                if spec == stored.rule {
                    return Ok(Some(stored.message(*revision)));
                }
                (spec, Some(stored))
            }
        };
        let new = StoredRule::new(spec, stored);
        let revision = former.as_ref().map(|(_, revision)| *revision);
        match self.write(name, new, revision, request.validate_only).await? {
            None if !rule.etag.is_empty() => Err(changed(name)),
            written => Ok(written),
        }
    }

    /// Writes the rule if `former` still is the revision that wrote it last; `None` if it isn't.
    async fn write(
        &self,
        name: &RuleName,
        new: StoredRule,
        former: Option<Revision>,
        validate_only: bool,
    ) -> Result<Option<Rule>, Status> {
        let json = new.to_json().map_err(|problem| internal(format!("{problem:#}")))?;
        self.check_room(name, json.len())?;
        if validate_only {
            return Ok(Some(new.message(former.unwrap_or_default())));
        }
        let condition = former.map_or(Precondition::MustNotExist, Precondition::RevisionIs);
        match self.store.put(&keys::rule(name), json.into(), condition).await {
            Ok(revision) => {
                info!(rule = %name, %revision, "rule written");
                Ok(Some(new.message(revision)))
            }
            Err(StoreError::PreconditionFailed { .. }) => Ok(None),
            Err(error) => Err(store(error)),
        }
    }

    /// Keeps all rules within what one message can carry. Writers at the same moment may go over it by as much as each other.
    fn check_room(&self, name: &RuleName, bytes: usize) -> Result<(), Status> {
        let set = self.view.latest();
        if set.bytes + bytes > MAX_RULES_BYTES {
            let message =
                format!("all rules together would take more than {MAX_RULES_BYTES} bytes; delete some or use globs");
            return Err(resource_exhausted("TOO_MANY_RULES", message));
        }
        if set.rules.len() >= MAX_RULES && !set.rules.contains_key(name.as_str()) {
            return Err(resource_exhausted(
                "TOO_MANY_RULES",
                format!("there are {MAX_RULES} rules, which is the limit"),
            ));
        }
        Ok(())
    }
}

/// The rule as it would be stored, its name with `rules/`.
fn check(rule: &Rule) -> Result<(RuleName, RuleSpec), Status> {
    let compiled = RuleSpec::try_from(rule).and_then(|spec| spec.compile()).map_err(bad_rule)?;
    Ok((compiled.name.clone(), compiled.spec().clone()))
}

fn parse_name(field: &str, name: &str) -> Result<RuleName, Status> {
    name.parse().map_err(|error: logmesh_types::NameError| bad_field(field, error.to_string()))
}

fn check_etag(name: &RuleName, wanted: &str, revision: Revision) -> Result<(), Status> {
    if wanted.is_empty() || wanted == etag(revision) { Ok(()) } else { Err(changed(name)) }
}

fn missing(name: &RuleName) -> Status {
    not_found("RULE_NOT_FOUND", format!("there is no {name}"))
}

fn exists(name: &RuleName) -> Status {
    already_exists("RULE_EXISTS", format!("{name} exists already; update it instead"))
}

fn changed(name: &RuleName) -> Status {
    aborted("ETAG_MISMATCH", format!("{name} was changed since it was read; read it again"))
}
