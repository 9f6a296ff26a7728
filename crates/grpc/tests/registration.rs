//! Registration with a config service that comes late, falls silent and goes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use common::{PATIENCE, next, serve};
use logmesh_grpc::Registration;
use logmesh_runtime::Tasks;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_registers_keeps_alive_moves_and_leaves() {
    let listeners = [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let servers = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let [first, second] = listeners;
    let first_tasks = Tasks::new();
    let mut at_first = serve(first, &first_tasks).await;
    let server = Tasks::new();
    server.spawn("registration", Registration::new("gateway", "gate.example:7402").keep(servers, server.token()));
    assert_eq!(next(&mut at_first).await.as_deref(), Some("gate.example:7402"));
    assert_eq!(next(&mut at_first).await.as_deref(), Some(""), "a sign of life");

    let second_tasks = Tasks::new();
    let mut at_second = serve(second, &second_tasks).await;
    first_tasks.shutdown();
    assert_eq!(next(&mut at_second).await.as_deref(), Some("gate.example:7402"));

    server.shutdown();
    while next(&mut at_second).await.is_some() {}
    server.finish(PATIENCE).await.unwrap();
    second_tasks.shutdown();
}
