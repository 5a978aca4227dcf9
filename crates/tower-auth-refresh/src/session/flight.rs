//! [`Flight`]: one refresh under way, as its waiters share it (singleflight).
//!
//! The refresh itself runs in a task of its own (`refresh_task.rs`), so that dropping waiters cancels nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::waiter_clock::{WaiterClock, is_near};
use crate::refresh::{Generation, NotRefreshed};
use crate::shared::Shared;
use crate::timer::Ticker;

/// A refresh that is under way, or over.
pub(super) struct Flight {
    /// The generation to be replaced.
    pub(super) generation: Generation,
    end: Shared<FlightEnd>,
    clock: WaiterClock,
    /// `true` if the permit was granted, among all sessions that share a limit.
    has_permit: AtomicBool,
    waiters: AtomicU32,
}

/// The result of a flight: newer tokens in force, or the reason why there are none.
pub(super) type Outcome = Result<(), NotRefreshed>;

/// The end of a flight, as its waiters see it.
#[derive(Clone)]
pub(super) enum FlightEnd {
    /// The task changed the state and returned this.
    Finished(Outcome),
    /// The task panicked or was aborted: the state still says `Refreshing`.
    Died,
    /// The epoch is over; the task may still run.
    Abandoned,
}

/// A waiter's deadline is over; the flight may still run.
pub(super) struct WaitTimeout {
    /// `true` if the flight was still waiting for its permit.
    pub(super) was_queued: bool,
}

impl Flight {
    /// `deadline`: that of a waiter that begins to wait now.
    pub(super) fn new(generation: Generation, deadline: Instant) -> Arc<Self> {
        Arc::new(Self {
            generation,
            end: Shared::new(),
            clock: WaiterClock::new(deadline),
            has_permit: AtomicBool::new(false),
            waiters: AtomicU32::new(0),
        })
    }

    /// Counts one more waiter in.
    pub(super) fn join(self: &Arc<Self>) -> Arc<Self> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        Arc::clone(self)
    }

    /// Waits for the end of the flight, until the waiter's deadline.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<FlightEnd, WaitTimeout> {
        match self.end.get_unless(|| is_near(deadline)).await {
            Some(end) => Ok(end.clone()),
            None => Err(WaitTimeout { was_queued: !self.has_permit.load(Ordering::Relaxed) }),
        }
    }

    /// Starts the ticker of all waiters. Should it stop before the flight has ended, the flight has died.
    pub(super) fn start_clock(self: &Arc<Self>, runtime: &Handle) -> Ticker {
        let guard = CompletionGuard(Arc::clone(self));
        self.clock.start(runtime, move || guard.0.end.wake())
    }

    /// Starts a ticker for one waiter, if its deadline is earlier than those that the flight's clock serves.
    pub(super) fn start_earlier_clock(self: &Arc<Self>, deadline: Instant, runtime: &Handle) -> Option<Ticker> {
        let flight = Arc::clone(self);
        self.clock.start_earlier(deadline, runtime, move || flight.end.wake())
    }

    pub(super) fn grant_permit(&self) {
        self.has_permit.store(true, Ordering::Relaxed);
    }

    pub(super) fn waiters(&self) -> u32 {
        self.waiters.load(Ordering::Relaxed)
    }

    /// Answers the waiters.
    pub(super) fn finish(&self, outcome: Outcome) {
        self.end.set(FlightEnd::Finished(outcome));
    }

    /// Answers the waiters, since their epoch is over. The task goes on: the tokens that it obtains must be revoked.
    pub(super) fn abandon(&self) {
        self.end.set(FlightEnd::Abandoned);
    }

    /// Returns `true` if the flight has not ended. If it has, while the state says `Refreshing`, its task has died.
    pub(super) fn is_running(&self) -> bool {
        !self.end.is_set()
    }
}

/// Ends the flight as died when it is dropped, unless the flight has ended by then.
///
/// Held by the flight's task and by its ticker, which a runtime that shuts down drops in any order.
pub(super) struct CompletionGuard(pub(super) Arc<Flight>);

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        self.0.end.set(FlightEnd::Died);
    }
}
