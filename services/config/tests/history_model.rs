//! The history of rules against a model of it: a list of what was done.

mod common;

use common::{Server, rule, start};
use logmesh_proto::config::v1::{
    DeleteRuleRequest, GetRuleRequest, ListRuleRevisionsRequest, RollbackRuleRequest, Rule, RuleChange,
    UpdateRuleRequest,
};
use proptest::prelude::*;
use proptest::test_runner::Config;
use tonic::Code;

/// What a caller does. Whether it knows the newest etag or only one of before is in `stale`.
#[derive(Clone, Debug)]
enum Step {
    Apply {
        priority: i32,
        stale: bool,
    },
    Delete {
        stale: bool,
    },
    /// To the state of the change of that number, counted from the first, or of one that never was.
    Rollback {
        to: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4, prop::bool::weighted(0.2)).prop_map(|(priority, stale)| Step::Apply { priority, stale }),
        1 => prop::bool::weighted(0.2).prop_map(|stale| Step::Delete { stale }),
        2 => (0..12usize).prop_map(|to| Step::Rollback { to }),
    ]
}

/// One change, as the model has it: revision, what was done, the rule's priority from then on, to where it went back.
type Told = (i64, RuleChange, Option<i32>, i64);

/// A server, and what its history should say.
struct Run {
    server: Server,
    model: Vec<Told>,
}

impl Run {
    fn priority(&self) -> Option<i32> {
        self.model.last().and_then(|last| last.2)
    }

    fn etag(stale: bool) -> String {
        if stale { "r0".to_owned() } else { String::new() }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Apply { priority, stale } => self.apply(priority, stale).await,
            Step::Delete { stale } => self.delete(stale).await,
            Step::Rollback { to } => self.rollback(to).await,
        }
    }

    async fn apply(&mut self, priority: i32, stale: bool) {
        let rule = Rule { priority, etag: Self::etag(stale), ..rule("a", "") };
        let request = UpdateRuleRequest { rule: Some(rule), allow_missing: true, ..Default::default() };
        let answer = self.server.rules().update_rule(request).await;
        if stale {
            assert_eq!(answer.expect_err("a stale etag").code(), Code::Aborted);
            return;
        }
        let revision = answer.expect("applied").into_inner().revision;
        match self.priority() {
            Some(before) if before == priority => assert_eq!(revision, self.model[self.model.len() - 1].0),
            Some(_) => self.model.push((revision, RuleChange::Updated, Some(priority), 0)),
            None => self.model.push((revision, RuleChange::Created, Some(priority), 0)),
        }
    }

    async fn delete(&mut self, stale: bool) {
        let request = DeleteRuleRequest { name: "a".into(), etag: Self::etag(stale), ..Default::default() };
        let answer = self.server.rules().delete_rule(request).await;
        match (self.priority(), stale) {
            (None, _) => assert_eq!(answer.expect_err("nothing to delete").code(), Code::NotFound),
            (_, true) => assert_eq!(answer.expect_err("a stale etag").code(), Code::Aborted),
            _ => {
                answer.expect("deleted");
                let newest = self.told().await.pop().expect("a change");
                self.model.push((newest.0, RuleChange::Deleted, None, 0));
            }
        }
    }

    async fn rollback(&mut self, to: usize) {
        let (revision, target) = self.model.get(to).map_or((i64::MAX, None), |change| (change.0, Some(change.2)));
        let request = RollbackRuleRequest { name: "a".into(), revision, ..Default::default() };
        let answer = self.server.rules().rollback_rule(request).await;
        match target {
            None => assert_eq!(answer.expect_err("no such revision").code(), Code::NotFound),
            Some(None) => assert_eq!(answer.expect_err("a deletion").code(), Code::FailedPrecondition),
            Some(Some(priority)) => {
                let now = answer.expect("rolled back").into_inner();
                assert_eq!(now.priority, priority);
                if self.priority() != Some(priority) {
                    self.model.push((now.revision, RuleChange::RolledBack, Some(priority), revision));
                }
            }
        }
    }

    /// The history as it's told, the oldest first.
    async fn told(&self) -> Vec<Told> {
        let request = ListRuleRevisionsRequest { name: "a".into(), ..Default::default() };
        let told = match self.server.rules().list_rule_revisions(request).await {
            Ok(page) => page.into_inner().revisions,
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound);
                Vec::new()
            }
        };
        let priority = |rule: &Rule| rule.priority;
        let one = |one: &logmesh_proto::config::v1::RuleRevision| {
            (one.revision, one.change(), one.rule.as_ref().map(priority), one.rolled_back_to)
        };
        told.iter().rev().map(one).collect()
    }
}

proptest! {
    #![proptest_config(Config { cases: 24, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_history_is_what_was_done(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let mut run = Run { server: start().await, model: Vec::new() };
            for step in steps {
                run.step(step).await;
                assert_eq!(run.told().await, run.model);
            }
            let get = GetRuleRequest { name: "a".into() };
            let now = run.server.rules().get_rule(get).await.ok().map(|rule| rule.into_inner());
            assert_eq!(now.as_ref().map(|rule| rule.priority), run.priority());
            assert!(now.is_none_or(|rule| Some(rule.revision) == run.model.last().map(|last| last.0)));
            assert!(run.model.is_sorted_by(|a, b| a.0 < b.0), "revisions only grow");
        });
    }
}
