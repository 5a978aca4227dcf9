//! [`StoreError`]: the error of every store, and of what a store is built from.

use std::error::Error;
use std::fmt;
use std::io;
#[cfg(any(feature = "file", feature = "encryption"))]
use std::path::Path;
use std::sync::Arc;

/// The error of a store: the resource that failed, such as a file, and the reason.
///
/// It never contains a secret. A session has it as the source of its own error, from which it is taken by
/// `downcast_ref::<StoreError>()`.
#[derive(Debug)]
pub struct StoreError {
    resource: String,
    problem: Problem,
}

/// The kind of a [`StoreError`], by the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store can't be reached, is too slow, has no space, or is locked by another process. Trying again may help.
    Unavailable,
    /// A record is damaged, or belongs to another session.
    Corrupt,
    /// A record is encrypted with a key that wasn't given.
    UnknownKey,
    /// A file was written by a later version of this crate.
    NewerFormat,
    /// A file or directory isn't private: other users own it, or may read or replace it.
    TooOpen,
    /// The keychain is locked, or the user has refused access to it.
    Locked,
    /// The keychain has not answered in time. It may wait for the user.
    Unanswered,
    /// The store can't work safely as it is set up.
    Misconfigured,
}

impl StoreError {
    /// Returns the kind.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.problem.kind
    }

    /// Returns the resource that failed: a path, a URL without its credentials, the name of an environment variable, or
    /// an entry of a keychain.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.resource, self.problem.reason)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source.as_deref().map(|source| source as _)
    }
}

/// The part of a [`StoreError`] that is known before the resource is.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: StoreErrorKind,
    reason: String,
    source: Option<Arc<io::Error>>,
}

impl Problem {
    pub(crate) fn new(kind: StoreErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), source: None }
    }

    /// The operating system has failed to do `what`.
    pub(crate) fn io(what: &str, source: impl Into<io::Error>) -> Self {
        let kind = StoreErrorKind::Unavailable;
        Self { kind, reason: format!("failed to {what}"), source: Some(Arc::new(source.into())) }
    }

    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Puts the operation that failed before the reason.
    #[cfg(feature = "postgres")]
    pub(crate) fn while_doing(self, what: &str) -> Self {
        Self { reason: format!("{what}: {}", self.reason), ..self }
    }

    #[cfg(feature = "keychain")]
    pub(crate) fn with_kind(self, kind: StoreErrorKind) -> Self {
        Self { kind, ..self }
    }

    #[cfg(any(feature = "file", feature = "encryption"))]
    pub(crate) fn at(self, path: &Path) -> StoreError {
        self.of(path.display().to_string())
    }

    pub(crate) fn of(self, resource: impl Into<String>) -> StoreError {
        StoreError { resource: resource.into(), problem: self }
    }
}
