//! The stacks that are measured, and how one is called.

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

use crate::api::{Answer, Api};
use crate::shape::{Body, ORIGIN, Requests, Shape};

/// An access token of ordinary size: as long as a signed JWT with a handful of claims.
pub const TOKEN: &str = concat!(
    "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6IjIwMjYtMDEifQ.",
    "eyJpc3MiOiJodHRwczovL2F1dGguZXhhbXBsZS5jb20iLCJzdWIiOiI0MiIsImF1ZCI6ImFwaSIsImV4cCI6MTc5MDAwMDAwMCwi",
    "c2NvcGUiOiJvcmRlcnM6cmVhZCBvcmRlcnM6d3JpdGUifQ.",
    "c2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmUtc2lnbmF0dXJlLXNpZ25hdHVyZS1zaWduYXR1cmUtc2lnbmF0",
);

/// How many requests are made ahead, outside of what is timed: few enough to stay in the caches.
const BATCH: usize = 64;

/// One of the stacks that are measured beside each other.
pub struct Candidate {
    name: &'static str,
    call: Box<Calls>,
}

/// Makes these calls, one after the other.
type Calls = dyn FnMut(&mut Vec<Request<Body>>);

impl Candidate {
    /// `service` under a name. It must answer at once.
    pub fn new<S, R>(name: &'static str, mut service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<R>> + 'static,
    {
        Self {
            name,
            call: Box::new(move |requests| requests.drain(..).for_each(|request| call(&mut service, request))),
        }
    }

    /// The name in benches and reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Makes these calls, one after the other.
    pub fn call(&mut self, requests: &mut Vec<Request<Body>>) {
        (self.call)(requests);
    }

    /// The time that `n` calls take, making the requests aside.
    ///
    /// # Panics
    ///
    /// If one isn't answered with 200 at once.
    pub fn time(&mut self, requests: &Requests, shape: Shape, n: u64) -> Duration {
        let mut left = usize::try_from(n).expect("as many as fit into memory");
        let mut time = Duration::ZERO;
        while left > 0 {
            let mut batch = requests.batch(shape, left.min(BATCH));
            left -= batch.len();
            let begun = Instant::now();
            self.call(&mut batch);
            time += begun.elapsed();
        }
        time
    }
}

/// One call as a caller makes it: ready, call, poll until it is answered, drop the answer.
///
/// # Panics
///
/// If it isn't answered with 200 at the first poll.
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
        _ => panic!("answered at once"),
    }
}

/// The stacks that need nothing but `tower` and `tower-http`.
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

/// How many bytes the middleware's future has beyond those of the inner future and the inner service.
///
/// # Panics
///
/// Never.
#[must_use]
pub fn future_size(session: &Session) -> usize {
    let request = Request::get(ORIGIN).body(Body::default()).expect("valid");
    let ours = ours(session).layer(<Api>::new()).call(request);
    size_of_val(&ours) - size_of::<Answer<ReplayBody<Body>, Infallible>>() - size_of::<Api>()
}

/// The middleware that this is all about.
#[must_use]
pub fn ours(session: &Session) -> AuthRefreshLayer {
    AuthRefreshLayer::new(session.clone(), origin())
}

/// A naive replay: `tower`'s retry of a 401, with a token that never changes.
pub fn tower_retry<S, R>(inner: S) -> impl Service<Request<Body>, Response = Response<R>>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone,
{
    RetryLayer::new(RetryOnce { retried: false }).layer(AddAuthorizationLayer::bearer(TOKEN).layer(inner))
}

/// The origin of [`ORIGIN`].
///
/// # Panics
///
/// Never.
#[must_use]
pub fn origin() -> Origin {
    Origin::parse(ORIGIN).expect("an origin")
}

/// A session that is signed in and refreshes with whatever `refresh` does.
///
/// # Panics
///
/// Outside a runtime.
pub async fn session() -> Session {
    let refresh =
        service_fn(|_: RefreshRequest| async { Err::<Tokens, _>(RefreshError::unavailable("not in a bench")) });
    Session::builder(refresh).tokens(tokens(TOKEN)).build().await.expect("memory stores don't fail")
}

/// Tokens with this access token.
///
/// # Panics
///
/// If that isn't one.
#[must_use]
pub fn tokens(access: &str) -> Tokens {
    Tokens::new(AccessToken::new(access).expect("a token"), RefreshToken::new("r").expect("a token"))
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
