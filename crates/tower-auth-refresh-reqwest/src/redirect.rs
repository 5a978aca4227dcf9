//! Follows redirects outside of the layer, so that the layer sees each hop.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, LOCATION, PROXY_AUTHORIZATION, REFERER,
    TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::Body;
use http_body_util::{Either, Full};
use pin_project_lite::pin_project;
use reqwest::{Url, redirect};
use tower_auth_refresh::SkipAuth;

use crate::body::{RequestBody, one_piece};

/// A request that may be redirected: the parts that its next hop needs.
pub(crate) struct Hop {
    head: Parts,
    /// `None` if the body is a stream, which can't be sent again.
    body: Option<Bytes>,
}

impl Hop {
    pub(crate) fn of(request: &Request<RequestBody>) -> Self {
        let body =
            if request.body().size_hint().exact() == Some(0) { Some(Bytes::new()) } else { one_piece(request.body()) };
        let mut head = Request::new(()).into_parts().0;
        head.method = request.method().clone();
        head.uri = request.uri().clone();
        head.version = request.version();
        head.headers = request.headers().clone();
        head.extensions = request.extensions().clone();
        Self { head, body }
    }

    /// Returns the request of the next hop, by the rules of reqwest; `None` if there is none.
    pub(crate) fn next(self, status: StatusCode, headers: &HeaderMap, referer: bool) -> Option<Request<RequestBody>> {
        let Self { mut head, mut body } = self;
        match status {
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => {
                if head.method == Method::POST {
                    head.method = Method::GET;
                    drop_payload(&mut head);
                    body = Some(Bytes::new());
                }
            }
            StatusCode::SEE_OTHER => {
                if head.method != Method::HEAD {
                    head.method = Method::GET;
                }
                drop_payload(&mut head);
                body = Some(Bytes::new());
            }
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
            _ => return None,
        }
        let body = body?;
        let previous = Url::parse(&head.uri.to_string()).ok()?;
        let next = previous.join(str::from_utf8(headers.get(LOCATION)?.as_bytes()).ok()?).ok()?;
        head.uri = Uri::try_from(next.as_str()).ok()?;
        if is_cross_host(&previous, &next) {
            if head.headers.contains_key(AUTHORIZATION) {
                // The caller's own credentials: a later hop doesn't get those of the session instead.
                head.extensions.insert(SkipAuth);
            }
            for name in [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE] {
                head.headers.remove(name);
            }
            head.headers.remove("cookie2");
        }
        if let Some(value) = referer_of(&previous, &next).filter(|_| referer) {
            head.headers.insert(REFERER, value);
        }
        Some(Request::from_parts(head, Either::Left(Full::new(body))))
    }
}

/// Removes the headers that describe a body.
fn drop_payload(head: &mut Parts) {
    for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING] {
        head.headers.remove(name);
    }
}

fn is_cross_host(previous: &Url, next: &Url) -> bool {
    (previous.scheme(), previous.host_str(), previous.port_or_known_default())
        != (next.scheme(), next.host_str(), next.port_or_known_default())
}

/// Returns the `Referer` of a hop; `None` if it leads from `https` to `http`.
fn referer_of(previous: &Url, next: &Url) -> Option<HeaderValue> {
    if (previous.scheme(), next.scheme()) == ("https", "http") {
        return None;
    }
    let mut referer = previous.clone();
    referer.set_fragment(None);
    referer.set_username("").ok()?;
    referer.set_password(None).ok()?;
    HeaderValue::from_str(referer.as_str()).ok()
}

/// A mark in a request's extensions: a redirect of this request is one too many.
#[derive(Clone, Copy)]
pub(crate) struct LastHop;

thread_local! {
    /// Set while a request with the mark [`LastHop`] is polled.
    static IS_LAST_HOP: Cell<bool> = const { Cell::new(false) };
}

/// Returns the policy of the client inside, which follows no redirect.
///
/// A `reqwest::Error` of a redirect too many can only be made by reqwest's own client.
pub(crate) fn policy() -> redirect::Policy {
    redirect::Policy::custom(|attempt| if IS_LAST_HOP.get() { attempt.error(TooManyRedirects) } else { attempt.stop() })
}

pin_project! {
    /// Polls the call of a client whose policy is [`policy`].
    pub(crate) struct HopFuture<F> {
        #[pin]
        call: F,
        last: bool,
    }
}

impl<F> HopFuture<F> {
    pub(crate) fn new(call: F, mark: Option<LastHop>) -> Self {
        Self { call, last: mark.is_some() }
    }
}

impl<F: Future> Future for HopFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if !*this.last {
            return this.call.poll(cx);
        }
        let _reset = Reset(IS_LAST_HOP.replace(true));
        this.call.poll(cx)
    }
}

/// Restores the value when it is dropped, after a panic too.
struct Reset(bool);

impl Drop for Reset {
    fn drop(&mut self) {
        IS_LAST_HOP.set(self.0);
    }
}

/// The source of a `reqwest::Error` whose `is_redirect` is `true`, as reqwest's own policy has it.
#[derive(Debug)]
struct TooManyRedirects;

impl fmt::Display for TooManyRedirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many redirects")
    }
}

impl Error for TooManyRedirects {}
