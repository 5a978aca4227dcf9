//! Many sessions by key: how much memory one takes, and how long it takes to find.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tower::service_fn;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};

use crate::rounds::Median;

/// How many sessions there are.
pub const SIZES: [u64; 3] = [1_000, 100_000, 1_000_000];

/// Look-ups of one round: so few that a round is seldom interrupted.
pub const LOOK_UPS: u32 = 512;

/// Signs so many users in, `0..count`. Their tokens are in memory alone.
///
/// # Panics
///
/// Outside a runtime.
pub async fn fill(count: u64) -> SessionRegistry<u64> {
    let refresh = service_fn(|request: RefreshRequest| async move { Ok::<_, RefreshError>(request.tokens().clone()) });
    let capacity = usize::try_from(count).expect("as many as there is memory for");
    let sessions =
        SessionRegistry::builder(Session::builder(refresh)).max_sessions(capacity).build().expect("in a runtime");
    for user in 0..count {
        sessions.sign_in(user, tokens(user)).await.expect("there is room");
    }
    sessions.wait_idle().await;
    sessions
}

/// A user's own: an access token of 230 bytes and a refresh token of 64.
fn tokens(user: u64) -> Tokens {
    let access = AccessToken::new(format!("{user:0>230}")).expect("visible ASCII");
    let refresh = RefreshToken::new(format!("{user:0>64}")).expect("visible ASCII");
    Tokens::new(access, refresh)
}

/// How long a round of look-ups takes in all, of users at random.
///
/// # Panics
///
/// If one isn't found at once.
#[must_use]
pub fn look_up(sessions: &SessionRegistry<u64>, count: u64) -> Duration {
    // Made before, so that only the look-ups are timed.
    let users: Vec<u64> = (0..LOOK_UPS).map(|_| fastrand::u64(..count)).collect();
    let begun = Instant::now();
    for user in &users {
        let found = sessions.get(user).now_or_never().expect("at the first poll");
        assert!(found.is_ok_and(|session| session.is_some()));
    }
    begun.elapsed()
}

/// Nanoseconds per look-up: the median of the rounds.
#[must_use]
pub fn look_ups(sessions: &SessionRegistry<u64>, count: u64, rounds: usize) -> Median {
    Median::of((0..rounds).map(|_| look_up(sessions, count).as_secs_f64() * 1e9 / f64::from(LOOK_UPS)))
}
