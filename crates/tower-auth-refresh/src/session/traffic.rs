//! [`Traffic`]: what many sessions share, a limit on their refreshes in flight and a count of what is under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::sleep;

/// By how much those who waited for their turn are spread: a thousand that expire together would else go on to call
/// in step.
const SPREAD: Duration = Duration::from_millis(10);

pub(crate) struct Traffic {
    /// Fair: who has waited longest is next.
    turns: Semaphore,
    under_way: watch::Sender<usize>,
}

/// Something under way, for as long as it lives.
pub(super) struct UnderWay(Arc<Traffic>);

impl Traffic {
    /// At most so many refreshes in flight at any time; at least one.
    pub(crate) fn new(limit: usize) -> Self {
        let turns = Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS));
        Self { turns, under_way: watch::Sender::new(0) }
    }

    /// Waits until there is one refresh fewer in flight than may be. The turn lasts until it is dropped.
    pub(super) async fn turn(&self) -> SemaphorePermit<'_> {
        if let Ok(turn) = self.turns.try_acquire() {
            return turn;
        }
        let turn = self.turns.acquire().await.expect("it is never closed");
        sleep(SPREAD.mul_f64(fastrand::f64())).await;
        turn
    }

    /// Counts something in.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.send_if_modified(|count| {
            *count += 1;
            false
        });
        UnderWay(Arc::clone(self))
    }

    /// Waits until nothing is under way.
    pub(crate) async fn wait_idle(&self) {
        let idle = self.under_way.subscribe().wait_for(|count| *count == 0).await.is_ok();
        debug_assert!(idle, "the sender is alive: it is ours");
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}
