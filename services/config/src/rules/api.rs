//! `logmesh.config.v1.RuleService`.

use std::collections::BTreeMap;
use std::sync::Arc;

use logmesh_grpc::{aborted, already_exists, failed_precondition, not_found};
use logmesh_proto::config::v1::rule_service_server::RuleService;
use logmesh_proto::config::v1::{
    ChangeNote, CreateRuleRequest, DeleteRuleRequest, DeleteRuleResponse, GetRuleRequest, ListRuleRevisionsRequest,
    ListRuleRevisionsResponse, ListRulesRequest, ListRulesResponse, PreviewRuleRequest, PreviewRuleResponse,
    RollbackRuleRequest, Rule, UpdateRuleRequest, WatchRulesRequest, WatchRulesResponse,
};
use logmesh_rules::RuleSpec;
use logmesh_store::{ConfigStore, Revision};
use logmesh_types::RuleName;
use tonic::{Request, Response, Status};

use super::history::Kind;
use super::live::RuleSet;
use super::stored::{StoredRule, etag};
use super::view::RuleView;
use super::write::{Change, Former, RuleStore};
use super::{filter, mask};
use crate::agents::Previews;
use crate::error::{bad_field, bad_rule, store};
use crate::keys;
use crate::limits::UPDATE_ATTEMPTS;
use crate::paging::{page, page_size};
use crate::push::{Push, Stream};
use crate::revision::on_wire;

/// The API of rules.
#[derive(Clone, Debug)]
pub(crate) struct RuleApi {
    store: Arc<dyn ConfigStore>,
    rules: RuleStore,
    view: RuleView,
    push: Push,
    previews: Previews,
}

#[tonic::async_trait]
impl RuleService for RuleApi {
    async fn create_rule(&self, request: Request<CreateRuleRequest>) -> Result<Response<Rule>, Status> {
        let CreateRuleRequest { rule, validate_only, note } = request.into_inner();
        let rule = rule.ok_or_else(|| bad_field("rule", "is missing"))?;
        let (name, spec) = check(&rule)?;
        if self.rules.look(&name).await?.is_some() {
            return Err(exists(&name));
        }
        let change = change(Kind::Created, Some(spec), note, validate_only);
        let made = self.rules.change(&name, None, change).await?;
        made.map(Response::new).ok_or_else(|| exists(&name))
    }

    async fn get_rule(&self, request: Request<GetRuleRequest>) -> Result<Response<Rule>, Status> {
        let name = parse_name("name", &request.into_inner().name)?;
        if let Some((stored, revision)) = self.rules.find(&name).await? {
            return Ok(Response::new(stored.message(revision)));
        }
        let set = self.view.latest();
        let served = set.tree_rule(name.as_str()).ok_or_else(|| missing(&name))?;
        Ok(Response::new(served.message.clone()))
    }

    async fn list_rules(&self, request: Request<ListRulesRequest>) -> Result<Response<ListRulesResponse>, Status> {
        let ListRulesRequest { page_size: asked, page_token, filter } = request.into_inner();
        let (size, filter) = (page_size(asked)?, filter::read(&filter)?);
        let snapshot = self.store.list(keys::RULES).await.map_err(store)?;
        let set = self.view.latest();
        let served = set.tree_rules().map(|rule| (id(&rule.message.name), Some(rule.message.clone())));
        let mut all: BTreeMap<&str, Option<Rule>> = served.collect();
        for entry in &snapshot.entries {
            // One that can't be read is among the problems; the others are shown.
            let stored = StoredRule::read(&entry.versioned).ok();
            let rule = stored.map(|stored| stored.message(entry.versioned.mod_revision));
            all.insert(entry.key.strip_prefix(keys::RULES).unwrap_or_default(), rule);
        }
        let rules = all.into_iter().filter(|(id, _)| *id > page_token.as_str());
        let rules = rules.filter_map(|(id, rule)| Some((id.to_owned(), rule?)));
        let (rules, next_page_token) = page(rules.filter(|(_, rule)| filter.matches(&filter::fields(rule))), size);
        let problems = if page_token.is_empty() { set.problems.clone() } else { Vec::new() };
        Ok(Response::new(ListRulesResponse { rules, next_page_token, problems }))
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
        Err(conflict(&name))
    }

    async fn delete_rule(&self, request: Request<DeleteRuleRequest>) -> Result<Response<DeleteRuleResponse>, Status> {
        let DeleteRuleRequest { name, etag, note, validate_only } = request.into_inner();
        let name = parse_name("name", &name)?;
        for _ in 0..UPDATE_ATTEMPTS {
            // Not by find(): a rule that can't be read can still be deleted.
            let held = self.rules.look(&name).await?.ok_or_else(|| self.missing(&name))?;
            check_etag(&name, &etag, held.revision)?;
            let change = change(Kind::Deleted, None, note.clone(), validate_only);
            if self.rules.change(&name, Some(&held), change).await?.is_some() {
                return Ok(Response::new(DeleteRuleResponse {}));
            }
        }
        Err(conflict(&name))
    }

    async fn list_rule_revisions(
        &self,
        request: Request<ListRuleRevisionsRequest>,
    ) -> Result<Response<ListRuleRevisionsResponse>, Status> {
        let ListRuleRevisionsRequest { name, page_size: asked, page_token } = request.into_inner();
        let (name, size) = (parse_name("name", &name)?, page_size(asked)?);
        let before = if page_token.is_empty() { Ok(u64::MAX) } else { page_token.parse() };
        let before = before.map_err(|_| bad_field("page_token", "is not one that this method gave"))?;
        let present = self.rules.look(&name).await?;
        let history = self.rules.history(&name, present.as_ref()).await?;
        if history.is_empty() && present.is_none() {
            return Err(missing(&name));
        }
        let (revisions, next_page_token) = page(history.before(before), size);
        Ok(Response::new(ListRuleRevisionsResponse { revisions, next_page_token }))
    }

    async fn rollback_rule(&self, request: Request<RollbackRuleRequest>) -> Result<Response<Rule>, Status> {
        let request = request.into_inner();
        let name = parse_name("name", &request.name)?;
        for _ in 0..UPDATE_ATTEMPTS {
            if let Some(written) = self.try_rollback(&name, &request).await? {
                return Ok(Response::new(written));
            }
        }
        Err(conflict(&name))
    }

    async fn preview_rule(
        &self,
        request: Request<PreviewRuleRequest>,
    ) -> Result<Response<PreviewRuleResponse>, Status> {
        let mut request = request.into_inner();
        let rule = request.rule.take().ok_or_else(|| bad_field("rule", "is missing"))?;
        let rule = RuleSpec::try_from(&rule).and_then(|spec| spec.compile()).map_err(bad_rule)?;
        self.previews.preview(&rule, request).await.map(Response::new)
    }

    type WatchRulesStream = Stream<WatchRulesResponse>;

    async fn watch_rules(&self, _: Request<WatchRulesRequest>) -> Result<Response<Self::WatchRulesStream>, Status> {
        let show = |set: &RuleSet| {
            set.is_loaded().then(|| WatchRulesResponse {
                rules: set.rules.values().map(|rule| rule.message.clone()).collect(),
                revision: on_wire(set.revision),
                problems: set.problems.clone(),
            })
        };
        Ok(Response::new(self.push.states(self.view.subscribe(), show)?))
    }
}

impl RuleApi {
    pub(crate) fn new(store: Arc<dyn ConfigStore>, view: RuleView, previews: Previews, push: Push) -> Self {
        let rules = RuleStore::new(store.clone(), view.clone());
        Self { store, rules, view, push, previews }
    }

    /// Why a rule that isn't in the store can't be changed.
    fn missing(&self, name: &RuleName) -> Status {
        match self.view.latest().tree_rule(name.as_str()) {
            Some(served) => read_only(name, &served.message.origin),
            None => missing(name),
        }
    }

    /// Changes the rule from the state that it has now; `None` if somebody else wrote in between.
    async fn try_update(
        &self,
        name: &RuleName,
        rule: &Rule,
        request: &UpdateRuleRequest,
    ) -> Result<Option<Rule>, Status> {
        let former = self.rules.find(name).await?;
        let (kind, spec) = match &former {
            None if self.view.latest().tree_rule(name.as_str()).is_some() => return Err(self.missing(name)),
            None if !request.allow_missing => return Err(missing(name)),
            // An etag names a state that it had: somebody deleted it.
            None if !rule.etag.is_empty() => return Err(changed(name)),
            None => (Kind::Created, check(rule)?.1),
            Some((stored, revision)) => {
                check_etag(name, &rule.etag, *revision)?;
                let merged = mask::merge(&stored.message(*revision), rule, request.update_mask.as_ref())?;
                let spec = check(&merged)?.1;
                if spec == stored.rule {
                    return Ok(Some(stored.message(*revision)));
                }
                (Kind::Updated, spec)
            }
        };
        let former = former.map(|(stored, revision)| Former { revision, stored: Some(stored) });
        let change = change(kind, Some(spec), request.note.clone(), request.validate_only);
        self.rules.change(name, former.as_ref(), change).await
    }

    /// Gives the rule the state of an earlier revision; `None` if somebody else wrote in between.
    async fn try_rollback(&self, name: &RuleName, request: &RollbackRuleRequest) -> Result<Option<Rule>, Status> {
        let present = self.rules.look(name).await?;
        match &present {
            Some(held) => check_etag(name, &request.etag, held.revision)?,
            None if !request.etag.is_empty() => return Err(changed(name)),
            None => {}
        }
        let history = self.rules.history(name, present.as_ref()).await?;
        if history.is_empty() && present.is_none() {
            return Err(missing(name));
        }
        let target = Revision(u64::try_from(request.revision).unwrap_or_default());
        let found = history.find(target).ok_or_else(|| no_revision(name, request.revision))?;
        let found = found.ok_or_else(|| unknown_revision(name, request.revision))?;
        let earlier = found.rule.as_ref().ok_or_else(|| deletion(name, request.revision))?;
        let (_, spec) = check(&earlier.into())?;
        if let Some((held, Some(stored))) = present.as_ref().map(|held| (held, &held.stored))
            && stored.rule == spec
        {
            return Ok(Some(stored.message(held.revision)));
        }
        let change = Change {
            rolled_back_to: Some(target),
            ..change(Kind::RolledBack, Some(spec), request.note.clone(), request.validate_only)
        };
        self.rules.change(name, present.as_ref(), change).await
    }
}

fn change(kind: Kind, rule: Option<RuleSpec>, note: Option<ChangeNote>, validate_only: bool) -> Change {
    Change { kind, rule, note: note.unwrap_or_default(), rolled_back_to: None, validate_only }
}

/// The rule as it would be stored, its name with `rules/`.
fn check(rule: &Rule) -> Result<(RuleName, RuleSpec), Status> {
    let compiled = RuleSpec::try_from(rule).and_then(|spec| spec.compile()).map_err(bad_rule)?;
    Ok((compiled.name.clone(), compiled.spec().clone()))
}

/// The name without `rules/`.
fn id(name: &str) -> &str {
    name.strip_prefix(RuleName::PREFIX).unwrap_or(name)
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

fn read_only(name: &RuleName, origin: &str) -> Status {
    let how = "change it there, or import it (logmesh rules import, or CreateRule with its name) and change it here";
    failed_precondition("RULE_OF_TREE", format!("{name} is served from the etcd key {origin}; {how}"))
}

fn conflict(name: &RuleName) -> Status {
    aborted("CONFLICT", format!("others keep changing {name}; try again"))
}

fn no_revision(name: &RuleName, revision: i64) -> Status {
    let message = format!(
        "the history of {name} holds no revision {revision}; ListRuleRevisions (`logmesh rules history`) shows those that it holds"
    );
    not_found("REVISION_NOT_FOUND", message)
}

fn unknown_revision(name: &RuleName, revision: i64) -> Status {
    let message = format!("revision {revision} of {name} was written by a later version of the server; use that");
    failed_precondition("REVISION_UNREADABLE", message)
}

fn deletion(name: &RuleName, revision: i64) -> Status {
    let message = format!("revision {revision} deleted {name}; name one that holds it, or delete it");
    failed_precondition("REVISION_IS_DELETION", message)
}
