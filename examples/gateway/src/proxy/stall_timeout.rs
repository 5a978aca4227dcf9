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
use hyper::body::Incoming;
use hyper_util::client::legacy::ResponseFuture;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{BoxError, Service};

use super::early_answer::UploadConnection;
use super::send_again::{Kept, SafeHead, was_closed_while_kept};
use super::upstream::HttpsClient;

/// Limits how long the upstream may stall. Wraps the HTTP client, so that each attempt has its own time-out.
#[derive(Debug)]
pub(super) struct StallTimeout<B> {
    client: Arc<HttpsClient<TrackedBody<B>>>,
    limit: Duration,
}

/// The upstream made no progress within the limit.
#[derive(Debug)]
pub(super) struct UpstreamStalled;

impl<B> StallTimeout<B> {
    pub(super) fn new(client: HttpsClient<TrackedBody<B>>, limit: Duration) -> Self {
        Self { client: Arc::new(client), limit }
    }
}

impl<B> Clone for StallTimeout<B> {
    fn clone(&self) -> Self {
        Self { client: Arc::clone(&self.client), limit: self.limit }
    }
}

impl<B> Service<Request<B>> for StallTimeout<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = ResponseOrStall<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clock = StallClock::default();
        let again = SafeHead::of(&request).map(|head| (head, Arc::clone(&self.client)));
        let mut request = request.map(|body| TrackedBody { body: Some(body), clock: clock.clone() });
        let upload = UploadConnection::of(&mut request);
        let response = self.client.request(request);
        ResponseOrStall { response, again, upload, clock, limit: self.limit, timer: None }
    }
}

/// Waits for the response, and fails once the upstream has stalled.
pub(super) struct ResponseOrStall<B> {
    response: ResponseFuture,
    /// Present until a request that may be sent again has been.
    again: Option<(SafeHead, Arc<HttpsClient<TrackedBody<B>>>)>,
    upload: Option<UploadConnection>,
    clock: StallClock,
    limit: Duration,
    /// Set when the response is first found missing.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Future for ResponseOrStall<B>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Output = Result<Response<Incoming>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { response, again, upload, clock, limit, timer } = &mut *self;
        while let Poll::Ready(answer) = Pin::new(&mut *response).poll(cx) {
            match &answer {
                Ok(answer) => {
                    Kept::answered(answer);
                    if let Some(upload) = upload {
                        upload.answered(answer);
                    }
                }
                Err(error) if was_closed_while_kept(error) => {
                    if let Some((head, client)) = again.take() {
                        *response = client.request(head.into_request(TrackedBody { body: None, clock: clock.clone() }));
                        continue;
                    }
                }
                Err(_) => {}
            }
            return Poll::Ready(answer.map_err(Into::into));
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(clock.started + *limit)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let deadline = clock.deadline(now, *limit);
            if deadline <= now {
                return Poll::Ready(Err(UpstreamStalled.into()));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
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

    /// Returns the end of the time-out, as far as it is known.
    fn deadline(&self, now: Instant, limit: Duration) -> Instant {
        match self.since.load(Ordering::Relaxed) {
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
