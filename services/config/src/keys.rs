//! Where things lie in the store. Others read them there (backups, `etcdctl`), so a change is a new version.

use logmesh_types::{AgentId, RuleName};

/// Rules: `/logmesh/v1/rules/{rule}`, a JSON object with `rule`, `create_time` and `update_time`.
pub const RULES: &str = "/logmesh/v1/rules/";

/// What became of rules: `/logmesh/v1/history/{rule}/{n}`, a JSON object for each change; `n` has ten digits and grows
/// with each. The keys of a rule are written in the transaction that changes it, and stay when it's deleted.
pub const HISTORY: &str = "/logmesh/v1/history/";

/// Endpoints: `/logmesh/v1/endpoints/{kind}/{id}`, a JSON object with `kind`, `id` and `address`.
pub const ENDPOINTS: &str = "/logmesh/v1/endpoints/";

/// Agents: `/logmesh/v1/agents/{id}`, a JSON object with `host_labels`, `labels` (the centre's), `version`, `first_seen` and
/// `last_seen` (to within a day).
pub const AGENTS: &str = "/logmesh/v1/agents/";

/// The incarnation of the store: a random text that the first config service writes. Revisions of two incarnations have
/// nothing to do with each other.
pub const INCARNATION: &str = "/logmesh/v1/incarnation";

/// Who leads where one config service must do a thing alone: `/logmesh/v1/leaders/{office}`, the leader's name, for as long
/// as its lease lives.
pub const LEADERS: &str = "/logmesh/v1/leaders/";

/// The key of a rule.
pub fn rule(name: &RuleName) -> String {
    format!("{RULES}{}", name.id())
}

/// The prefix of a rule's history.
pub fn history(name: &RuleName) -> String {
    format!("{HISTORY}{}/", name.id())
}

/// The key of the change of that number in a rule's history.
pub fn change(name: &RuleName, number: u64) -> String {
    format!("{}{number:010}", history(name))
}

/// The key of an agent.
pub fn agent(id: &AgentId) -> String {
    format!("{AGENTS}{id}")
}

/// The agent of a key.
pub fn agent_of(key: &str) -> Option<AgentId> {
    key.strip_prefix(AGENTS)?.parse().ok()
}

/// The key of an endpoint.
pub fn endpoint(kind: &str, id: &str) -> String {
    format!("{ENDPOINTS}{kind}/{id}")
}
