//! The demo page: three static files.

use axum::response::{Html, IntoResponse};
use http::HeaderName;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};

/// Allows only resources of this origin.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

pub(super) async fn page() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, POLICY)], Html(include_str!("assets/page.html")))
}

pub(super) async fn style() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("assets/style.css"))
}

pub(super) async fn script() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("assets/timeline.js"))
}
