//! [`SessionState`]: the state of a session as an app sees it, and [`SessionStatus`], with its tokens' age.

use std::sync::Arc;
use std::time::SystemTime;

use super::state::{Phase, State};
use crate::refresh::{Generation, RefreshError, RefreshErrorKind};

/// The state of a [`Session`](crate::Session).
///
/// Two states are equal if they are of the same kind and share their error.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionState {
    /// No user is signed in.
    SignedOut,
    /// A user is signed in.
    Active,
    /// A user is signed in, and a refresh is under way.
    Refreshing,
    /// A user is signed in, but the last refresh failed. The session goes on trying, and its access token may still work.
    Failing(RefreshFailure),
    /// The session has ended, with this error: the authorization server rejected the refresh token, or the sign-in has lasted
    /// for its longest time. The user must sign in again.
    Ended(Arc<RefreshError>),
}

/// The refreshes of a session that have failed since the last one that succeeded.
#[derive(Clone, Debug)]
pub struct RefreshFailure {
    since: SystemTime,
    count: u32,
    error: Arc<RefreshError>,
}

/// The state of a session and the place and expiry of its tokens, all of one moment.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    state: SessionState,
    generation: Generation,
    expires_at: Option<SystemTime>,
}

impl SessionState {
    pub(super) fn of(state: &State) -> Self {
        match (state.phase, &state.failures, &state.ended) {
            (Phase::Ended, _, Some(ended)) => Self::Ended(Arc::clone(&ended.1)),
            (Phase::SignedOut | Phase::Ended, _, _) => Self::SignedOut,
            (Phase::Refreshing, _, _) => Self::Refreshing,
            (Phase::Active, None, _) => Self::Active,
            (Phase::Active, Some(failures), _) => Self::Failing(RefreshFailure {
                since: failures.since,
                count: failures.count,
                error: Arc::clone(&failures.last),
            }),
        }
    }

    /// Returns `true` if a user is signed in: the session is active, refreshing or failing.
    #[must_use]
    pub fn is_signed_in(&self) -> bool {
        matches!(self, Self::Active | Self::Refreshing | Self::Failing(_))
    }

    /// Returns `true` if the session has ended, other than by a sign-out.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Ended(_))
    }
}

impl PartialEq for SessionState {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::SignedOut, Self::SignedOut)
            | (Self::Active, Self::Active)
            | (Self::Refreshing, Self::Refreshing) => true,
            (Self::Failing(ours), Self::Failing(theirs)) => Arc::ptr_eq(&ours.error, &theirs.error),
            (Self::Ended(ours), Self::Ended(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

impl Eq for SessionState {}

impl SessionStatus {
    pub(crate) fn of(state: &State) -> Self {
        let (generation, expires_at) = (state.generation, state.tokens.expires_at());
        Self { state: SessionState::of(state), generation, expires_at }
    }

    /// Returns the state.
    #[must_use]
    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Returns the generation of the tokens in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns the time at which the access token in force expires, if it is known.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }
}

impl RefreshFailure {
    /// Returns the time of the first failed refresh.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Returns the number of failed refreshes in a row, each of which may have made several attempts.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the kind of the last error.
    #[must_use]
    pub fn kind(&self) -> RefreshErrorKind {
        self.error.kind()
    }

    /// Returns the last error.
    #[must_use]
    pub fn error(&self) -> &Arc<RefreshError> {
        &self.error
    }
}
