//! What a service does under more load than it can carry: it says so at once, and when to come again.
//!
//! A tower stack, from outside in: a time-out, load shed, a bounded queue, a rate, a number of calls at a time. A call that
//! finds the queue full is refused with RESOURCE_EXHAUSTED, one that waited or worked too long with UNAVAILABLE; both carry a
//! `RetryInfo`. A call that opens a stream counts until the stream begins.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use logmesh_types::metric;
use metrics::counter;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use crate::status::{come_again, resource_exhausted, unavailable};

/// How much a service takes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Calls at a time; as many again may wait.
    pub calls: usize,
    /// Calls that may begin in a second.
    pub calls_per_second: u64,
    /// How long a call may wait and work.
    pub timeout: Duration,
}

/// When a caller that was turned away may come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// A generated server within its [`Load`]. All clones share it.
#[derive(Debug)]
pub struct Shed<S> {
    stack: BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>,
    timeout: Duration,
    service: PhantomData<fn() -> S>,
}

impl<S> Shed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    /// Puts the service within its load. Called in a runtime, which carries the queue.
    pub fn new(service: S, load: Load) -> Self {
        let stack = ServiceBuilder::new()
            .timeout(load.timeout)
            .load_shed()
            .buffer(load.calls)
            .rate_limit(load.calls_per_second, Duration::from_secs(1))
            .concurrency_limit(load.calls)
            .service(service);
        Self { stack: BoxCloneSyncService::new(stack), timeout: load.timeout, service: PhantomData }
    }
}

impl<S> Clone for Shed<S> {
    fn clone(&self) -> Self {
        Self { stack: self.stack.clone(), timeout: self.timeout, service: PhantomData }
    }
}

impl<S: NamedService> NamedService for Shed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Shed<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Always: who finds it too busy is told so.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (stack, timeout) = (self.stack.clone(), self.timeout);
        let answer = async move {
            let answer = stack.oneshot(request).await;
            Ok(answer.unwrap_or_else(|error| refusal(&error, timeout).into_http()))
        };
        answer.boxed()
    }
}

fn refusal(error: &BoxError, timeout: Duration) -> Status {
    let (why, status) = if error.is::<Overloaded>() {
        ("queue", resource_exhausted("OVERLOADED", "the server is busy and its queue is full; come again"))
    } else if error.is::<Elapsed>() {
        let text = format!("the server was too busy to answer within {timeout:?}; come again");
        ("timeout", unavailable("TOO_SLOW", text))
    } else {
        ("stopped", unavailable("STOPPING", "the server is stopping; connect again"))
    };
    counter!(metric::GRPC_SHED_CALLS, "why" => why).increment(1);
    come_again(&status, COME_AGAIN)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    /// Answers when there's a permit.
    #[derive(Clone)]
    struct Gate {
        open: Arc<Semaphore>,
        called: Arc<AtomicUsize>,
    }

    impl Service<Request<Body>> for Gate {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            let gate = self.clone();
            let answer = async move {
                gate.called.fetch_add(1, Ordering::SeqCst);
                gate.open.acquire().await.expect("never closed").forget();
                Ok(Response::new(Body::empty()))
            };
            answer.boxed()
        }
    }

    fn gate() -> Gate {
        Gate { open: Arc::new(Semaphore::new(0)), called: Arc::default() }
    }

    async fn ask(service: &Shed<Gate>) -> Status {
        let answer = service.clone().oneshot(Request::new(Body::empty())).await.unwrap();
        Status::from_header_map(answer.headers()).unwrap_or_else(|| Status::ok(""))
    }

    #[tokio::test]
    async fn a_full_queue_turns_calls_away_and_the_others_are_served() {
        let gate = gate();
        let service =
            Shed::new(gate.clone(), Load { calls: 2, calls_per_second: 1_000, timeout: Duration::from_secs(60) });
        let open = async {
            while gate.called.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
            gate.open.add_permits(20);
        };
        let (answers, ()) = tokio::join!(join_all((0..20).map(|_| ask(&service))), open);
        let (served, shed): (Vec<_>, Vec<_>) = answers.into_iter().partition(|status| status.code() == Code::Ok);
        // As many as the queue takes; those that were at work before the others came, and one between, come on top.
        assert!((2..=5).contains(&served.len()), "{}", served.len());
        for status in shed {
            assert_eq!(
                (status.code(), crate::reason(&status).as_deref()),
                (Code::ResourceExhausted, Some("OVERLOADED"))
            );
            assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(COME_AGAIN));
        }
        assert_eq!(ask(&service).await.code(), Code::Ok, "it goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_to_come_again() {
        let load = Load { calls: 10, calls_per_second: 1, timeout: Duration::from_millis(900) };
        let slow = ask(&Shed::new(gate(), load)).await;
        assert_eq!((slow.code(), crate::reason(&slow).as_deref()), (Code::Unavailable, Some("TOO_SLOW")));
        let quick = gate();
        quick.open.add_permits(10);
        let service = Shed::new(quick, load);
        let (first, second) = tokio::join!(ask(&service), ask(&service));
        assert_eq!((first.code(), second.code()), (Code::Ok, Code::Unavailable), "one in a second");
    }
}
