//! Tests of the moment at which a token is replaced early.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::{At, RefreshSchedule};

/// Returns when a token of this lifetime is due for an early refresh and when it expires, in seconds from now.
fn due(lifetime: Duration, window: u64, jitter: f64) -> (f64, f64) {
    let at = At { now: Instant::now(), wall: SystemTime::UNIX_EPOCH, jitter };
    let due = RefreshSchedule::before_expiry(lifetime, Duration::from_secs(window), at);
    [due.early, due.expired].map(|then| then.duration_since(at.now).as_secs_f64()).into()
}

#[test]
fn a_token_is_due_one_window_before_its_expiry_with_a_quarter_of_jitter() {
    let lifetime = Duration::from_secs(100);
    assert_eq!(due(lifetime, 40, 0.0), (60.0, 100.0));
    assert_eq!(due(lifetime, 40, 0.5), (65.0, 100.0));
    assert_eq!(due(lifetime, 40, 0.8), (68.0, 100.0));
}

#[test]
fn a_token_is_not_due_in_the_first_half_of_its_lifetime_nor_in_its_first_second() {
    assert_eq!(due(Duration::from_secs(30), 60, 0.0), (15.0, 30.0));
    assert_eq!(due(Duration::from_secs(1), 60, 0.0), (1.0, 1.0));
    assert_eq!(due(Duration::ZERO, 60, 0.0), (1.0, 0.0));
}

#[test]
fn a_token_without_a_bounded_lifetime_is_due_within_a_year() {
    let year = 31_536_000.0;
    assert_eq!(due(Duration::MAX, 0, 0.0), (year, year));
    assert_eq!(due(Duration::MAX, u64::MAX, 0.0), (year / 2.0, year));
}

/// Returns whether a token that lives for 100 s is due, and has expired, after these seconds by each clock.
fn after(monotonic: u64, wall: i64) -> (bool, bool) {
    let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let at = At { now: Instant::now(), wall: issued, jitter: 0.0 };
    let due = RefreshSchedule::before_expiry(Duration::from_secs(100), Duration::from_secs(40), at);
    let since = Duration::from_secs(wall.unsigned_abs());
    let (now, wall) =
        (at.now + Duration::from_secs(monotonic), if wall < 0 { at.wall - since } else { at.wall + since });
    (due.is_due(now, wall), due.has_expired(now, wall))
}

#[test]
fn the_clock_that_says_so_first_decides() {
    assert_eq!(after(59, 59), (false, false));
    assert_eq!(after(60, 60), (true, false));
    assert_eq!(after(100, 100), (true, true));
    // The machine slept.
    assert_eq!(after(1, 60), (true, false));
    assert_eq!(after(1, 100), (true, true));
    // The wall clock was set back, by more than the age of the token too.
    assert_eq!(after(60, 0), (true, false));
    assert_eq!(after(100, 0), (true, true));
    assert_eq!(after(100, -1000), (true, true));
    assert_eq!(after(59, -1000), (false, false));
}

#[test]
fn a_cool_down_delays_an_early_refresh_by_both_clocks() {
    let at = At { now: Instant::now(), wall: SystemTime::UNIX_EPOCH, jitter: 0.0 };
    let mut due = RefreshSchedule::before_expiry(Duration::from_secs(100), Duration::from_secs(40), at);
    due.early = at.now + Duration::from_secs(90);
    let wall = |seconds| at.wall + Duration::from_secs(seconds);
    assert!(!due.is_due(at.now, wall(89)) && due.is_due(at.now, wall(90)));
}
