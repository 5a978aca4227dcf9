//! [`HeldClaim`]: a claim whose lease is renewed for as long as the refresh under it takes.
//!
//! The lease is short, so that other processes don't wait long for a claim whose process has died. While the refresh
//! runs, the lease is renewed in time. A process that was stopped for longer than its lease (or whose store has failed for
//! as long) finds that the claim no longer [holds](HeldClaim::holds), and doesn't present the refresh token: another
//! process may have presented it meanwhile.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep, sleep_until};

use super::store_call::bounded;
use crate::store::{Claim, TokenStore};

/// The lease of a claim. If the process dies, others wait for as long.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// The age of a lease at which it is renewed. What is left covers a store that is slow, or down for a moment.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// The pause after a renewal that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) struct HeldClaim {
    claim: Claim,
    /// A moment before the store began the lease. `None`: the claim is no longer ours.
    asked: Mutex<Option<Instant>>,
}

impl HeldClaim {
    /// `asked`: a moment before the store was asked for the claim.
    pub(super) fn new(claim: Claim, asked: Instant) -> Self {
        Self { claim, asked: Mutex::new(Some(asked)) }
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(super) fn into_claim(self) -> Claim {
        self.claim
    }

    /// Returns `true` if no other process can have taken the claim over.
    pub(super) fn holds(&self) -> bool {
        self.asked().is_some_and(|asked| Instant::now() < asked + LEASE)
    }

    fn asked(&self) -> Option<Instant> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_asked(&self, asked: Option<Instant>) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// Waits for `work`, and renews the lease meanwhile.
    pub(super) async fn renewed_during<T>(&self, store: &dyn TokenStore, work: impl Future<Output = T>) -> T {
        match select(pin!(work), pin!(self.renew(store))).await {
            Either::Left((output, _)) => output,
            Either::Right((never, _)) => match never {},
        }
    }

    async fn renew(&self, store: &dyn TokenStore) -> Infallible {
        while let Some(asked) = self.asked() {
            sleep_until(asked + RENEW_AFTER).await;
            let now = Instant::now();
            match bounded(|| store.renew(&self.claim, LEASE)).await {
                Ok(held) => self.set_asked(held.then_some(now)),
                Err(_) => sleep(RETRY_AFTER).await,
            }
        }
        pending().await
    }
}
