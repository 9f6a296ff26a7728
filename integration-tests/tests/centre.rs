//! The centre on an etcd of three members and two config services: whatever dies, freezes, is compacted or restarted, each
//! agent ends with what etcd's content says, and was told every state in order.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::path::Path;

use logmesh_integration_tests::centre::{CONFIGS, EtcdLog, Event, RuleLog, RuleWriter};
use logmesh_integration_tests::fleet::{Fleet, Options};
use logmesh_integration_tests::{Centre, Client, PATIENCE, cluster};
use logmesh_testing::wait_for;
use rustix::process::Signal;

/// How many simulated agents.
const AGENTS: usize = 40;

/// Writes between two faults.
const SOME: u64 = 15;

fn fleet_options(centre: &Centre) -> Options {
    Options { servers: centre.servers(), agents: AGENTS, name: "sim".into(), labels: BTreeMap::default() }
}

fn fleet(centre: &Centre) -> Fleet {
    let fleet = Fleet::start(fleet_options(centre));
    fleet.wait_connected(PATIENCE);
    fleet
}

/// The end of each test: all agents hold what etcd says, and nothing came out of order.
fn judge(centre: &mut Centre, log: &RuleLog, fleet: &Fleet, real: &[&str]) {
    log.wait_equal(centre, fleet, real);
    log.judge(fleet);
    centre.assert_alive();
}

#[test]
fn etcds_leader_is_killed_during_a_stream_of_rule_changes() {
    let mut centre = Centre::started("");
    centre.spawn("agent-1");
    let log = RuleLog::start(&centre);
    let fleet = fleet(&centre);
    let writer = RuleWriter::start(centre.servers(), 1);
    for _ in 0..2 {
        writer.wait_writes(SOME);
        let leader = centre.leader();
        centre.members[leader].kill();
        writer.wait_writes(SOME);
        centre.members[leader].start_again();
    }
    writer.wait_writes(SOME);
    assert!(writer.finish() >= 5 * SOME);
    judge(&mut centre, &log, &fleet, &["agent-1"]);
    assert_eq!(fleet.connections(), AGENTS as u64, "agents notice nothing of it");
}

#[test]
fn both_config_services_are_restarted_under_load() {
    let mut centre = Centre::started("");
    centre.spawn("agent-1");
    let log = RuleLog::start(&centre);
    let fleet = fleet(&centre);
    let writer = RuleWriter::start(centre.servers(), 2);
    writer.wait_writes(SOME);
    for name in CONFIGS {
        centre.stop(name);
        writer.wait_writes(SOME);
        centre.spawn(name);
        centre.wait_ready(name);
        writer.wait_writes(SOME);
    }
    centre.kill(CONFIGS[0]);
    writer.wait_writes(SOME);
    centre.spawn(CONFIGS[0]);
    writer.finish();
    judge(&mut centre, &log, &fleet, &["agent-1"]);
    let moved = fleet.records().values().filter(|record| record.connections > 1).count();
    assert_eq!(moved, AGENTS, "each was moved at least once");
}

#[test]
fn what_was_compacted_while_an_agent_or_a_config_service_was_away_is_told_anew() {
    let mut centre = Centre::started("");
    let log = RuleLog::start(&centre);
    let fleet = fleet(&centre);
    let writer = RuleWriter::start(centre.servers(), 3);
    writer.wait_writes(SOME);

    // One is frozen, and the member that it watches dies: when it thaws, its watch has to begin anew where it was.
    centre.signal(CONFIGS[0], Signal::STOP);
    centre.members[0].kill();
    writer.wait_writes(SOME);
    log.caught_up(&centre);
    centre.compact();
    centre.signal(CONFIGS[0], Signal::CONT);
    centre.members[0].start_again();
    writer.wait_writes(SOME);

    // Agents that held what was compacted come to a service that has never seen it.
    centre.kill(CONFIGS[1]);
    log.caught_up(&centre);
    centre.compact();
    centre.spawn(CONFIGS[1]);
    writer.finish();
    judge(&mut centre, &log, &fleet, &[]);
    let said = centre.said(CONFIGS[0]);
    assert!(said.contains("after a compaction"), "void: nothing was compacted that it still wanted: {said}");
}

#[test]
fn an_etcd_that_was_made_anew_is_told_anew() {
    let mut centre = Centre::started("");
    centre.spawn("agent-1");
    let fleet = fleet(&centre);
    let former = RuleLog::start(&centre);
    let writer = RuleWriter::start(centre.servers(), 4);
    writer.wait_writes(2 * SOME);
    writer.finish();
    former.wait_equal(&centre, &fleet, &["agent-1"]);
    former.judge(&fleet);
    drop(former);

    CONFIGS.into_iter().for_each(|name| centre.kill(name));
    centre.replace_etcd();
    CONFIGS.into_iter().for_each(|name| centre.spawn(name));
    CONFIGS.into_iter().for_each(|name| centre.wait_ready(name));
    fleet.wait_connected(PATIENCE);
    // The revisions that it writes are those that the agents hold, of other rules.
    let present = RuleLog::start(&centre);
    let writer = RuleWriter::start(centre.servers(), 5);
    writer.wait_writes(SOME);
    writer.finish();
    present.wait_equal(&centre, &fleet, &["agent-1"]);
    assert_eq!(fleet.disorder(), Vec::<String>::new());
    centre.assert_alive();
}

/// Waits until so many servers of a kind are registered.
fn wait_registered(centre: &Centre, kind: &str, count: usize) {
    wait_for(&format!("{count} endpoints of {kind}"), PATIENCE, || {
        let keys = centre.keys(&format!("/logmesh/v1/endpoints/{kind}/"));
        if keys.len() == count { Ok(()) } else { Err(format!("{keys:?}")) }
    });
}

#[test]
fn a_frozen_server_is_gone_when_its_lease_ends_and_is_back_when_it_thaws() {
    let mut centre = Centre::started("[config]\nendpoint_ttl = \"3s\"\n");
    centre.spawn("gateway-1");
    for (name, kind, count) in [("gateway-1", "gateway", 1), ("config-2", "config", 2)] {
        wait_registered(&centre, kind, count);
        centre.signal(name, Signal::STOP);
        wait_registered(&centre, kind, count - 1);
        centre.signal(name, Signal::CONT);
        wait_registered(&centre, kind, count);
        centre.stop(name);
        wait_registered(&centre, kind, count - 1);
    }
    centre.assert_alive();
}

#[test]
fn a_full_etcd_refuses_changes_and_says_what_to_do_while_agents_go_on() {
    let mut centre = Centre::started_on(&[("ETCD_QUOTA_BACKEND_BYTES", "8388608")], "");
    let log = RuleLog::start(&centre);
    let fleet = fleet(&centre);
    let apply = |centre: &Centre, path: &str| {
        let file = centre.folder.join("rule.yaml");
        std::fs::write(&file, cluster::rule("all", &[Path::new(path)])).unwrap();
        Client::new(&centre.grpc(CONFIGS[0])).run(&["rules", "apply", "-f", file.to_str().unwrap()])
    };
    apply(&centre, "/var/log/a.log").expect(0);
    centre.fill_etcd();
    apply(&centre, "/var/log/b.log").expect(69).says(&["space is used up", "compact", "defragment", "disarm"]);

    // A service that starts now, and agents that come now, find what there is.
    centre.kill(CONFIGS[1]);
    centre.spawn(CONFIGS[1]);
    centre.wait_ready(CONFIGS[1]);
    let late = Fleet::start(Options {
        servers: vec![centre.grpc(CONFIGS[1])],
        agents: 5,
        name: "late".into(),
        ..fleet_options(&centre)
    });
    late.wait_connected(PATIENCE);
    log.wait_equal(&centre, &fleet, &[]);
    log.wait_equal(&centre, &late, &[]);

    centre.compact();
    centre.tell_etcd(&["defrag"]);
    centre.tell_etcd(&["alarm", "disarm"]);
    apply(&centre, "/var/log/c.log").expect(0);
    log.wait_equal(&centre, &late, &[]);
    judge(&mut centre, &log, &fleet, &[]);
}

/// Waits until so many more deletions of histories are done in the present term or later ones.
fn wait_deletions(log: &EtcdLog, more: usize) {
    let count = || log.events().iter().filter(|event| event.value.is_none() && is_history(event)).count();
    let wanted = count() + more;
    wait_for(&format!("{more} more histories to go"), PATIENCE, || match count() {
        enough if enough >= wanted => Ok(()),
        few => Err(format!("{few} of {wanted} are gone")),
    });
}

fn is_history(event: &Event) -> bool {
    event.key.starts_with("/logmesh/v1/history/")
}

/// Waits until a config service has the office that isn't the one named.
fn wait_holder(centre: &Centre, other_than: &str) -> &'static str {
    wait_for("another janitor", PATIENCE, || match centre.holder("janitor") {
        Some((name, _)) if name != other_than => Ok(name),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn one_config_service_at_a_time_forgets_whoever_is_killed_or_frozen() {
    let mut centre = Centre::started("[config]\nendpoint_ttl = \"3s\"\nhistory_retention = \"1s\"\n");
    let log = EtcdLog::start(&centre, "/logmesh/v1/");
    let writer = RuleWriter::churn(centre.servers());
    wait_deletions(&log, 10);

    let killed = wait_holder(&centre, "");
    centre.kill(killed);
    let frozen = wait_holder(&centre, killed);
    wait_deletions(&log, 10);
    centre.spawn(killed);
    centre.wait_ready(killed);

    centre.signal(frozen, Signal::STOP);
    wait_holder(&centre, frozen);
    wait_deletions(&log, 10);
    centre.signal(frozen, Signal::CONT);
    wait_for("the one that thawed to notice", PATIENCE, || {
        let said = centre.said(frozen);
        if said.contains("is the janitor no") { Ok(()) } else { Err(said) }
    });
    wait_deletions(&log, 10);
    writer.finish();
    centre.assert_alive();
    judge_terms(&centre, &log);
}

/// Panics unless each deletion was done by the one that held the office at its revision.
fn judge_terms(centre: &Centre, log: &EtcdLog) {
    // What each says that it deleted: revision to its name and the term in which it believed to be.
    let mut claims: BTreeMap<i64, (&str, i64)> = BTreeMap::new();
    for name in CONFIGS {
        for line in centre.said(name).lines().filter(|line| line.contains("forgotten for good")) {
            claims.insert(number(line, "revision="), (name, number(line, "term=")));
        }
    }
    let (mut holder, mut holders, mut unclaimed) = (None, 0, 0);
    for event in log.events() {
        if event.key == "/logmesh/v1/leaders/janitor" {
            holder = event.value.map(|name| (centre.config_of(&name), event.revision));
            holders += usize::from(holder.is_some());
        } else if is_history(&event) && event.value.is_none() {
            match claims.get(&event.revision) {
                Some(claim) => assert_eq!(Some(*claim), holder, "at {}: {}", event.revision, event.key),
                None => unclaimed += 1,
            }
        }
    }
    // One that was killed between its write and its word.
    assert!(unclaimed <= 2 && holders >= 3, "{unclaimed} deletions of nobody, {holders} terms");
}

fn number(line: &str, field: &str) -> i64 {
    let digits = line.split_once(field).map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {field} in {line}"))
}
