//! [`LoopGuard`]: bounds the refreshes of a session whose API refuses every fresh token.
//!
//! A *strike* is a fresh token that an API refuses: within [`PROBATION`] of its arrival, or in a replay, without having
//! been accepted before. The first five strikes in a row are free. From the sixth on each starts a cool-down of 1 s,
//! doubling to 60 s, jittered upward only, in which challenges are not answered by a refresh. A token that is accepted
//! clears the strikes: one with a newer generation than the last strike's. Slower refusals than [`PROBATION`] need no
//! guard: they cause at most 60 refreshes in an hour. Together: at most 75 refreshes in any hour.
//!
//! The guard has two parts. [`LoopGuard`] is part of the session's state and changes under the lock. [`ReplayResults`]
//! lies beside it in atomics, because each replay writes it; an event carries its values into the state.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::{SHORTEST, doubled};
use crate::refresh::Generation;

/// The strike from which on each starts a cool-down.
pub(crate) const LOOPING: u32 = 6;

/// The age up to which the refusal of a token that was never accepted is a strike.
pub(crate) const PROBATION: Duration = Duration::from_secs(60);

/// The time for which a session with strikes is kept in memory, so that evicting it does not clear them.
pub(crate) const MEMORY: Duration = Duration::from_secs(60 * 60);

/// The strikes of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoopGuard {
    /// Strikes in a row.
    pub(super) strikes: u32,
    /// The generation of the last strike.
    pub(super) last_refusal: Generation,
    /// The time at which a flight brought the generation in force.
    pub(super) issued: Option<Instant>,
}

impl LoopGuard {
    pub(super) fn new() -> Self {
        Self { strikes: 0, last_refusal: Generation(0), issued: None }
    }

    /// Returns `true` if a token newer than the last strike's was accepted.
    pub(super) fn has_recovered(&self, accepted: Generation) -> bool {
        self.strikes > 0 && accepted > self.last_refusal
    }

    /// Returns `true` if the refusal of `generation`, which is in force, is a strike.
    pub(super) fn is_strike(&self, generation: Generation, results: Results, now: Instant) -> bool {
        let fresh = self.issued.is_some_and(|issued| now.duration_since(issued) < PROBATION);
        let refused_in_replay = results.refused >= generation;
        self.issued.is_some() && results.accepted < generation && (fresh || refused_in_replay)
    }

    /// Adds a strike and returns the cool-down that it starts.
    pub(super) fn strike(&mut self, generation: Generation, jitter: f64) -> Option<Duration> {
        self.strikes = self.strikes.saturating_add(1);
        self.last_refusal = generation;
        self.cool_down(jitter)
    }

    /// Returns the cool-down after the last strike, if there is one.
    pub(super) fn cool_down(&self, jitter: f64) -> Option<Duration> {
        let over = self.strikes.checked_sub(LOOPING)?;
        Some(doubled(SHORTEST, over).mul_f64(1.0 + jitter / 4.0))
    }

    /// Returns `true` if evicting the session would let its API cause more refreshes.
    pub(super) fn must_be_remembered(&self, in_force: Generation, refused: Generation, now: Instant) -> bool {
        let is_refusing = self.strikes > 0 || refused >= in_force;
        is_refusing && self.issued.is_some_and(|issued| now.duration_since(issued) < MEMORY)
    }
}

/// The newest generations with which a replay was accepted, and refused.
#[derive(Debug, Default)]
pub(super) struct ReplayResults {
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// The values of [`ReplayResults`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Results {
    pub(crate) accepted: Generation,
    pub(crate) refused: Generation,
}

impl ReplayResults {
    pub(super) fn load(&self) -> Results {
        let [accepted, refused] = [&self.accepted, &self.refused].map(|it| Generation(it.load(Ordering::Relaxed)));
        Results { accepted, refused }
    }

    /// Records the result of a replay.
    pub(super) fn record(&self, generation: Generation, accepted: bool) {
        let newest = if accepted { &self.accepted } else { &self.refused };
        // Loads first, to avoid contention on the cache line.
        if newest.load(Ordering::Relaxed) < generation.0 {
            newest.fetch_max(generation.0, Ordering::Relaxed);
        }
    }

    /// Records that a request was accepted that can't be replayed. That proves as much as an accepted replay, unless a
    /// replay was refused.
    pub(super) fn record_accepted_unreplayable(&self, generation: Generation) {
        if self.refused.load(Ordering::Relaxed) < generation.0 {
            self.record(generation, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backoff::LONGEST;
    use super::*;

    #[test]
    fn five_strikes_are_free_and_the_sixth_starts_a_cool_down() {
        let after = |strikes, jitter| LoopGuard { strikes, ..LoopGuard::new() }.cool_down(jitter);
        assert_eq!(after(5, 0.5), None);
        assert_eq!(after(6, 0.0), Some(SHORTEST));
        assert_eq!(after(8, 0.0), Some(4 * SHORTEST));
        assert!(after(u32::MAX, 0.99).unwrap() >= LONGEST);
    }
}
