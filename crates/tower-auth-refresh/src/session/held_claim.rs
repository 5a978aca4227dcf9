//! [`HeldClaim`]: a claim whose lease is renewed for as long as the refresh under it takes.
//!
//! The lease is short, so that other processes don't wait long for a claim whose process has died. While the refresh
//! runs, the lease is renewed in time. A process that was stopped for longer than its lease (or whose store has failed for
//! as long) finds that the claim no longer [holds](HeldClaim::holds), and doesn't present the refresh token: another
//! process may have presented it meanwhile.

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
    /// The end of the lease, or an earlier moment: counted from before the store was called.
    until: Mutex<Instant>,
}

impl HeldClaim {
    /// `asked`: a moment before the store was asked for the claim.
    pub(super) fn new(claim: Claim, asked: Instant) -> Self {
        Self { claim, until: Mutex::new(asked + LEASE) }
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(super) fn into_claim(self) -> Claim {
        self.claim
    }

    /// Returns `true` if no other process can have taken the claim over.
    pub(super) fn holds(&self) -> bool {
        Instant::now() < self.until()
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold_until(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Waits for `work`, and renews the lease meanwhile.
    pub(super) async fn renewed_during<T>(&self, store: &dyn TokenStore, work: impl Future<Output = T>) -> T {
        match select(pin!(work), pin!(self.renew(store))).await {
            Either::Left((output, _)) => output,
            Either::Right((never, _)) => match never {},
        }
    }

    async fn renew(&self, store: &dyn TokenStore) -> std::convert::Infallible {
        loop {
            sleep_until(self.until() - (LEASE - RENEW_AFTER)).await;
            let asked = Instant::now();
            match bounded(|| store.renew(&self.claim, LEASE)).await {
                Ok(true) => self.hold_until(asked + LEASE),
                Ok(false) => {
                    self.hold_until(asked);
                    return pending().await;
                }
                Err(_) => sleep(RETRY_AFTER).await,
            }
        }
    }
}
