//! The periodic sweep: one task that ends and removes sessions that are over, idle, or past the end of their sign-in, and
//! extends the records of those that are used.

use std::collections::VecDeque;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::Inner;
use super::table::Cursor;
use crate::session::{Extension, Idleness, Lifetimes, Revocation, TokenCell};
use crate::wall_clock;

/// The idle sessions of one sweep that are deleted from their stores at the same time, and all looks, all revocations and
/// all extensions at the same time: each may be a call to a server.
const CALLS: usize = 16;

/// Sweeps until the registry is dropped. Holds the registry for one short step at a time.
pub(super) async fn sweep<K: Eq + Hash + Send + Sync + 'static>(sessions: Weak<Inner<K>>, lifetimes: Lifetimes) {
    let period = lifetimes.sweep();
    let mut uses = Uses::default();
    let calls = || Arc::new(Semaphore::new(CALLS));
    let limits = Limits { looks: calls(), revocations: calls(), extensions: calls() };
    loop {
        sleep(period).await;
        {
            let Some(sessions) = sessions.upgrade() else { return };
            uses.tick(&lifetimes, sessions.table.tick());
            sessions.uses().clone_from(&uses);
        }
        let mut cursor = Cursor::default();
        // While the looks of an earlier sweep are under way, which may take long, the same sessions are not looked at again.
        let looks = Arc::strong_count(&limits.looks) == 1;
        loop {
            let Some(sessions) = sessions.upgrade() else { return };
            // A key or a store may panic when it is dropped; the table is intact by then.
            let swept = catch_unwind(AssertUnwindSafe(|| sessions.sweep(&mut cursor, &uses, looks, &limits)));
            drop(sessions);
            if !swept.unwrap_or(false) {
                break;
            }
            yield_now().await;
        }
    }
}

/// The bounds on calls of all sweeps together.
struct Limits {
    /// Looks at the records of sessions that are idle here.
    looks: Arc<Semaphore>,
    revocations: Arc<Semaphore>,
    extensions: Arc<Semaphore>,
}

/// The times of the latest sweeps by the table's clock, which tell when a session was last used.
#[derive(Clone, Default)]
pub(super) struct Uses {
    /// In the order of time: a session that was last used by then has not been used since. The first one is as long ago as
    /// any session may be idle.
    sweeps: VecDeque<Sweep>,
}

/// The time of a sweep by three clocks.
#[derive(Clone, Copy)]
struct Sweep {
    /// Stands still while the machine sleeps.
    at: Instant,
    /// May be set.
    wall: SystemTime,
    tick: u32,
}

impl Uses {
    fn tick(&mut self, lifetimes: &Lifetimes, tick: u32) {
        let now = Instant::now();
        self.sweeps.push_back(Sweep { at: now, wall: wall_clock::now(), tick });
        while let Some(second) = self.sweeps.get(1)
            && now.duration_since(second.at) >= lifetimes.longest_idle()
        {
            self.sweeps.pop_front();
        }
    }

    /// Returns the first sweep since a session was last used.
    fn after(&self, used: u32) -> Option<&Sweep> {
        self.sweeps.get(self.sweeps.partition_point(|sweep| !is_before_or_at(used, sweep.tick)))
    }

    /// Returns the time since a session was last used, which may be a sweep longer ago.
    fn unused_for(&self, used: u32) -> Duration {
        let by = self.after(used).zip(self.sweeps.back());
        by.map_or(Duration::ZERO, |(after, last)| last.at.duration_since(after.at))
    }

    /// Returns the time by which a session was last used, which may be a sweep earlier.
    ///
    /// If the clocks disagree, since the machine has slept or the wall clock was set, it is the earlier one.
    pub(super) fn last_use(&self, used: u32) -> SystemTime {
        let now = wall_clock::now();
        let by_monotonic_clock = now.checked_sub(self.unused_for(used)).unwrap_or(SystemTime::UNIX_EPOCH);
        self.after(used).map_or(now, |after| after.wall).min(by_monotonic_clock)
    }
}

/// The sessions that a sweep has to do something about.
#[derive(Default)]
struct Findings {
    /// Sessions that were not used for long, whose stores can't bring them back.
    idle: Vec<(u32, Arc<TokenCell>)>,
    /// Sessions that were not used here for long, whose records are about to end.
    idle_here: Vec<(u32, Weak<TokenCell>)>,
    /// Sessions past the end of their sign-in.
    ended: Vec<Arc<TokenCell>>,
    extensions: Vec<Extension>,
}

impl Findings {
    /// Examines a session. Returns `true` if it can be removed.
    fn examine(&mut self, cell: &Arc<TokenCell>, uses: &Uses) -> bool {
        if cell.is_over() {
            return true;
        }
        if cell.snapshot().is_past_its_end() {
            self.ended.push(Arc::clone(cell));
            return false;
        }
        let tick = cell.used.load(Ordering::Relaxed);
        let idleness = if cell.is_alone() { cell.idleness(uses.unused_for(tick)) } else { Idleness::InUse };
        match idleness {
            Idleness::InUse => self.extensions.extend(cell.extension(uses.last_use(tick))),
            Idleness::Evictable => return true,
            Idleness::Over if cell.is_durable() => self.idle_here.push((tick, Arc::downgrade(cell))),
            Idleness::Over => {
                self.idle.push((tick, Arc::clone(cell)));
                return true;
            }
        }
        false
    }
}

impl<K: Eq + Hash + Send + Sync + 'static> Inner<K> {
    /// Examines the next few sessions. Returns `false` after the last one.
    fn sweep(self: &Arc<Self>, cursor: &mut Cursor, uses: &Uses, looks: bool, limits: &Limits) -> bool {
        let before = *cursor;
        let mut findings = Findings::default();
        let removed = self.table.sweep(cursor, |cell| {
            // A session is in use while it has a handle. That of a look at the store doesn't count.
            if !cell.is_alone() && !cell.is_looking() {
                self.table.touch(cell);
            }
            findings.examine(cell, uses)
        });
        let Findings { idle, mut idle_here, ended, extensions } = findings;
        if !looks {
            idle_here.clear();
        }
        if !(idle.is_empty() && idle_here.is_empty()) {
            let (looks, revocations) = (Arc::clone(&limits.looks), Arc::clone(&limits.revocations));
            self.config.spawn(sign_out(idle, idle_here, Arc::downgrade(self), before, looks, revocations));
        }
        if !ended.is_empty() {
            let end = async |cell: Arc<TokenCell>| drop(cell.end_if_past_its_end().await);
            self.config.spawn(async move { stream::iter(ended).for_each_concurrent(CALLS, end).await });
        }
        if !extensions.is_empty() {
            let permits = Arc::clone(&limits.extensions);
            // Not counted: a shutdown doesn't wait for them.
            self.config.runtime.spawn(async move {
                let extend = async |extension: Extension| {
                    let _permit = permits.acquire().await;
                    extension.run().await;
                };
                stream::iter(extensions).for_each_concurrent(CALLS, extend).await;
            });
        }
        removed.is_some()
    }
}

/// Signs out the sessions that are still idle and removes them from the table, `from` this position on; then revokes their
/// tokens. Failures are logged, and failed writes retried.
async fn sign_out<K: Eq + Hash + Send + Sync + 'static>(
    mut idle: Vec<(u32, Arc<TokenCell>)>,
    idle_here: Vec<(u32, Weak<TokenCell>)>,
    sessions: Weak<Inner<K>>,
    mut from: Cursor,
    looks: Arc<Semaphore>,
    revocation_calls: Arc<Semaphore>,
) {
    let found = stream::iter(idle_here).map(async |(used, cell)| {
        let _permit = looks.acquire().await;
        let is_over = TokenCell::read_is_ending(&cell).await;
        (is_over, used, cell.upgrade())
    });
    let found: Vec<_> = found.buffer_unordered(CALLS).collect().await;
    drop(looks);
    for (is_over, used, cell) in found {
        match (is_over, cell) {
            (Some(true), Some(cell)) => idle.push((used, cell)),
            // Used elsewhere: the next sweep evicts it.
            (Some(false), Some(cell)) => cell.forget_record_end(),
            _ => {}
        }
    }
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
        let _permit = revocation_calls.acquire().await;
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
