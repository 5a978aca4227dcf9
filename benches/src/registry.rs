//! A registry of many sessions: the memory that each takes, and the time of a lookup.

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tower::service_fn;
use tower_auth_refresh::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionRegistry, Tokens};

use crate::rounds::Median;

/// The numbers of sessions that are measured.
pub const SIZES: [u64; 3] = [1_000, 100_000, 1_000_000];

/// Lookups per round: few, so that most rounds run without an interruption.
pub const LOOKUPS: u32 = 512;

/// Creates a registry and signs in the users `0..count`. Tokens are stored only in memory.
///
/// # Panics
///
/// If called outside a Tokio runtime.
pub async fn fill(count: u64) -> SessionRegistry<u64> {
    let refresh = service_fn(|request: RefreshRequest| async move { Ok::<_, RefreshError>(request.tokens().clone()) });
    let max_sessions = usize::try_from(count).expect("fits into memory");
    let sessions = SessionRegistry::builder(Session::builder(refresh))
        .max_sessions(max_sessions)
        .build()
        .expect("inside a runtime");
    for user in 0..count {
        sessions.sign_in(user, tokens(user)).await.expect("below the limit");
    }
    sessions.wait_idle().await;
    sessions
}

/// Returns a distinct access token of 230 bytes and refresh token of 64 bytes for each user.
fn tokens(user: u64) -> Tokens {
    let access = AccessToken::new(format!("{user:0>230}")).expect("visible ASCII");
    let refresh = RefreshToken::new(format!("{user:0>64}")).expect("visible ASCII");
    Tokens::new(access, refresh)
}

/// Looks up [`LOOKUPS`] random users and returns the total time.
///
/// # Panics
///
/// If a session isn't found at the first poll.
#[must_use]
pub fn time_lookups(sessions: &SessionRegistry<u64>, count: u64) -> Duration {
    // Chosen beforehand, so that only the lookups are timed.
    let users: Vec<u64> = (0..LOOKUPS).map(|_| fastrand::u64(..count)).collect();
    let start = Instant::now();
    for user in &users {
        let found = sessions.get(user).now_or_never().expect("ready at the first poll");
        assert!(found.is_ok_and(|session| session.is_some()));
    }
    start.elapsed()
}

/// Returns the nanoseconds per lookup: the median of the rounds.
#[must_use]
pub fn lookup_ns(sessions: &SessionRegistry<u64>, count: u64, rounds: usize) -> Median {
    Median::of((0..rounds).map(|_| time_lookups(sessions, count).as_secs_f64() * 1e9 / f64::from(LOOKUPS)))
}
