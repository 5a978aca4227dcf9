//! A stampede: the requests of many callers are refused at the same moment because the token has expired.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Empty, Full};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_auth_refresh::{RefreshError, RefreshRequest, Session};

use crate::shape::ORIGIN;
use crate::stack;

/// The duration of a refresh.
pub const REFRESH_TIME: Duration = Duration::from_millis(20);

/// The outcome of a stampede.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The time from the first call to the last response.
    pub wall: Duration,
    /// The number of refreshes.
    pub refreshes: usize,
    /// The number of callers whose final response was not a 200.
    pub failures: usize,
}

/// An API that refuses the first token, and holds its responses until all callers have sent a request.
///
/// All 401s are returned at the same moment.
#[derive(Clone)]
pub struct Gated {
    state: Arc<GateState>,
}

struct GateState {
    callers: usize,
    arrived: AtomicUsize,
    open: Semaphore,
    /// Requests with this token are refused.
    expired: HeaderValue,
    refused: AtomicUsize,
}

impl Gated {
    /// Creates an API for `callers` callers that refuses requests with the token `expired`.
    ///
    /// # Panics
    ///
    /// If `expired` isn't a valid token.
    #[must_use]
    pub fn new(callers: usize, expired: &str) -> Self {
        let expired = HeaderValue::try_from(format!("Bearer {expired}")).expect("valid token");
        let state = GateState {
            callers,
            arrived: AtomicUsize::new(0),
            open: Semaphore::new(0),
            expired,
            refused: AtomicUsize::new(0),
        };
        Self { state: Arc::new(state) }
    }

    /// Returns the number of requests that were refused.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }
}

impl<B: Body + Send + 'static> Service<Request<B>> for Gated {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = Arc::clone(&self.state);
        let token = request.headers().get(AUTHORIZATION);
        let expired = token == Some(&state.expired);
        Box::pin(async move {
            let nth = state.arrived.fetch_add(1, Ordering::SeqCst) + 1;
            if nth == state.callers {
                state.open.add_permits(state.callers);
            } else if nth < state.callers {
                state.open.acquire().await.expect("never closed").forget();
            }
            let mut response = Response::new(Empty::new());
            if expired {
                state.refused.fetch_add(1, Ordering::SeqCst);
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            Ok(response)
        })
    }
}

/// Runs `callers` callers, whose token has expired, through the middleware.
///
/// # Panics
///
/// If a caller's task panics.
pub async fn ours(callers: usize) -> Outcome {
    let refreshes = Arc::new(AtomicUsize::new(0));
    let session = session(&refreshes, || tokio::time::sleep(REFRESH_TIME)).await;
    let client = stack::ours(&session).layer(Gated::new(callers, "a1"));
    let start = Instant::now();
    let failures = call_all(callers, &client, 1).await;
    Outcome { wall: start.elapsed(), refreshes: refreshes.load(Ordering::SeqCst), failures }
}

/// Runs `callers` callers without middleware, each of which calls twice, and returns the time.
pub async fn bare_twice(callers: usize) -> Duration {
    let api = Gated::new(callers, "a1");
    let start = Instant::now();
    call_all(callers, &api, 2).await;
    start.elapsed()
}

/// Returns the time of a refresh alone: a `tokio` timer may fire a millisecond late or more.
pub async fn refresh_alone() -> Duration {
    let start = Instant::now();
    tokio::time::sleep(REFRESH_TIME).await;
    start.elapsed()
}

/// Returns the time from the end of the refresh to the last caller's response.
///
/// # Panics
///
/// If a caller doesn't get a 200, or more than one refresh runs.
pub async fn release(callers: usize) -> Duration {
    let refreshes = Arc::new(AtomicUsize::new(0));
    let barrier = Arc::new(Notify::new());
    let session = session(&refreshes, {
        let barrier = Arc::clone(&barrier);
        move || {
            let barrier = Arc::clone(&barrier);
            async move { barrier.notified().await }
        }
    })
    .await;
    let api = Gated::new(callers, "a1");
    let client = stack::ours(&session).layer(api.clone());
    let calls = tokio::spawn(async move { call_all(callers, &client, 1).await });
    while api.refused() < callers {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Lets the last callers join the refresh.
    tokio::time::sleep(Duration::from_millis(20) + Duration::from_micros(callers as u64)).await;
    let start = Instant::now();
    barrier.notify_one();
    let failures = calls.await.expect("no caller panics");
    let wall = start.elapsed();
    assert_eq!((failures, refreshes.load(Ordering::SeqCst)), (0, 1));
    wall
}

/// Makes `times` calls for each caller and returns the number of callers whose last response wasn't a 200.
async fn call_all<S, R>(callers: usize, client: &S, times: usize) -> usize
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    R: Send + 'static,
{
    let mut calls = JoinSet::new();
    for _ in 0..callers {
        let client = client.clone();
        calls.spawn(async move {
            let mut ok = false;
            for _ in 0..times {
                let request = Request::get(format!("{ORIGIN}/")).body(Full::default()).expect("valid request");
                let Ok(response) = client.clone().oneshot(request).await;
                ok = response.status() == StatusCode::OK;
            }
            ok
        });
    }
    let mut failures = 0;
    while let Some(ok) = calls.join_next().await {
        failures += usize::from(!ok.expect("no caller panics"));
    }
    failures
}

async fn session<F>(refreshes: &Arc<AtomicUsize>, wait: impl Fn() -> F + Clone + Send + Sync + 'static) -> Session
where
    F: Future<Output = ()> + Send + 'static,
{
    let refreshes = Arc::clone(refreshes);
    let refresh = service_fn(move |_: RefreshRequest| {
        let n = refreshes.fetch_add(1, Ordering::SeqCst) + 2;
        let wait = wait();
        async move {
            wait.await;
            Ok::<_, RefreshError>(stack::tokens(&format!("a{n}")))
        }
    });
    Session::builder(refresh).tokens(stack::tokens("a1")).build().await.expect("memory stores don't fail")
}
