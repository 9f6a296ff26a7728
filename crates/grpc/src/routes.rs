//! The services that one server offers.

use std::convert::Infallible;

use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::server::ServeError;

/// The services that one server offers. Reflection lists exactly these, and health says of each that it's serving.
#[derive(Debug, Default)]
pub struct Routes {
    inner: tonic::service::Routes,
    names: Vec<&'static str>,
}

impl Routes {
    /// No service yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a generated server, `RuleServiceServer::new(…)`.
    pub fn add<S>(&mut self, service: S) -> &mut Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.inner = std::mem::take(&mut self.inner).add_service(service);
        self.names.push(S::NAME);
        self
    }

    /// The full names of the services, as they were added.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Adds health and reflection, and hands out what the server needs.
    pub(crate) async fn finish(mut self) -> Result<(tonic::service::Routes, Health), ServeError> {
        let (reporter, service) = tonic_health::server::health_reporter();
        let served = self.names.clone();
        self.add(service);
        let v1 = self.reflection().build_v1()?;
        let v1alpha = self.reflection().build_v1alpha()?;
        let health = Health { reporter, served };
        health.set(ServingStatus::Serving).await;
        Ok((self.inner.add_service(v1).add_service(v1alpha).prepare(), health))
    }

    fn reflection(&self) -> tonic_reflection::server::Builder<'static> {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(logmesh_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients can read the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.reflection.v1.ServerReflection");
        self.names.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    }
}

/// Says what `grpc.health.v1` answers.
pub(crate) struct Health {
    reporter: HealthReporter,
    served: Vec<&'static str>,
}

impl Health {
    /// Sets the status of the server as a whole (the empty name) and of each service.
    pub(crate) async fn set(&self, status: ServingStatus) {
        for name in self.served.iter().chain(&[""]) {
            self.reporter.set_service_status(*name, status).await;
        }
    }
}
