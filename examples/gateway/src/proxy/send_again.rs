//! Requests that meet the close of a kept connection are sent again.
//!
//! A server may close an idle connection at any moment, also at the one at which a request is sent. The server hasn't
//! read the request then, but the gateway can't know: only safe requests are sent a second time (RFC 9110 §9.2.2,
//! RFC 9112 §9.3.1).

use std::error::Error;
use std::io;

use http::{HeaderMap, Method, Request, Uri};
use http_body::Body;

use super::pool::Failed;

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
pub(super) fn was_closed_while_kept(failed: &Failed) -> bool {
    matches!(failed, Failed::Sent { error, was_kept: true } if is_closed(error))
}

fn is_closed(error: &hyper::Error) -> bool {
    if error.is_incomplete_message() || error.is_canceled() {
        return true;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            // `UnexpectedEof`: the end of a connection of TLS without `close_notify`.
            return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        cause = error.source();
    }
    false
}
