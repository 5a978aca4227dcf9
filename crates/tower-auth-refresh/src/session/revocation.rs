//! [`Revocation`]: the call that revokes tokens at the authorization server, and its repetition in the background.
//!
//! If the call fails, the tokens must be assumed to be still valid (RFC 7009 §2.2.1). The caller is answered after the
//! first call. If another call may succeed, a task of its own goes on, within bounds.

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep_until, timeout};
use tower::{BoxError, ServiceExt};

use super::backoff;
use super::cell::TokenCell;
use super::config::Config;
use crate::TARGET;
use crate::random;
use crate::refresh::{RefreshError, RefreshErrorKind, RevokeRequest};
use crate::token::Tokens;

/// The revocations that the sessions of a registry, or a single session, repeat at the same time. Any further one that
/// fails is not repeated.
pub(super) const MOST_REPEATED: usize = 1_024;

/// The time from the first failure in which a revocation is repeated. A call that has begun by then may end later.
const REPEATED_FOR: Duration = Duration::from_secs(10 * 60);

/// Tokens that a session has dropped, to be revoked.
pub(crate) struct Revocation {
    config: Arc<Config>,
    /// Weak: a session that is over doesn't stay in memory for its revocation.
    cell: Weak<TokenCell>,
    tokens: Tokens,
}

/// The delay before a call is repeated.
struct Delay {
    /// `true` if the server asked for fewer calls without saying when the next one is welcome.
    in_full: bool,
    retry_after: Option<Duration>,
}

impl Revocation {
    pub(crate) fn new(cell: &Arc<TokenCell>, tokens: Tokens) -> Self {
        Self { config: Arc::clone(&cell.config), cell: Arc::downgrade(cell), tokens }
    }

    /// The revocation of tokens that no session of this process has held.
    pub(super) fn of(config: Arc<Config>, tokens: Tokens) -> Self {
        Self { config, cell: Weak::new(), tokens }
    }

    /// Calls the revoke service, if there is one. After a failure that may pass, the call is repeated in the background.
    ///
    /// # Errors
    ///
    /// The failure of the first call.
    pub(crate) async fn run(self) -> Result<(), BoxError> {
        let Err(error) = self.call().await else { return Ok(()) };
        let permits = Arc::clone(&self.config.repeated_revocations);
        let repeated = Delay::after(&*error).and_then(|delay| Some((delay, permits.try_acquire_owned().ok()?)));
        tracing::warn!(target: TARGET, repeated = repeated.is_some(), "tokens not revoked");
        if let Some((delay, permit)) = repeated {
            let config = Arc::clone(&self.config);
            config.spawn(self.repeat(delay).inspect(|()| drop(permit)));
        }
        Err(RefreshError::unwrap_source(error))
    }

    async fn repeat(self, first: Delay) {
        let end = Instant::now() + REPEATED_FOR;
        let (mut delay, mut failures) = (Some(first), 1);
        while let Some(again) = delay.map(|delay| Instant::now() + delay.after_failures(failures))
            && again <= end
        {
            sleep_until(again).await;
            if self.are_in_force_again() {
                return;
            }
            let Err(error) = self.call().await else {
                tracing::info!(target: TARGET, "tokens revoked");
                return;
            };
            delay = Delay::after(&*error);
            failures += 1;
        }
        tracing::warn!(target: TARGET, repeated = false, "tokens not revoked");
    }

    async fn call(&self) -> Result<(), BoxError> {
        let Some(revoke) = self.config.revoke.clone().filter(|_| self.tokens != Tokens::default()) else {
            return Ok(());
        };
        let call = revoke.oneshot(RevokeRequest::new(self.tokens.clone()));
        // A service that panicked is dropped and never called again, so its broken state is never seen.
        let call = AssertUnwindSafe(TokenCell::marked(self.cell.as_ptr().addr(), call)).catch_unwind();
        match timeout(self.config.refresh_timeout, call).await {
            Ok(Ok(revoked)) => revoked,
            Ok(Err(_panic)) => Err(RefreshError::misconfigured("the revoke service panicked").into()),
            Err(elapsed) => Err(elapsed.into()),
        }
    }

    /// Returns `true` if the user has signed in again with these very tokens.
    fn are_in_force_again(&self) -> bool {
        self.cell.upgrade().is_some_and(|cell| cell.snapshot().tokens.share_a_token_with(&self.tokens))
    }
}

impl Delay {
    /// The delay after a failure, or `None` if the same call would fail again.
    ///
    /// The first [`RefreshError`] in the chain of sources decides. Any other error may pass.
    fn after(error: &(dyn Error + 'static)) -> Option<Self> {
        let Some(error) = RefreshError::in_chain(error) else {
            return Some(Self { in_full: false, retry_after: None });
        };
        match error.kind() {
            RefreshErrorKind::Rejected | RefreshErrorKind::Misconfigured | RefreshErrorKind::LifetimeOver => None,
            _ => Some(Self { in_full: !error.may_retry(), retry_after: error.retry_after() }),
        }
    }

    fn after_failures(&self, failures: u32) -> Duration {
        let jitter = if self.in_full { 0.0 } else { random::fraction() };
        backoff::cool_down(failures, self.retry_after, jitter)
    }
}
