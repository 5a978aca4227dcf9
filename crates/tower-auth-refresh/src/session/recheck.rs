//! Rechecks: looking at the store again for what other processes that share it have written, within a bound.
//!
//! A *look* reads the record once, in a task of its own, and [`TokenCell::look`] compares it with the state. A session
//! has one look under way at a time, shared by all callers that wait for it. The looks under way are kept beside the
//! sessions, since few sessions have one.
//!
//! The age of a session's last look is measured by a coarse clock that a look-up in a registry reads without a call to
//! the operating system. From half the bound on, a look-up starts a look in the background; from the bound on, it waits
//! for the look.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::cell::TokenCell;
use super::config::Config;
use super::error::{SessionError, SessionErrorKind};
use super::state::{Event, Phase, RefreshSchedule, State, Stored};
use super::store_call::bounded;
use crate::TARGET;
use crate::random;
use crate::shared::Shared;
use crate::store::{Epoch, Record};

/// The ticks of the clock within the bound.
const TICKS: u32 = 16;

/// The shortest time between two ticks.
const SHORTEST_TICK: Duration = Duration::from_millis(10);

/// The cap on the bound, so that deadlines don't overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The part of the bound by which looks are spread, so that sessions that were looked at together aren't again.
const SPREAD: u32 = 8;

/// The bound of a registry's rechecks, the clock that measures it, and the looks under way.
pub(crate) struct Recheck {
    ticks: AtomicU32,
    /// The age in ticks from which a caller waits for a look.
    limit: u32,
    /// The time between two ticks; `None` if the clock stands.
    tick: Option<Duration>,
    /// By [`TokenCell::id`]. Boxed, so that it isn't on the cache line of the clock, which every look-up reads.
    under_way: Box<Mutex<HashMap<usize, UnderWay>>>,
}

struct UnderWay {
    look: Arc<Look>,
    /// The look that follows, since the store has changed after this one began.
    next: Option<Arc<Look>>,
}

/// A look, for all callers that wait for it.
pub(crate) type Look = Shared<Result<(), LookError>>;

#[derive(Clone)]
pub(crate) struct LookError {
    kind: SessionErrorKind,
    source: Arc<dyn Error + Send + Sync>,
}

impl From<LookError> for SessionError {
    fn from(error: LookError) -> Self {
        match error.kind {
            SessionErrorKind::Runtime => Self::runtime(error.source),
            _ => Self::store(Box::new(error.source)),
        }
    }
}

impl Recheck {
    /// `bound`: `None` if no look is made by itself.
    pub(crate) fn new(bound: Option<Duration>) -> Self {
        let bound = bound.map(|bound| bound.min(LONGEST));
        let tick = bound.map(|bound| (bound / TICKS).max(SHORTEST_TICK));
        // The clock may be late by a tick.
        let limit = bound.zip(tick).map_or(TICKS, |(bound, tick)| whole_ticks(bound, tick).saturating_sub(1));
        Self { ticks: AtomicU32::new(0), limit, tick, under_way: Box::default() }
    }

    pub(crate) fn now(&self) -> u32 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Returns true if a session was looked at so lately that no look is due.
    #[inline]
    pub(crate) fn is_fresh(&self, cell: &TokenCell) -> bool {
        self.age(cell) < self.limit / 2
    }

    /// Returns the ticks since the session's last look began. While the clock isn't late, at most a tick is missing.
    #[inline]
    fn age(&self, cell: &TokenCell) -> u32 {
        // Pairs with the release in `mark`: a session that is seen as looked at is seen as the look has left it.
        let looked = cell.looked.load(Ordering::Acquire);
        self.now().wrapping_sub(looked)
    }

    /// Makes the last look of all sessions older than the bound.
    pub(crate) fn expire_all(&self) {
        self.ticks.fetch_add(self.limit.max(1), Ordering::Relaxed);
    }

    /// Makes the last look of a session older than the bound, and forgets its failure: callers wait for the next.
    pub(super) fn expire(&self, cell: &TokenCell) {
        cell.look_failed.store(false, Ordering::Relaxed);
        cell.looked.store(self.now().wrapping_sub(self.limit), Ordering::Release);
    }

    /// Records a look that began at this tick.
    fn mark(&self, cell: &TokenCell, begun: u32) {
        cell.looked.store(begun.wrapping_sub(self.spread()), Ordering::Release);
    }

    /// Records a failed look: the next one is due after an eighth of the bound, or at once if the clock stands.
    fn mark_failed(&self, cell: &TokenCell) {
        let pause = if self.tick.is_some() { 1 + self.spread() } else { 0 };
        let age = (self.limit / 2).saturating_sub(pause);
        cell.looked.store(self.now().wrapping_sub(age), Ordering::Release);
    }

    fn spread(&self) -> u32 {
        let spread = self.limit / SPREAD;
        // Below 2³², since `spread` is.
        u32::try_from(random::bits() % (u64::from(spread) + 1)).unwrap_or(spread)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<usize, UnderWay>> {
        // Poisoning is ignored: nothing panics under this lock.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Advances the clock until the settings are dropped. Returns at once if the clock stands.
pub(crate) async fn run_clock(config: Weak<Config>) {
    let Some(tick) = config.upgrade().and_then(|config| config.recheck.tick) else { return };
    let start = Instant::now();
    let mut interval = interval_at(start + tick, tick);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut before = 0;
    loop {
        interval.tick().await;
        let Some(config) = config.upgrade() else { return };
        // Not one more each time: the task may have been late.
        let now = whole_ticks(start.elapsed(), tick);
        config.recheck.ticks.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        before = now;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the clock wraps")]
fn whole_ticks(time: Duration, tick: Duration) -> u32 {
    (time.as_nanos() / tick.as_nanos()) as u32
}

impl TokenCell {
    /// Starts a look if one is due, and returns it if the caller must wait for it.
    #[cold]
    pub(crate) fn recheck_if_due(self: &Arc<Self>) -> Option<Arc<Look>> {
        let recheck = &self.config.recheck;
        let is_under_way = self.is_looking();
        if !is_under_way && !self.is_durable() {
            // The store is this process's own.
            self.set_looked(recheck.now());
            return None;
        }
        // While the store fails, a caller waits for the first look only, or after a pause.
        let failing = is_under_way && self.look_failed.load(Ordering::Relaxed);
        let must_wait = recheck.age(self) >= recheck.limit && !failing;
        if is_under_way && !must_wait {
            return None;
        }
        let look = self.join_or_start_look(false);
        must_wait.then_some(look)
    }

    /// Starts a look that sees all that the store holds now. Until it has ended, look-ups in the registry wait for it.
    pub(crate) fn recheck(self: &Arc<Self>) -> Arc<Look> {
        self.join_or_start_look(true)
    }

    /// Returns true if a look is under way, whose task has a handle.
    pub(crate) fn is_looking(&self) -> bool {
        self.looking.load(Ordering::Relaxed)
    }

    /// Sets the time of the last look, by the registry's clock.
    pub(crate) fn set_looked(&self, at: u32) {
        self.looked.store(at, Ordering::Release);
    }

    /// `anew`: a look that is under way began too early.
    fn join_or_start_look(self: &Arc<Self>, anew: bool) -> Arc<Look> {
        let recheck = &self.config.recheck;
        let mut looks = recheck.under_way();
        if anew {
            recheck.expire(self);
        }
        match looks.entry(self.id()) {
            Entry::Occupied(mut entry) => {
                let UnderWay { look, next } = entry.get_mut();
                if anew {
                    next.get_or_insert_with(|| Arc::new(Look::new()));
                }
                Arc::clone(next.as_ref().unwrap_or(look))
            }
            Entry::Vacant(entry) => {
                let look = Arc::new(Look::new());
                entry.insert(UnderWay { look: Arc::clone(&look), next: None });
                self.looking.store(true, Ordering::Relaxed);
                drop(looks);
                let task = LookTask { cell: Some(Arc::clone(self)) };
                // Not counted: nothing is lost if a shutdown doesn't wait for it.
                self.config.runtime.spawn(task.run());
                look
            }
        }
    }

    /// Reads the record, and puts in force what other processes have done.
    async fn look(self: &Arc<Self>) -> Result<(), LookError> {
        let before = Arc::clone(&self.snapshot());
        if !matches!(before.stored, Stored::Clean(_)) {
            // The pending write is checked against the record when it is made.
            return Ok(());
        }
        let found = bounded(|| self.store.load()).await;
        let found = found.map_err(|error| LookError { kind: SessionErrorKind::Store, source: Arc::from(error) })?;
        let due = found.as_ref().and_then(|record| self.schedule(record.tokens()));
        let mut writer = self.lock.write().await;
        let event = self.snapshot().event_of_look(&before, found, due);
        if let Some(event) = event {
            self.step(&mut writer, event);
        }
        Ok(())
    }
}

impl State {
    /// Returns the change after a look at the store. `before`: the state when the look began, in line with the store.
    pub(super) fn event_of_look(
        &self,
        before: &Self,
        found: Option<Record>,
        due: Option<RefreshSchedule>,
    ) -> Option<Event> {
        let epoch = self.epoch;
        if before.epoch != epoch || !matches!(self.stored, Stored::Clean(_)) {
            // Signed in or out in this process since, or about to write.
            return None;
        }
        match found {
            None if self.is_over() => None,
            // Both end a flight under way like a sign-out in this process: tokens that it obtains are discarded.
            None => Some(Event::RecordGone { epoch, next: Epoch::random() }),
            Some(record) if record.epoch() != epoch => Some(Event::Adopted { epoch, record, due, ends_flight: false }),
            // Within an epoch, the flight compares what it finds by itself.
            Some(_) if self.phase == Phase::Refreshing || self.place != before.place => None,
            Some(record) if record.generation() < self.place => {
                Some(Event::StoreWentBack { epoch, version: record.version().clone() })
            }
            Some(record) if record.generation() == self.place => None,
            // Only the refresh token is newer: what is known of the access token remains.
            Some(record) if record.tokens().access_token() == self.tokens.access_token() => {
                let (place, stored) = (record.generation(), Stored::Clean(Some(record.version().clone())));
                Some(Event::Salvaged { epoch, place, tokens: record.into_tokens(), stored })
            }
            Some(record) => Some(Event::Adopted { epoch, record, due, ends_flight: false }),
        }
    }
}

/// The looks of one session, one after the other. Answers their callers if it is dropped before they have ended.
struct LookTask {
    /// `None`: over.
    cell: Option<Arc<TokenCell>>,
}

impl LookTask {
    async fn run(mut self) {
        while let Some(cell) = self.cell.clone() {
            let begun = cell.config.recheck.now();
            let result = cell.look().await;
            drop(cell);
            self.end_look(begun, result);
        }
    }

    /// Ends the look under way, and begins the next one or is over.
    fn end_look(&mut self, begun: u32, result: Result<(), LookError>) {
        let Some(cell) = &self.cell else { return };
        let recheck = &cell.config.recheck;
        let mut looks = recheck.under_way();
        let (ended, is_last) = match looks.get_mut(&cell.id()) {
            Some(UnderWay { look, next: next @ Some(_) }) => {
                (next.take().map(|next| std::mem::replace(look, next)), false)
            }
            _ => (looks.remove(&cell.id()).map(|under_way| under_way.look), true),
        };
        let mut has_begun_to_fail = false;
        if is_last {
            cell.looking.store(false, Ordering::Relaxed);
            has_begun_to_fail = result.is_err() && !cell.look_failed.load(Ordering::Relaxed);
            cell.look_failed.store(result.is_err(), Ordering::Relaxed);
            match result {
                Ok(()) => recheck.mark(cell, begun),
                Err(_) => recheck.mark_failed(cell),
            }
        }
        drop(looks);
        if is_last {
            // Before the callers look the session up again: the handle would keep it from being removed.
            self.cell = None;
        }
        if let Some(ended) = ended {
            ended.set(result);
        }
        if has_begun_to_fail {
            tracing::warn!(target: TARGET, "session not rechecked");
        }
    }
}

impl Drop for LookTask {
    fn drop(&mut self) {
        while self.cell.is_some() {
            let source = Arc::from(Box::<dyn Error + Send + Sync>::from("the task that looks at the store is gone"));
            self.end_look(0, Err(LookError { kind: SessionErrorKind::Runtime, source }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_ticks_sixteen_times_within_a_bound_of_a_year_at_most() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let tick = |bound| Recheck::new(Some(bound)).tick;
        assert_eq!(tick(300 * DAY), Some(300 * DAY / 16));
        assert_eq!(tick(Duration::MAX), Some(365 * DAY / 16));
    }
}
