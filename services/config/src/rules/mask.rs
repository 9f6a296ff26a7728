//! Field masks of `UpdateRule`.

use logmesh_proto::config::v1::Rule;
use prost_types::FieldMask;
use tonic::Status;

use crate::error::bad_field;

const NO_FIELD: &str = "is not a field of a rule";

/// The fields that a user sets, but for the name.
const FIELDS: [&str; 14] = [
    "selector",
    "paths",
    "exclude",
    "topic",
    "priority",
    "service",
    "pace",
    "start_at",
    "ignore_older",
    "multiline",
    "max_event_bytes",
    "long_events",
    "format",
    "encoding",
];

/// The fields in which two states of a rule differ.
pub(crate) fn differences(old: &Rule, new: &Rule) -> Vec<String> {
    let differs = |field: &str| {
        let mut merged = old.clone();
        take(&mut merged, new, field).is_ok() && merged != *old
    };
    FIELDS.iter().filter(|field| differs(field)).map(|field| (*field).to_owned()).collect()
}

/// `old` with the fields of the mask taken from `new`; all of `new` if the mask is empty or `*`.
pub(crate) fn merge(old: &Rule, new: &Rule, mask: Option<&FieldMask>) -> Result<Rule, Status> {
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() || paths == ["*"] {
        return Ok(new.clone());
    }
    let mut merged = old.clone();
    for (place, path) in paths.iter().enumerate() {
        take(&mut merged, new, path)
            .map_err(|problem| bad_field(&format!("update_mask.paths[{place}]"), format!("{path:?} {problem}")))?;
    }
    Ok(merged)
}

fn take(merged: &mut Rule, new: &Rule, path: &str) -> Result<(), &'static str> {
    let pace = new.pace.unwrap_or_default();
    if let Some(field) = path.strip_prefix("multiline.") {
        return take_multiline(merged, new, field);
    }
    match path {
        // It names the rule and so is the same in both.
        "name" => {}
        "selector" => merged.selector.clone_from(&new.selector),
        "paths" => merged.paths.clone_from(&new.paths),
        "exclude" => merged.exclude.clone_from(&new.exclude),
        "topic" => merged.topic.clone_from(&new.topic),
        "priority" => merged.priority = new.priority,
        "service" => merged.service.clone_from(&new.service),
        "pace" => merged.pace = new.pace,
        "pace.bytes_per_second" => merged.pace.get_or_insert_default().bytes_per_second = pace.bytes_per_second,
        "pace.lines_per_second" => merged.pace.get_or_insert_default().lines_per_second = pace.lines_per_second,
        "start_at" => merged.start_at = new.start_at,
        "multiline" => merged.multiline.clone_from(&new.multiline),
        "max_event_bytes" => merged.max_event_bytes = new.max_event_bytes,
        "long_events" => merged.long_events = new.long_events,
        "format" => merged.format = new.format,
        "encoding" => merged.encoding.clone_from(&new.encoding),
        "ignore_older" => merged.ignore_older = new.ignore_older,
        "revision" | "etag" | "create_time" | "update_time" | "origin" => return Err("is set by the server"),
        "*" => return Err("stands alone or not at all"),
        _ => return Err(NO_FIELD),
    }
    Ok(())
}

fn take_multiline(merged: &mut Rule, new: &Rule, field: &str) -> Result<(), &'static str> {
    let new = new.multiline.clone().unwrap_or_default();
    let merged = merged.multiline.get_or_insert_default();
    match field {
        "start_pattern" => merged.start_pattern = new.start_pattern,
        "continue_pattern" => merged.continue_pattern = new.continue_pattern,
        "end_pattern" => merged.end_pattern = new.end_pattern,
        "timeout" => merged.timeout = new.timeout,
        _ => return Err(NO_FIELD),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use logmesh_proto::config::v1::{Multiline, Pace};

    use super::*;

    fn mask(paths: &[&str]) -> FieldMask {
        FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }
    }

    #[test]
    fn only_what_the_mask_names_is_taken() {
        let old = Rule { topic: "old".into(), priority: 1, ..Rule::default() };
        let pace = Some(Pace { bytes_per_second: 5, lines_per_second: 7 });
        let new = Rule { topic: "new".into(), priority: 2, pace, ..Rule::default() };
        let merged = merge(&old, &new, Some(&mask(&["topic", "pace.lines_per_second"]))).unwrap();
        assert_eq!((merged.topic.as_str(), merged.priority), ("new", 1));
        assert_eq!(merged.pace, Some(Pace { bytes_per_second: 0, lines_per_second: 7 }));
        for all in [None, Some(mask(&[])), Some(mask(&["*"]))] {
            assert_eq!(merge(&old, &new, all.as_ref()).unwrap(), new);
        }
    }

    #[test]
    fn parts_of_multiline_are_taken_apart() {
        let with = |start: &str, end: &str| {
            let multiline = Multiline { start_pattern: start.into(), end_pattern: end.into(), ..Multiline::default() };
            Rule { multiline: Some(multiline), ..Rule::default() }
        };
        let (old, new) = (with("a", ""), with("b", "c"));
        let merged = |paths: &[&str]| merge(&old, &new, Some(&mask(paths))).unwrap();
        assert_eq!(merged(&["multiline.end_pattern"]), with("a", "c"));
        assert_eq!(merged(&["multiline.start_pattern", "multiline.end_pattern"]), new);
        assert_eq!(merged(&["multiline"]), new);
    }

    #[test]
    fn differences_name_every_field_and_no_other() {
        use prost_types::Duration;
        let old = Rule { name: "rules/a".into(), revision: 1, etag: "r1".into(), ..Rule::default() };
        let new = Rule {
            selector: "a=1".into(),
            paths: vec!["/a".into()],
            exclude: vec!["b".into()],
            topic: "t".into(),
            priority: 1,
            service: "s".into(),
            pace: Some(Pace { bytes_per_second: 1, lines_per_second: 0 }),
            start_at: 2,
            ignore_older: Some(Duration { seconds: 1, nanos: 0 }),
            multiline: Some(Multiline { start_pattern: "x".into(), ..Multiline::default() }),
            max_event_bytes: 1024,
            long_events: 2,
            format: 2,
            encoding: "gbk".into(),
            ..old.clone()
        };
        assert_eq!(differences(&old, &new), FIELDS);
        assert_eq!(differences(&old, &Rule { revision: 2, etag: "r2".into(), ..old.clone() }), [""; 0]);
        // Every field but those that the server sets is one of them.
        let undone = FIELDS.iter().fold(new, |mut rule, field| {
            take(&mut rule, &old, field).unwrap();
            rule
        });
        assert_eq!(undone, old);
    }

    #[test]
    fn what_cannot_be_changed_is_said() {
        for bad in ["etag", "revision", "nonsense", "paths[0]", "multiline.x", ""] {
            let status = merge(&Rule::default(), &Rule::default(), Some(&mask(&["topic", bad]))).unwrap_err();
            assert!(status.message().starts_with("update_mask.paths[1]: "), "{status}");
        }
    }
}
