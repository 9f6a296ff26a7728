//! Filters of lists of rules: selectors over the rule's own fields.

use logmesh_proto::config::v1::{FileFormat, LongEvents, Rule, StartAt};
use logmesh_rules::{Labels, Selector};
use tonic::Status;

use crate::error::bad_field;

/// The fields that a filter may name, as the proto says.
const FIELDS: [&str; 11] = [
    "name",
    "id",
    "topic",
    "service",
    "selector",
    "origin",
    "priority",
    "start_at",
    "long_events",
    "format",
    "encoding",
];

/// Reads a filter; a blank one selects every rule.
pub(crate) fn read(text: &str) -> Result<Selector, Status> {
    let filter: Selector = text.parse().map_err(|error| bad_field("filter", error))?;
    match filter.keys().into_iter().find(|key| !FIELDS.contains(key)) {
        Some(key) => {
            let fields = FIELDS.join(", ");
            Err(bad_field("filter", format!("{key:?} is not a field that a filter can name, which are {fields}")))
        }
        None => Ok(filter),
    }
}

/// A rule's fields as labels; empty ones are left out.
pub(crate) fn fields(rule: &Rule) -> Labels {
    let id = rule.name.strip_prefix(logmesh_types::RuleName::PREFIX).unwrap_or(&rule.name);
    let start_at = if rule.start_at() == StartAt::End { "end" } else { "beginning" };
    let long_events = if rule.long_events() == LongEvents::Cut { "cut" } else { "split" };
    let format = if rule.format() == FileFormat::Container { "container" } else { "lines" };
    let priority = rule.priority.to_string();
    let values = [
        &rule.name,
        id,
        &rule.topic,
        &rule.service,
        &rule.selector,
        &rule.origin,
        &priority,
        start_at,
        long_events,
        format,
        &rule.encoding,
    ];
    let fields = FIELDS.iter().zip(values).filter(|(_, value)| !value.is_empty());
    fields.map(|(field, value)| ((*field).to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_can_be_asked_for() {
        let rule = Rule {
            name: "rules/nginx".into(),
            topic: "web".into(),
            selector: "role=web".into(),
            priority: -7,
            start_at: StartAt::End.into(),
            ..Rule::default()
        };
        let fields = fields(&rule);
        for yes in [
            "",
            "name=rules/nginx",
            "id in (nginx, apache) AND topic=web",
            "priority=-7, start_at=end, format=lines, long_events=split",
            "selector=\"role=web\"",
            "NOT exists(origin), !exists(service), encoding!=gbk",
        ] {
            assert!(read(yes).unwrap().matches(&fields), "{yes}");
        }
        for no in ["id=apache", "exists(origin)", "start_at=beginning", "service=shop OR topic=db"] {
            assert!(!read(no).unwrap().matches(&fields), "{no}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        assert_eq!(read("topic=").unwrap_err().message(), "filter: at character 7: expected a value, found the end");
        let unknown = read("topic=a OR (colour=red, !exists(x))").unwrap_err();
        assert!(unknown.message().starts_with("filter: \"colour\" is not a field"), "{unknown}");
    }
}
