//! [`Page`]: the answers to the browser. Each is constant: nothing of a request is reflected.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;

/// An answer to the browser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    SignedIn,
    Failed,
    /// A request without this sign-in's `state`: it isn't the answer of the authorization server.
    NotOurs,
    NotFound,
    NotGet,
}

impl Page {
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let (status, title, text) = match self {
            Self::SignedIn => {
                (StatusCode::OK, "You are signed in", "You can close this page and return to the application.")
            }
            Self::Failed => (
                StatusCode::OK,
                "The sign-in failed",
                "You can close this page. The application you came from says why.",
            ),
            Self::NotOurs => (
                StatusCode::BAD_REQUEST,
                "This page doesn't belong to the sign-in under way",
                "Return to the application, and open the address that it shows.",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found", "There is no such page."),
            Self::NotGet => (StatusCode::METHOD_NOT_ALLOWED, "Not allowed", "This page can only be read."),
        };
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
             <style>:root {{ color-scheme: light dark }} body {{ font: 1.1em/1.5 system-ui, sans-serif; \
             max-width: 30em; margin: 20vh auto; padding: 0 1em }}</style>\n<h1>{title}</h1>\n<p>{text}</p>\n</html>\n"
        );
        let mut response = Response::new(Full::new(Bytes::from(html)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        if self == Self::NotGet {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}
