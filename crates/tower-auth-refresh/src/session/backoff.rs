//! Delays: between the attempts of a flight, and after failed flights; and [`At`], the moment of a step.
//!
//! Pure arithmetic. `jitter` is a random number in `0.0..1.0`, drawn by the caller.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// The calls to the refresh service that one flight may make, where the failure allows another call at all.
pub(crate) const ATTEMPTS: u32 = 3;

pub(super) const SHORTEST: Duration = Duration::from_secs(1);
pub(super) const LONGEST: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// The cap on `Retry-After`: a longer delay is more likely a wrong clock or proxy than what the server means.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The moment of a step by both clocks, and a random number in `0.0..1.0` for its jitter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) now: Instant,
    pub(crate) wall: SystemTime,
    pub(crate) jitter: f64,
}

/// Returns the delay between two attempts of one flight: exponential with full jitter, and no shorter than the server
/// asked for. `attempt` counts from 1.
pub(crate) fn backoff(attempt: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let jittered = doubled(FIRST_BACKOFF, attempt.saturating_sub(1)).mul_f64(jitter);
    jittered.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

/// Returns the cool-down after the `failures`th failed flight in a row: 1 s doubling to 60 s, jittered downward by up to
/// a half, and no shorter than the server asked for.
pub(crate) fn cool_down(failures: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let jittered = doubled(SHORTEST, failures.saturating_sub(1)).mul_f64(1.0 - jitter / 2.0);
    jittered.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

/// Doubles `first` so many times, up to [`LONGEST`].
pub(super) fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_thousand_failures_the_cool_down_stays_within_its_cap() {
        for failures in [0, 1, 6, 7, 31, 32, 33, 64, 1_000, u32::MAX] {
            for jitter in [0.0, 0.5, 0.999] {
                let cool_down = cool_down(failures, None, jitter);
                assert!((SHORTEST / 2..=LONGEST).contains(&cool_down), "{failures}: {cool_down:?}");
                assert!(backoff(failures, None, jitter) <= LONGEST);
            }
        }
        assert_eq!(cool_down(7, None, 0.0), LONGEST);
    }

    #[test]
    fn retry_after_is_a_lower_bound_up_to_its_cap() {
        let retry_after = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(cool_down(1, retry_after(120), 0.9), Duration::from_secs(120));
        assert_eq!(backoff(1, retry_after(7), 0.0), Duration::from_secs(7));
        assert_eq!(cool_down(1, Some(Duration::MAX), 0.0), LONGEST_RETRY_AFTER);
    }
}
