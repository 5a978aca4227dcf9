//! [`Shell`]: what a request of reqwest has beside an `http::Request`.

use std::time::Duration;

use http::Uri;
use reqwest::Url;

use crate::body::IntoReqwestBody;

/// What a request of reqwest has beside an `http::Request`: its URL, with the fragment, and its time-out.
///
/// The first sending takes the request itself. Few requests are sent again: a clone, which is for the replay, keeps no
/// URL and parses that of the `http::Request`.
pub(crate) struct Shell {
    /// Without headers and body.
    request: Option<reqwest::Request>,
    timeout: Option<Duration>,
    fragment: Option<Box<str>>,
}

impl Shell {
    /// The headers and the body of `request` have been taken out.
    pub(crate) fn new(request: reqwest::Request) -> Self {
        let timeout = request.timeout().copied();
        let fragment = request.url().fragment().map(Box::from);
        Self { request: Some(request), timeout, fragment }
    }

    /// Returns a request of reqwest with the head and the body of this one.
    pub(crate) fn fill<B: IntoReqwestBody>(&mut self, request: http::Request<B>) -> reqwest::Result<reqwest::Request> {
        if let Some(mut first) = self.request.take() {
            let (head, body) = request.into_parts();
            *first.headers_mut() = head.headers;
            *first.body_mut() = Some(body.into_reqwest_body());
            return Ok(first);
        }
        let mut again = reqwest::Request::try_from(request.map(IntoReqwestBody::into_reqwest_body))?;
        again.url_mut().set_fragment(self.fragment.as_deref());
        *again.timeout_mut() = self.timeout;
        Ok(again)
    }
}

impl Clone for Shell {
    fn clone(&self) -> Self {
        Self { request: None, timeout: self.timeout, fragment: self.fragment.clone() }
    }
}

/// Returns the URI of a request that has no headers and no body.
pub(crate) fn uri(request: &reqwest::Request) -> reqwest::Result<Uri> {
    let url = request.url();
    if let Ok(uri) = Uri::try_from(url.as_str()) {
        return Ok(uri);
    }
    // Fails in the same way, with an error of reqwest.
    let request = reqwest::Request::new(request.method().clone(), url.clone());
    let converted = http::Request::<reqwest::Body>::try_from(request);
    converted.map(|request| request.into_parts().0.uri).map_err(|error| error.with_url(url.clone()))
}

/// Returns the URL of a URI that a URL was converted to. The fragment is lost.
pub(crate) fn url(uri: &Uri) -> Option<Url> {
    Url::parse(&uri.to_string()).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;

    use super::*;

    #[test]
    fn a_sending_again_has_the_url_and_the_time_out_of_the_first() {
        for text in [
            "http://a.example",
            "https://a.example/path?query#fragment",
            "http://a.example:8080/?",
            "http://a.example/#",
            "http://ada:s%40cret@a.example/",
            "http://[::1]:80/a//b/../c;d=e?f=g&h=i+j%20k",
            "http://ex\u{e4}mple.com/\u{e4}?\u{e4}#\u{e4}",
            "http://a.example/\"<>{}|^`\\?'\"<>{}|^`\\",
        ] {
            for timeout in [None, Some(Duration::from_secs(7))] {
                let mut request = reqwest::Request::new(http::Method::PUT, Url::parse(text).unwrap());
                *request.timeout_mut() = timeout;
                let expected = request.url().clone();
                let uri = uri(&request).unwrap();
                let mut first = Shell::new(request);
                let mut again = first.clone();
                for shell in [&mut first, &mut again] {
                    let filled = http::Request::put(uri.clone()).header("x-one", "1");
                    let filled = shell.fill(filled.body(Full::<Bytes>::from("body")).unwrap()).unwrap();
                    assert_eq!((filled.url(), filled.timeout().copied()), (&expected, timeout));
                    assert_eq!(
                        (filled.method(), filled.headers()["x-one"].as_bytes()),
                        (&http::Method::PUT, &b"1"[..])
                    );
                    assert_eq!(filled.body().and_then(reqwest::Body::as_bytes), Some(&b"body"[..]));
                }
            }
        }
    }

    #[test]
    fn a_url_that_is_no_uri_is_an_error_with_the_url() {
        let url = Url::parse("data:text/plain,text").unwrap();
        let error = uri(&reqwest::Request::new(http::Method::GET, url.clone())).unwrap_err();
        assert_eq!((error.is_builder(), error.url()), (true, Some(&url)));
    }
}
