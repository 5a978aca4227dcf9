//! [`AuthServerError`]: a failed call to the authorization server.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tower::BoxError;
use tower_auth_refresh::{RefreshError, RefreshToken};

use crate::endpoint::Endpoint;

/// A failed call to the authorization server.
///
/// The message names the endpoint (without its query), the cause, the status and the OAuth error code; never the body,
/// a token, or anything else that the server chose. The source of every [`RefreshError`] of this crate is an
/// `AuthServerError`, so that a report of the middleware leads to it.
#[derive(Debug)]
pub struct AuthServerError {
    kind: Kind,
    problem: &'static str,
    endpoint: Option<Arc<str>>,
    status: Option<StatusCode>,
    code: Option<ErrorCode>,
    retry_after: Option<Duration>,
    no_retry: bool,
    refresh_token: Option<RefreshToken>,
    source: Option<BoxError>,
}

/// The meaning of a failure, as in [`tower_auth_refresh::RefreshErrorKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The server itself refused what was presented.
    Rejected,
    Misconfigured,
    Unavailable,
    InDoubt,
}

impl AuthServerError {
    pub(crate) fn new(kind: Kind, problem: &'static str) -> Self {
        Self {
            kind,
            problem,
            endpoint: None,
            status: None,
            code: None,
            retry_after: None,
            no_retry: false,
            refresh_token: None,
            source: None,
        }
    }

    /// A call that can't be made, or an answer that can't be used, as the client is configured.
    pub(crate) fn misconfigured(problem: &'static str) -> Self {
        Self::new(Kind::Misconfigured, problem)
    }

    /// An answer that leads elsewhere: a secret must not go along.
    pub(crate) fn redirected() -> Self {
        Self::misconfigured("the answer is a redirect, which is never followed")
    }

    pub(crate) fn at(mut self, endpoint: &Endpoint) -> Self {
        self.endpoint = Some(Arc::clone(endpoint.name()));
        self
    }

    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// Drops the status, of a response that came without it.
    pub(crate) fn without_status(mut self) -> Self {
        self.status = None;
        self
    }

    pub(crate) fn with_code(mut self, code: Option<ErrorCode>) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn with_retry_after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }

    /// Rules out another attempt within the flight.
    pub(crate) fn without_retry(mut self) -> Self {
        self.no_retry = true;
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a refresh token that the answer issued beside the failure.
    ///
    /// The server has used the old one, and doesn't mean to end the session: a rejection, or a failure that leaves the
    /// old token unused, becomes one in doubt. The next refresh presents the new token.
    pub(crate) fn with_refresh_token(mut self, token: RefreshToken) -> Self {
        if matches!(self.kind, Kind::Rejected | Kind::Unavailable) {
            self.kind = Kind::InDoubt;
        }
        self.refresh_token = Some(token);
        self
    }

    /// Reclassifies the failure of a call that consumes nothing and presents nothing that could be revoked.
    pub(crate) fn of_repeatable_call(mut self) -> Self {
        self.refresh_token = None;
        self.kind = match self.kind {
            Kind::InDoubt => Kind::Unavailable,
            Kind::Rejected => Kind::Misconfigured,
            other => other,
        };
        self
    }

    /// The endpoint that was called: scheme, host and path.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// The status of the answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// The error code of the answer (`error`, RFC 6749 §5.2).
    ///
    /// Only codes of at most 40 lower-case letters and underscores are kept. Anything else could be a secret.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_ref().map(ErrorCode::as_str)
    }

    /// Returns `true` if the server itself refused the refresh token, or the credentials of a login.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.kind == Kind::Rejected
    }

    /// Returns `true` if the call is wrong, or was answered by something in front of the server.
    ///
    /// A redirect and a firewall's page are examples.
    #[must_use]
    pub fn is_misconfigured(&self) -> bool {
        self.kind == Kind::Misconfigured
    }

    /// Returns `true` if the call had no effect and can be repeated.
    ///
    /// Either nothing was sent, or the server asked to be called later.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    /// Returns `true` if the call may have had its effect, but its answer is lost or unreadable.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.kind == Kind::InDoubt
    }

    /// The delay that the server asked for, as it was given.
    ///
    /// It is read from `Retry-After` (RFC 9110 §10.2.3), or from the reset time of a rate limit. A session clamps it.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<AuthServerError> for RefreshError {
    fn from(mut error: AuthServerError) -> Self {
        let (retry_after, no_retry, token) = (error.retry_after, error.no_retry, error.refresh_token.take());
        let mut refresh_error = match error.kind {
            Kind::Rejected => Self::rejected(error),
            Kind::Misconfigured => Self::misconfigured(error),
            Kind::Unavailable => Self::unavailable(error),
            Kind::InDoubt => Self::in_doubt(error),
        };
        if let Some(delay) = retry_after {
            refresh_error = refresh_error.with_retry_after(delay);
        }
        if no_retry {
            refresh_error = refresh_error.without_retry();
        }
        match token {
            Some(token) => refresh_error.with_refresh_token(token),
            None => refresh_error,
        }
    }
}

impl fmt::Display for AuthServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}: ")?;
        }
        f.write_str(self.problem)?;
        match (self.status, &self.code) {
            (Some(status), Some(code)) => write!(f, " (status {}, {})", status.as_u16(), code.as_str()),
            (Some(status), None) => write!(f, " (status {})", status.as_u16()),
            _ => Ok(()),
        }
    }
}

impl Error for AuthServerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// The source of an error. `io::Error::source` skips the error that it wraps, so that error is returned first.
pub(crate) fn source_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &'a (dyn Error + 'static)),
        None => error.source(),
    }
}

/// An OAuth error code, of a character set in which no sensible secret can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorCode(Box<str>);

impl ErrorCode {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fit = (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        fit.then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_could_be_a_secret_is_not_kept() {
        assert_eq!(ErrorCode::parse("invalid_grant").unwrap().as_str(), "invalid_grant");
        for not in ["", "Invalid", "a b", "a\nb", "8xLOxBtZp8", "a.b", &"a".repeat(41)] {
            assert_eq!(ErrorCode::parse(not), None, "{not:?}");
        }
    }

    #[test]
    fn the_message_is_one_line_with_the_endpoint_the_status_and_the_code() {
        let endpoint = Endpoint::parse("https://auth.example.com/token?key=s3cret", false).unwrap();
        let error = AuthServerError::new(Kind::Rejected, "the server rejected the grant")
            .at(&endpoint)
            .with_status(StatusCode::BAD_REQUEST)
            .with_code(ErrorCode::parse("invalid_grant"));
        let message = "https://auth.example.com/token: the server rejected the grant (status 400, invalid_grant)";
        assert_eq!(error.to_string(), message);
        assert_eq!(error.endpoint(), Some("https://auth.example.com/token"));
        let error = RefreshError::from(error);
        assert_eq!(error.source().unwrap().to_string(), message);
    }

    #[test]
    fn a_refresh_token_beside_a_failure_reaches_the_session_and_is_never_shown() {
        let token = RefreshToken::new("rt-2").unwrap();
        let error = AuthServerError::new(Kind::Rejected, "no").with_refresh_token(token.clone());
        assert!(error.is_in_doubt());
        assert!(!format!("{error} {error:?}").contains("rt-2"));
        let error = RefreshError::from(error);
        assert_eq!(error.refresh_token(), Some(&token));
        assert!(!format!("{error} {error:?} {:?}", error.source()).contains("rt-2"));
    }
}
