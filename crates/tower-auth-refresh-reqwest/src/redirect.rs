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
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body::Body;
use http_body_util::{Either, Full};
use pin_project_lite::pin_project;
use reqwest::{Url, redirect};

use crate::body::{RequestBody, one_piece};

/// What the next hop of a request needs, kept while the request is under way.
pub(crate) struct Kept {
    headers: HeaderMap,
    /// `None` if the body is a stream, which can't be sent again.
    body: Option<Bytes>,
}

impl Kept {
    pub(crate) fn of(headers: &HeaderMap, body: &RequestBody) -> Self {
        let is_empty = body.size_hint().exact() == Some(0);
        let body = if is_empty { Some(Bytes::new()) } else { one_piece(body) };
        Self { headers: headers.clone(), body }
    }

    /// Returns the next hop after this response, by the rules of reqwest; `None` if there is none.
    ///
    /// `shell` is that of the request that was sent.
    pub(crate) fn next(
        self,
        shell: &reqwest::Request,
        status: StatusCode,
        response: &HeaderMap,
        referer: bool,
    ) -> Option<NextHop> {
        let Self { mut headers, mut body } = self;
        let mut method = shell.method().clone();
        match status {
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => {
                if method == Method::POST {
                    method = Method::GET;
                    drop_payload(&mut headers);
                    body = Some(Bytes::new());
                }
            }
            StatusCode::SEE_OTHER => {
                if method != Method::HEAD {
                    method = Method::GET;
                }
                drop_payload(&mut headers);
                body = Some(Bytes::new());
            }
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {}
            _ => return None,
        }
        let body = Either::Left(Full::new(body?));
        let previous = shell.url();
        let url = previous.join(str::from_utf8(response.get(LOCATION)?.as_bytes()).ok()?).ok()?;
        Uri::try_from(url.as_str()).ok()?;
        let mut lost_credentials = false;
        if is_cross_host(previous, &url) {
            lost_credentials = headers.remove(AUTHORIZATION).is_some();
            for name in [COOKIE, PROXY_AUTHORIZATION, WWW_AUTHENTICATE, HeaderName::from_static("cookie2")] {
                headers.remove(name);
            }
        }
        if let Some(value) = referer_of(previous, &url).filter(|_| referer) {
            headers.insert(REFERER, value);
        }
        Some(NextHop { method, url, headers, body, lost_credentials })
    }
}

/// The next hop of a request.
pub(crate) struct NextHop {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: RequestBody,
    /// The caller's own credentials were for the host that the hop leads away from.
    pub(crate) lost_credentials: bool,
}

/// Removes the headers that describe a body.
fn drop_payload(headers: &mut HeaderMap) {
    for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING] {
        headers.remove(name);
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

thread_local! {
    /// Set while a request is polled of which a redirect is one too many.
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
    /// `last`: a redirect of this call is one too many.
    pub(crate) fn new(call: F, last: bool) -> Self {
        Self { call, last }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str) -> Url {
        Url::parse(url).unwrap()
    }

    #[test]
    fn a_referer_has_no_credentials_and_no_fragment_and_is_not_sent_from_https_to_http() {
        let referer =
            |previous, next| referer_of(&url(previous), &url(next)).map(|value| value.to_str().unwrap().to_owned());
        let (secure, plain) = ("https://ada:right@a.example/path?query#part", "http://b.example/");
        assert_eq!(referer(secure, plain), None);
        for next in ["https://b.example/", "https://a.example/next"] {
            assert_eq!(referer(secure, next).as_deref(), Some("https://a.example/path?query"));
        }
        assert_eq!(referer(plain, plain).as_deref(), Some(plain));
        assert_eq!(referer(plain, secure).as_deref(), Some(plain));
    }

    #[test]
    fn another_scheme_host_or_port_is_another_host() {
        for (next, expected) in [
            ("https://a.example/next", false),
            ("https://a.example:443/", false),
            ("http://a.example:443/", true),
            ("https://a.example:444/", true),
            ("https://b.example/", true),
            ("https://sub.a.example/", true),
        ] {
            assert_eq!(is_cross_host(&url("https://a.example/"), &url(next)), expected, "{next}");
        }
    }
}
