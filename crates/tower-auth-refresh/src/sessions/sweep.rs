//! The one task that looks after all sessions at times: it forgets those that are over, and those that are idle.

use std::collections::VecDeque;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::Inner;
use super::table::Hand;
use crate::session::TokenCell;

/// How often it looks, as a part of the time after which a session is idle.
const OFTEN: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(60);

/// How many idle sessions are signed out at the same time: each may be a call to the authorization server.
const SIGN_OUTS: usize = 16;

/// Sweeps until the sessions are dropped.
pub(super) async fn sweep<K: Eq + Hash + Send + Sync + 'static>(sessions: Weak<Inner<K>>, idle: Option<Duration>) {
    let period = idle.map_or(LONGEST, |idle| (idle / OFTEN).clamp(SHORTEST, LONGEST));
    // Where the clock stood at which time. What was last used by then has not been used since.
    let mut ticks = VecDeque::new();
    let mut since = None;
    loop {
        sleep(period).await;
        let Some(sessions) = sessions.upgrade() else { return };
        if let Some(idle) = idle {
            let now = Instant::now();
            while let Some(&(at, tick)) = ticks.front()
                && now.duration_since(at) >= idle
            {
                since = Some(tick);
                ticks.pop_front();
            }
            ticks.push_back((now, sessions.table.tick()));
        }
        // What panics is a key or a store that is dropped, and the table is whole by then.
        let _ = AssertUnwindSafe(sessions.sweep(since)).catch_unwind().await;
    }
}

impl<K: Eq + Hash + Send + Sync + 'static> Inner<K> {
    /// Forgets what is over, and what was not used after `since`, by the table's clock.
    async fn sweep(&self, since: Option<u32>) {
        let mut hand = Hand::default();
        loop {
            let before = hand;
            let mut idle = Vec::new();
            let gone = self.table.sweep(&mut hand, |cell| {
                if !cell.is_alone() {
                    // In use for as long as somebody holds it.
                    self.table.touch(cell);
                    return false;
                }
                let used = cell.used.load(Ordering::Relaxed);
                let is_idle = since.is_some_and(|since| is_before_or_at(used, since));
                if is_idle && !cell.is_over() && !cell.is_durable() {
                    idle.push((used, Arc::clone(cell)));
                }
                cell.is_over() || is_idle
            });
            let Some(gone) = gone else { return };
            drop(gone);
            if !idle.is_empty() {
                stream::iter(idle).for_each_concurrent(SIGN_OUTS, sign_out_unused).await;
                // They are over now.
                drop(self.table.sweep(&mut before.clone(), |cell| cell.is_over()));
            }
            yield_now().await;
        }
    }
}

/// Signs a session out, unless somebody has asked for it since it was last used then.
async fn sign_out_unused((used, cell): (u32, Arc<TokenCell>)) {
    // It is over in any case. What fails is logged, and retried where that is any use.
    let _ = cell.spawn(Arc::clone(&cell).sign_out_if(Some(used))).await;
}

/// By a clock that wraps.
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
        let idle = Arc::clone(cell).sign_out_if(Some(0));
        // Between the look at it and the sign-out he asks for it.
        cell.used.store(1, Ordering::Relaxed);
        idle.await.unwrap();
        assert_eq!(session.state(), SessionState::Active);
        sign_out_unused((1, Arc::clone(cell))).await;
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
