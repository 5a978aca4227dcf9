//! A shell: a request of reqwest without its headers and body.
//!
//! All sendings of a hop share it. It keeps what an `http::Request` has no place for: the URL, which needn't be parsed
//! again, and the time-out.

use http::{Request, Uri};

use crate::body::IntoReqwestBody;

/// Returns the URI of the request.
pub(crate) fn uri(shell: &reqwest::Request) -> reqwest::Result<Uri> {
    if let Ok(uri) = Uri::try_from(shell.url().as_str()) {
        return Ok(uri);
    }
    // Fails in the same way, with an error of reqwest.
    let converted = Request::<reqwest::Body>::try_from(copy(shell));
    converted.map(|request| request.into_parts().0.uri).map_err(|error| error.with_url(shell.url().clone()))
}

/// Returns a request of reqwest with the headers and the body of this one.
pub(crate) fn fill<B: IntoReqwestBody>(shell: &reqwest::Request, request: Request<B>) -> reqwest::Request {
    let (head, body) = request.into_parts();
    let mut request = copy(shell);
    *request.headers_mut() = head.headers;
    *request.body_mut() = Some(body.into_reqwest_body());
    request
}

/// Returns a copy of the shell. Not by `try_clone`, which allocates a place for the time-out in any case.
fn copy(shell: &reqwest::Request) -> reqwest::Request {
    let mut copy = reqwest::Request::new(shell.method().clone(), shell.url().clone());
    *copy.version_mut() = shell.version();
    if let Some(timeout) = shell.timeout() {
        *copy.timeout_mut() = Some(*timeout);
    }
    copy
}

#[cfg(test)]
mod tests {
    use reqwest::Url;

    use super::*;

    #[test]
    fn a_url_that_is_no_uri_is_an_error_with_the_url() {
        let url = Url::parse("data:text/plain,text").unwrap();
        let error = uri(&reqwest::Request::new(http::Method::GET, url.clone())).unwrap_err();
        assert_eq!((error.is_builder(), error.url()), (true, Some(&url)));
    }
}
