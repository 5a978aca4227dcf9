//! [`StallTimeout`]: fails a call when the upstream makes no progress.
//!
//! The time-out is not for the whole call: an upload may last as long as the upstream keeps reading. The clock runs
//! while the gateway waits for the upstream, to read the next part of the request body or, after its end, to respond.
//! It stops while the gateway waits for the client.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, sleep_until};
use tower::{BoxError, Service};

/// Limits how long the upstream may stall. Wraps the HTTP client, so that each attempt has its own time-out.
#[derive(Clone, Debug)]
pub(super) struct StallTimeout<C> {
    client: C,
    limit: Duration,
}

/// The upstream made no progress within the limit.
#[derive(Debug)]
pub(super) struct UpstreamStalled;

impl<C> StallTimeout<C> {
    pub(super) fn new(client: C, limit: Duration) -> Self {
        Self { client, limit }
    }
}

impl<C, B, ResB> Service<Request<B>> for StallTimeout<C>
where
    C: Service<Request<TrackedBody<B>>, Response = Response<ResB>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Response<ResB>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.client.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clock = StallClock::default();
        let response = self.client.call(request.map(|body| TrackedBody { body, clock: clock.clone() }));
        let limit = self.limit;
        Box::pin(async move {
            tokio::select! {
                biased;
                response = response => response.map_err(Into::into),
                () = clock.exceeds(limit) => Err(UpstreamStalled.into()),
            }
        })
    }
}

/// Milliseconds after `started` since which the gateway waits for the upstream, or [`STOPPED`].
#[derive(Clone, Debug)]
struct StallClock {
    since: Arc<AtomicU64>,
    started: Instant,
}

/// The gateway waits for the client.
const STOPPED: u64 = u64::MAX;

impl Default for StallClock {
    fn default() -> Self {
        Self { since: Arc::default(), started: Instant::now() }
    }
}

impl StallClock {
    fn restart(&self) {
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(STOPPED - 1);
        self.since.store(since, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.since.store(STOPPED, Ordering::Relaxed);
    }

    /// Waits until the upstream has stalled for `limit`.
    async fn exceeds(&self, limit: Duration) {
        let mut deadline = self.started + limit;
        loop {
            sleep_until(deadline).await;
            let now = Instant::now();
            deadline = match self.since.load(Ordering::Relaxed) {
                STOPPED => now + limit,
                since => self.started + Duration::from_millis(since) + limit,
            };
            if deadline <= now {
                return;
            }
        }
    }
}

pin_project! {
    /// A request body that runs the clock: restarted with each frame, stopped while the client has none.
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: B,
        clock: StallClock,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        if frame.is_ready() {
            this.clock.restart();
        } else {
            this.clock.stop();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Display for UpstreamStalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream made no progress within the time-out")
    }
}

impl Error for UpstreamStalled {}
