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

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::BoxError;

pin_project! {
    /// A call that fails once the upstream has stalled.
    pub(super) struct StallTimeout<F> {
        #[pin]
        call: F,
        clock: StallClock,
        limit: Duration,
        // Set when the response is first found missing.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

/// The upstream made no progress within the limit.
#[derive(Debug)]
pub(super) struct UpstreamStalled;

impl<F> StallTimeout<F> {
    /// Limits the stalls of a call whose body runs the clock.
    pub(super) fn new(call: F, clock: StallClock, limit: Duration) -> Self {
        Self { call, clock, limit, timer: None }
    }
}

impl<F: Future<Output = Result<T, E>>, T, E: Into<BoxError>> Future for StallTimeout<F> {
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(outcome) = this.call.poll(cx) {
            return Poll::Ready(outcome.map_err(Into::into));
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(this.clock.started + *this.limit)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let deadline = this.clock.deadline(now, *this.limit);
            if deadline <= now {
                return Poll::Ready(Err(UpstreamStalled.into()));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// The time since which the gateway waits for the upstream.
#[derive(Clone, Debug)]
pub(super) struct StallClock {
    started: Instant,
    /// Milliseconds after the start, or [`STOPPED`]. Absent if there is no upload: then it is the start.
    since: Option<Arc<AtomicU64>>,
}

/// The gateway waits for the client.
const STOPPED: u64 = u64::MAX;

impl StallClock {
    /// Starts the clock of a call.
    pub(super) fn start(is_upload: bool) -> Self {
        Self { started: Instant::now(), since: is_upload.then(Arc::default) }
    }

    fn restart(&self) {
        if let Some(since) = &self.since {
            let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(STOPPED - 1);
            since.store(now, Ordering::Relaxed);
        }
    }

    fn stop(&self) {
        if let Some(since) = &self.since {
            since.store(STOPPED, Ordering::Relaxed);
        }
    }

    /// Returns the end of the time-out, as far as it is known.
    fn deadline(&self, now: Instant, limit: Duration) -> Instant {
        match self.since.as_ref().map_or(0, |since| since.load(Ordering::Relaxed)) {
            STOPPED => now + limit,
            since => self.started + Duration::from_millis(since) + limit,
        }
    }
}

pin_project! {
    /// A request body, or none, that runs the clock: restarted with each frame, stopped while the client has none.
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: Option<B>,
        clock: StallClock,
    }
}

impl<B> TrackedBody<B> {
    pub(super) fn new(body: Option<B>, clock: &StallClock) -> Self {
        Self { body, clock: clock.clone() }
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let Some(body) = this.body.as_pin_mut() else { return Poll::Ready(None) };
        let frame = body.poll_frame(cx);
        if frame.is_ready() {
            this.clock.restart();
        } else {
            this.clock.stop();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl fmt::Display for UpstreamStalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream made no progress within the time-out")
    }
}

impl Error for UpstreamStalled {}
