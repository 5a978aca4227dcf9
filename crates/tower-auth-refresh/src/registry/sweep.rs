//! The one task that looks after all sessions at times: it forgets those that are over, and those that are idle.

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
use super::table::Hand;
use crate::session::{Config, TokenCell};

/// How often it looks, as a part of the time after which a session is idle.
const OFTEN: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(60);

/// How many idle sessions of one look are deleted from their stores at the same time, and how many of all are revoked: each
/// may be a call to a server.
const CALLS: usize = 16;

/// Sweeps until the sessions are dropped. It holds them for no longer than it looks at a few, and waits for nobody.
pub(super) async fn sweep<K: Eq + Hash + Send + Sync + 'static>(sessions: Weak<Inner<K>>, idle: Option<Duration>) {
    let period = idle.map_or(LONGEST, |idle| (idle / OFTEN).clamp(SHORTEST, LONGEST));
    // Where the clock stood at which time. What was last used by then has not been used since.
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
        let mut hand = Hand::default();
        loop {
            let Some(sessions) = sessions.upgrade() else { return };
            // What panics is a key or a store that is dropped, and the table is whole by then.
            let swept = catch_unwind(AssertUnwindSafe(|| sessions.sweep(&mut hand, since, &revocations)));
            drop(sessions);
            if !swept.unwrap_or(false) {
                break;
            }
            yield_now().await;
        }
    }
}

impl<K: Eq + Hash + Send + Sync + 'static> Inner<K> {
    /// Of the next few, forgets what is over, and what was not used after `since`, by the table's clock. `false` once it
    /// has been everywhere.
    fn sweep(self: &Arc<Self>, hand: &mut Hand, since: Option<u32>, revocations: &Arc<Semaphore>) -> bool {
        let before = *hand;
        let mut idle = Vec::new();
        let gone = self.table.sweep(hand, |cell| {
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
        if !idle.is_empty() {
            let (sessions, config) = (Arc::downgrade(self), Arc::clone(&self.config));
            self.config.spawn(sign_out(idle, sessions, before, config, Arc::clone(revocations)));
        }
        gone.is_some()
    }
}

/// Signs out those that are idle still, and takes them out of the table, where they stand at `place`; then revokes their
/// tokens. What fails is logged, and retried where that is any use.
async fn sign_out<K: Eq + Hash + Send + Sync + 'static>(
    idle: Vec<(u32, Arc<TokenCell>)>,
    sessions: Weak<Inner<K>>,
    mut place: Hand,
    config: Arc<Config>,
    revocations: Arc<Semaphore>,
) {
    let mut tokens = Vec::new();
    let mut over = Vec::new();
    for (used, cell) in idle {
        if let Some(these) = cell.forget(Some(used)).await {
            tokens.push(these);
            over.push(cell);
        }
    }
    stream::iter(over).for_each_concurrent(CALLS, |cell| cell.save().map(drop)).await;
    if let Some(sessions) = sessions.upgrade() {
        // As in `sweep`. What is to be revoked is revoked in any case.
        let forget = || drop(sessions.table.sweep(&mut place, |cell| cell.is_over()));
        let _ = catch_unwind(AssertUnwindSafe(forget));
    }
    let revoke = async |tokens| {
        let _turn = revocations.acquire().await;
        let _ = config.revoke(tokens).await;
    };
    stream::iter(tokens).for_each_concurrent(CALLS, revoke).await;
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
        // Between the look at it and the sign-out he asks for it.
        cell.used.store(1, Ordering::Relaxed);
        assert_eq!(cell.forget(Some(0)).await, None);
        assert_eq!(session.state(), SessionState::Active);
        assert!(cell.forget(Some(1)).await.is_some());
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
