//! [`Problem`]: the gateway's own errors as problem JSON (RFC 9457).

use std::error::Error;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use serde_json::json;
use tower_auth_refresh::SessionRegistryError;

/// The `Retry-After` of a problem for which no server has set one.
pub(crate) const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(2);

/// An error response of the gateway itself. The upstream's own errors pass through unchanged.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: Kind,
    retry_after: Option<Duration>,
}

/// The kind of a problem. Clients tell problems apart by `type`: `/problems/` and the kind's name.
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
    TooManyRequests,
    TooManyRequestsOfAddress,
    TooManyLogins,
    TooManyLoginsOfAddress,
    Overloaded,
    StoreUnavailable,
}

impl Kind {
    /// Returns the name in `type`.
    pub(crate) fn name(self) -> &'static str {
        self.parts().1
    }

    /// Returns the status, the name in `type`, and the title.
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::SignInFirst => (StatusCode::UNAUTHORIZED, "sign-in-first", "No user is signed in"),
            Self::SessionEnded => (StatusCode::UNAUTHORIZED, "session-ended", "The session has ended: sign in again"),
            Self::WrongCredentials => {
                (StatusCode::UNAUTHORIZED, "wrong-credentials", "The authorization server rejected the credentials")
            }
            Self::CrossOrigin => (
                StatusCode::FORBIDDEN,
                "cross-origin",
                "The request may come from another site: send it from this origin, or with X-Requested-With",
            ),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "The gateway has no such route"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The route does not allow this method")
            }
            Self::MalformedRequest => (StatusCode::BAD_REQUEST, "malformed-request", "The request is malformed"),
            Self::WrongMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-media-type", "The body must be application/json")
            }
            Self::RequestTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "request-too-slow", "The request body did not arrive in time")
            }
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The request body is too large"),
            Self::UpgradeRefused => {
                (StatusCode::NOT_IMPLEMENTED, "upgrade-refused", "Protocol upgrades and tunnels are not supported")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error of the gateway"),
            Self::UpstreamFailed => (StatusCode::BAD_GATEWAY, "upstream-failed", "The call to the API failed"),
            Self::UpstreamRefusesTokens => (
                StatusCode::BAD_GATEWAY,
                "upstream-refuses-tokens",
                "The API rejects access tokens that were just issued",
            ),
            Self::AuthServerFailed => {
                (StatusCode::BAD_GATEWAY, "auth-server-failed", "The call to the authorization server failed")
            }
            Self::AuthServerUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "auth-server-unavailable",
                "The authorization server is temporarily unavailable",
            ),
            Self::UpstreamTooSlow => {
                (StatusCode::GATEWAY_TIMEOUT, "upstream-too-slow", "The API did not respond in time")
            }
            Self::RefreshFailed => (
                StatusCode::SERVICE_UNAVAILABLE,
                "refresh-failed",
                "The access token could not be refreshed: the session is kept, try again",
            ),
            Self::SendAgain => (
                StatusCode::SERVICE_UNAVAILABLE,
                "send-again",
                "The access token expired, and the request body is too large to replay: the API has not processed the request, send it again",
            ),
            Self::StoreUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "store-unavailable",
                "The session could not be read: it is kept, try again",
            ),
            Self::TooManyRequests => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-requests",
                "The maximum number of requests in flight of this session is reached",
            ),
            Self::TooManyRequestsOfAddress => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-requests",
                "The maximum number of requests in flight of this address is reached",
            ),
            Self::TooManyLogins => {
                (StatusCode::TOO_MANY_REQUESTS, "too-many-logins", "The maximum number of logins in flight is reached")
            }
            Self::TooManyLoginsOfAddress => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-logins",
                "The maximum number of logins in flight of this address is reached",
            ),
            Self::Overloaded => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "The maximum number of requests in flight is reached")
            }
            Self::TooManySessions => {
                (StatusCode::SERVICE_UNAVAILABLE, "too-many-sessions", "The maximum number of sessions is reached")
            }
        }
    }
}

impl Problem {
    /// Sets `Retry-After`. Default: no such header.
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
        tracing::warn!(%error, "session lookup failed");
        match error {
            SessionRegistryError::Full => Self::from(Kind::TooManySessions).retry_after(DEFAULT_RETRY_AFTER),
            // The session isn't over: its store can't be read for now.
            _ => Self::from(Kind::StoreUnavailable).retry_after(DEFAULT_RETRY_AFTER),
        }
    }
}

/// Formats an error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl IntoResponse for Kind {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, name, title) = self.kind.parts();
        let body = json!({ "type": format!("/problems/{name}"), "title": title, "status": status.as_u16() });
        let mut response = (status, body.to_string()).into_response();
        // For the log and the metrics.
        response.extensions_mut().insert(self.kind);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = self.retry_after {
            // Rounded up, so that no client retries too early.
            headers.insert(RETRY_AFTER, (delay.as_millis().div_ceil(1000).clamp(1, 3600) as u64).into());
        }
        response
    }
}
