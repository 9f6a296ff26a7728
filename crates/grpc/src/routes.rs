//! The services that one server offers.

use std::convert::Infallible;

use std::time::Duration;

use http::{Request, Response};
use logmesh_runtime::Readiness;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::server::ServeError;
use crate::upstream::{PassedOn, Upstream};

/// How often health looks at what is ready elsewhere; of its own process it's told.
const LOOK: Duration = Duration::from_millis(250);

/// The services that one server offers. Reflection lists exactly these, and health says of each that it's serving.
#[derive(Debug, Default)]
pub struct Routes {
    inner: tonic::service::Routes,
    names: Vec<&'static str>,
    /// What a service needs to be ready, for those that say so.
    needs: Vec<(&'static str, Need)>,
    readiness: Option<Readiness>,
}

/// A component that a service needs, in the readiness that knows it; `None`: the server's own.
type Need = (Option<Readiness>, &'static str);

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

    /// The service that was added last serves only while this component is ready.
    pub fn needs(&mut self, component: &'static str) -> &mut Self {
        self.needs.extend(self.names.last().map(|service| (*service, (None, component))));
        self
    }

    /// Passes the calls of the generated server `S` on to servers elsewhere. It serves while one of them does.
    pub fn pass_on<S: NamedService + 'static>(&mut self, to: &Upstream) -> &mut Self {
        self.add(PassedOn::<S>::new(to.clone()));
        let (readiness, component) = to.readiness();
        self.needs.push((S::NAME, (Some(readiness.clone()), component)));
        self
    }

    /// Health says what this says: of the server as a whole, whether all is ready; of a service, whether the component is
    /// that it needs. Without it everything is serving.
    pub fn follow(&mut self, readiness: Readiness) -> &mut Self {
        self.readiness = Some(readiness);
        self
    }

    /// The full names of the services, as they were added.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Adds health and reflection, and hands out what the server needs.
    pub(crate) async fn finish(mut self) -> Result<(tonic::service::Routes, Health), ServeError> {
        let (reporter, service) = tonic_health::server::health_reporter();
        self.add(service);
        // Health itself is among them: it serves as long as the process does, whatever else is ready.
        let served = self.names.clone();
        let v1 = self.reflection().build_v1()?;
        let v1alpha = self.reflection().build_v1alpha()?;
        let health = Health { reporter, served, needs: self.needs, readiness: self.readiness };
        health.show().await;
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
#[derive(Clone)]
pub(crate) struct Health {
    reporter: HealthReporter,
    served: Vec<&'static str>,
    needs: Vec<(&'static str, Need)>,
    readiness: Option<Readiness>,
}

impl Health {
    /// Keeps the answers true; never resolves.
    pub(crate) async fn keep(&self) {
        let own = self.readiness.clone().unwrap_or_default();
        let mut changes = own.changes();
        loop {
            self.show().await;
            drop(tokio::time::timeout(LOOK, changes.changed()).await);
        }
    }

    /// Says of the server as a whole (the empty name) and of each service what is so now.
    async fn show(&self) {
        for name in &self.served {
            let waits = self.needs.iter().any(|(service, need)| service == name && self.lacks(need));
            self.set(name, !waits).await;
        }
        self.set("", self.readiness.as_ref().is_none_or(Readiness::all_ready)).await;
    }

    fn lacks(&self, (readiness, component): &Need) -> bool {
        let known = readiness.as_ref().or(self.readiness.as_ref()).map(Readiness::snapshot).unwrap_or_default();
        known.iter().any(|(name, ready, _)| name == component && !ready)
    }

    /// Says that nothing is served any more.
    pub(crate) async fn stop(&self) {
        for name in self.served.iter().chain(&[""]) {
            self.set(name, false).await;
        }
    }

    async fn set(&self, name: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }
}
