//! The periodic sweep: one task that removes sessions that are over, and sessions that are idle.

use std::collections::VecDeque;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::Inner;
use super::table::Cursor;
use crate::session::{Revocation, TokenCell};

/// The sweeps in one idle time-out.
const SWEEPS_A_TIMEOUT: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(60);

/// The idle sessions of one sweep that are deleted from their stores at the same time, and all revocations at the same
/// time: each may be a call to a server.
const CALLS: usize = 16;

/// Sweeps until the registry is dropped. Holds the registry for one short step at a time.
pub(super) async fn sweep<K: Eq + Hash + Send + Sync + 'static>(sessions: Weak<Inner<K>>, idle: Option<Duration>) {
    let period = idle.map_or(LONGEST, |idle| (idle / SWEEPS_A_TIMEOUT).clamp(SHORTEST, LONGEST));
    // The table's clock at earlier times: a session that was last used by then has not been used since.
    let mut ticks = VecDeque::new();
    let mut since = None;
    let revocations = Arc::new(Semaphore::new(CALLS));
    loop {
        sleep(period).await;
        if let Some(idle) = idle {
            let now = Instant::now();
            while let Some(&(at, tick)) = ticks.front()
                && now.duration_since(at) >= idle
            {
                since = Some(tick);
                ticks.pop_front();
            }
            let Some(sessions) = sessions.upgrade() else { return };
            ticks.push_back((now, sessions.table.tick()));
        }
        let mut cursor = Cursor::default();
        loop {
            let Some(sessions) = sessions.upgrade() else { return };
            // A key or a store may panic when it is dropped; the table is intact by then.
            let swept = catch_unwind(AssertUnwindSafe(|| sessions.sweep(&mut cursor, since, &revocations)));
            drop(sessions);
            if !swept.unwrap_or(false) {
                break;
            }
            yield_now().await;
        }
    }
}

impl<K: Eq + Hash + Send + Sync + 'static> Inner<K> {
    /// Removes, of the next few sessions, those that are over or were not used after `since`, by the table's clock.
    /// Returns `false` after the last one.
    fn sweep(self: &Arc<Self>, cursor: &mut Cursor, since: Option<u32>, revocations: &Arc<Semaphore>) -> bool {
        let before = *cursor;
        let mut idle = Vec::new();
        let removed = self.table.sweep(cursor, |cell| {
            if !cell.is_alone() {
                // A session is in use while it has a handle. That of a look at the store doesn't count.
                if !cell.is_looking() {
                    self.table.touch(cell);
                }
                return false;
            }
            let used = cell.used.load(Ordering::Relaxed);
            let is_idle = since.is_some_and(|since| is_before_or_at(used, since));
            if is_idle && !cell.is_over() && !cell.is_durable() {
                idle.push((used, Arc::clone(cell)));
            }
            cell.is_over() || is_idle
        });
        if !idle.is_empty() {
            self.config.spawn(sign_out(idle, Arc::downgrade(self), before, Arc::clone(revocations)));
        }
        removed.is_some()
    }
}

/// Signs out the sessions that are still idle and removes them from the table, `from` this position on; then revokes their
/// tokens. Failures are logged, and failed writes retried.
async fn sign_out<K: Eq + Hash + Send + Sync + 'static>(
    idle: Vec<(u32, Arc<TokenCell>)>,
    sessions: Weak<Inner<K>>,
    mut from: Cursor,
    calls: Arc<Semaphore>,
) {
    let mut revocations = Vec::new();
    let mut over = Vec::new();
    for (used, cell) in idle {
        if let Some(dropped) = cell.drop_tokens(Some(used)).await {
            revocations.push(Revocation::new(&cell, dropped));
            over.push(cell);
        }
    }
    stream::iter(over).for_each_concurrent(CALLS, |cell| cell.save().map(drop)).await;
    if let Some(sessions) = sessions.upgrade() {
        // A panic is ignored as in `sweep`: the revocations below are made in any case.
        let remove = || drop(sessions.table.sweep(&mut from, |cell| cell.is_over()));
        let _ = catch_unwind(AssertUnwindSafe(remove));
    }
    let revoke = async |revocation: Revocation| {
        let _permit = calls.acquire().await;
        let _ = revocation.run().await;
    };
    stream::iter(revocations).for_each_concurrent(CALLS, revoke).await;
}

/// Compares times of a clock that wraps.
fn is_before_or_at(used: u32, since: u32) -> bool {
    since.wrapping_sub(used) <= u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use tower::service_fn;

    use super::*;
    use crate::{AccessToken, RefreshError, RefreshRequest, RefreshToken, Session, SessionState, Tokens};

    #[tokio::test]
    async fn a_user_who_signs_in_again_is_not_signed_out_as_idle() {
        let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let tokens = Tokens::new(AccessToken::new("a").unwrap(), RefreshToken::new("r").unwrap());
        let session = Session::builder(refresh).tokens(tokens).build().await.unwrap();
        let cell = session.cell();
        // The session is used between the sweep's look at it and the sign-out.
        cell.used.store(1, Ordering::Relaxed);
        assert_eq!(cell.drop_tokens(Some(0)).await, None);
        assert_eq!(session.state(), SessionState::Active);
        assert!(cell.drop_tokens(Some(1)).await.is_some());
        assert_eq!(session.state(), SessionState::SignedOut);
    }

    #[test]
    fn the_clock_may_wrap() {
        assert!(is_before_or_at(7, 7));
        assert!(is_before_or_at(7, 8));
        assert!(!is_before_or_at(8, 7));
        assert!(is_before_or_at(u32::MAX, 0));
        assert!(!is_before_or_at(0, u32::MAX));
    }
}
