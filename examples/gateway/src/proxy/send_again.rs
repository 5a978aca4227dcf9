//! Requests that meet the close of a kept connection are sent again.
//!
//! A server may close an idle connection at any moment, also at the one at which a request is sent. The server hasn't
//! read the request then, but the gateway can't know: only safe requests are sent a second time (RFC 9110 §9.2.2,
//! RFC 9112 §9.3.1).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Extensions, HeaderMap, Method, Request, Response, Uri};
use http_body::Body;
use hyper_util::client::legacy::Error;

/// Tells of a connection if it has carried an answer, and is kept for others.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<AtomicBool>);

impl Kept {
    /// Notes that an answer has arrived on its connection.
    pub(super) fn answered<B>(response: &Response<B>) {
        if let Some(Self(kept)) = response.extensions().get() {
            kept.store(true, Ordering::Relaxed);
        }
    }
}

/// The head of a request that may be sent again.
#[derive(Debug)]
pub(super) struct SafeHead {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl SafeHead {
    /// Copies the head of a safe request without a body, and returns `None` for any other.
    pub(super) fn of<B: Body>(request: &Request<B>) -> Option<Self> {
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        (is_safe && request.body().is_end_stream()).then(|| {
            let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
            Self { method, uri, headers }
        })
    }

    /// Builds the request.
    pub(super) fn into_request<B>(self, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// Checks if a call has failed because its kept connection was closed before the answer.
pub(super) fn was_closed_while_kept(error: &Error) -> bool {
    let mut extensions = Extensions::new();
    if let Some(connected) = error.connect_info() {
        connected.get_extras(&mut extensions);
    }
    let is_kept = extensions.get::<Kept>().is_some_and(|Kept(kept)| kept.load(Ordering::Relaxed));
    is_kept && is_closed(error)
}

fn is_closed(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_canceled())
        {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            // `UnexpectedEof`: the end of a connection of TLS without `close_notify`.
            return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        cause = error.source();
    }
    false
}
