//! `POST /login`: credentials for a session.

use std::error::Error;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::LengthLimitError;
use serde_json::{Map, Value};
use tower_auth_refresh::SessionRegistryError;

use crate::app::App;
use crate::auth::LoginFailed;
use crate::cookie::SessionId;
use crate::problem::{Kind, Problem, TRY_AGAIN};

/// More than any credentials need.
const LIMIT: usize = 16 * 1024;

/// Passes the credentials, a JSON object, to the authorization server. The browser gets a cookie, never a token.
///
/// The login is made by an errand: tokens that are on their way when the browser leaves are given back.
pub(crate) async fn login(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let credentials = credentials(&app, &head.headers, body).await?;
    let errand = app.errands.begin(sign_in(app.clone(), credentials));
    let (signed_in, _under_way) = errand.await.map_err(|_panic| Kind::Internal)?;
    let signed_in = signed_in?;
    if let Some(before) = app.cookie.read(&head.headers) {
        app.sign_out(before).await;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    app.cookie.set(response.headers_mut(), signed_in.claim());
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
        Ok(Err(error)) if error.source().is_some_and(<dyn Error>::is::<LengthLimitError>) => {
            return Err(Kind::BodyTooLarge.into());
        }
        Ok(Err(_)) => return Err(Kind::MalformedRequest.into()),
        Err(_elapsed) => return Err(Kind::RequestTooSlow.into()),
    };
    serde_json::from_slice(&body).map_err(|_| Kind::MalformedRequest.into())
}

async fn sign_in(app: App, credentials: Map<String, Value>) -> Result<SignedIn, Problem> {
    // Always a new number: one that was there before may be known to somebody else.
    let id = SessionId::random().map_err(|error| {
        tracing::error!(%error, "no randomness");
        Kind::Internal
    })?;
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
    match app.sessions.sign_in(id, tokens.clone()).await {
        Ok(_) => {}
        Err(SessionRegistryError::Session(error)) => {
            // He is signed in all the same; what could not be stored is stored later.
            tracing::warn!(%error, "a user's tokens could not be stored");
        }
        Err(error) => {
            if let Err(error) = app.auth.revoke(&tokens).await {
                tracing::warn!(%error, "the tokens of a user who could not be signed in could not be revoked");
            }
            return Err(error.into());
        }
    }
    Ok(SignedIn { app, id, claimed: false })
}

/// A session whose cookie nobody has yet. Dropped unclaimed, it is signed out.
struct SignedIn {
    app: App,
    id: SessionId,
    claimed: bool,
}

impl SignedIn {
    /// Says that somebody gets it.
    fn claim(mut self) -> SessionId {
        self.claimed = true;
        self.id
    }
}

impl Drop for SignedIn {
    fn drop(&mut self) {
        if !self.claimed {
            self.app.sign_out_later(self.id);
        }
    }
}
