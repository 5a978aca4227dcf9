//! `POST /logout`: ends the session, here and at the authorization server.

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use crate::app::App;
use crate::client_address::ClientAddress;
use crate::problem::Problem;

/// Signs the user out and clears the cookie. Succeeds without a session too.
///
/// # Errors
///
/// Returns the problem if the session isn't in memory, and a limit of requests keeps it from being read from the store.
pub(crate) async fn logout(
    State(app): State<App>,
    Extension(client): Extension<ClientAddress>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if let Some(id) = app.cookie.read(&headers) {
        // Held to the end of the sign-out, which may be after that of the request.
        let permit = match app.sessions.peek(&id) {
            Some(_) => None,
            None => Some(app.requests.admit(id, client.ip())?),
        };
        app.sign_out_with(id, permit).await;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    app.cookie.clear(response.headers_mut());
    Ok(response)
}
