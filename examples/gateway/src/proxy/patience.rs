//! [`Patience`]: an upstream that stays silent is given up.
//!
//! Not a time-out for the whole of a call: an upload may take as long as it needs, as long as the upstream takes
//! something of it. What counts is the time in which the gateway waits for the upstream, be it to take the next part
//! of the request's body or, once it has the whole, to answer. Waiting for the client doesn't count.

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

/// The service: around the HTTP client, so that each attempt has its own time.
#[derive(Clone, Debug)]
pub(super) struct Patience<C> {
    client: C,
    limit: Duration,
}

/// The upstream was silent for too long.
#[derive(Debug)]
pub(super) struct Silent;

impl<C> Patience<C> {
    pub(super) fn new(client: C, limit: Duration) -> Self {
        Self { client, limit }
    }
}

impl<C, B, ResB> Service<Request<B>> for Patience<C>
where
    C: Service<Request<Watched<B>>, Response = Response<ResB>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Response<ResB>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.client.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let turn = Turn::default();
        let answer = self.client.call(request.map(|body| Watched { body, turn: turn.clone() }));
        let limit = self.limit;
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer.map_err(Into::into),
                () = turn.taken_too_long(limit) => Err(Silent.into()),
            }
        })
    }
}

/// Whose turn it is: since when, in milliseconds, it is the upstream's, or [`CLIENTS`].
#[derive(Clone, Debug)]
struct Turn {
    since: Arc<AtomicU64>,
    begun: Instant,
}

const CLIENTS: u64 = u64::MAX;

impl Default for Turn {
    fn default() -> Self {
        Self { since: Arc::default(), begun: Instant::now() }
    }
}

impl Turn {
    fn is_upstreams(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(CLIENTS - 1);
        self.since.store(since, Ordering::Relaxed);
    }

    fn is_clients(&self) {
        self.since.store(CLIENTS, Ordering::Relaxed);
    }

    async fn taken_too_long(&self, limit: Duration) {
        let mut until = self.begun + limit;
        loop {
            sleep_until(until).await;
            let now = Instant::now();
            until = match self.since.load(Ordering::Relaxed) {
                CLIENTS => now + limit,
                since => self.begun + Duration::from_millis(since) + limit,
            };
            if until <= now {
                return;
            }
        }
    }
}

pin_project! {
    /// A request's body that tells whose turn it is.
    pub(super) struct Watched<B> {
        #[pin]
        body: B,
        turn: Turn,
    }
}

impl<B: Body> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        if frame.is_ready() {
            this.turn.is_upstreams();
        } else {
            this.turn.is_clients();
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

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream was silent for too long")
    }
}

impl Error for Silent {}
