//! [`SignInError`]: a sign-in that ended without tokens.

use std::error::Error;
use std::fmt;

use tower::BoxError;

use crate::error::{AuthServerError, ErrorCode};

/// A sign-in that ended without tokens.
///
/// The message names the cause, and the OAuth error code where there is one; never a token, nor any text that the
/// server or the browser chose.
#[derive(Debug)]
pub struct SignInError {
    kind: SignInErrorKind,
    problem: &'static str,
    code: Option<ErrorCode>,
    source: Option<BoxError>,
}

/// The cause of a [`SignInError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignInErrorKind {
    /// The sign-in can't be made as it is configured. Nothing was sent.
    Misconfigured,
    /// Another program listens on the port of the redirect URI.
    PortTaken,
    /// The loopback address can't be listened on, for another reason: see the source.
    NoListener,
    /// The sign-in wasn't completed in time: the browser was closed, or the device code has expired.
    TimedOut,
    /// The user, or the server on the user's behalf, denied the sign-in (`access_denied`).
    Denied,
    /// The authorization endpoint answered with another error: see [`SignInError::code`].
    Refused,
    /// The redirect is that of another authorization server (RFC 9207): a mix-up attack, or a server that errs.
    WrongIssuer,
    /// The ID token is absent, or isn't valid for this sign-in.
    InvalidIdToken,
    /// A call to the authorization server failed: the source is an [`AuthServerError`].
    Server,
}

impl SignInError {
    pub(super) fn new(kind: SignInErrorKind, problem: &'static str) -> Self {
        Self { kind, problem, code: None, source: None }
    }

    pub(super) fn misconfigured(problem: &'static str) -> Self {
        Self::new(SignInErrorKind::Misconfigured, problem)
    }

    /// An error code of the authorization endpoint, or of the device grant.
    pub(super) fn of_code(code: &str) -> Self {
        let (kind, problem) = match code {
            "access_denied" => (SignInErrorKind::Denied, "the sign-in was denied"),
            "expired_token" => (SignInErrorKind::TimedOut, "the sign-in wasn't completed in time"),
            _ => (SignInErrorKind::Refused, "the server refused the sign-in"),
        };
        Self { code: ErrorCode::parse(code), ..Self::new(kind, problem) }
    }

    pub(super) fn timed_out() -> Self {
        Self::new(SignInErrorKind::TimedOut, "the sign-in wasn't completed in time")
    }

    pub(super) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The cause.
    #[must_use]
    pub fn kind(&self) -> SignInErrorKind {
        self.kind
    }

    /// The error code of the authorization server, of the call that failed or of the redirect.
    ///
    /// Only codes of at most 40 lower-case letters and underscores are kept.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_ref().map(ErrorCode::as_str).or_else(|| self.server_error()?.code())
    }

    /// The failed call to the authorization server, of the kind [`SignInErrorKind::Server`]; of the kind
    /// [`SignInErrorKind::TimedOut`], that of a device's last poll.
    #[must_use]
    pub fn server_error(&self) -> Option<&AuthServerError> {
        self.source.as_ref()?.downcast_ref()
    }
}

impl From<AuthServerError> for SignInError {
    fn from(error: AuthServerError) -> Self {
        Self::new(SignInErrorKind::Server, "a call to the authorization server failed").with_source(error)
    }
}

impl fmt::Display for SignInError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.problem)?;
        match &self.code {
            Some(code) => write!(f, " ({})", code.as_str()),
            None => Ok(()),
        }
    }
}

impl Error for SignInError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
