//! [`Recheck`]: the clock by which sessions are looked at again, and the looks under way.
//!
//! The age of a session's last look is measured by a coarse clock that a look-up in a registry reads without a call to
//! the operating system. From half the bound on, a look-up starts a look in the background; from the bound on, it waits
//! for the look.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::{SessionError, SessionErrorKind};
use crate::random;
use crate::shared::Shared;

/// The ticks of the clock within the bound.
const TICKS: u32 = 16;

/// The shortest time between two ticks.
const SHORTEST_TICK: Duration = Duration::from_millis(10);

/// The cap on the bound, so that deadlines don't overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The part of the bound by which looks are spread, so that sessions that were looked at together aren't again.
const SPREAD: u32 = 8;

/// The bound of a registry's rechecks, the clock that measures it, and the looks under way.
pub(crate) struct Recheck {
    ticks: AtomicU32,
    /// The age in ticks from which a caller waits for a look.
    limit: u32,
    /// The time between two ticks; `None` if the clock stands.
    tick: Option<Duration>,
    /// By the session's id. Boxed, so that it isn't on the cache line of the clock, which every look-up reads.
    under_way: Box<Mutex<HashMap<usize, UnderWay>>>,
}

pub(super) struct UnderWay {
    pub(super) look: Arc<Look>,
    /// The look that follows, since the store has changed after this one began.
    pub(super) next: Option<Arc<Look>>,
}

/// The last look at one session's store.
pub(crate) struct LastLook {
    /// The time at which it began, by the clock of [`Recheck`].
    begun: AtomicU32,
    is_under_way: AtomicBool,
    has_failed: AtomicBool,
}

/// A look, for all callers that wait for it.
pub(crate) type Look = Shared<Result<(), LookError>>;

#[derive(Clone)]
pub(crate) struct LookError {
    pub(super) kind: SessionErrorKind,
    pub(super) source: Arc<dyn Error + Send + Sync>,
}

impl From<LookError> for SessionError {
    fn from(error: LookError) -> Self {
        match error.kind {
            SessionErrorKind::Runtime => Self::runtime(error.source),
            _ => Self::store(Box::new(error.source)),
        }
    }
}

impl Recheck {
    /// `bound`: `None` if no look is made by itself.
    pub(crate) fn new(bound: Option<Duration>) -> Self {
        let bound = bound.map(|bound| bound.min(LONGEST));
        let tick = bound.map(|bound| (bound / TICKS).max(SHORTEST_TICK));
        // The clock may be late by a tick.
        let limit = bound.zip(tick).map_or(TICKS, |(bound, tick)| whole_ticks(bound, tick).saturating_sub(1));
        Self { ticks: AtomicU32::new(0), limit, tick, under_way: Box::default() }
    }

    pub(crate) fn now(&self) -> u32 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Advances the clock, unless it stands.
    pub(super) fn advance(&self, ticks: u32) {
        self.ticks.fetch_add(ticks, Ordering::Relaxed);
    }

    /// Returns the time between two ticks; `None` if the clock stands.
    pub(super) fn tick(&self) -> Option<Duration> {
        self.tick
    }

    /// Returns `true` if a session was looked at so lately that no look is due.
    #[inline]
    pub(crate) fn is_fresh(&self, last: &LastLook) -> bool {
        self.age(last) < self.limit / 2
    }

    /// Returns `true` if a caller is to wait for a look.
    pub(super) fn is_overdue(&self, last: &LastLook) -> bool {
        self.age(last) >= self.limit
    }

    /// Returns the ticks since the last look began. While the clock isn't late, at most a tick is missing.
    #[inline]
    fn age(&self, last: &LastLook) -> u32 {
        // Pairs with the release in `begun_at`: a session that is seen as looked at is seen as the look has left it.
        self.now().wrapping_sub(last.begun.load(Ordering::Acquire))
    }

    /// Makes the last look of all sessions older than the bound.
    pub(crate) fn expire_all(&self) {
        self.ticks.fetch_add(self.limit.max(1), Ordering::Relaxed);
    }

    /// Makes a last look older than the bound, and forgets its failure: callers wait for the next.
    pub(super) fn expire(&self, last: &LastLook) {
        last.has_failed.store(false, Ordering::Relaxed);
        last.begun_at(self.now().wrapping_sub(self.limit));
    }

    /// Records the end of the last look under way. Returns `true` if it failed, and the one before didn't.
    pub(super) fn end(&self, last: &LastLook, begun: u32, is_failed: bool) -> bool {
        last.is_under_way.store(false, Ordering::Relaxed);
        let has_begun_to_fail = is_failed && !last.has_failed.load(Ordering::Relaxed);
        last.has_failed.store(is_failed, Ordering::Relaxed);
        last.begun_at(if is_failed {
            // The next one is due after an eighth of the bound, or at once if the clock stands.
            let pause = if self.tick.is_some() { 1 + self.spread() } else { 0 };
            self.now().wrapping_sub((self.limit / 2).saturating_sub(pause))
        } else {
            begun.wrapping_sub(self.spread())
        });
        has_begun_to_fail
    }

    fn spread(&self) -> u32 {
        let spread = self.limit / SPREAD;
        // Below 2³², since `spread` is.
        u32::try_from(random::bits() % (u64::from(spread) + 1)).unwrap_or(spread)
    }

    pub(super) fn under_way(&self) -> MutexGuard<'_, HashMap<usize, UnderWay>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LastLook {
    /// A look that began at this time.
    pub(super) fn at(begun: u32) -> Self {
        Self { begun: AtomicU32::new(begun), is_under_way: AtomicBool::new(false), has_failed: AtomicBool::new(false) }
    }

    /// Sets the time at which the look began.
    pub(super) fn begun_at(&self, begun: u32) {
        self.begun.store(begun, Ordering::Release);
    }

    /// Returns `true` if a look is under way, whose task has a handle.
    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Relaxed)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Records that a look has begun. Called under the lock of the looks under way.
    pub(super) fn begin(&self) {
        self.is_under_way.store(true, Ordering::Relaxed);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the clock wraps")]
pub(super) fn whole_ticks(time: Duration, tick: Duration) -> u32 {
    (time.as_nanos() / tick.as_nanos()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_ticks_sixteen_times_within_a_bound_of_a_year_at_most() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let tick = |bound| Recheck::new(Some(bound)).tick;
        assert_eq!(tick(300 * DAY), Some(300 * DAY / 16));
        assert_eq!(tick(Duration::MAX), Some(365 * DAY / 16));
    }
}
