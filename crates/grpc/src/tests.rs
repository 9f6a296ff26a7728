//! A server and its channel over a real loopback port, with the health service as the one that is served.

use std::time::Duration;

use logmesh_proto::config::v1::GetRuleRequest;
use logmesh_proto::config::v1::rule_service_client::RuleServiceClient;
use logmesh_runtime::{CancellationToken, Readiness, Tasks};
use logmesh_types::limits::MAX_GRPC_MESSAGE_BYTES;
use tokio::net::TcpListener;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;

const GRACE: Duration = Duration::from_secs(30);

/// A server on a free port that ends with the tasks.
async fn start(tasks: &Tasks, routes: Routes) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let token: CancellationToken = tasks.token();
    tasks.spawn("grpc", async move { Ok(serve(listener, routes, token).await?) });
    addr
}

#[tokio::test]
async fn health_and_reflection_are_there_without_asking() {
    let tasks = Tasks::new();
    let addr = start(&tasks, Routes::new()).await;
    let channel = channel(&addr).unwrap();

    let request = HealthCheckRequest { service: String::new() };
    let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]);

    let error = RuleServiceClient::new(channel).get_rule(GetRuleRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    tasks.shutdown();
    tasks.finish(GRACE).await.unwrap();
}

#[tokio::test]
async fn health_follows_what_is_ready() {
    let (tasks, readiness) = (Tasks::new(), Readiness::new());
    readiness.set("log", false, "opening");
    let mut routes = Routes::new();
    routes.follow(readiness.clone());
    let mut client = HealthClient::new(channel(&start(&tasks, routes).await).unwrap());
    let mut watch = client.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    for (ready, status) in [(true, ServingStatus::Serving), (false, ServingStatus::NotServing)] {
        readiness.set("log", ready, "");
        while watch.message().await.unwrap().unwrap().status() != status {}
        // Who only wants to know whether the process lives asks for health itself.
        let itself = HealthCheckRequest { service: "grpc.health.v1.Health".to_owned() };
        assert_eq!(client.check(itself).await.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    tasks.shutdown();
    tasks.finish(GRACE).await.unwrap();
}

#[tokio::test]
async fn the_end_comes_though_a_client_listens_for_ever() {
    let tasks = Tasks::new();
    let addr = start(&tasks, Routes::new()).await;
    let mut client = HealthClient::new(channel(&addr).unwrap());
    let mut watch = client.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    tasks.shutdown();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    tasks.finish(GRACE).await.unwrap();
}

#[tokio::test]
async fn no_server_is_unavailable_and_not_a_wait_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut client = HealthClient::new(channel(&addr).unwrap());
    let error = client.check(HealthCheckRequest { service: String::new() }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let tasks = Tasks::new();
    let addr = start(&tasks, Routes::new()).await;
    let mut client = HealthClient::new(channel(&addr).unwrap());
    let error = client.check(HealthCheckRequest { service: "x".repeat(MAX_GRPC_MESSAGE_BYTES) }).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");

    let mut request = tonic::Request::new(HealthCheckRequest::default());
    let huge = "x".repeat(limits::MAX_HEADER_BYTES as usize);
    request.metadata_mut().insert("x-huge", huge.parse().unwrap());
    client.check(request).await.unwrap_err();
    client.check(HealthCheckRequest::default()).await.expect("the server goes on");
    tasks.shutdown();
    tasks.finish(GRACE).await.unwrap();
}
