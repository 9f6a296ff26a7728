//! Filters of lists of agents: selectors over an agent's labels and over what else is known of it.

use logmesh_proto::fleet::v1::Agent;
use logmesh_rules::{Labels, Selector};
use tonic::Status;

use crate::error::bad_field;

/// Reads a filter; `None` if it selects every agent.
pub(crate) fn read(text: &str) -> Result<Option<Selector>, Status> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| bad_field("filter", error))
}

/// Whether an agent is selected. Where a label is called like a fact, the fact counts.
pub(crate) fn selects(filter: &Selector, agent: &Agent) -> bool {
    let mut labels: Labels = agent.labels.clone();
    let facts = [
        ("id", agent.id.as_str()),
        ("online", if agent.online { "true" } else { "false" }),
        ("version", &agent.version),
        ("server", &agent.server),
    ];
    labels.extend(facts.map(|(key, value)| (key.to_owned(), value.to_owned())));
    filter.matches(&labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_facts_select() {
        let labels = [("env".to_owned(), "prod".to_owned()), ("online".to_owned(), "maybe".to_owned())].into();
        let agent = Agent { id: "web-1".into(), labels, online: true, version: "0.1.0".into(), ..Agent::default() };
        for (filter, expected) in [
            ("env=prod, online=true", true),
            ("id in (web-1, web-2), version=0.1.0", true),
            ("online=false", false),
            ("online=maybe", false),
            ("exists(role)", false),
        ] {
            assert_eq!(selects(&read(filter).unwrap().unwrap(), &agent), expected, "{filter}");
        }
        assert!(read(" ").unwrap().is_none());
        assert!(read("env=").unwrap_err().message().starts_with("filter: "));
    }
}
