//! Rechecks: looking at the store again for what other processes that share it have written, within a bound.
//!
//! A *look* reads the record once, in a task of its own, and [`TokenCell::look`] compares it with the state. A session
//! has one look under way at a time, shared by all callers that wait for it. The looks under way are kept beside the
//! sessions, by [`Recheck`], since few sessions have one.
//!
//! [`Recheck`]: super::recheck_clock::Recheck

use std::collections::hash_map::Entry;
use std::error::Error;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::cell::TokenCell;
use super::config::Config;
use super::error::SessionErrorKind;
use super::recheck_clock::{Look, LookError, UnderWay, whole_ticks};
use super::state::{Event, Phase, RefreshSchedule, State, Stored};
use super::store_call::bounded;
use crate::TARGET;
use crate::store::{Epoch, Record};
use crate::token::Tokens;

/// The time that the access token of another process must still live to be put in force: until the replays have arrived
/// at the API. A request is replayed once, so a token that expires on its way would be one 401 more than the caller
/// deserves.
const WORTH_ADOPTING: Duration = Duration::from_millis(500);

/// Returns `true` if these tokens of another process are known to expire before a replay with them arrives.
pub(super) fn expire_before_a_replay(tokens: &Tokens) -> bool {
    let soon = SystemTime::now() + WORTH_ADOPTING;
    tokens.expires_at().is_some_and(|expiry| expiry < soon)
}

/// Advances the clock until the settings are dropped. Returns at once if the clock stands.
pub(crate) async fn run_clock(config: Weak<Config>) {
    let Some(tick) = config.upgrade().and_then(|config| config.recheck.tick()) else { return };
    let start = Instant::now();
    let mut interval = interval_at(start + tick, tick);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut before = 0;
    loop {
        interval.tick().await;
        let Some(config) = config.upgrade() else { return };
        // Not one more each time: the task may have been late.
        let now = whole_ticks(start.elapsed(), tick);
        config.recheck.advance(now.wrapping_sub(before));
        before = now;
    }
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
        let failing = is_under_way && self.last_look.has_failed();
        let must_wait = recheck.is_overdue(&self.last_look) && !failing;
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
        self.last_look.is_under_way()
    }

    /// Sets the time of the last look, by the registry's clock.
    pub(crate) fn set_looked(&self, at: u32) {
        self.last_look.begun_at(at);
    }

    /// `anew`: a look that is under way began too early.
    fn join_or_start_look(self: &Arc<Self>, anew: bool) -> Arc<Look> {
        let recheck = &self.config.recheck;
        let mut looks = recheck.under_way();
        if anew {
            recheck.expire(&self.last_look);
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
                self.last_look.begin();
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
        if self.end_if_past_its_end().await.is_some() {
            return Ok(());
        }
        let before = Arc::clone(&self.snapshot());
        if !matches!(before.stored, Stored::Clean(_)) {
            // The pending write is checked against the record when it is made.
            return Ok(());
        }
        let found = bounded(|| self.store.load()).await;
        let found = found.map_err(|error| LookError { kind: SessionErrorKind::Store, source: Arc::from(error) })?;
        let found = self.unless_ended(found);
        if let Some(record) = &found {
            self.note_end(record.entry().expires_at());
        }
        if found.as_ref().is_some_and(|record| before.is_to_be_refreshed_from(record)) {
            return Ok(());
        }
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
    /// Returns `true` if a record holds newer tokens of this epoch that are no use to requests: a refresh goes on from
    /// them. Were they put in force, a request that is refused at that moment would be replayed with them.
    fn is_to_be_refreshed_from(&self, record: &Record) -> bool {
        let is_newer = record.epoch() == self.epoch && record.generation() > self.place;
        is_newer && expire_before_a_replay(record.tokens())
    }

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
            has_begun_to_fail = recheck.end(&cell.last_look, begun, result.is_err());
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
