//! [`Config`]: the settings that a session was built with, and the operations that depend on nothing else.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::BoxError;
use tower::util::BoxCloneSyncService;

use super::backoff::At;
use super::lifetime::Lifetimes;
use super::limiter::RefreshLimiter;
use super::recheck_clock::Recheck;
use super::state::RefreshSchedule;
use super::store_call::STORE_TIMEOUT;
use crate::random;
use crate::refresh::{RefreshRequest, RevokeRequest};
use crate::token::Tokens;

/// The settings of a session, or of all sessions of a registry.
pub(crate) struct Config {
    pub(crate) refresh: BoxCloneSyncService<RefreshRequest, Tokens, BoxError>,
    pub(crate) revoke: Option<BoxCloneSyncService<RevokeRequest, (), BoxError>>,
    /// The permits to repeat a revocation that failed.
    pub(super) repeated_revocations: Arc<Semaphore>,
    pub(crate) refresh_timeout: Duration,
    pub(crate) rotation: Rotation,
    pub(crate) refresh_early: Option<Duration>,
    pub(crate) client_credentials: bool,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) runtime: Handle,
    /// Shared by the sessions of a registry.
    pub(crate) limiter: Option<Arc<RefreshLimiter>>,
    pub(crate) recheck: Recheck,
}

/// `true` if a refresh token may be presented again within one refresh, after the answer to the first call was lost.
///
/// A server that rotates refresh tokens may have used the token up, and take the second call for a theft: it then revokes
/// the whole session (RFC 9700 §4.14.2). After the cool-down the next refresh presents the token again in any case,
/// marked [in doubt](crate::RefreshRequest::is_in_doubt): nothing else can settle the doubt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rotation {
    /// Not within the same refresh (the default).
    #[default]
    Strict,
    /// Within this time of the first call: the server answers a repeated call with the same successor.
    Grace(Duration),
    /// Always: the server doesn't rotate.
    Reusable,
}

impl Rotation {
    /// Returns `true` if the token may be presented again this long after the first time.
    pub(super) fn allows(self, since: Duration) -> bool {
        match self {
            Self::Strict => false,
            Self::Grace(window) => since < window,
            Self::Reusable => true,
        }
    }
}

impl Config {
    /// Returns the deadline of a caller that begins to wait for newer tokens now.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.refresh_timeout + STORE_TIMEOUT
    }

    /// Returns the lease of a claim that is renewed for as long as its tokens can't be saved.
    pub(super) fn lease(&self) -> Duration {
        self.refresh_timeout + 60 * STORE_TIMEOUT
    }

    /// Runs a task to its end, whichever callers are dropped. A shutdown waits for it.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let count = self.limiter.as_ref().map(RefreshLimiter::count_task);
        // Not in an `async` block, which would hold the task twice: as a captured variable and as what it awaits.
        self.runtime.spawn(task.inspect(|_| drop(count)))
    }

    /// As [`schedule`](Self::schedule), from now on. Reads the clocks only if the session refreshes early.
    pub(super) fn schedule_now(&self, tokens: &Tokens) -> Option<RefreshSchedule> {
        self.refresh_early.and_then(|_| self.schedule(tokens, At::now()))
    }

    /// Returns the times of an early refresh, if the session refreshes early and the expiry is known.
    pub(super) fn schedule(&self, tokens: &Tokens, at: At) -> Option<RefreshSchedule> {
        let (window, expires_at) = (self.refresh_early?, tokens.expires_at()?);
        let advised = tokens.refresh_at().and_then(|refresh_at| expires_at.duration_since(refresh_at).ok());
        let window = window.max(advised.unwrap_or_default());
        let lifetime = expires_at.duration_since(at.wall).unwrap_or_default();
        Some(RefreshSchedule::before_expiry(lifetime, window, at))
    }
}

impl At {
    pub(super) fn now() -> Self {
        Self { now: Instant::now(), wall: SystemTime::now(), jitter: random::fraction() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_ends_after_its_time() {
        let second = Duration::from_secs(1);
        let grace = Rotation::Grace(5 * second);
        assert!(grace.allows(Duration::ZERO) && grace.allows(Duration::from_nanos(4_999_999_999)));
        assert!(!grace.allows(5 * second) && !Rotation::Grace(Duration::ZERO).allows(Duration::ZERO));
        assert!(Rotation::Reusable.allows(Duration::MAX) && !Rotation::Strict.allows(Duration::ZERO));
    }
}
