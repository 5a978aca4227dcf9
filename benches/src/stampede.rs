//! Many callers find out at once that their token has expired.

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

/// How long the refresh takes.
pub const REFRESH: Duration = Duration::from_millis(20);

/// What came of a stampede.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// From the first call to the last answer.
    pub wall: Duration,
    /// How often a refresh was called.
    pub refreshes: usize,
    /// Callers that got anything but a 200 in the end.
    pub failures: usize,
}

/// An API that refuses the first tokens, and answers nobody before all callers have come: all 401s at once.
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
    /// For so many callers, of whom those with `expired` are refused.
    ///
    /// # Panics
    ///
    /// If that can't be a token.
    #[must_use]
    pub fn new(callers: usize, expired: &str) -> Self {
        let expired = HeaderValue::try_from(format!("Bearer {expired}")).expect("a token");
        let state = GateState {
            callers,
            arrived: AtomicUsize::new(0),
            open: Semaphore::new(0),
            expired,
            refused: AtomicUsize::new(0),
        };
        Self { state: Arc::new(state) }
    }

    /// How many calls were refused.
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

/// So many callers through the middleware, whose token has expired.
///
/// # Panics
///
/// If a caller's task does.
pub async fn ours(callers: usize) -> Outcome {
    let refreshes = Arc::new(AtomicUsize::new(0));
    let session = session(&refreshes, || tokio::time::sleep(REFRESH)).await;
    let client = stack::ours(&session).layer(Gated::new(callers, "a1"));
    let begun = Instant::now();
    let failures = call_all(callers, &client, 1).await;
    Outcome { wall: begun.elapsed(), refreshes: refreshes.load(Ordering::SeqCst), failures }
}

/// So many callers without any middleware, who make their call twice.
pub async fn bare_twice(callers: usize) -> Duration {
    let api = Gated::new(callers, "a1");
    let begun = Instant::now();
    call_all(callers, &api, 2).await;
    begun.elapsed()
}

/// What the refresh takes where nothing else goes on: a timer of `tokio` may strike a millisecond late or more.
pub async fn refresh_alone() -> Duration {
    let begun = Instant::now();
    tokio::time::sleep(REFRESH).await;
    begun.elapsed()
}

/// The time from the moment when the refresh is answered to the last caller's answer.
///
/// # Panics
///
/// If a caller isn't served.
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
    // Time for the last of them to find out that there is a refresh to wait for.
    tokio::time::sleep(Duration::from_millis(20) + Duration::from_micros(callers as u64)).await;
    let begun = Instant::now();
    barrier.notify_one();
    let failures = calls.await.expect("no caller panics");
    let wall = begun.elapsed();
    assert_eq!((failures, refreshes.load(Ordering::SeqCst)), (0, 1));
    wall
}

/// The number of callers whose last answer wasn't a 200. Each makes `times` calls.
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
                let request = Request::get(format!("{ORIGIN}/")).body(Full::default()).expect("valid");
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
