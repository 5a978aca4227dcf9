//! The stacks that are measured, and the function that calls a stack.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use tower::retry::{Policy, RetryLayer};
use tower::{Layer, Service, service_fn};
use tower_auth_refresh::{
    AccessToken, AuthRefreshLayer, Origin, RefreshError, RefreshRequest, RefreshToken, ReplayBody, Session, Tokens,
};
use tower_http::auth::AddAuthorizationLayer;

use crate::api::{Api, ResponseFuture};
use crate::shape::{Body, ORIGIN, Requests, Shape};

/// An access token of ordinary size: the length of a signed JWT with a few claims.
pub const TOKEN: &str = concat!(
    "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6IjIwMjYtMDEifQ.",
    "eyJpc3MiOiJodHRwczovL2F1dGguZXhhbXBsZS5jb20iLCJzdWIiOiI0MiIsImF1ZCI6ImFwaSIsImV4cCI6MTc5MDAwMDAwMCwi",
    "c2NvcGUiOiJvcmRlcnM6cmVhZCBvcmRlcnM6d3JpdGUifQ.",
    "c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmUtc2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmUtc2lnbmF0",
);

/// Requests that are built ahead, outside the timed part: few enough to fit into the CPU's caches.
const BATCH: usize = 64;

/// A named stack that takes part in a comparison.
pub struct Candidate {
    name: &'static str,
    call: Box<Calls>,
}

/// Sends the requests one after the other.
type Calls = dyn FnMut(&mut Vec<Request<Body>>);

impl Candidate {
    /// Creates a candidate from a service, which must respond at the first poll.
    pub fn new<S, R>(name: &'static str, mut service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<R>> + 'static,
    {
        Self {
            name,
            call: Box::new(move |requests| requests.drain(..).for_each(|request| call(&mut service, request))),
        }
    }

    /// Returns the name in benches and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Sends the requests one after the other.
    pub fn call(&mut self, requests: &mut Vec<Request<Body>>) {
        (self.call)(requests);
    }

    /// Returns the time of `n` calls, without building the requests.
    ///
    /// # Panics
    ///
    /// If a call doesn't return a 200 at the first poll.
    pub fn time(&mut self, requests: &Requests, shape: Shape, n: u64) -> Duration {
        let mut left = usize::try_from(n).expect("fits into memory");
        let mut time = Duration::ZERO;
        while left > 0 {
            let mut batch = requests.batch(shape, left.min(BATCH));
            left -= batch.len();
            let start = Instant::now();
            self.call(&mut batch);
            time += start.elapsed();
        }
        time
    }
}

/// Makes one complete call: `poll_ready`, `call`, one poll of the future, drop of the response.
///
/// # Panics
///
/// If the call doesn't return a 200 at the first poll.
#[inline]
pub fn call<S, R, B>(service: &mut S, request: Request<B>)
where
    S: Service<Request<B>, Response = Response<R>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))), "always ready");
    let future = pin!(service.call(request));
    match future.poll(&mut cx) {
        Poll::Ready(Ok(response)) => assert_eq!(black_box(response).status(), StatusCode::OK),
        _ => panic!("no response at the first poll"),
    }
}

/// Returns the stacks that need only `tower` and `tower-http`, the bare one first.
#[must_use]
pub fn light(shape: Shape, session: &Session) -> Vec<Candidate> {
    let ours = match shape {
        Shape::PerRequest => Candidate::new("ours", AuthRefreshLayer::per_request(origin()).layer(<Api>::new())),
        _ => Candidate::new("ours", ours(session).layer(<Api>::new())),
    };
    vec![
        Candidate::new("bare", <Api>::new()),
        Candidate::new("add_authorization", AddAuthorizationLayer::bearer(TOKEN).layer(<Api>::new())),
        Candidate::new("tower_retry", tower_retry(<Api>::new())),
        ours,
    ]
}

/// Returns the size of the middleware's future, less the sizes of the inner future and the inner service.
///
/// # Panics
///
/// Never.
#[must_use]
pub fn future_size(session: &Session) -> usize {
    let request = Request::get(ORIGIN).body(Body::default()).expect("valid request");
    let ours = ours(session).layer(<Api>::new()).call(request);
    size_of_val(&ours) - size_of::<ResponseFuture<ReplayBody<Body>, Infallible>>() - size_of::<Api>()
}

/// Returns the middleware's layer.
#[must_use]
pub fn ours(session: &Session) -> AuthRefreshLayer {
    AuthRefreshLayer::new(session.clone(), origin())
}

/// Wraps `inner` in a naive replay: `tower`'s retry of a 401, with a constant token.
pub fn tower_retry<S, R>(inner: S) -> impl Service<Request<Body>, Response = Response<R>>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone,
{
    RetryLayer::new(RetryOnce { retried: false }).layer(AddAuthorizationLayer::bearer(TOKEN).layer(inner))
}

/// Returns [`ORIGIN`], parsed.
///
/// # Panics
///
/// Never.
#[must_use]
pub fn origin() -> Origin {
    Origin::parse(ORIGIN).expect("valid origin")
}

/// Creates a session that is signed in and never has to refresh.
///
/// # Panics
///
/// If called outside a Tokio runtime.
pub async fn session() -> Session {
    let refresh =
        service_fn(|_: RefreshRequest| async { Err::<Tokens, _>(RefreshError::unavailable("unexpected refresh")) });
    Session::builder(refresh).tokens(tokens(TOKEN)).build().await.expect("memory stores don't fail")
}

/// Creates tokens with the given access token.
///
/// # Panics
///
/// If `access` isn't a valid token.
#[must_use]
pub fn tokens(access: &str) -> Tokens {
    Tokens::new(AccessToken::new(access).expect("valid token"), RefreshToken::new("r").expect("valid token"))
}

#[derive(Clone)]
struct RetryOnce {
    retried: bool,
}

impl<B: Clone, R, E> Policy<Request<B>, Response<R>, E> for RetryOnce {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<B>, result: &mut Result<Response<R>, E>) -> Option<Ready<()>> {
        let refused = result.as_ref().is_ok_and(|response| response.status() == StatusCode::UNAUTHORIZED);
        (refused && !std::mem::replace(&mut self.retried, true)).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        Some(request.clone())
    }
}
