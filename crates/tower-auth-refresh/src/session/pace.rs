//! How long to wait: between the attempts of a flight, after one that failed, and when an API refuses every fresh token.
//!
//! Pure arithmetic. `roll` is a random number in `0.0..1.0`, drawn by the caller.

use std::time::Duration;

/// How often a flight may call the refresh service, where the failure allows another call at all.
pub(crate) const ATTEMPTS: u32 = 3;

/// The strike from which an API counts as looping.
pub(crate) const LOOPING: u32 = 6;

/// A fresh token that is refused within this time, and was never accepted, is a strike. Slower than this an API that
/// answers 401 for ever can't cause more than 60 refreshes in an hour.
pub(crate) const PROBATION: Duration = Duration::from_secs(60);

/// An API that refuses fresh tokens is remembered for this long: no hour has more than its refreshes, whatever is
/// forgotten in between.
pub(crate) const MEMORY: Duration = Duration::from_secs(60 * 60);

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// A server that asks for more patience than this is not believed: its clock or its proxy may be wrong.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Between two attempts of one flight: exponential with full jitter, and no earlier than the server asked for.
/// `attempt` counts from 1.
pub(crate) fn backoff(attempt: u32, retry_after: Option<Duration>, roll: f64) -> Duration {
    let jittered = doubled(FIRST_BACKOFF, attempt.saturating_sub(1)).mul_f64(roll);
    jittered.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

/// After the `failures`th failed flight in a row: 1 s doubling to 60 s, jittered downward by up to a half, and no
/// earlier than the server asked for.
pub(crate) fn cool_down(failures: u32, retry_after: Option<Duration>, roll: f64) -> Duration {
    let jittered = doubled(SHORTEST, failures.saturating_sub(1)).mul_f64(1.0 - roll / 2.0);
    jittered.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

/// After the `strikes`th strike in a row: none for the first five, then 1 s doubling to 60 s, jittered upward only, so
/// that the bound on refreshes in an hour holds.
pub(crate) fn loop_cool_down(strikes: u32, roll: f64) -> Option<Duration> {
    let over = strikes.checked_sub(LOOPING)?;
    Some(doubled(SHORTEST, over).mul_f64(1.0 + roll / 4.0))
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_thousand_failures_the_cool_down_stays_within_its_cap() {
        for failures in [0, 1, 6, 7, 31, 32, 33, 64, 1_000, u32::MAX] {
            for roll in [0.0, 0.5, 0.999] {
                let cool_down = cool_down(failures, None, roll);
                assert!((SHORTEST / 2..=LONGEST).contains(&cool_down), "{failures}: {cool_down:?}");
                assert!(backoff(failures, None, roll) <= LONGEST);
            }
        }
        assert_eq!(cool_down(7, None, 0.0), LONGEST);
    }

    #[test]
    fn a_server_is_asked_again_no_earlier_than_it_said_within_reason() {
        let said = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(cool_down(1, said(120), 0.9), Duration::from_secs(120));
        assert_eq!(backoff(1, said(7), 0.0), Duration::from_secs(7));
        assert_eq!(cool_down(1, Some(Duration::MAX), 0.0), LONGEST_RETRY_AFTER);
    }

    #[test]
    fn five_strikes_are_free_and_the_sixth_cools_down() {
        assert_eq!(loop_cool_down(5, 0.5), None);
        assert_eq!(loop_cool_down(6, 0.0), Some(SHORTEST));
        assert_eq!(loop_cool_down(8, 0.0), Some(4 * SHORTEST));
        assert!(loop_cool_down(u32::MAX, 0.99).unwrap() >= LONGEST);
    }
}
