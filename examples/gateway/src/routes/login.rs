//! `POST /login`: exchanges credentials for a session.

use std::error::Error;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body_util::LengthLimitError;
use serde_json::{Map, Value};
use tower_auth_refresh::SessionRegistryError;

use crate::app::App;
use crate::auth::LoginFailed;
use crate::client_address::ClientAddress;
use crate::cookie::SessionId;
use crate::fields;
use crate::metrics::Limit;
use crate::observation::Observation;
use crate::problem::{DEFAULT_RETRY_AFTER, Kind, Problem};
use crate::user;

/// The maximum size of the credentials.
const BODY_LIMIT: usize = 16 * 1024;

/// Sends the credentials, a JSON object, to the authorization server. The browser gets a cookie, never a token.
///
/// The login runs in a tracked task: if the browser disconnects, the new session is signed out, which revokes its
/// tokens.
pub(crate) async fn login(
    State(app): State<App>,
    Extension(observation): Extension<Arc<Observation>>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let credentials = credentials(&app, &head.headers, body).await?;
    // Counted from here on: slow credentials keep no other login out.
    let client = head.extensions.get::<ClientAddress>().cloned();
    let permit = app.logins.admit(client.as_ref().map(ClientAddress::ip))?;
    let previous = app.cookie.read(&head.headers);
    let task = app.tasks.spawn({
        let app = app.clone();
        async move {
            let session = sign_in(app, credentials, client, previous, &observation).await;
            drop(permit);
            session
        }
    });
    let (session, _guard) = task.await.map_err(|_panic| Kind::Internal)?;
    let session = session?;
    if let Some(previous) = previous {
        app.sign_out(previous).await;
    }
    // Only now: a login that is undone takes no place, and the session that it would have replaced keeps its own.
    let (id, oldest) = session.keep();
    join_all(oldest.into_iter().map(|oldest| app.sign_out(oldest))).await;
    let mut response = StatusCode::NO_CONTENT.into_response();
    app.cookie.set(response.headers_mut(), id);
    Ok(response)
}

async fn credentials(app: &App, headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, Problem> {
    if !is_json(headers) {
        return Err(Kind::WrongMediaType.into());
    }
    let body = match tokio::time::timeout(app.client_timeout, to_bytes(body, BODY_LIMIT)).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.source().is_some_and(<dyn Error>::is::<LengthLimitError>) => {
            return Err(Kind::BodyTooLarge.into());
        }
        Ok(Err(_)) => return Err(Kind::MalformedRequest.into()),
        Err(_elapsed) => return Err(Kind::RequestTooSlow.into()),
    };
    serde_json::from_slice(&body).map_err(|_| Kind::MalformedRequest.into())
}

/// Checks that there is one media type, and that it is JSON. Its parameters are ignored.
fn is_json(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(CONTENT_TYPE).iter().map(|kind| {
        let essence = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        fields::trim(essence).eq_ignore_ascii_case(b"application/json")
    });
    kinds.next() == Some(true) && kinds.next().is_none()
}

async fn sign_in(
    app: App,
    credentials: Map<String, Value>,
    client: Option<ClientAddress>,
    previous: Option<SessionId>,
    observation: &Observation,
) -> Result<PendingSession, Problem> {
    // Always a new number, against session fixation: an existing one may be known to an attacker.
    let id = SessionId::random().map_err(|error| {
        tracing::error!(%error, "random number generation failed");
        Kind::Internal
    })?;
    let tokens = app.auth.login(&credentials, client.as_ref()).await.map_err(|failed| match failed {
        LoginFailed::WrongCredentials => Kind::WrongCredentials.into(),
        LoginFailed::Malformed => Kind::MalformedRequest.into(),
        LoginFailed::Unavailable { retry_after } => {
            let problem = Problem::from(Kind::AuthServerUnavailable);
            problem.retry_after(retry_after.unwrap_or(DEFAULT_RETRY_AFTER))
        }
        LoginFailed::Failed(error) => {
            tracing::error!(%error, "call to the authorization server failed");
            Problem::from(Kind::AuthServerFailed)
        }
    })?;
    let mut signed_in = app.sessions.sign_in(id, tokens.clone()).await;
    if let (Err(SessionRegistryError::Full), Some(previous)) = (&signed_in, previous)
        && app.sessions.peek(&previous).is_some()
    {
        // The session that this login replaces makes room for it.
        app.sign_out(previous).await;
        signed_in = app.sessions.sign_in(id, tokens.clone()).await;
    }
    match signed_in {
        Ok(_) => {}
        Err(SessionRegistryError::Session(error)) => {
            // The user is signed in all the same. The session retries the write.
            tracing::warn!(%error, "storing the tokens of a login failed");
        }
        Err(error) => {
            if let Err(error) = app.auth.revoke(&tokens).await {
                tracing::warn!(%error, "revoking the tokens of a failed login failed");
            }
            return Err(error.into());
        }
    }
    let user = user::of(&tokens).map(str::to_owned);
    observation.session(id, || Some(tokens));
    Ok(PendingSession { app, id, user, kept: false })
}

/// A new session whose cookie has not been sent. Its drop signs the session out, unless [kept](Self::keep).
struct PendingSession {
    app: App,
    id: SessionId,
    user: Option<String>,
    kept: bool,
}

impl PendingSession {
    /// Keeps the session. Returns its number for the cookie, and the oldest sessions of the user that are over the limit.
    fn keep(mut self) -> (SessionId, Vec<SessionId>) {
        self.kept = true;
        let is_active = |id: &SessionId| self.app.sessions.peek(id).is_some_and(|now| now.state().is_signed_in());
        let oldest = match (&self.app.user_sessions, &self.user) {
            (Some(limit), Some(user)) => limit.add(user, self.id, is_active),
            _ => Vec::new(),
        };
        if let Some(user) = self.user.as_deref().filter(|_| !oldest.is_empty()) {
            self.app.metrics.count_limit(Limit::SessionsPerUser);
            tracing::info!(user, "the user's oldest session is signed out: --sessions-per-user is reached");
        }
        (self.id, oldest)
    }
}

impl Drop for PendingSession {
    fn drop(&mut self) {
        if !self.kept {
            self.app.sign_out_detached(self.id);
        }
    }
}
