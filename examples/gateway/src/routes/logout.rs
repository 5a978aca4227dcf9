//! `POST /logout`: ends the session, here and at the authorization server.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use crate::app::App;

/// Signs the user out and clears the cookie. Succeeds without a session too.
pub(crate) async fn logout(State(app): State<App>, headers: HeaderMap) -> Response {
    if let Some(id) = app.cookie.read(&headers) {
        app.sign_out(id).await;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    app.cookie.clear(response.headers_mut());
    response
}
