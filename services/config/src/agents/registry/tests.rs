//! The registry by itself.

use logmesh_store::{PrefixState, Versioned};

use super::*;
use crate::agents::stored::StoredAgent;

fn registry(max_agents: usize, max_streams: usize) -> Registry {
    let steps = watch::channel(Arc::default()).1;
    Registry::new(&Settings { max_agents, max_streams, ..Settings::default() }, steps)
}

fn introduction(id: &str, session: &str) -> Introduction {
    let session = session.to_owned();
    Introduction { id: id.parse().unwrap(), session, labels: Labels::new(), version: String::new() }
}

fn report(id: &str, session: &str, streams: std::ops::Range<u8>) -> message::ReportStatusRequest {
    let streams = streams.map(|n| message::StreamStatus { stream_id: format!("{n:032x}"), ..Default::default() });
    message::ReportStatusRequest {
        agent_id: id.into(),
        session: session.into(),
        full: true,
        streams: streams.collect(),
        ..Default::default()
    }
}

fn online(registry: &Registry, id: &str) -> Option<bool> {
    registry.agent(&id.parse().unwrap(), false).map(|agent| agent.online)
}

#[test]
fn one_process_to_an_id_and_the_same_session_takes_over() {
    let registry = registry(10, 10);
    let first = registry.connect(introduction("a", "1")).unwrap();
    let refused = registry.connect(introduction("a", "2")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    let second = registry.connect(introduction("a", "1")).unwrap();
    assert!(matches!(first.mailbox.ended(), Some(Ended::Superseded)));
    assert!(second.mailbox.ended().is_none());
    drop(first);
    assert_eq!(online(&registry, "a"), Some(true), "the older stream's end changes nothing");
    drop(second);
    assert_eq!(online(&registry, "a"), Some(false));
    registry.connect(introduction("a", "2")).unwrap();
}

#[test]
fn the_agent_that_was_gone_longest_makes_room() {
    let registry = registry(2, 10);
    drop(registry.connect(introduction("a", "1")).unwrap());
    drop(registry.connect(introduction("b", "1")).unwrap());
    let c = registry.connect(introduction("c", "1")).unwrap();
    assert_eq!((online(&registry, "a"), online(&registry, "b")), (None, Some(false)));
    let d = registry.connect(introduction("d", "1")).unwrap();
    let full = registry.connect(introduction("e", "1")).unwrap_err();
    assert_eq!(full.code(), tonic::Code::ResourceExhausted);
    drop((c, d));
}

#[test]
fn reports_are_of_the_connected_session_and_bounded() {
    let registry = registry(10, 5);
    let unknown = registry.report(report("a", "1", 0..1)).unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let _a = registry.connect(introduction("a", "1")).unwrap();
    assert_eq!(registry.report(report("a", "2", 0..1)).unwrap_err().code(), tonic::Code::NotFound);
    let partial = message::ReportStatusRequest { full: false, ..report("a", "1", 0..1) };
    assert!(registry.report(partial).unwrap(), "a full report is wanted");
    assert!(!registry.report(report("a", "1", 0..3)).unwrap());
    let _b = registry.connect(introduction("b", "1")).unwrap();
    assert_eq!(registry.report(report("b", "1", 0..3)).unwrap_err().code(), tonic::Code::ResourceExhausted);
    registry.report(report("b", "1", 0..2)).unwrap();
    registry.report(report("a", "1", 3..6)).unwrap();
    assert_eq!(registry.streams(|streams| streams.count()), 5);
}

fn connected(registry: &Registry) -> Vec<message::WatchSessionsResponse> {
    registry.news(&mut elsewhere::Told::new())
}

/// What `from` says reaches `to`.
fn tell(from: &Registry, to: &Registry) {
    let mut news = connected(from);
    news.insert(0, message::WatchSessionsResponse { snapshot: true, ..Default::default() });
    news.into_iter().for_each(|one| to.hear(&from.server, one));
}

fn server(id: &str) -> Registry {
    let server = Some(logmesh_grpc::Registration::new("config", "h:1").with_id(id));
    Registry::new(&Settings { server, ..Settings::default() }, watch::channel(Arc::default()).1)
}

fn is_refused(connected: &Connected) -> bool {
    matches!(connected.mailbox.ended(), Some(Ended::Refused(status)) if status.code() == tonic::Code::AlreadyExists)
}

#[test]
fn the_younger_of_two_on_two_servers_is_refused() {
    let (one, two) = (server("one"), server("two"));
    let first = one.connect(introduction("a", "1")).unwrap();
    tell(&one, &two);
    let refused = two.connect(introduction("a", "2")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    assert!(refused.message().contains("config service one"), "{}", refused.message());
    let moved = two.connect(introduction("a", "1")).unwrap();
    tell(&two, &one);
    assert!(!is_refused(&first) && !is_refused(&moved), "the same process may move");
    drop((first, moved));
    tell(&one, &two);
    two.connect(introduction("a", "2")).unwrap();
}

#[test]
fn of_two_that_connect_before_servers_hear_each_other_one_stays() {
    for two_first in [false, true] {
        let (one, two) = (server("one"), server("two"));
        let on_one = one.connect(introduction("a", "1")).unwrap();
        let on_two = two.connect(introduction("a", "2")).unwrap();
        let tell_both = [(&one, &two), (&two, &one)];
        for place in if two_first { [1, 0] } else { [0, 1] } {
            tell(tell_both[place].0, tell_both[place].1);
        }
        assert!(!is_refused(&on_one) && is_refused(&on_two), "the elder stays");
    }
}

#[test]
fn a_server_that_is_not_heard_has_no_say() {
    let (one, two) = (server("one"), server("two"));
    let _first = one.connect(introduction("a", "1")).unwrap();
    tell(&one, &two);
    two.unhear("one");
    let second = two.connect(introduction("a", "2")).unwrap();
    tell(&one, &two);
    assert!(is_refused(&second), "once it's heard again the elder stays");
}

#[test]
fn what_an_agent_said_once_gives_way_to_what_it_says_elsewhere() {
    let (one, two) = (server("one"), server("two"));
    drop(one.connect(introduction("a", "1")).unwrap());
    let connected = one.connect(introduction("a", "1")).unwrap();
    one.report(report("a", "1", 0..3)).unwrap();
    drop(connected);
    let _moved = two.connect(introduction("a", "1")).unwrap();
    tell(&two, &one);
    assert_eq!(one.streams(|streams| streams.count()), 3, "until the other knows them");
    two.report(report("a", "1", 0..1)).unwrap();
    tell(&two, &one);
    assert_eq!(one.streams(|streams| streams.count()), 0);
    assert_eq!(one.state().streams, 0);
}

#[test]
fn what_an_agent_said_gives_way_when_its_stream_ends_after_the_news() {
    let (one, two) = (server("one"), server("two"));
    let half_open = one.connect(introduction("a", "1")).unwrap();
    one.report(report("a", "1", 0..3)).unwrap();
    let _moved = two.connect(introduction("a", "1")).unwrap();
    two.report(report("a", "1", 0..1)).unwrap();
    tell(&two, &one);
    assert_eq!(one.streams(|streams| streams.count()), 3, "as long as its stream is here");
    drop(half_open);
    assert_eq!((one.streams(|streams| streams.count()), one.state().streams), (0, 0));
}

#[test]
fn the_older_stream_of_one_process_is_ended() {
    let is_superseded = |one: &Connected| matches!(one.mailbox.ended(), Some(Ended::Superseded));
    for (first, second) in [("one", "two"), ("two", "one")] {
        let (first, second) = (server(first), server(second));
        let older = first.connect(introduction("a", "1")).unwrap();
        let younger = second.connect(introduction("a", "1")).unwrap();
        // As if their clocks had moved on between the two.
        if let Some(here) = first.state().agents.get_mut(&older.id).and_then(|known| known.here.as_mut()) {
            here.connect_time.0 -= 1_000_000_000;
        }
        tell(&first, &second);
        tell(&second, &first);
        assert!(is_superseded(&older) && !is_superseded(&younger));
        drop(older);
        assert_eq!((online(&first, "a"), online(&second, "a")), (Some(false), Some(true)));
    }
}

#[test]
fn only_news_are_told_of_sessions() {
    let registry = server("one");
    let mut told = elsewhere::Told::new();
    let a = registry.connect(introduction("a", "1")).unwrap();
    assert_eq!(registry.news(&mut told)[0].connected[0].agent_id, "a");
    assert!(registry.news(&mut told).is_empty());
    registry.report(report("a", "1", 0..1)).unwrap();
    assert!(registry.news(&mut told)[0].connected[0].reported);
    drop(a);
    assert_eq!(registry.news(&mut told)[0].disconnected, ["a"]);
}

fn role(role: &str) -> Labels {
    Labels::from([("role".to_owned(), role.to_owned())])
}

/// The ids of the agents with this role.
fn of_role(registry: &Registry, role: &str) -> Vec<String> {
    let selector: Selector = format!("role={role}").parse().unwrap();
    registry.selected(&selector).into_iter().map(|(id, _)| id.to_string()).collect()
}

/// The store as of a revision, with what a record of `a` may be and the revision that wrote it.
fn store(revision: u64, record: Option<(StoredAgent, u64)>) -> PrefixState {
    let entry = record.map(|(record, written)| {
        let value = serde_json::to_vec(&record).unwrap().into();
        let versioned = Versioned { value, mod_revision: Revision(written), lease: None };
        (crate::keys::agent(&"a".parse().unwrap()), versioned)
    });
    PrefixState { revision: Revision(revision), entries: entry.into_iter().collect() }
}

#[test]
fn an_agent_that_came_back_elsewhere_with_other_labels_is_known_by_these() {
    for tells_first in [false, true] {
        let one = registry(10, 10);
        let web = Introduction { labels: role("web"), ..introduction("a", "1") };
        let connected = one.connect(web).unwrap();
        one.keep_all(&store(5, None));
        let batch = one.take_unsaved(10);
        one.saved(batch, Revision(10));
        assert_eq!(of_role(&one, "web"), ["a"]);
        // It connects to another server, which writes what it says there.
        let news = store(12, Some((StoredAgent { host_labels: role("db"), ..StoredAgent::default() }, 12)));
        if tells_first {
            one.keep_all(&news);
            assert_eq!(of_role(&one, "web"), ["a"], "as long as it is connected here");
            drop(connected);
        } else {
            drop(connected);
            one.keep_all(&news);
        }
        assert_eq!((of_role(&one, "web").len(), of_role(&one, "db")), (0, vec!["a".to_owned()]));
    }
}

#[test]
fn a_late_answer_to_a_write_undoes_nothing_that_came_after_it() {
    let labelled = StoredAgent { labels: role("web"), ..StoredAgent::default() };
    for (meanwhile, expected) in [(Some((labelled, 11)), vec!["a".to_owned()]), (None, vec![])] {
        let registry = registry(10, 10);
        registry.keep_all(&store(5, None));
        let connected = registry.connect(introduction("a", "1")).unwrap();
        let batch = registry.take_unsaved(10);
        assert_eq!(batch.len(), 1);
        // It's written at 10; at 11 somebody gives it a label, or forgets it.
        registry.keep_all(&store(11, meanwhile.clone()));
        registry.saved(batch, Revision(10));
        assert_eq!(of_role(&registry, "web"), expected);
        assert_eq!(registry.take_unsaved(10).len(), 1, "what was lost or isn't as the agent says is written again");
        drop(connected);
        assert_eq!(online(&registry, "a"), Some(false));
    }
}

#[test]
fn an_agent_that_was_forgotten_is_not_known_again_by_a_late_answer() {
    let registry = registry(10, 10);
    registry.keep_all(&store(5, None));
    drop(registry.connect(introduction("a", "1")).unwrap());
    let batch = registry.take_unsaved(10);
    registry.keep_all(&store(11, None));
    registry.forget(&"a".parse().unwrap());
    registry.saved(batch, Revision(10));
    assert_eq!(online(&registry, "a"), None);
}
