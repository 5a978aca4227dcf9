//! [`SessionError`].

use std::error::Error;
use std::fmt;

use tower::BoxError;

use crate::store::StoreError;

/// A session could not be built, or could not carry out an operation completely.
#[derive(Debug)]
pub struct SessionError {
    message: &'static str,
    source: BoxError,
}

impl SessionError {
    pub(crate) fn store(source: StoreError) -> Self {
        Self { message: "the session's store failed", source: source.into() }
    }

    pub(super) fn revoke(source: BoxError) -> Self {
        Self { message: "the tokens could not be revoked", source }
    }

    pub(crate) fn runtime(source: impl Into<BoxError>) -> Self {
        Self { message: "the session has no running tokio runtime", source: source.into() }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
