//! [`SessionError`].

use std::error::Error;
use std::fmt;

use tower::BoxError;

/// A session could not be built, or could not carry out an operation completely.
///
/// [`took_effect`](Self::took_effect) tells "signed in (or out) all the same" from "nothing has changed".
#[derive(Debug)]
pub struct SessionError {
    kind: SessionErrorKind,
    took_effect: bool,
    source: BoxError,
}

/// The part of an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionErrorKind {
    /// The store could not be read or written.
    Store,
    /// The tokens could not be revoked.
    Revoke,
    /// The `tokio` runtime is missing or has shut down.
    Runtime,
    /// The tokens to sign in with are empty.
    NoTokens,
}

impl SessionError {
    /// The store failed before anything was changed.
    pub(crate) fn store(source: BoxError) -> Self {
        Self { kind: SessionErrorKind::Store, took_effect: false, source }
    }

    /// The store failed after the change was made in this process. The write is retried in the background.
    pub(super) fn not_stored(source: BoxError) -> Self {
        Self { kind: SessionErrorKind::Store, took_effect: true, source }
    }

    pub(super) fn revoke(source: BoxError) -> Self {
        Self { kind: SessionErrorKind::Revoke, took_effect: true, source }
    }

    pub(crate) fn runtime(source: impl Into<BoxError>) -> Self {
        Self { kind: SessionErrorKind::Runtime, took_effect: false, source: source.into() }
    }

    pub(crate) fn no_tokens() -> Self {
        let source = "there is neither an access token nor a refresh token".into();
        Self { kind: SessionErrorKind::NoTokens, took_effect: false, source }
    }

    /// Returns the part of the operation that failed.
    #[must_use]
    pub fn kind(&self) -> SessionErrorKind {
        self.kind
    }

    /// Returns `true` if the operation took effect in this process all the same: the user is signed in, or out. If not,
    /// nothing has changed.
    #[must_use]
    pub fn took_effect(&self) -> bool {
        self.took_effect
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.kind, self.took_effect) {
            (SessionErrorKind::Store, false) => "the session's store failed",
            (SessionErrorKind::Store, true) => "the session has changed, but its store failed",
            (SessionErrorKind::Revoke, _) => "the user is signed out, but the tokens could not be revoked",
            (SessionErrorKind::Runtime, _) => "the session has no running tokio runtime",
            (SessionErrorKind::NoTokens, _) => "the tokens to sign in with are empty",
        })
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
