//! [`WaiterClock`]: one timer that wakes all waiters of a flight, so that each checks its own deadline.
//!
//! A timer for each waiter would cost more than the rest of waiting. So a flight has one [`Ticker`]: it first ticks when
//! the earliest ordinary deadline is over, and then every [`TICK`]. A waiter that finds less than two ticks left gives
//! up, since the clock may not tick again before its deadline. A waiter that has waited for something else before has an
//! earlier deadline than the flight's clock serves, and starts a ticker of its own.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::timer::Ticker;

const TICK: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub(super) struct WaiterClock {
    first_tick: Instant,
}

impl WaiterClock {
    /// A clock for waiters whose deadline is `deadline` or later.
    pub(super) fn new(deadline: Instant) -> Self {
        Self { first_tick: deadline }
    }

    /// Starts the ticker that serves all ordinary waiters.
    pub(super) fn start(self, runtime: &Handle, wake: impl Fn() + Send + 'static) -> Ticker {
        Ticker::start(runtime, self.first_tick, TICK, wake)
    }

    /// Starts a ticker for a waiter whose deadline is earlier than this clock serves; `None` if none is needed.
    pub(super) fn start_earlier(
        self,
        deadline: Instant,
        runtime: &Handle,
        wake: impl Fn() + Send + 'static,
    ) -> Option<Ticker> {
        (deadline < self.first_tick && !is_near(deadline)).then(|| Ticker::start(runtime, deadline, TICK, wake))
    }
}

/// Returns `true` if a deadline is over, or so near that the clock may not tick again before it.
pub(crate) fn is_near(deadline: Instant) -> bool {
    Instant::now() + 2 * TICK > deadline
}
