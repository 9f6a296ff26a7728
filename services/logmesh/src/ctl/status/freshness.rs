//! How long lines take from their file to where they are found, topic by topic.

use std::time::Duration;

use logmesh_proto::time::std_duration;
use logmesh_proto::transfer::v1::transfer_service_client::TransferServiceClient;
use logmesh_proto::transfer::v1::{GetFreshnessRequest, GetFreshnessResponse, Hop, HopFreshness, TopicFreshness};
use serde_json::{Map, Value, json};

use super::{Line, describe};
use crate::ctl::output::state;
use crate::ctl::{Failure, Session, request};

/// One topic, for people.
type Row = [String; 4];

/// Adds what is known to the line of transfer, and answers a row for each topic. That it can't be told is no reason to call
/// transfer unready.
pub(super) async fn add(line: &mut Line, session: &Session) -> Result<Vec<Row>, Failure> {
    let mut client = TransferServiceClient::new(session.channel.clone());
    let answer = match client.get_freshness(request(GetFreshnessRequest::default())).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let (_, reason, _) = describe(status.into())?;
            line.detail.push_str(&format!("; how fresh the index is can't be told: {reason}"));
            return Ok(Vec::new());
        }
    };
    if !answer.unreachable_workers.is_empty() {
        let missing = answer.unreachable_workers.join(" ");
        line.detail.push_str(&format!("; freshness without that of workers that don't answer: {missing}"));
    }
    if let Some(facts) = line.facts.as_object_mut() {
        facts.extend(facts_of(&answer));
    }
    let later = seconds(answer.searchable_within.as_ref());
    Ok(answer.topics.iter().map(|topic| row(topic, seconds(answer.window.as_ref()), later)).collect())
}

/// Prints the rows.
pub(super) fn show(rows: &[Row], session: &mut Session) -> Result<(), Failure> {
    if session.out.json || rows.is_empty() {
        return Ok(());
    }
    session.out.line("")?;
    Ok(session.out.table(["TOPIC", "FILE TO FOUND, P50", "P99", "EVENTS"], rows)?)
}

/// The whole way of a topic's events.
fn row(topic: &TopicFreshness, window: f64, later: f64) -> Row {
    let name = topic.topic.clone();
    let Some(whole) = topic.hops.iter().find(|hop| hop.hop() == Hop::Total) else {
        return [name, "-".to_owned(), "-".to_owned(), format!("none new in the last {}", short(window))];
    };
    // Stored isn't found yet where the index refreshes now and then.
    let took = |time| match (seconds(time), later) {
        (time, 0.0) => short(time),
        (time, later) => format!("{} (+ {} at most)", short(time), short(later)),
    };
    let skewed = match whole.skewed_events {
        0 => String::new(),
        events => format!(", {events} by clocks that differ"),
    };
    let events = format!("{} in the last {}{skewed}", whole.events, short(window));
    [name, took(whole.p50.as_ref()), took(whole.p99.as_ref()), events]
}

fn facts_of(answer: &GetFreshnessResponse) -> Map<String, Value> {
    let hop = |hop: &HopFreshness| {
        let name = state(hop.hop().as_str_name(), "HOP_");
        let figures = json!({
            "events": hop.events,
            "p50_seconds": seconds(hop.p50.as_ref()),
            "p99_seconds": seconds(hop.p99.as_ref()),
            "max_seconds": seconds(hop.max.as_ref()),
            "skewed_events": hop.skewed_events,
        });
        (name, figures)
    };
    let topic = |topic: &TopicFreshness| {
        let hops: Map<String, Value> = topic.hops.iter().map(hop).collect();
        (topic.topic.clone(), Value::from(hops))
    };
    let topics: Map<String, Value> = answer.topics.iter().map(topic).collect();
    let facts = json!({
        "freshness": topics,
        "freshness_window_seconds": seconds(answer.window.as_ref()),
        "searchable_within_seconds": seconds(answer.searchable_within.as_ref()),
        "unreachable_workers": answer.unreachable_workers,
    });
    facts.as_object().cloned().unwrap_or_default()
}

fn seconds(duration: Option<&prost_types::Duration>) -> f64 {
    duration.and_then(std_duration).map_or(0.0, |duration: Duration| duration.as_secs_f64())
}

/// A time for people: `3 ms`, `1.2 s`, `5 min`, `3.1 h`.
fn short(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..100.0 => format!("{seconds:.1} s").replace(".0 s", " s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(millis: u64) -> Option<prost_types::Duration> {
        Some(logmesh_proto::time::duration(Duration::from_millis(millis)))
    }

    #[test]
    fn a_topic_with_nothing_new_says_so_and_the_others_tell_the_whole_way() {
        let none = TopicFreshness { topic: "old".into(), hops: Vec::new() };
        assert_eq!(row(&none, 300.0, 1.0), ["old", "-", "-", "none new in the last 5 min"]);
        let whole = HopFreshness {
            hop: Hop::Total.into(),
            events: 7,
            p50: time(120),
            p99: time(2_500),
            skewed_events: 2,
            ..HopFreshness::default()
        };
        let first = HopFreshness { hop: Hop::FileToAgent.into(), p50: time(9), ..whole.clone() };
        let topic = TopicFreshness { topic: "new".into(), hops: vec![first, whole] };
        let events = "7 in the last 5 min, 2 by clocks that differ";
        assert_eq!(row(&topic, 300.0, 0.0), ["new", "120 ms", "2.5 s", events]);
        assert_eq!(row(&topic, 300.0, 1.0)[1], "120 ms (+ 1 s at most)");
        let answer = GetFreshnessResponse { topics: vec![topic, none], window: time(300_000), ..Default::default() };
        let facts = Value::from(facts_of(&answer));
        assert_eq!(facts["freshness"]["new"]["file_to_agent"]["p50_seconds"], 0.009);
        assert_eq!((&facts["freshness"]["old"], &facts["freshness_window_seconds"]), (&json!({}), &json!(300.0)));
    }

    #[test]
    fn times_are_short() {
        let times = [0.0, 0.0123, 0.9994, 1.0, 59.96, 300.0, 90_000.0];
        assert_eq!(times.map(short), ["0 ms", "12 ms", "999 ms", "1 s", "60 s", "5 min", "25.0 h"]);
    }
}
