//! The centre on an etcd of three members and two config services: whatever dies, freezes, is compacted or restarted, each
//! agent ends with what etcd's content says, and was told every state in order.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::collections::BTreeMap;
use std::path::Path;

use logmesh_integration_tests::centre::{CONFIGS, RuleLog, RuleWriter};
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
fn a_frozen_gateway_is_gone_when_its_lease_ends_and_is_back_when_it_thaws() {
    let mut centre = Centre::started("[config]\nendpoint_ttl = \"3s\"\n");
    centre.spawn("gateway-1");
    let registered = |centre: &Centre, wanted: bool| {
        wait_for(&format!("the gateway's endpoint: {wanted}"), PATIENCE, || {
            let keys = centre.keys("/logmesh/v1/endpoints/gateway/");
            if keys.is_empty() == wanted { Err(format!("{keys:?}")) } else { Ok(()) }
        });
    };
    for _ in 0..2 {
        registered(&centre, true);
        centre.signal("gateway-1", Signal::STOP);
        registered(&centre, false);
        centre.signal("gateway-1", Signal::CONT);
    }
    registered(&centre, true);
    centre.stop("gateway-1");
    registered(&centre, false);
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
