//! `GET /session`: the state of the browser's session.

use std::time::SystemTime;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::HeaderMap;
use http::header::CACHE_CONTROL;
use serde_json::{Value, json};
use tower_auth_refresh::SessionState;

use crate::app::App;
use crate::client_address::ClientAddress;
use crate::cookie::SessionId;
use crate::problem::Problem;

/// Returns the state of the browser's session.
///
/// This is no use of the session, which would keep it from being idle: pages poll this route. A session that is only in
/// the store has been idle in this process.
///
/// JSON: `state` (`signed_out`, `active`, `refreshing`, `failing` or `ended`) and, while the session has tokens,
/// their `generation` and the seconds until their expiry, `expires_in`, if known.
///
/// # Errors
///
/// Returns the problem if the session isn't in memory, and a limit of requests keeps it from being read from the store, or
/// the store can't be read.
pub(crate) async fn session(
    State(app): State<App>,
    Extension(client): Extension<ClientAddress>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let state = match app.cookie.read(&headers) {
        None => signed_out(),
        Some(id) => state(&app, id, &client).await?,
    };
    Ok(([(CACHE_CONTROL, "no-store")], Json(state)).into_response())
}

async fn state(app: &App, id: SessionId, client: &ClientAddress) -> Result<Value, Problem> {
    let mut status = app.sessions.peek(&id);
    if status.is_none() {
        // Loaded, if there is a store.
        drop(app.look_up(id, app.requests.admit(id, client.ip())?).await?);
        status = app.sessions.peek(&id);
    } else if app.has_store {
        // Another gateway may have changed the session: the next poll shows it.
        app.sessions.changed(&id);
    }
    Ok(status.map_or_else(signed_out, |status| {
        let state = match status.state() {
            SessionState::Active => "active",
            SessionState::Refreshing => "refreshing",
            SessionState::Failing(_) => "failing",
            SessionState::Ended(_) => return json!({ "state": "ended" }),
            _ => return signed_out(),
        };
        let left = status.expires_at().map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
        let left = left.map(|left| left.as_secs());
        json!({ "state": state, "generation": status.generation().get(), "expires_in": left })
    }))
}

fn signed_out() -> Value {
    json!({ "state": "signed_out" })
}
