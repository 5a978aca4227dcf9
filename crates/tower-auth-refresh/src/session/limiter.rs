//! [`RefreshLimiter`]: the limit on refreshes in flight that many sessions share, and the count of their tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::sleep;

use crate::random;

/// The spread of refreshes that had to wait for a permit: a thousand tokens that expire together would otherwise be
/// refreshed in step from then on.
const SPREAD: Duration = Duration::from_millis(10);

pub(crate) struct RefreshLimiter {
    /// Fair: permits are granted in the order of the requests for them.
    permits: Semaphore,
    tasks: watch::Sender<usize>,
}

/// Counts a task as long as it lives.
pub(super) struct TaskCount(Arc<RefreshLimiter>);

impl RefreshLimiter {
    /// Allows `limit` refreshes in flight, and at least one.
    pub(crate) fn new(limit: usize) -> Self {
        let permits = Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS));
        Self { permits, tasks: watch::Sender::new(0) }
    }

    /// Waits for a permit, which is given back when it is dropped.
    pub(super) async fn permit(&self) -> SemaphorePermit<'_> {
        if let Ok(permit) = self.permits.try_acquire() {
            return permit;
        }
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        sleep(SPREAD.mul_f64(random::fraction())).await;
        permit
    }

    /// Counts a task in.
    pub(super) fn count_task(self: &Arc<Self>) -> TaskCount {
        self.tasks.send_if_modified(|count| {
            *count += 1;
            false
        });
        TaskCount(Arc::clone(self))
    }

    /// Waits until no task is under way.
    pub(crate) async fn wait_idle(&self) {
        let idle = self.tasks.subscribe().wait_for(|count| *count == 0).await.is_ok();
        debug_assert!(idle, "the sender is alive: it is a field of self");
    }
}

impl Drop for TaskCount {
    fn drop(&mut self) {
        self.0.tasks.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}
