//! [`Problem`]: what goes wrong, told as RFC 9457 problem JSON.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::json;
use tower_auth_refresh::SessionRegistryError;

/// When to try again, where nobody said.
pub(crate) const TRY_AGAIN: Duration = Duration::from_secs(2);

/// An error that the gateway itself answers: an upstream's own errors pass as they are.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: Kind,
    retry_after: Option<Duration>,
}

/// Its `type` is `/problems/` and its name; a client tells problems apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    SignInFirst,
    SessionEnded,
    WrongCredentials,
    CrossOrigin,
    NotFound,
    MethodNotAllowed,
    MalformedRequest,
    WrongMediaType,
    RequestTooSlow,
    BodyTooLarge,
    UpgradeRefused,
    Internal,
    UpstreamFailed,
    UpstreamRefusesTokens,
    AuthServerFailed,
    AuthServerUnavailable,
    UpstreamTooSlow,
    RefreshFailed,
    SendAgain,
    TooManySessions,
}

impl Kind {
    fn told(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::SignInFirst => (StatusCode::UNAUTHORIZED, "sign-in-first", "Nobody is signed in"),
            Self::SessionEnded => (StatusCode::UNAUTHORIZED, "session-ended", "The session has ended, sign in again"),
            Self::WrongCredentials => (StatusCode::UNAUTHORIZED, "wrong-credentials", "The credentials are wrong"),
            Self::CrossOrigin => (
                StatusCode::FORBIDDEN,
                "cross-origin",
                "The request can't be told from one that another site made: send it from this origin, or with X-Requested-With",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is nothing here"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here")
            }
            Self::MalformedRequest => (StatusCode::BAD_REQUEST, "malformed-request", "The request is malformed"),
            Self::WrongMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-media-type", "The body must be application/json")
            }
            Self::RequestTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "request-too-slow", "The request's body did not come in time")
            }
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The request's body is too large"),
            Self::UpgradeRefused => {
                (StatusCode::NOT_IMPLEMENTED, "upgrade-refused", "This gateway does not switch protocols or tunnel")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "The gateway failed"),
            Self::UpstreamFailed => (StatusCode::BAD_GATEWAY, "upstream-failed", "The API could not be asked"),
            Self::UpstreamRefusesTokens => {
                (StatusCode::BAD_GATEWAY, "upstream-refuses-tokens", "The API refuses the tokens issued for it")
            }
            Self::AuthServerFailed => {
                (StatusCode::BAD_GATEWAY, "auth-server-failed", "The authorization server could not be asked")
            }
            Self::AuthServerUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "auth-server-unavailable",
                "The authorization server can't be reached for now",
            ),
            Self::UpstreamTooSlow => {
                (StatusCode::GATEWAY_TIMEOUT, "upstream-too-slow", "The API did not answer in time")
            }
            Self::RefreshFailed => (
                StatusCode::SERVICE_UNAVAILABLE,
                "refresh-failed",
                "The access token could not be renewed for now; the session goes on",
            ),
            Self::SendAgain => (
                StatusCode::SERVICE_UNAVAILABLE,
                "send-again",
                "The access token expired, and the request was too large to be repeated: the API has not acted on it, send it again",
            ),
            Self::TooManySessions => {
                (StatusCode::SERVICE_UNAVAILABLE, "too-many-sessions", "Too many users are signed in for now")
            }
        }
    }
}

impl Problem {
    /// When it may be tried again. Default: nothing is said.
    pub(crate) fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }
}

impl From<Kind> for Problem {
    fn from(kind: Kind) -> Self {
        Self { kind, retry_after: None }
    }
}

impl From<SessionRegistryError> for Problem {
    fn from(error: SessionRegistryError) -> Self {
        tracing::warn!(%error, "a session could not be had");
        match error {
            SessionRegistryError::Full => Self::from(Kind::TooManySessions).retry_after(TRY_AGAIN),
            _ => Kind::Internal.into(),
        }
    }
}

impl IntoResponse for Kind {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, title) = self.kind.told();
        let body = json!({ "type": format!("/problems/{name}"), "title": title, "status": status.as_u16() });
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = self.retry_after {
            // Rounded up: nobody is asked back too early.
            headers.insert(RETRY_AFTER, (delay.as_millis().div_ceil(1000).clamp(1, 3600) as u64).into());
        }
        response
    }
}
