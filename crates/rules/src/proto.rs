//! Rules as messages.

use logmesh_proto::config::v1 as message;
use logmesh_types::ByteSize;

use crate::spec::{Multiline, Pace, RuleSpec, StartAt, Violation, Violations};

impl From<&RuleSpec> for message::Rule {
    /// The fields that the server sets (revision, etag, times) stay empty.
    fn from(spec: &RuleSpec) -> Self {
        let start_at = match spec.start_at {
            StartAt::Beginning => message::StartAt::Beginning,
            StartAt::End => message::StartAt::End,
        };
        Self {
            name: spec.name.clone(),
            selector: spec.selector.clone(),
            paths: spec.paths.clone(),
            exclude: spec.exclude.clone(),
            topic: spec.topic.clone(),
            priority: spec.priority,
            service: spec.service.clone().unwrap_or_default(),
            pace: (!spec.pace.is_unlimited()).then(|| message::Pace {
                bytes_per_second: spec.pace.bytes_per_second.map_or(0, |rate| rate.0),
                lines_per_second: spec.pace.lines_per_second.unwrap_or(0),
            }),
            start_at: start_at.into(),
            multiline: (spec.multiline.as_ref())
                .map(|multiline| message::Multiline { start_pattern: multiline.start_pattern.clone() }),
            ..Self::default()
        }
    }
}

impl TryFrom<&message::Rule> for RuleSpec {
    type Error = Violations;

    /// Fails only where a message can say what a rule can't: an enum's value that this version doesn't know.
    fn try_from(rule: &message::Rule) -> Result<Self, Violations> {
        let start_at = match message::StartAt::try_from(rule.start_at) {
            Ok(message::StartAt::Unspecified | message::StartAt::Beginning) => StartAt::Beginning,
            Ok(message::StartAt::End) => StartAt::End,
            Err(_) => {
                let description = format!("{} is unknown; 1 is the beginning, 2 is the end", rule.start_at);
                return Err(Violations(vec![Violation { field: "start_at".into(), description }]));
            }
        };
        let pace = rule.pace.unwrap_or_default();
        let start_pattern = rule.multiline.as_ref().map(|multiline| multiline.start_pattern.clone());
        Ok(Self {
            name: rule.name.clone(),
            selector: rule.selector.clone(),
            paths: rule.paths.clone(),
            exclude: rule.exclude.clone(),
            topic: rule.topic.clone(),
            priority: rule.priority,
            service: Some(rule.service.clone()).filter(|service| !service.is_empty()),
            pace: Pace {
                bytes_per_second: Some(ByteSize(pace.bytes_per_second)).filter(|rate| rate.0 > 0),
                lines_per_second: Some(pace.lines_per_second).filter(|rate| *rate > 0),
            },
            start_at,
            multiline: (start_pattern.filter(|pattern| !pattern.is_empty()))
                .map(|start_pattern| Multiline { start_pattern }),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_spec()(
            texts in prop::collection::vec("[a-z*/]{1,8}", 5),
            paths in prop::collection::vec("[a-z*/]{0,8}", 0..4),
            exclude in prop::collection::vec("[a-z*/]{0,8}", 0..4),
            priority in any::<i32>(),
            rates in prop::collection::vec(prop::option::of(1..u64::MAX), 2),
            (service, end, multiline) in any::<(bool, bool, bool)>(),
        ) -> RuleSpec {
            RuleSpec {
                name: texts[0].clone(),
                selector: texts[1].clone(),
                paths,
                exclude,
                topic: texts[2].clone(),
                priority,
                service: service.then(|| texts[3].clone()),
                pace: Pace { bytes_per_second: rates[0].map(ByteSize), lines_per_second: rates[1] },
                start_at: if end { StartAt::End } else { StartAt::Beginning },
                multiline: multiline.then(|| Multiline { start_pattern: texts[4].clone() }),
            }
        }
    }

    proptest! {
        #[test]
        fn every_form_keeps_all_of_a_rule(spec in any_spec()) {
            prop_assert_eq!(&RuleSpec::try_from(&message::Rule::from(&spec)).unwrap(), &spec);
            prop_assert_eq!(&RuleSpec::from_json(&spec.to_json().unwrap()).unwrap(), &spec);
            let yaml = crate::to_yaml(&spec).unwrap();
            let read = crate::parse_yaml(&yaml).unwrap();
            prop_assert_eq!(&read[0].spec, &spec);
        }
    }

    #[test]
    fn an_unknown_start_is_refused() {
        let rule = message::Rule { start_at: 9, ..message::Rule::default() };
        assert_eq!(RuleSpec::try_from(&rule).unwrap_err().0[0].field, "start_at");
    }
}
