//! How a call fails: [`AuthServerError`].

use std::error::Error;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use tower::BoxError;
use tower_auth_refresh::RefreshError;

/// A call to the authorization server failed.
///
/// It says what happened, the status and the OAuth error code; never the body, a token, or anything else that the
/// server chose. It is the source of the [`RefreshError`]s of this crate, so that it can be found in a report.
#[derive(Debug)]
pub struct AuthServerError {
    verdict: Verdict,
    what: &'static str,
    status: Option<StatusCode>,
    code: Option<ErrorCode>,
    source: Option<BoxError>,
}

/// What a failure means, as in [`tower_auth_refresh::RefreshErrorKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server's own word: what was presented is no good.
    Rejected,
    Misconfigured,
    Unavailable {
        retry_after: Option<Duration>,
    },
    InDoubt,
}

impl AuthServerError {
    pub(crate) fn new(verdict: Verdict, what: &'static str) -> Self {
        Self { verdict, what, status: None, code: None, source: None }
    }

    pub(crate) fn status_is(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    pub(crate) fn code_is(mut self, code: Option<ErrorCode>) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same failure, of a call that uses nothing up and presents nothing that could be revoked.
    pub(crate) fn of_harmless_call(mut self) -> Self {
        self.verdict = match self.verdict {
            Verdict::InDoubt => Verdict::Unavailable { retry_after: None },
            Verdict::Rejected => Verdict::Misconfigured,
            other => other,
        };
        self
    }

    /// The status that the server answered, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// The error code that the server gave (`error`, RFC 6749 §5.2), if it gave one that reads like a code: at most 40
    /// lower-case letters and underscores. Anything else could be a secret.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_ref().map(ErrorCode::as_str)
    }

    /// Whether the server itself refused what was presented: the refresh token, or the credentials of a login.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.verdict == Verdict::Rejected
    }

    /// Whether the call is wrong, or something stands before the server (a redirect, a firewall's page).
    #[must_use]
    pub fn is_misconfigured(&self) -> bool {
        self.verdict == Verdict::Misconfigured
    }

    /// Whether the call had no effect and can be made again: nothing was sent, or the server said "later".
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.verdict, Verdict::Unavailable { .. })
    }

    /// Whether the call may have had its effect, but its answer was lost or can't be read.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.verdict == Verdict::InDoubt
    }

    /// When the server wants to be asked again (`Retry-After`, RFC 9110 §10.2.3), an hour at most.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.verdict {
            Verdict::Unavailable { retry_after } => retry_after,
            _ => None,
        }
    }
}

impl From<AuthServerError> for RefreshError {
    fn from(error: AuthServerError) -> Self {
        match error.verdict {
            Verdict::Rejected => Self::rejected(error),
            Verdict::Misconfigured => Self::misconfigured(error),
            Verdict::Unavailable { retry_after: None } => Self::unavailable(error),
            Verdict::Unavailable { retry_after: Some(delay) } => Self::unavailable(error).with_retry_after(delay),
            Verdict::InDoubt => Self::in_doubt(error),
        }
    }
}

impl fmt::Display for AuthServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
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

/// An OAuth error code, of a charset in which no sensible secret can be written.
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
    fn the_message_is_one_line_with_status_and_code() {
        let error = AuthServerError::new(Verdict::Rejected, "the server refused")
            .status_is(StatusCode::BAD_REQUEST)
            .code_is(ErrorCode::parse("invalid_grant"));
        assert_eq!(error.to_string(), "the server refused (status 400, invalid_grant)");
        let error = RefreshError::from(error);
        assert_eq!(error.source().unwrap().to_string(), "the server refused (status 400, invalid_grant)");
    }
}
