//! Where things lie in the store. Others read them there (backups, `etcdctl`), so a change is a new version.

use logmesh_types::RuleName;

/// Rules: `/logmesh/v1/rules/{rule}`, a JSON object with `rule`, `create_time` and `update_time`.
pub const RULES: &str = "/logmesh/v1/rules/";

/// Endpoints: `/logmesh/v1/endpoints/{kind}/{id}`, a JSON object with `kind`, `id` and `address`.
pub const ENDPOINTS: &str = "/logmesh/v1/endpoints/";

/// The key of a rule.
pub fn rule(name: &RuleName) -> String {
    format!("{RULES}{}", name.id())
}

/// The key of an endpoint.
pub fn endpoint(kind: &str, id: &str) -> String {
    format!("{ENDPOINTS}{kind}/{id}")
}
