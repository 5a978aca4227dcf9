//! Bodies on their way through: never collected, bounded in length and in silence.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body as ClientBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tower::BoxError;

use super::headers::drop_credentials;
use crate::problem::Kind;

/// The body of a response, whoever sends it.
pub(crate) type BoxBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// A client's body: at most so long, and never silent for long.
pub(crate) struct UploadBody {
    body: ClientBody,
    left: u64,
    silence: Silence,
    fate: Fate,
}

/// What became of an [`UploadBody`], for whoever has to explain the upstream's failure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(Arc<AtomicU8>);

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;
const BROKEN: u8 = 3;

impl Fate {
    /// What the client is to hear of it, if it was the client's fault.
    pub(super) fn problem(&self) -> Option<Kind> {
        match self.0.load(Ordering::Relaxed) {
            TOO_LARGE => Some(Kind::BodyTooLarge),
            TOO_SLOW => Some(Kind::RequestTooSlow),
            // It may also have gone away, and then hears nothing.
            BROKEN => Some(Kind::MalformedRequest),
            _ => None,
        }
    }
}

impl UploadBody {
    pub(crate) fn new(body: ClientBody, limit: u64, patience: Duration) -> (Self, Fate) {
        let fate = Fate::default();
        (Self { body, left: limit, silence: Silence::new(patience), fate: fate.clone() }, fate)
    }

    fn fail(&self, fate: u8, error: impl Into<BoxError>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.fate.0.store(fate, Ordering::Relaxed);
        Poll::Ready(Some(Err(error.into())))
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            ready!(self.silence.poll(cx));
            return self.fail(TOO_SLOW, "the client sends too slowly");
        };
        self.silence.broken();
        let mut frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return self.fail(BROKEN, error),
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref() {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return self.fail(TOO_LARGE, "the client sends too much"),
            }
        }
        if let Some(trailers) = frame.trailers_mut() {
            drop_credentials(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An upstream's body: never silent for long.
pub(super) struct DownloadBody<B> {
    body: B,
    silence: Silence,
}

impl<B> DownloadBody<B> {
    pub(super) fn new(body: B, patience: Duration) -> Self {
        Self { body, silence: Silence::new(patience) }
    }
}

impl<B> Body for DownloadBody<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.silence.broken();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                ready!(self.silence.poll(cx));
                Poll::Ready(Some(Err("the upstream sends too slowly".into())))
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

/// How long nothing has come, while somebody waited for it. A timer is only made once somebody has to wait.
struct Silence {
    patience: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    fn new(patience: Duration) -> Self {
        Self { patience, since: None, timer: None }
    }

    /// Ready when it has lasted too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let until = *self.since.get_or_insert_with(Instant::now) + patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }

    fn broken(&mut self) {
        self.since = None;
    }
}
