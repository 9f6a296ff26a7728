//! `agents label|forget`.

use std::collections::BTreeMap;

use logmesh_proto::fleet::v1::{ForgetAgentRequest, UpdateAgentRequest};
use logmesh_types::AgentId;
use serde_json::json;

use super::super::output::Output;
use super::super::{Outcome, request};
use super::{Client, labels, to_json};

/// A label to set, or to take away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ctl) enum Label {
    Set(String, String),
    Remove(String),
}

/// Reads `k=v` or `k-`.
pub(super) fn label(text: &str) -> Result<Label, String> {
    let label = match text.split_once('=') {
        Some((key, value)) => Label::Set(key.to_owned(), value.to_owned()),
        None => Label::Remove(text.strip_suffix('-').unwrap_or_default().to_owned()),
    };
    match &label {
        Label::Set(key, _) | Label::Remove(key) if !key.is_empty() => Ok(label),
        _ => Err("write k=v to set a label, or k- to take it away".to_owned()),
    }
}

pub(super) async fn set(id: &AgentId, changes: Vec<Label>, client: &mut Client, out: &mut Output) -> Outcome {
    let (mut set_labels, mut remove_labels) = (BTreeMap::new(), Vec::new());
    for change in changes {
        match change {
            Label::Set(key, value) => drop(set_labels.insert(key, value)),
            Label::Remove(key) => remove_labels.push(key),
        }
    }
    let update = UpdateAgentRequest { id: id.to_string(), set_labels, remove_labels };
    let agent = client.update_agent(request(update)).await?.into_inner();
    if out.json {
        return Ok(out.json(&to_json(&agent))?);
    }
    Ok(out.line(&format!("{} {}", agent.id, labels(&agent)))?)
}

pub(super) async fn forget(id: &AgentId, client: &mut Client, out: &mut Output) -> Outcome {
    client.forget_agent(request(ForgetAgentRequest { id: id.to_string() })).await?;
    if out.json {
        return Ok(out.json(&json!({"id": id.as_str(), "forgotten": true}))?);
    }
    Ok(out.line(&format!("{id} forgotten"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        assert_eq!(label("role=web").unwrap(), Label::Set("role".into(), "web".into()));
        assert_eq!(label("role=").unwrap(), Label::Set("role".into(), String::new()));
        assert_eq!(label("a-b-").unwrap(), Label::Remove("a-b".into()));
        for bad in ["role", "-", "=x", ""] {
            label(bad).unwrap_err();
        }
    }
}
