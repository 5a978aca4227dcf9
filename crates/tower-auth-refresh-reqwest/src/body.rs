//! The bodies of requests and responses, between reqwest's own and those of `tower` services.

use std::error::Error;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Empty, Full};
use reqwest::{ResponseBuilderExt, Url};
use tower_auth_refresh::ReplayBody;

/// The body of a request, before the layer wraps it: one piece, which a redirect can repeat, or a stream.
pub(crate) type RequestBody = Either<Full<Bytes>, reqwest::Body>;

/// Takes the bytes of a body that is one piece, without a copy.
pub(crate) fn take_apart(mut body: reqwest::Body) -> RequestBody {
    if body.as_bytes().is_none() {
        return Either::Right(body);
    }
    // A body that is one piece is ready at once, and needs no waker.
    match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(frame))) => Either::Left(Full::new(frame.into_data().unwrap_or_default())),
        _ => Either::Left(Full::default()),
    }
}

/// Returns the whole body, if it is one piece.
pub(crate) fn one_piece(body: &RequestBody) -> Option<Bytes> {
    match body {
        Either::Left(full) => full.clone().into_inner(),
        Either::Right(_) => None,
    }
}

/// A request body that [`ReqwestService`](crate::ReqwestService) takes.
///
/// A body in memory as one piece becomes [`Bytes`] inside of reqwest's body, so that reqwest keeps its `Content-Length`
/// and its own retries; any other body is streamed. For a body of another type, map the request:
/// `request.map(reqwest::Body::wrap)`.
pub trait IntoReqwestBody: sealed::Sealed {
    /// Converts the body.
    fn into_reqwest_body(self) -> reqwest::Body;
}

impl IntoReqwestBody for reqwest::Body {
    fn into_reqwest_body(self) -> reqwest::Body {
        self
    }
}

impl IntoReqwestBody for Bytes {
    fn into_reqwest_body(self) -> reqwest::Body {
        self.into()
    }
}

impl IntoReqwestBody for String {
    fn into_reqwest_body(self) -> reqwest::Body {
        self.into()
    }
}

impl IntoReqwestBody for Empty<Bytes> {
    fn into_reqwest_body(self) -> reqwest::Body {
        reqwest::Body::default()
    }
}

impl IntoReqwestBody for Full<Bytes> {
    fn into_reqwest_body(self) -> reqwest::Body {
        self.into_inner().unwrap_or_default().into()
    }
}

impl<B> IntoReqwestBody for ReplayBody<B>
where
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + Send + Sync + Unpin + 'static,
{
    fn into_reqwest_body(self) -> reqwest::Body {
        self.try_into_bytes().map_or_else(reqwest::Body::wrap, reqwest::Body::from)
    }
}

mod sealed {
    use super::{Bytes, Empty, Full, ReplayBody};

    pub trait Sealed {}
    impl Sealed for reqwest::Body {}
    impl Sealed for Bytes {}
    impl Sealed for String {}
    impl Sealed for Empty<Bytes> {}
    impl Sealed for Full<Bytes> {}
    impl<B> Sealed for ReplayBody<B> {}
}

/// The body of a response of [`ReqwestService`](crate::ReqwestService).
///
/// It keeps the [`reqwest::Response`] that it is of, which [`into_reqwest`](Self::into_reqwest) restores.
pub struct ResponseBody {
    state: State,
}

enum State {
    /// Not read yet: a response without its headers and extensions.
    Held(reqwest::Response),
    Reading {
        body: reqwest::Body,
        url: Box<Url>,
    },
    /// Only while the state changes.
    Taken,
}

impl ResponseBody {
    /// Splits a response of reqwest.
    pub(crate) fn split(mut response: reqwest::Response) -> http::Response<Self> {
        let mut split = http::Response::new(());
        *split.status_mut() = response.status();
        *split.version_mut() = response.version();
        *split.headers_mut() = mem::take(response.headers_mut());
        *split.extensions_mut() = mem::take(response.extensions_mut());
        split.map(|()| Self { state: State::Held(response) })
    }

    /// Restores the response of reqwest, with its URL.
    ///
    /// What layers have changed in its head stays changed.
    pub fn into_reqwest(response: http::Response<Self>) -> reqwest::Response {
        let (mut head, body) = response.into_parts();
        let (body, url) = match body.state {
            State::Held(mut response) if (response.status(), response.version()) == (head.status, head.version) => {
                *response.headers_mut() = head.headers;
                *response.extensions_mut() = head.extensions;
                return response;
            }
            State::Held(response) => {
                let url = response.url().clone();
                (response.into(), Some(url))
            }
            State::Reading { body, url } => (body, Some(*url)),
            State::Taken => (reqwest::Body::default(), None),
        };
        if let Some(url) = url
            && let Some(extensions) = http::response::Builder::new().url(url).extensions_mut()
        {
            head.extensions.extend(mem::take(extensions));
        }
        http::Response::from_parts(head, body).into()
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<reqwest::Result<Frame<Bytes>>>> {
        if let State::Held(_) = self.state
            && let State::Held(response) = mem::replace(&mut self.state, State::Taken)
        {
            let url = Box::new(response.url().clone());
            self.state = State::Reading { body: response.into(), url };
        }
        match &mut self.state {
            State::Reading { body, .. } => Pin::new(body).poll_frame(cx),
            State::Held(_) | State::Taken => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Held(response) => response.content_length() == Some(0),
            State::Reading { body, .. } => body.is_end_stream(),
            State::Taken => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Held(response) => response.content_length().map_or_else(SizeHint::new, SizeHint::with_exact),
            State::Reading { body, .. } => body.size_hint(),
            State::Taken => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
