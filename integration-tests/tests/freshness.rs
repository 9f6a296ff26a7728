//! How long lines take from their file to the index, as the API, the metrics and `logmesh status` tell it.

#![allow(clippy::unwrap_used)] // a test, its helpers too

use std::fs::OpenOptions;
use std::io::Write;

use logmesh_integration_tests::client::json_lines;
use logmesh_integration_tests::cluster::http;
use logmesh_integration_tests::{Mesh, PATIENCE, grpcurl};
use logmesh_testing::wait_for;
use serde_json::Value;

const HOPS: [&str; 6] =
    ["file_to_agent", "agent_to_gateway", "gateway_to_bus", "bus_to_transfer", "transfer_to_index", "total"];

#[test]
fn every_hop_is_told_by_the_api_the_metrics_and_the_status() {
    let mesh = Mesh::started();
    let mut file = OpenOptions::new().create(true).append(true).open(mesh.log("app.log")).unwrap();
    writeln!(file, "the first").unwrap();
    mesh.wait_count("*", 1);
    // The agent has read the file to its end: of what follows it knows when it was written.
    writeln!(file, "the second\nthe third").unwrap();
    mesh.wait_count("*", 3);

    // A document may be found a moment before its worker has heard that it is stored.
    wait_for("the worker to have measured three events", PATIENCE, || {
        let request = r#"{"topic": "logs"}"#;
        let method = "logmesh.transfer.v1.TransferService/GetFreshness";
        let said = grpcurl::call(mesh.grpc(), method, request, 30).expect(0).stdout;
        let answer: Value = serde_json::from_str(&said).unwrap();
        let hops = answer["topics"][0]["hops"].as_array().cloned().unwrap_or_default();
        let told: Vec<String> = hops.iter().map(|hop| hop["hop"].as_str().unwrap().to_lowercase()).collect();
        let all = told == HOPS.map(|hop| format!("hop_{hop}"));
        let counted = hops.last().is_some_and(|total| total["events"] == "3" && total["p99"].is_string());
        if all && counted { Ok(()) } else { Err(said) }
    });

    let text = http(mesh.admin(), "GET", "/metrics", "").unwrap();
    for hop in HOPS {
        let series = |line: &&str| line.contains(r#"topic="logs""#) && line.contains(&format!(r#"hop="{hop}""#));
        let count = text.lines().filter(|line| line.starts_with("logmesh_freshness_seconds_count")).find(series);
        assert!(count.is_some_and(|line| !line.ends_with(" 0")), "{hop} is not in {text}");
    }

    let said = mesh.run(&["status", "--json"]).expect(0).stdout;
    let lines = json_lines(&said);
    let transfer = lines.iter().find(|line| line["service"] == "transfer").unwrap();
    for hop in HOPS {
        let figures = &transfer["freshness"]["logs"][hop];
        assert!(figures["events"].as_u64().unwrap() >= 2 && figures["p50_seconds"].is_number(), "{hop}: {said}");
    }
    assert_eq!(transfer["searchable_within_seconds"], 0.0);
    let said = mesh.run(&["status"]).expect(0).stdout;
    assert!(said.contains("FILE TO FOUND, P50") && said.contains("3 in the last 5 min"), "{said}");
}
