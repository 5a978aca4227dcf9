//! `GET /metrics`, on the admin listener alone: the endpoint that Prometheus scrapes.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;

use crate::app::App;

/// Returns all metrics in Prometheus' text format.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let text = app.metrics.render(app.sessions.len());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
