//! One request and its response, as the connection sees them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Body as AxumBody;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::yield_now;

use super::activity::{Activity, Answering};
use super::streams::{self, Step};
use crate::client_address::ClientAddress;
use crate::observation::{Observation, Observed};
use crate::routes::Router;

/// The most that is read of an upload after its response is known, to keep the connection.
const MAX_DRAINED: usize = 64 * 1024;

/// The number of times that hyper is given the opportunity to read more of such an upload.
const DRAIN_ROUNDS: usize = 8;

/// Answers a request.
///
/// Over HTTP/1, the response to a request whose body has not arrived closes the connection, so that the client knows
/// that it needn't send the rest. What has arrived already is read, and keeps the connection.
pub(super) fn answer(
    router: Arc<Router>,
    client: ClientAddress,
    mut observed: Observed,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<http::Response<ResponseBody>, Infallible>> {
    let answering = activity.request_started();
    let version = request.version();
    // Here, since the future would have room for the request twice.
    let (request, rest) = with_rest(request, &activity, observed.observation());
    async move {
        let mut response = router.answer(request, client, observed.observation()).await;
        // Over HTTP/2, each stream ends by itself.
        if version != Version::HTTP_2 {
            let keeps_connection = match rest {
                Some(rest) => rest.settle().await,
                None => true,
            };
            if !keeps_connection || activity.is_closing() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
        }
        activity.progress();
        // HTTP/1.0 has no chunks.
        let ends_with_connection = version == Version::HTTP_10;
        if has_ended(response.body()) {
            observed.complete();
        }
        streams::note(Step::Gave);
        Ok(response.map(|body| ResponseBody { body, answering, observed, ends_with_connection }))
    }
}

/// Returns the request with a body of axum's, and the rest of that body if it may not have arrived.
fn with_rest(
    request: Request<Incoming>,
    activity: &Arc<Activity>,
    observation: &Arc<Observation>,
) -> (Box<Request<AxumBody>>, Option<Arc<Rest>>) {
    if request.body().is_end_stream() {
        // Unlike that of hyper, an empty body of axum's is no allocation.
        return (Box::new(request.map(|_| AxumBody::empty())), None);
    }
    let rest = Arc::new(Rest {
        activity: activity.clone(),
        observation: observation.clone(),
        awaits_continue: request.headers().contains_key(EXPECT),
        may_smuggle: request.headers().contains_key(TRANSFER_ENCODING),
        state: Mutex::default(),
    });
    let request = request.map(|body| AxumBody::new(Upload { body: Some(body), rest: rest.clone() }));
    (Box::new(request), Some(rest))
}

/// The rest of an upload, after the request has been answered.
struct Rest {
    activity: Arc<Activity>,
    observation: Arc<Observation>,
    /// Reading the upload would ask the client to send it.
    awaits_continue: bool,
    /// The request may also have had a length, which hyper drops, and a proxy in front may have gone by that: then the
    /// rest of the connection is a part of this upload to the proxy, and must not be read as requests (RFC 9112 §6.1).
    may_smuggle: bool,
    state: Mutex<RestState>,
}

#[derive(Default)]
enum RestState {
    /// The upload is still being read, and its response is not known.
    #[default]
    Reading,
    /// The upload has been dropped before its end.
    Left(Incoming),
    /// The response is known. An upload that is dropped before its end from here on is abandoned.
    Answered,
    Finished,
}

impl Rest {
    fn state(&self) -> MutexGuard<'_, RestState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what has arrived of an upload that has been dropped.
    async fn drain(&self) {
        let state = std::mem::take(&mut *self.state());
        let mut body = match state {
            RestState::Left(body) => body,
            RestState::Finished => return *self.state() = RestState::Finished,
            // The upload may be dropped at this moment.
            RestState::Reading | RestState::Answered => return,
        };
        let mut left = MAX_DRAINED;
        for _ in 0..DRAIN_ROUNDS {
            // hyper reads in the task of this future, between two polls.
            match std::future::poll_fn(|cx| Poll::Ready(drain_ready(&mut body, cx, &mut left))).await {
                Drained::Ended => return *self.state() = RestState::Finished,
                Drained::TooLong => break,
                Drained::Pending => yield_now().await,
            }
        }
        *self.state() = RestState::Left(body);
    }

    /// Returns `true` if the whole upload has been read, so that the connection can be kept.
    async fn settle(&self) -> bool {
        if !self.awaits_continue {
            self.drain().await;
        }
        let state = std::mem::replace(&mut *self.state(), RestState::Answered);
        if matches!(state, RestState::Left(_)) {
            self.activity.body_abandoned();
        }
        matches!(state, RestState::Finished) && !self.may_smuggle
    }
}

enum Drained {
    Ended,
    TooLong,
    Pending,
}

fn drain_ready(body: &mut Incoming, cx: &mut Context<'_>, left: &mut usize) -> Drained {
    loop {
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(None) => return Drained::Ended,
            // A malformed body: the connection can't be kept.
            Poll::Ready(Some(Err(_))) => return Drained::TooLong,
            Poll::Pending => return Drained::Pending,
        };
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => *left = rest,
            None => return Drained::TooLong,
        }
        if body.is_end_stream() {
            return Drained::Ended;
        }
    }
}

/// A request's body, which leaves its rest behind if it is dropped before its end.
struct Upload {
    body: Option<Incoming>,
    rest: Arc<Rest>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { body, rest } = &mut *self;
        let Some(incoming) = body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        rest.observation.received(note_progress(&rest.activity, frame.as_ref()));
        // Noted at once: the body may be kept longer than its response.
        if frame.is_none() || incoming.is_end_stream() {
            *body = None;
            *rest.state() = RestState::Finished;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        let mut state = self.rest.state();
        if matches!(*state, RestState::Answered) {
            self.rest.activity.body_abandoned();
        } else {
            *state = RestState::Left(body);
        }
    }
}

/// The body of a response. Until its drop, its request is being answered.
pub(super) struct ResponseBody {
    body: AxumBody,
    answering: Answering,
    observed: Observed,
    ends_with_connection: bool,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, answering, observed, ends_with_connection } = &mut *self;
        let activity = answering.activity();
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            streams::note(Step::HadNone);
            return Poll::Pending;
        };
        streams::note(Step::Gave);
        observed.sent(note_progress(activity, frame.as_ref()));
        match frame {
            Some(Ok(_)) if !has_ended(body) => {}
            Some(Ok(_)) | None => observed.complete(),
            Some(Err(_)) => {
                observed.fail();
                if *ends_with_connection {
                    activity.response_cut_off();
                }
            }
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

/// Checks if nothing is left of a body: by its end or by its length, after which HTTP/1 doesn't wait for the end.
fn has_ended(body: &AxumBody) -> bool {
    body.is_end_stream() || body.size_hint().upper() == Some(0)
}

/// Notes that data is on its way, and returns its length. Frames without data are none.
fn note_progress<E>(activity: &Activity, frame: Option<&Result<Frame<Bytes>, E>>) -> usize {
    let Some(Ok(frame)) = frame else { return 0 };
    let length = frame.data_ref().map_or(0, Bytes::len);
    if length > 0 {
        activity.progress();
    }
    length
}
