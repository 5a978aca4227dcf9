//! Lifetimes: the end of a session that is not used, and the end of a sign-in, in the record as in memory.
//!
//! An end is a time by the wall clock, since it outlives processes. The two ends:
//!
//! - The *end of the record* moves while the session is used. Between two sweeps of the registry a use goes unnoticed, so
//!   the record ends some sweeps later than the session may be idle for. While the session is in memory, the registry
//!   measures its idle time by the monotonic clock, and signs the user out once both have passed.
//! - The *end of the sign-in* is set once, and written again with each refresh.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::cell::TokenCell;
use super::config::Config;
use super::revocation::Revocation;
use super::state::{Event, State, Stored};
use super::store_call::{STORE_TIMEOUT, bounded, bounded_by};
use crate::refresh::{NotRefreshed, RefreshError};
use crate::store::{ClearOutcome, End, EndOfSignIn, Entry, Epoch, Record, TokenStore, Version};
use crate::token::Tokens;
use crate::wall_clock;

/// The sweeps of a registry in an idle time-out or a lifetime, the shorter one.
const SWEEPS: u32 = 32;
const SHORTEST_SWEEP: Duration = Duration::from_millis(10);
const LONGEST_SWEEP: Duration = Duration::from_secs(60);

/// The bounds on the lives of sessions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lifetimes {
    /// The time after the last use, in a registry.
    pub(crate) idle: Option<Duration>,
    /// The time after the sign-in.
    pub(crate) longest: Option<Duration>,
}

impl Lifetimes {
    /// Returns the time between two sweeps of a registry.
    pub(crate) fn sweep(&self) -> Duration {
        let shorter = self.idle.into_iter().chain(self.longest).min();
        shorter.map_or(LONGEST_SWEEP, |time| (time / SWEEPS).clamp(SHORTEST_SWEEP, LONGEST_SWEEP))
    }

    /// Returns the time after the last use at which the record of a session ends. The session is then removed within five
    /// quarters of the idle time-out: a sweep notices the last use late, and another one the end.
    pub(crate) fn longest_idle(&self) -> Duration {
        let idle = self.idle.unwrap_or_default();
        idle.saturating_add((idle / 4).saturating_sub(2 * self.sweep()))
    }

    /// Returns the end of the record of a session that was last used at this time.
    fn idle_end(&self, last_use: SystemTime) -> Option<SystemTime> {
        self.idle.and_then(|_| last_use.checked_add(self.longest_idle()))
    }

    /// Returns `true` if a record ends so soon that the session was used in no process within the idle time-out: it would
    /// have been [moved](Self::is_to_be_moved).
    fn is_ending(&self, end: SystemTime) -> bool {
        end.checked_sub(2 * self.sweep()).is_none_or(|end| end <= wall_clock::now())
    }

    /// Returns `true` if the end of a record doesn't fit a session that was last used at this time: it is so early that a use
    /// at the last moment would be noticed after it; or too late, since a clock has been set back.
    fn is_to_be_moved(&self, end: SystemTime, last_use: SystemTime) -> bool {
        let sweeps = 2 * self.sweep();
        let earliest = self.idle.and_then(|idle| last_use.checked_add(idle)?.checked_add(sweeps));
        let [Some(earliest), Some(latest)] = [earliest, self.latest_end()] else { return false };
        // An idle time-out may be shorter than some sweeps.
        !(earliest.min(latest)..=latest).contains(&end)
    }

    /// Returns the latest end that a record can have now. A later one was written before a clock was set back.
    fn latest_end(&self) -> Option<SystemTime> {
        self.idle_end(wall_clock::now()).and_then(|end| end.checked_add(2 * self.sweep()))
    }

    /// Returns the end of a sign-in that is made now.
    pub(super) fn end_of_sign_in(&self) -> Option<EndOfSignIn> {
        wall_clock::now().checked_add(self.longest?).map(EndOfSignIn::from)
    }

    /// Returns the end of a sign-in that a record tells, no later than that of one made now: a clock may have been set back.
    fn clamped(&self, ends_at: Option<EndOfSignIn>) -> Option<EndOfSignIn> {
        match (ends_at, self.end_of_sign_in()) {
            (Some(told), Some(now)) => Some(told.min(now)),
            (told, now) => told.or(now),
        }
    }
}

/// The sweep's judgement of a session by the time of its last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idleness {
    InUse,
    /// It can be removed from memory.
    Evictable,
    /// The user is to be signed out, unless the record has been extended by another process.
    Over,
}

/// The end of a record, as this process knows it.
#[derive(Default)]
pub(super) struct RecordEnd(AtomicU64);

impl RecordEnd {
    fn get(&self) -> Option<SystemTime> {
        End::from_millis(self.0.load(Ordering::Relaxed)).map(SystemTime::from)
    }

    fn set(&self, end: Option<SystemTime>) {
        self.0.store(millis(end), Ordering::Relaxed);
    }

    /// Sets the end, unless it is a later one by now.
    fn raise(&self, end: SystemTime) {
        self.0.fetch_max(millis(Some(end)), Ordering::Relaxed);
    }

    /// Sets the end back to what it was, unless it has changed since.
    fn undo(&self, end: SystemTime, before: Option<SystemTime>) {
        let _ = self.0.compare_exchange(millis(Some(end)), millis(before), Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn millis(end: Option<SystemTime>) -> u64 {
    end.map_or(0, |end| End::from(end).to_millis())
}

/// An extension of a record. Doesn't keep the session in memory.
pub(crate) struct Extension {
    cell: Weak<TokenCell>,
    store: Arc<dyn TokenStore>,
    version: Version,
    end: SystemTime,
    before: Option<SystemTime>,
    lifetimes: Lifetimes,
}

impl Extension {
    /// Moves the end. If that fails, the next sweep tries again.
    pub(crate) async fn run(self) {
        // While the extension waited for its turn, the session may have been used again, or written. A look at the store may
        // also have found the end as it was before.
        let end = End::from(self.end);
        let is_overtaken = |cell: Arc<TokenCell>| cell.record_end.get().is_none_or(|current| End::from(current) > end);
        if self.cell.upgrade().is_some_and(is_overtaken) {
            return;
        }
        let moved = self.moved().await;
        let Some(cell) = self.cell.upgrade() else { return };
        match moved {
            Some(moved) => cell.record_end.raise(moved),
            None => cell.record_end.undo(self.end, self.before),
        }
    }

    /// Moves the end, unless another process has moved it further: the session was used there since. Returns the end of the
    /// record; `None` if it is unknown.
    async fn moved(&self) -> Option<SystemTime> {
        let found = bounded(|| self.store.load()).await.ok()??;
        let latest = self.lifetimes.latest_end();
        if let Some(end) = found.entry().expires_at()
            && *found.version() == self.version
            && end > self.end
            && latest.is_some_and(|latest| end <= latest)
        {
            return Some(end);
        }
        let moved = bounded(|| self.store.extend(&self.version, self.end)).await.ok()?;
        moved.then_some(self.end)
    }
}

impl Record {
    /// Returns `true` if no user is signed in any more.
    pub(super) fn is_past_its_end(&self) -> bool {
        // Most records have no end, for which no clock is read.
        [self.entry().expires_at(), self.entry().ends_at()].into_iter().flatten().any(|end| end <= wall_clock::now())
    }
}

impl State {
    /// Returns `true` if the sign-in has lasted for as long as it may.
    pub(crate) fn is_past_its_end(&self) -> bool {
        !self.is_over() && self.ends_at.is_some_and(|end| SystemTime::from(end) <= wall_clock::now())
    }
}

/// Deletes a record past its end and revokes its tokens. Returns the record that another process has written meanwhile.
pub(super) async fn end_record(config: &Arc<Config>, store: &dyn TokenStore, record: Record) -> Option<Record> {
    let version = record.version().clone();
    // Before the record is deleted: if the answer is lost, its tokens are no longer known.
    drop(config.spawn(Revocation::of(Arc::clone(config), record.into_tokens()).run()));
    // A part of the time that a load may take.
    match bounded_by(Instant::now() + STORE_TIMEOUT / 2, || store.clear(&version)).await {
        Ok(ClearOutcome::Conflict(newer)) => Some(newer).filter(|newer| !newer.is_past_its_end()),
        // The next process that finds the record tries again.
        Ok(ClearOutcome::Cleared) | Err(_) => None,
    }
}

impl TokenCell {
    /// Adds the ends to an entry that is about to be written.
    pub(super) fn with_ends(&self, entry: Entry) -> Entry {
        let idle = self.config.lifetimes.idle_end(wall_clock::now()).filter(|_| self.is_durable());
        let end = idle.into_iter().chain(entry.ends_at()).min();
        self.record_end.set(end);
        match end {
            Some(end) => entry.with_expires_at(end),
            None => entry,
        }
    }

    /// Takes the end of a record that the store holds.
    pub(crate) fn note_end(&self, end: Option<SystemTime>) {
        self.record_end.set(end);
    }

    /// Completes an event by what the settings and the record say of the session's ends.
    pub(super) fn with_lifetime(&self, event: Event) -> Event {
        match event {
            Event::SignedIn { next, tokens, due, .. } => {
                Event::SignedIn { next, tokens, due, ends_at: self.config.lifetimes.end_of_sign_in() }
            }
            Event::Adopted { epoch, record, due, ends_flight } => {
                self.note_end(record.entry().expires_at());
                let record = self.config.clamped(record);
                Event::Adopted { epoch, record, due, ends_flight }
            }
            other => other,
        }
    }

    /// Returns a record of the store, unless it is of another sign-in and past its end.
    pub(super) fn unless_ended(&self, found: Option<Record>) -> Option<Record> {
        let epoch = self.snapshot().epoch;
        // Of the same sign-in: the registry compares the end with the uses here.
        found.filter(|record| record.epoch() == epoch || !record.is_past_its_end())
    }

    /// Prepares the extension of the record of a session that was last used at this time, if one is due.
    pub(crate) fn extension(self: &Arc<Self>, last_use: SystemTime) -> Option<Extension> {
        let lifetimes = &self.config.lifetimes;
        let end = lifetimes.idle_end(last_use).filter(|_| self.is_durable())?;
        let (before, state) = (self.record_end.get(), self.snapshot());
        let latest = state.ends_at.map(SystemTime::from);
        // A record that ends with its sign-in ends no later.
        let is_last = latest.is_some_and(|latest| before.is_some_and(|before| before == latest && latest <= end));
        if state.is_over() || is_last || before.is_some_and(|before| !lifetimes.is_to_be_moved(before, last_use)) {
            return None;
        }
        // A write that is pending writes the end too.
        let Stored::Clean(Some(version)) = &state.stored else { return None };
        let end = latest.map_or(end, |latest| latest.min(end));
        // Until the call has failed: there is one at a time.
        self.record_end.set(Some(end));
        let (cell, store) = (Arc::downgrade(self), Arc::clone(&self.store));
        Some(Extension { cell, store, version: version.clone(), end, before, lifetimes: *lifetimes })
    }

    /// Judges a session that was last used in this process so long ago.
    pub(crate) fn idleness(&self, unused_for: Duration) -> Idleness {
        let lifetimes = &self.config.lifetimes;
        if lifetimes.idle.is_none_or(|idle| unused_for < idle) {
            return Idleness::InUse;
        }
        let Some(end) = self.record_end.get().filter(|_| self.is_durable()) else {
            return if self.is_durable() { Idleness::Evictable } else { Idleness::Over };
        };
        if unused_for < lifetimes.longest_idle() {
            Idleness::InUse
        } else if lifetimes.is_ending(end) {
            Idleness::Over
        } else {
            // The clocks disagree.
            Idleness::Evictable
        }
    }

    /// Forgets the end of the record: the session is used elsewhere.
    pub(crate) fn forget_record_end(&self) {
        self.record_end.set(None);
    }

    /// Reads whether the record is still about to end. Holds no handle meanwhile, which would count as a use.
    pub(crate) async fn read_is_ending(cell: &Weak<Self>) -> Option<bool> {
        let (store, config) = cell.upgrade().map(|cell| (Arc::clone(&cell.store), Arc::clone(&cell.config)))?;
        let found = bounded(|| store.load()).await.ok()?;
        let end = found.map(|record| record.entry().expires_at());
        Some(end.is_none_or(|end| end.is_some_and(|end| config.lifetimes.is_ending(end))))
    }

    /// Ends the session if its sign-in has lasted for as long as it may. Returns the reason.
    pub(crate) async fn end_if_past_its_end(self: &Arc<Self>) -> Option<NotRefreshed> {
        if !self.snapshot().is_past_its_end() {
            return None;
        }
        let mut writer = self.lock.write().await;
        let state = Arc::clone(&self.snapshot());
        if !state.is_past_its_end() {
            return None;
        }
        drop(self.revoke_in_background(state.tokens.clone()));
        let error = Arc::new(RefreshError::lifetime_over());
        let event = Event::Rejected { epoch: state.epoch, error: Arc::clone(&error), next: Epoch::random() };
        self.step(&mut writer, event);
        Some(NotRefreshed::Ended(error))
    }
}

impl Config {
    /// Returns the entry of a sign-in that is made now.
    pub(crate) fn first_entry(&self, tokens: Tokens) -> Entry {
        let entry = Entry::new(Epoch::random(), 1, tokens);
        match self.lifetimes.end_of_sign_in().map(SystemTime::from) {
            Some(end) => entry.with_expires_at(end).with_ends_at(end),
            None => entry,
        }
    }

    /// Returns a record with the end of its sign-in as this process's settings allow it.
    pub(super) fn clamped(&self, record: Record) -> Record {
        match self.lifetimes.clamped(record.entry().ends_at().map(EndOfSignIn::from)) {
            Some(end) => Record::new(record.version().clone(), record.entry().clone().with_ends_at(end.into())),
            None => record,
        }
    }
}
