//! `rules history|rollback`, and who changes a rule and why.

use logmesh_proto::config::v1::{ChangeNote, ListRuleRevisionsRequest, RollbackRuleRequest, RuleChange, RuleRevision};
use logmesh_types::{RuleName, UnixNanos};
use serde_json::{Value, json};

use super::{Client, to_json, with};
use crate::address::host_name;
use crate::ctl::output::{age, state, time};
use crate::ctl::{Failure, LIST_PAGE, Outcome, Session, request};

/// Who changes a rule, and why; kept in its history.
#[derive(Debug, clap::Args)]
pub(super) struct NoteArgs {
    /// Who changes it, for its history [default: user@host]
    #[arg(long, value_name = "NAME", env = "LOGMESH_AUTHOR")]
    author: Option<String>,
    /// Why, for its history
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

impl NoteArgs {
    /// The note, its reason being `reason` unless one was given.
    pub(super) fn note(&self, reason: &str) -> ChangeNote {
        let user =
            || ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
        let uid = || format!("uid-{}", rustix::process::getuid().as_raw());
        let author = self.author.clone().filter(|author| !author.is_empty());
        let author = author.unwrap_or_else(|| format!("{}@{}", user().unwrap_or_else(uid), host_name()));
        let reason = if self.reason.is_empty() { reason } else { &self.reason };
        ChangeNote { author, reason: reason.to_owned() }
    }
}

pub(super) async fn history(name: &RuleName, client: &mut Client, session: &mut Session) -> Outcome {
    let (mut rows, mut page_token, now) = (Vec::new(), String::new(), UnixNanos::now());
    loop {
        let page = ListRuleRevisionsRequest { name: name.to_string(), page_size: LIST_PAGE, page_token };
        let page = client.list_rule_revisions(request(page)).await?.into_inner();
        for revision in &page.revisions {
            if session.out.json {
                session.out.json(&revision_json(revision)?)?;
            } else {
                rows.push(row(revision, now));
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if !session.out.json {
        session.out.table(["REVISION", "WHEN", "CHANGE", "FIELDS", "WHO", "WHY"], &rows)?;
    }
    Ok(())
}

fn row(revision: &RuleRevision, now: UnixNanos) -> [String; 6] {
    let note = revision.note.clone().unwrap_or_default();
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let to = match revision.rolled_back_to {
        0 => String::new(),
        to => format!(" to {to}"),
    };
    [
        revision.revision.to_string(),
        age(revision.time.as_ref(), now),
        format!("{}{to}", change(revision)),
        dash(revision.changed_fields.join(" ")),
        dash(note.author),
        dash(note.reason),
    ]
}

fn change(revision: &RuleRevision) -> String {
    match revision.change() {
        RuleChange::Unspecified => "unknown".to_owned(),
        known => state(known.as_str_name(), "RULE_CHANGE_").replace('_', " "),
    }
}

fn revision_json(revision: &RuleRevision) -> Result<Value, Failure> {
    let note = revision.note.clone().unwrap_or_default();
    let shown = json!({
        "revision": revision.revision,
        "time": time(revision.time.as_ref()),
        "change": change(revision),
        "author": note.author,
        "reason": note.reason,
        "changed_fields": revision.changed_fields,
        "rule": revision.rule.as_ref().map(to_json).transpose()?,
    });
    Ok(match revision.rolled_back_to {
        0 => shown,
        to => with(shown, "rolled_back_to", to.into()),
    })
}

pub(super) async fn rollback(
    name: &RuleName,
    revision: i64,
    note: &NoteArgs,
    client: &mut Client,
    session: &mut Session,
) -> Outcome {
    let before = super::find(client, name.as_str()).await?;
    let rollback =
        RollbackRuleRequest { name: name.to_string(), revision, note: Some(note.note("")), ..Default::default() };
    let after = client.rollback_rule(request(rollback)).await?.into_inner();
    let done = match before {
        Some(before) if before.revision == after.revision => "unchanged",
        _ => "rolled back",
    };
    if session.out.json {
        session.out.json(&with(to_json(&after)?, "result", done.into()))?;
    } else {
        let as_of = format!("{name} {done}: as of revision {revision} (revision {})", after.revision);
        session.out.line(&as_of)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn a_change_is_shown_in_one_row_and_whole_as_json() {
        let revision = RuleRevision {
            revision: 7,
            time: Some(Timestamp { seconds: 100, nanos: 0 }),
            change: RuleChange::RolledBack.into(),
            note: Some(ChangeNote { author: "ann".into(), reason: String::new() }),
            rule: None,
            changed_fields: vec!["paths".into(), "topic".into()],
            rolled_back_to: 3,
        };
        let shown = row(&revision, UnixNanos(103_000_000_000));
        assert_eq!(shown, ["7", "3s", "rolled back to 3", "paths topic", "ann", "-"].map(str::to_owned));
        let json = revision_json(&revision).unwrap();
        assert_eq!((json["rolled_back_to"].as_i64(), json["change"].as_str()), (Some(3), Some("rolled back")));
        assert_eq!(json["rule"], Value::Null);
    }

    #[test]
    fn somebody_changes_a_rule_whatever_is_said() {
        let args = |author: Option<&str>, reason: &str| NoteArgs {
            author: author.map(str::to_owned),
            reason: reason.to_owned(),
        };
        assert_eq!(
            args(Some("ann"), "").note("moved in"),
            ChangeNote { author: "ann".into(), reason: "moved in".into() }
        );
        let note = args(None, "why").note("moved in");
        assert!(note.author.contains('@') && note.author.len() > 2, "{note:?}");
        assert_eq!(note.reason, "why");
    }
}
