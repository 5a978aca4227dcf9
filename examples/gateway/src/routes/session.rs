//! `GET /session`: the state of the browser's session.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::CACHE_CONTROL;
use serde_json::{Value, json};
use tower_auth_refresh::{Session, SessionState};

use crate::app::App;
use crate::problem::Problem;

/// Returns JSON: `state` (`signed_out`, `active`, `refreshing`, `failing` or `ended`) and, while the session has tokens,
/// their `generation` and the seconds until their expiry, `expires_in`, if known.
pub(crate) async fn session(State(app): State<App>, headers: HeaderMap) -> Response {
    let session = match app.cookie.read(&headers) {
        None => None,
        Some(id) => match app.sessions.get(&id).await {
            Ok(session) => session,
            Err(error) => return Problem::from(error).into_response(),
        },
    };
    let body = session.map_or_else(|| json!({ "state": "signed_out" }), |session| to_json(&session));
    ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn to_json(session: &Session) -> Value {
    let state = match session.state() {
        SessionState::Active => "active",
        SessionState::Refreshing => "refreshing",
        SessionState::Failing(_) => "failing",
        SessionState::Ended(_) => return json!({ "state": "ended" }),
        _ => return json!({ "state": "signed_out" }),
    };
    let left = session.tokens().expires_at().map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
    json!({ "state": state, "generation": session.generation().get(), "expires_in": left.map(|left| left.as_secs()) })
}
