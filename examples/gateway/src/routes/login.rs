//! `POST /login`: credentials for a session.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use tower_auth_refresh::{SessionsError, Tokens};

use crate::app::App;
use crate::auth::LoginFailed;
use crate::cookie::SessionId;
use crate::problem::{Kind, Problem, TRY_AGAIN};

/// More than any credentials need.
const LIMIT: usize = 16 * 1024;

/// Passes the credentials, a JSON object, to the authorization server. The browser gets a cookie, never a token.
pub(crate) async fn login(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let credentials = credentials(&app, &head.headers, body).await?;
    let tokens = app.auth.login(&credentials).await.map_err(|failed| match failed {
        LoginFailed::WrongCredentials => Kind::WrongCredentials.into(),
        LoginFailed::Incomplete => Kind::MalformedRequest.into(),
        LoginFailed::Unavailable { retry_after } => {
            let problem = Problem::from(Kind::AuthServerUnavailable);
            problem.retry_after(retry_after.unwrap_or(TRY_AGAIN))
        }
        LoginFailed::Failed(error) => {
            tracing::error!(%error, "a login failed");
            Problem::from(Kind::AuthServerFailed)
        }
    })?;
    // Always a new number: one that was there before may be known to somebody else.
    let id = SessionId::random().map_err(|error| {
        tracing::error!(%error, "no randomness");
        Kind::Internal
    })?;
    sign_in(&app, id, tokens).await?;
    if let Some(before) = app.cookie.read(&head.headers) {
        sign_out(&app, &before).await;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    app.cookie.set(response.headers_mut(), id);
    Ok(response)
}

async fn credentials(app: &App, headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Kind::WrongMediaType.into());
    }
    let body = match tokio::time::timeout(app.client_timeout, to_bytes(body, LIMIT)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err(Kind::BodyTooLarge.into()),
        Err(_elapsed) => return Err(Kind::RequestTooSlow.into()),
    };
    serde_json::from_slice(&body).map_err(|_| Kind::MalformedRequest.into())
}

async fn sign_in(app: &App, id: SessionId, tokens: Tokens) -> Result<(), Problem> {
    match app.sessions.sign_in(id, tokens.clone()).await {
        Ok(_) => Ok(()),
        Err(SessionsError::Session(error)) => {
            // He is signed in all the same; what could not be stored is stored later.
            tracing::warn!(%error, "a user's tokens could not be stored");
            Ok(())
        }
        Err(error) => {
            if let Err(error) = app.auth.revoke(&tokens).await {
                tracing::warn!(%error, "the tokens of a user who could not be signed in could not be revoked");
            }
            Err(error.into())
        }
    }
}

pub(super) async fn sign_out(app: &App, id: &SessionId) {
    if let Err(error) = app.sessions.sign_out(id).await {
        // He is signed out here all the same.
        tracing::warn!(%error, "a user could not be signed out everywhere");
    }
}
