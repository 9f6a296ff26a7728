//! Rules as messages.

use std::time::Duration;

use logmesh_proto::config::v1 as message;
use logmesh_proto::time::{duration, std_duration};
use logmesh_types::{ByteSize, Span};

use crate::spec::{Format, LongEvents, Multiline, Pace, RuleSpec, StartAt, Violation, Violations};

impl From<&RuleSpec> for message::Rule {
    /// The fields that the server sets (revision, etag, times) stay empty.
    fn from(spec: &RuleSpec) -> Self {
        let start_at = match spec.start_at {
            StartAt::Beginning => message::StartAt::Beginning,
            StartAt::End => message::StartAt::End,
        };
        let long_events = match spec.long_events {
            LongEvents::Split => message::LongEvents::Split,
            LongEvents::Cut => message::LongEvents::Cut,
        };
        let format = match spec.format {
            Format::Lines => message::FileFormat::Lines,
            Format::Container => message::FileFormat::Container,
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
            multiline: spec.multiline.as_ref().map(multiline_message),
            max_event_bytes: spec.max_event_bytes.map_or(0, |size| size.0),
            long_events: long_events.into(),
            format: format.into(),
            encoding: spec.encoding.clone().unwrap_or_default(),
            ignore_older: spec.ignore_older.map(|age| duration(age.0)),
            ..Self::default()
        }
    }
}

impl TryFrom<&message::Rule> for RuleSpec {
    type Error = Violations;

    /// Fails only where a message can say what a rule can't: an enum's value that this version doesn't know.
    fn try_from(rule: &message::Rule) -> Result<Self, Violations> {
        let mut unknown = Vec::new();
        let mut unknown_value = |field: &str, number: i32, meanings: &str| {
            let description = format!("{number} is unknown; {meanings}");
            unknown.push(Violation { field: field.into(), description });
        };
        let start_at = match message::StartAt::try_from(rule.start_at) {
            Ok(message::StartAt::End) => StartAt::End,
            Ok(message::StartAt::Unspecified | message::StartAt::Beginning) => StartAt::Beginning,
            Err(_) => {
                unknown_value("start_at", rule.start_at, "1 is the beginning, 2 is the end");
                StartAt::Beginning
            }
        };
        let long_events = match message::LongEvents::try_from(rule.long_events) {
            Ok(message::LongEvents::Cut) => LongEvents::Cut,
            Ok(message::LongEvents::Unspecified | message::LongEvents::Split) => LongEvents::Split,
            Err(_) => {
                unknown_value("long_events", rule.long_events, "1 is split, 2 is cut");
                LongEvents::Split
            }
        };
        let format = match message::FileFormat::try_from(rule.format) {
            Ok(message::FileFormat::Container) => Format::Container,
            Ok(message::FileFormat::Unspecified | message::FileFormat::Lines) => Format::Lines,
            Err(_) => {
                unknown_value("format", rule.format, "1 is lines, 2 is container");
                Format::Lines
            }
        };
        if !unknown.is_empty() {
            return Err(Violations(unknown));
        }
        let pace = rule.pace.unwrap_or_default();
        Ok(Self {
            name: rule.name.clone(),
            selector: rule.selector.clone(),
            paths: rule.paths.clone(),
            exclude: rule.exclude.clone(),
            topic: rule.topic.clone(),
            priority: rule.priority,
            service: text(&rule.service),
            pace: Pace {
                bytes_per_second: Some(ByteSize(pace.bytes_per_second)).filter(|rate| rate.0 > 0),
                lines_per_second: Some(pace.lines_per_second).filter(|rate| *rate > 0),
            },
            start_at,
            ignore_older: rule.ignore_older.as_ref().map(|age| span(std_duration(age))),
            multiline: rule
                .multiline
                .as_ref()
                .map(multiline_spec)
                .filter(|multiline| *multiline != Multiline::default()),
            max_event_bytes: Some(ByteSize(rule.max_event_bytes)).filter(|size| size.0 > 0),
            long_events,
            format,
            encoding: text(&rule.encoding),
        })
    }
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn multiline_message(multiline: &Multiline) -> message::Multiline {
    let text = |pattern: &Option<String>| pattern.clone().unwrap_or_default();
    message::Multiline {
        start_pattern: text(&multiline.start_pattern),
        continue_pattern: text(&multiline.continue_pattern),
        end_pattern: text(&multiline.end_pattern),
        timeout: multiline.timeout.map(|timeout| duration(timeout.0)),
    }
}

/// A negative time becomes 0, which no rule may have; parts of a millisecond go.
fn span(time: Option<Duration>) -> Span {
    let millis = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Span(Duration::from_millis(millis))
}

fn multiline_spec(message: &message::Multiline) -> Multiline {
    Multiline {
        start_pattern: text(&message.start_pattern),
        continue_pattern: text(&message.continue_pattern),
        end_pattern: text(&message.end_pattern),
        timeout: message.timeout.as_ref().map(|timeout| span(std_duration(timeout))),
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
            (service, end, cut, container, encoded) in any::<(bool, bool, bool, bool, bool)>(),
            kind in 0..5u8,
            (timeout, size) in (prop::option::of(1..10_000_000u64), prop::option::of(1..u64::MAX)),
            age in prop::option::of(1..10_000_000u64),
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
                multiline: (kind > 0).then(|| Multiline {
                    start_pattern: (kind == 1).then(|| texts[4].clone()),
                    continue_pattern: (kind == 2).then(|| texts[4].clone()),
                    end_pattern: (kind == 3).then(|| texts[4].clone()),
                    timeout: timeout.or((kind == 4).then_some(5)).map(|millis| Span(Duration::from_millis(millis))),
                }),
                max_event_bytes: size.map(ByteSize),
                long_events: if cut { LongEvents::Cut } else { LongEvents::Split },
                format: if container { Format::Container } else { Format::Lines },
                encoding: encoded.then(|| texts[3].clone()),
                ignore_older: age.map(|millis| Span(Duration::from_millis(millis))),
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
    fn unknown_values_are_refused() {
        let rule = message::Rule { start_at: 9, long_events: 9, format: 9, ..message::Rule::default() };
        let fields: Vec<_> = RuleSpec::try_from(&rule).unwrap_err().0.into_iter().map(|found| found.field).collect();
        assert_eq!(fields, ["start_at", "long_events", "format"]);
    }
}
