//! `GET /healthz` and `GET /readyz`: of the gateway alone.
//!
//! A restart of the gateway would not repair the servers behind it, and all gateways share these: if the readiness of
//! each depended on them, a balancer would have no gateway left to send requests to, and clients would get its error
//! instead of the gateway's. Without its store, a gateway still serves the users whose sessions are in memory.

use axum::extract::State;
use http::StatusCode;

use crate::app::App;
use crate::phase::Phase;

/// Returns `ok`, for as long as the process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Returns `ready`, or a 503 once the shutdown has begun.
pub(crate) async fn readyz(State(app): State<App>) -> (StatusCode, &'static str) {
    match *app.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Draining | Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}
