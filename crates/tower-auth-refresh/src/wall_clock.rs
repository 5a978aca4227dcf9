//! The wall clock by which records and sign-ins end. Tests set it, and pause it with `tokio`'s.

#[cfg(not(test))]
pub(crate) fn now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

#[cfg(test)]
pub(crate) use self::tests::now;

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use tokio::time::Instant;

    thread_local! {
        static START: Cell<Option<Instant>> = const { Cell::new(None) };
        static STEPS: Cell<(Duration, Duration)> = const { Cell::new((Duration::ZERO, Duration::ZERO)) };
    }

    /// The beginning of 2030, and the paused time since the thread's first call.
    pub(crate) fn now() -> SystemTime {
        let start = START.get().unwrap_or_else(Instant::now);
        START.set(Some(start));
        let (forward, back) = STEPS.get();
        UNIX_EPOCH + Duration::from_secs(1_893_456_000) + start.elapsed() + forward - back
    }

    pub(crate) fn step_forward(by: Duration) {
        let (forward, back) = STEPS.get();
        STEPS.set((forward + by, back));
    }

    pub(crate) fn step_back(by: Duration) {
        let (forward, back) = STEPS.get();
        STEPS.set((forward, back + by));
    }
}
