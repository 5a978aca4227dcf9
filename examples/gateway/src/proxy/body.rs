//! Streamed bodies, with limits on their length and on stalls.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body as ClientBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tower::BoxError;

use super::headers::{trailers_to_client, trailers_to_upstream};
use super::pool::Lease;
use crate::app::App;
use crate::limits::RequestPermit;
use crate::problem::Kind;
use crate::stall_timer::StallTimer;

/// A client's body, which fails if it is too long or stalls. In a box, since most requests have none.
pub(crate) struct UploadBody(Option<Box<Upload>>);

struct Upload {
    body: ClientBody,
    remaining: u64,
    stall: StallTimer,
    failure: Arc<AtomicU8>,
    app: App,
}

/// The failure of an [`UploadBody`], shared with the code that maps the upstream's error to a response.
#[derive(Clone, Debug)]
pub(crate) struct UploadFailure(Option<Arc<AtomicU8>>);

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;
const BROKEN: u8 = 3;

impl UploadFailure {
    /// Returns the problem that the client caused, if any.
    pub(super) fn problem(&self) -> Option<Kind> {
        match self.0.as_ref()?.load(Ordering::Relaxed) {
            TOO_LARGE => Some(Kind::BodyTooLarge),
            TOO_SLOW => Some(Kind::RequestTooSlow),
            // Or the client has disconnected, and gets no response.
            BROKEN => Some(Kind::MalformedRequest),
            _ => None,
        }
    }
}

impl UploadBody {
    pub(crate) fn new(body: ClientBody, app: &App) -> (Self, UploadFailure) {
        if body.is_end_stream() {
            return (Self(None), UploadFailure(None));
        }
        let (failure, stall) = (Arc::<AtomicU8>::default(), StallTimer::new(app.client_timeout));
        let upload = Upload { body, remaining: app.body_limit, stall, failure: failure.clone(), app: app.clone() };
        (Self(Some(Box::new(upload))), UploadFailure(Some(failure)))
    }
}

impl Upload {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            ready!(self.stall.poll(cx));
            return self.fail(TOO_SLOW, "the client stalled during the upload");
        };
        self.stall.reset();
        let mut frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return self.fail(BROKEN, error),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref() {
            match self.remaining.checked_sub(data.len() as u64) {
                Some(remaining) => self.remaining = remaining,
                None => return self.fail(TOO_LARGE, "the request body is over the limit"),
            }
        }
        if let Some(trailers) = frame.trailers_mut() {
            trailers_to_upstream(trailers, &self.app.strip);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn fail(&self, failure: u8, error: impl Into<BoxError>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.failure.store(failure, Ordering::Relaxed);
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.as_mut().map_or(Poll::Ready(None), |upload| upload.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |upload| upload.body.size_hint())
    }
}

/// An upstream's body, which fails if it stalls.
pub(super) struct DownloadBody<B> {
    body: Incoming,
    stall: StallTimer,
    // Dropped after the body.
    lease: Lease<B>,
}

impl<B> DownloadBody<B> {
    pub(super) fn new(body: Incoming, lease: Lease<B>, timeout: Duration) -> Self {
        Self { body, stall: StallTimer::new(timeout), lease }
    }

    /// Returns the address of the server that has responded.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.lease.address()
    }
}

impl<B> Body for DownloadBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.stall.reset();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.stall.poll(cx));
                Poll::Ready(Some(Err("the upstream stalled during the response".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body with checked trailers, which keeps its request counted as one in flight.
pub(super) struct AdmittedBody<B> {
    body: B,
    _permit: RequestPermit,
}

impl<B> AdmittedBody<B> {
    pub(super) fn new(body: B, permit: RequestPermit) -> Self {
        Self { body, _permit: permit }
    }
}

impl<B: Body + Unpin> Body for AdmittedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            trailers_to_client(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
