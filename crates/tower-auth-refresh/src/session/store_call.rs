//! Calls to the session's store, bounded in time and guarded against its panics.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tower::BoxError;

use crate::store::StoreFuture;

/// The time that one call to a store may take before the session goes on without it.
pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls a store within [`STORE_TIMEOUT`].
pub(crate) async fn bounded<'a, T>(call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, BoxError> {
    bounded_by(Instant::now() + STORE_TIMEOUT, call).await
}

pub(super) async fn bounded_by<'a, T>(
    deadline: Instant,
    call: impl FnOnce() -> StoreFuture<'a, T>,
) -> Result<T, BoxError> {
    timeout_at(deadline, unbounded(call)).await?
}

/// Calls a store, for a caller that bounds the time itself. A panic becomes an error like any other: it must not cost the
/// tokens that are to be saved.
pub(crate) async fn unbounded<'a, T>(call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, BoxError> {
    // The call changes nothing of the session's, so no change is left half done.
    let answer = AssertUnwindSafe(async { call().await }).catch_unwind();
    answer.await.unwrap_or_else(|_panic| Err("the store panicked".into()))
}
