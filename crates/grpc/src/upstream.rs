//! Calls passed on to another service, whichever of its servers can take them.
//!
//! Nothing is decoded: a call's bytes go through as they come, both ways, so that streams, deadlines and details of
//! errors arrive as their server sent them.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use http::{Request, Response};
use logmesh_runtime::{CancellationToken, Readiness};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::{Service, ServiceExt};

use crate::channel::{AddressError, channel};
use crate::status::{innermost, unavailable};

/// How often each server is asked for its health, and how long it may take to answer.
const LOOK: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Which of several servers in the same state is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first, as they were named: calls that follow each other see one server's view, which only goes forward.
    First,
    /// One after the other.
    Turns,
}

/// A service on other servers. As a transport it takes any generated client; on [`Routes`](crate::Routes) it passes calls on.
/// Clones share what is known of the servers.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    kind: &'static str,
    choice: Choice,
    servers: RwLock<Vec<Server>>,
    turn: AtomicUsize,
    readiness: Readiness,
}

#[derive(Clone)]
struct Server {
    address: String,
    channel: Channel,
    state: State,
}

/// What is known of a server; a greater one is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// It couldn't be reached.
    Away,
    /// Nothing is known yet, or it answers and isn't ready.
    Unready,
    Serving,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.servers();
        let servers = servers.iter().map(|server| (&server.address, server.state));
        f.debug_struct("Upstream")
            .field("kind", &self.shared.kind)
            .field("servers", &servers.collect::<Vec<_>>())
            .finish()
    }
}

impl Upstream {
    /// A service called `kind`, with no server yet.
    pub fn new(kind: &'static str, choice: Choice) -> Self {
        let shared =
            Shared { kind, choice, servers: RwLock::default(), turn: AtomicUsize::new(0), readiness: Readiness::new() };
        shared.readiness.set(kind, false, format!("no {kind} is known yet"));
        Self { shared: Arc::new(shared) }
    }

    /// Takes these for the service's servers from now on: `host:port` each.
    pub fn set_servers(&self, addresses: &[String]) -> Result<(), AddressError> {
        let known = self.servers();
        let server = |address: &String| {
            if let Some(same) = known.iter().find(|server| server.address == *address) {
                return Ok(same.clone());
            }
            Ok(Server { address: address.clone(), channel: channel(address)?, state: State::Unready })
        };
        let servers = addresses.iter().map(server).collect::<Result<_, _>>()?;
        *self.shared.servers.write().unwrap_or_else(PoisonError::into_inner) = servers;
        Ok(())
    }

    /// Its component is ready while a server of this service serves.
    pub(crate) fn readiness(&self) -> (&Readiness, &'static str) {
        (&self.shared.readiness, self.shared.kind)
    }

    /// Asks the servers for their health until the token is cancelled.
    pub async fn follow(self, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            let servers = self.servers();
            let asked = join_all(servers.iter().map(|server| health(server.channel.clone())));
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                states = asked => servers.iter().zip(states).for_each(|(server, state)| self.note(&server.address, state)),
            }
            self.show();
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn note(&self, address: &str, state: State) {
        let mut servers = self.shared.servers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.iter_mut().find(|server| server.address == address) {
            if (server.state == State::Away) != (state == State::Away) {
                let (kind, up) = (self.shared.kind, state != State::Away);
                tracing::info!(kind, address, up, "a server that calls are passed on to came or went");
            }
            server.state = state;
        }
    }

    fn show(&self) {
        let (readiness, kind) = self.readiness();
        let servers = self.servers();
        let serving = servers.iter().any(|server| server.state == State::Serving);
        let reason = || match servers.len() {
            0 => format!("no {kind} is registered"),
            count => format!("none of {count} servers of {kind} is ready"),
        };
        readiness.set(kind, serving, if serving { String::new() } else { reason() });
    }

    fn servers(&self) -> Vec<Server> {
        self.shared.servers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A server in the best state that any is in.
    fn choose(&self) -> Option<Server> {
        let servers = self.servers();
        let best = servers.iter().map(|server| server.state).max()?;
        let mut equal: Vec<Server> = servers.into_iter().filter(|server| server.state == best).collect();
        let place = match self.shared.choice {
            Choice::First => 0,
            Choice::Turns => self.shared.turn.fetch_add(1, Ordering::Relaxed) % equal.len(),
        };
        Some(equal.swap_remove(place))
    }

    async fn pass_on(self, request: Request<Body>) -> Response<Body> {
        let kind = self.shared.kind;
        let Some(server) = self.choose() else {
            return unavailable("NO_SERVER", format!("no {kind} is registered; start one, or wait for it")).into_http();
        };
        match server.channel.oneshot(request).await {
            Ok(response) => response,
            Err(error) => {
                // The next call goes elsewhere, if there is one elsewhere. This one may have been carried out.
                self.note(&server.address, State::Away);
                let reason = format!("{kind} at {} can't be reached: {}", server.address, innermost(&error));
                unavailable("SERVER_UNREACHABLE", reason).into_http()
            }
        }
    }
}

async fn health(channel: Channel) -> State {
    let mut client = HealthClient::new(channel);
    match tokio::time::timeout(ANSWER_TIMEOUT, client.check(HealthCheckRequest { service: String::new() })).await {
        Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => State::Serving,
        Ok(Ok(_)) => State::Unready,
        Ok(Err(_)) | Err(_) => State::Away,
    }
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.pass_on(request).await) })
    }
}

/// [`Upstream`] in the place of the generated server `S`.
pub(crate) struct PassedOn<S> {
    to: Upstream,
    name: PhantomData<fn() -> S>,
}

impl<S> PassedOn<S> {
    pub(crate) fn new(to: Upstream) -> Self {
        Self { to, name: PhantomData }
    }
}

impl<S> Clone for PassedOn<S> {
    fn clone(&self) -> Self {
        Self::new(self.to.clone())
    }
}

impl<S: NamedService> NamedService for PassedOn<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for PassedOn<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.to.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.to.call(request)
    }
}
