//! [`Shell`]: a request of reqwest without its headers and body.

use std::sync::Arc;

use http::Uri;
use reqwest::Url;

use crate::body::IntoReqwestBody;

/// A request of reqwest without its headers and body, which all sendings of a hop share.
///
/// It keeps what an `http::Request` has no place for: the URL, which needn't be parsed again, and the time-out.
#[derive(Clone)]
pub(crate) struct Shell(Arc<reqwest::Request>);

impl Shell {
    /// The headers and the body of `request` have been taken out.
    pub(crate) fn new(request: reqwest::Request) -> Self {
        Self(Arc::new(request))
    }

    pub(crate) fn request(&self) -> &reqwest::Request {
        &self.0
    }

    /// Returns the URI of the request.
    pub(crate) fn uri(&self) -> reqwest::Result<Uri> {
        let url = self.0.url();
        if let Ok(uri) = Uri::try_from(url.as_str()) {
            return Ok(uri);
        }
        // Fails in the same way, with an error of reqwest.
        let converted = http::Request::<reqwest::Body>::try_from(self.copy());
        converted.map(|request| request.into_parts().0.uri).map_err(|error| error.with_url(url.clone()))
    }

    /// Returns a copy of the shell.
    fn copy(&self) -> reqwest::Request {
        // Without a body, a request can be cloned.
        let new = || reqwest::Request::new(self.0.method().clone(), self.0.url().clone());
        self.0.try_clone().unwrap_or_else(new)
    }

    /// Returns the shell of a redirected request.
    pub(crate) fn redirected(&self, method: http::Method, url: Url) -> Self {
        let mut request = self.copy();
        *request.method_mut() = method;
        *request.url_mut() = url;
        Self::new(request)
    }

    /// Returns a request of reqwest with the headers and the body of this one.
    pub(crate) fn fill<B: IntoReqwestBody>(&self, request: http::Request<B>) -> reqwest::Request {
        let (head, body) = request.into_parts();
        let mut request = self.copy();
        *request.headers_mut() = head.headers;
        *request.body_mut() = Some(body.into_reqwest_body());
        request
    }
}
