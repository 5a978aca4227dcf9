//! The token cell: the state of one session behind its lock, the snapshot that requests read, and the watchers.
//!
//! The lock is held to change the state and to start a flight, never across a call to the store or to the authorization
//! server. A request on its ordinary way only reads the published snapshot.

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock, PoisonError};

use arc_swap::{ArcSwap, Guard};
use futures_util::future::{join, try_join_all};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, RwLock, RwLockWriteGuard, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::SessionState;
use super::backoff::At;
use super::config::Config;
use super::error::SessionError;
use super::flight::Flight;
use super::lifetime::RecordEnd;
use super::loop_guard::StarterResults;
use super::recheck_clock::LastLook;
use super::revocation::Revocation;
use super::state::{Effect, Event, Phase, RefreshSchedule, State};
use super::store_sync::RevocationTask;
use crate::TARGET;
use crate::challenge::SentToken;
use crate::refresh::Generation;
use crate::store::{Epoch, Record, TokenStore};
use crate::target::Target;
use crate::token::{AccessToken, RefreshToken, Tokens};

// The fields that a look-up in a registry reads come first: beside the reference count, so that one cache miss is enough.
#[repr(C)]
pub(crate) struct TokenCell {
    /// The time of its last use, by the registry's clock.
    pub(crate) used: AtomicU32,
    pub(crate) last_look: LastLook,
    /// A copy of the state's [`is_over`](State::is_over).
    over: AtomicBool,
    /// A copy of the state's [`is_watching`](State::is_watching).
    watching: AtomicBool,
    /// `true` if a task retries writes that the store has failed.
    pub(super) saving: AtomicBool,
    pub(super) record_end: RecordEnd,
    pub(super) lock: RwLock<Writer>,
    published: ArcSwap<State>,
    /// The number of states published so far.
    revision: AtomicU64,
    watchers: OnceLock<Box<Watchers>>,
    pub(super) results: StarterResults,
    pub(super) store: Arc<dyn TokenStore>,
    /// Serializes the writes made outside of flights, so that the store ends in line with the state. Holds the last
    /// sign-in that was written, or may have been.
    pub(super) writes: Mutex<Option<Box<SignInAttempt>>>,
    pub(super) config: Arc<Config>,
}

/// Allocated on first use: most sessions have no watcher and no failed write.
struct Watchers {
    states: watch::Sender<SessionState>,
    /// Wakes the task that retries writes.
    more_to_save: Notify,
    revoked: std::sync::Mutex<Revoked>,
}

/// The tokens that were revoked last: digests, since the session has dropped the tokens themselves.
#[derive(Default)]
struct Revoked {
    keys: RandomState,
    digests: [Option<u64>; 4],
    next: usize,
}

/// The number of a published state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision(u64);

/// The right to change the state, and the flight under way. The state itself is in `published`, which only the holder of
/// the lock writes.
pub(super) struct Writer {
    pub(super) flight: Option<Arc<Flight>>,
}

/// A sign-in that was written, or may have been, where the answer was lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignInAttempt {
    pub(super) epoch: Epoch,
    /// The epoch of the record that was there.
    pub(super) over: Option<Epoch>,
}

pub(super) type WriteGuard<'a> = RwLockWriteGuard<'a, Writer>;

tokio::task_local! {
    /// The cell whose refresh call runs in this task.
    static REFRESHING: usize;
}

impl TokenCell {
    /// Makes a cell for the record that the store holds.
    pub(crate) fn new(stored: Option<Record>, store: Arc<dyn TokenStore>, config: Arc<Config>) -> Self {
        let Some(record) = stored else { return Self::of(State::signed_out(Epoch::random()), store, config) };
        let (due, end) = (config.schedule_now(record.tokens()), record.entry().expires_at());
        let cell = Self::of(State::restored(config.clamped(record), due), store, config);
        cell.note_end(end);
        cell
    }

    /// Makes a cell in which these tokens are in force, still to be stored.
    pub(crate) fn signed_in(tokens: Tokens, store: Arc<dyn TokenStore>, config: Arc<Config>) -> Self {
        let at = At::now();
        let due = config.schedule(&tokens, at);
        let ends_at = config.lifetimes.end_of_sign_in();
        let signed_in = Event::SignedIn { next: Epoch::random(), tokens, due, ends_at };
        let (state, _) = State::signed_out(Epoch::random()).step(signed_in, at);
        Self::of(state, store, config)
    }

    fn of(state: State, store: Arc<dyn TokenStore>, config: Arc<Config>) -> Self {
        Self {
            lock: RwLock::new(Writer { flight: None }),
            over: AtomicBool::new(state.is_over()),
            watching: AtomicBool::new(state.is_watching()),
            published: ArcSwap::from_pointee(state),
            revision: AtomicU64::new(0),
            watchers: OnceLock::new(),
            results: StarterResults::default(),
            used: AtomicU32::new(0),
            last_look: LastLook::at(config.recheck.now()),
            saving: AtomicBool::new(false),
            record_end: RecordEnd::default(),
            store,
            writes: Mutex::new(None),
            config,
        }
    }

    /// Returns the state now. The guard should not be held for long.
    pub(crate) fn snapshot(&self) -> Guard<Arc<State>> {
        self.published.load()
    }

    /// Returns the number of the state now. While it is the same, so is the state; and so is the answer of
    /// [`wait_before_send`](Self::wait_before_send), if there is a token without a refresh schedule. Cheaper to read than
    /// the state.
    #[inline]
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// Compares the token of this generation with the state now.
    pub(crate) fn sent_token(&self, generation: Generation) -> SentToken {
        let state = self.snapshot();
        let in_force = state.generation == generation && !state.is_over();
        SentToken { generation, in_force, expires_at: state.tokens.expires_at().filter(|_| in_force) }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<SessionState> {
        let states = &self.watchers().states;
        // Pairs with the fence in `publish`: either that call sees the sender, or this one sees its state.
        fence(Ordering::SeqCst);
        notify(states, SessionState::of(&self.snapshot()));
        states.subscribe()
    }

    fn watchers(&self) -> &Watchers {
        self.watchers.get_or_init(|| {
            let states = watch::Sender::new(SessionState::of(&self.snapshot()));
            Box::new(Watchers { states, more_to_save: Notify::new(), revoked: std::sync::Mutex::default() })
        })
    }

    /// Runs a call so that requests which it makes through the layer of the session with this [`id`](Self::id) are
    /// recognised.
    pub(super) async fn marked<F: Future>(id: usize, call: F) -> F::Output {
        REFRESHING.scope(id, call).await
    }

    /// Returns `true` if this task is the session's own refresh call.
    pub(crate) fn is_refreshing_here(self: &Arc<Self>) -> bool {
        REFRESHING.try_with(|id| *id == self.id()).unwrap_or(false)
    }

    pub(super) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Returns `true` if no user is signed in.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Returns `true` if this is the last handle, and the session has no watcher.
    #[inline]
    pub(crate) fn is_alone(self: &Arc<Self>) -> bool {
        let alone = Arc::strong_count(self) == 1;
        // Makes visible what the holders of the other handles did before they dropped them.
        fence(Ordering::Acquire);
        alone && self.watchers.get().is_none_or(|watchers| watchers.states.receiver_count() == 0)
    }

    /// Returns `true` if the tokens outlive this process.
    pub(crate) fn is_durable(&self) -> bool {
        self.store.is_durable()
    }

    /// Returns `true` if the session can be evicted without loss: there is no other handle, nothing is under way or to
    /// be remembered, and its store can bring it back, if there is anything to bring back.
    pub(crate) fn is_evictable(self: &Arc<Self>) -> bool {
        self.is_alone() && (self.is_over() || self.is_durable()) && {
            let results = self.results.load();
            self.snapshot().is_at_rest(results, Instant::now())
        }
    }

    /// Does something under the lock. Where the lock isn't free, a task of its own queues for it: the lock is fair, and a
    /// caller that is no longer polled, yet not dropped, would block all others for ever once it is its turn.
    pub(super) async fn with_write_lock<T: Send + 'static>(
        self: &Arc<Self>,
        action: impl FnOnce(&Arc<Self>, &mut WriteGuard<'_>) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        if let Ok(mut writer) = self.lock.try_write() {
            return Ok(action(self, &mut writer));
        }
        let cell = Arc::clone(self);
        self.spawn(async move {
            let mut writer = cell.lock.write().await;
            action(&cell, &mut writer)
        })
        .await
    }

    /// Changes the state.
    pub(super) async fn change(self: &Arc<Self>, event: Event) -> Arc<State> {
        let mut writer = self.lock.write().await;
        self.step(&mut writer, event)
    }

    /// Steps the state: the only place where it changes. The effect is carried out in tasks of its own.
    pub(super) fn step(self: &Arc<Self>, writer: &mut WriteGuard<'_>, event: Event) -> Arc<State> {
        let ends = matches!(event, Event::Rejected { .. });
        let state = Arc::clone(&self.snapshot());
        let (next, effect) = state.step(self.with_lifetime(event), At::now());
        let next = Arc::new(next);
        self.publish(&next);
        // Waiters hold the flight themselves. Kept here, it would take memory for as long as the session lives.
        if next.phase != Phase::Refreshing && next.epoch == state.epoch {
            writer.flight = None;
        }
        if ends && next.phase == Phase::Ended {
            tracing::info!(target: TARGET, generation = next.generation.0, "session ended");
        }
        match effect {
            Effect::Nothing => {}
            Effect::Sync => self.save_in_background(),
            Effect::Discard(tokens) => drop(self.revoke_in_background(tokens)),
        }
        // No request waits for tokens of another epoch.
        if next.epoch != state.epoch
            && let Some(flight) = writer.flight.take()
        {
            flight.abandon();
        }
        next
    }

    fn publish(&self, state: &Arc<State>) {
        self.published.store(Arc::clone(state));
        self.over.store(state.is_over(), Ordering::Release);
        self.watching.store(state.is_watching(), Ordering::Relaxed);
        // After the state: a reader of the new number finds the new state.
        self.revision.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Some(watchers) = self.watchers.get() {
            notify(&watchers.states, SessionState::of(state));
        }
    }

    /// Wakes the task that retries writes.
    pub(super) fn more_to_save(&self) -> &Notify {
        &self.watchers().more_to_save
    }

    /// Returns the times of an early refresh of these tokens, if the session refreshes early.
    pub(super) fn schedule(&self, tokens: &Tokens) -> Option<RefreshSchedule> {
        self.config.schedule_now(tokens)
    }

    /// Runs a task to its end, whichever callers are dropped.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.config.spawn(task)
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.config.runtime
    }

    pub(crate) fn needs_refresh_token(&self) -> bool {
        !self.config.client_credentials
    }

    /// Puts the tokens in force at once, then stores them. On an error they are in force all the same, and the write is
    /// retried.
    pub(crate) async fn sign_in(self: Arc<Self>, tokens: Tokens) -> Result<(), SessionError> {
        if self.needs_refresh_token() && tokens.is_empty() {
            return Err(SessionError::no_tokens());
        }
        self.forget_revoked();
        let due = self.schedule(&tokens);
        self.change(Event::SignedIn { next: Epoch::random(), tokens, due, ends_at: None }).await;
        self.save().await
    }

    /// Puts newer tokens of the same sign-in in force, in place of `generation`, then stores them. Waits first for a flight
    /// that is about to replace it. Does nothing if newer tokens are in force already.
    pub(super) async fn renew(
        self: Arc<Self>,
        epoch: Epoch,
        generation: Generation,
        tokens: Tokens,
    ) -> Result<(), SessionError> {
        let deadline = self.deadline();
        loop {
            let flight = {
                let mut writer = self.lock.write().await;
                let state = Arc::clone(&self.snapshot());
                if state.is_renewable(epoch, generation) {
                    let due = self.schedule(&tokens);
                    self.step(&mut writer, Event::Renewed { epoch, generation, tokens, due });
                    break;
                }
                let is_replaced = state.epoch != epoch || state.generation != generation;
                writer.flight.as_ref().filter(|flight| !is_replaced && flight.is_running()).map(Flight::join)
            };
            let Some(flight) = flight else { return Ok(()) };
            if flight.wait(deadline).await.is_err() {
                return Ok(());
            }
        }
        self.save().await
    }

    /// Stores the tokens of a sign-in. On an error the write is retried.
    pub(crate) async fn save(self: Arc<Self>) -> Result<(), SessionError> {
        self.sync_or_retry().await.map_err(SessionError::not_stored)
    }

    /// Drops the tokens at once, then has them deleted and revoked.
    pub(crate) async fn sign_out(self: Arc<Self>) -> Result<(), SessionError> {
        let tokens = self.drop_tokens(None).await.unwrap_or_default();
        let mut revocations = Vec::new();
        let deleting = self.sync_or_retry_with(&mut revocations);
        let (deleted, revoked) = join(deleting, Revocation::new(&self, tokens).run()).await;
        // Those of the tokens that only the store held.
        let others = try_join_all(revocations.into_iter().map(async |revocation| revocation.await?)).await;
        deleted.map_err(SessionError::not_stored)?;
        revoked.and(others.map(drop)).map_err(SessionError::revoke)
    }

    /// Does the first part of a sign-out. It remains to [`save`](Self::save) it and to revoke the tokens. Returns `None`
    /// if the session was used since `unused`: a user who signs in again uses it first.
    pub(crate) async fn drop_tokens(self: &Arc<Self>, unused: Option<u32>) -> Option<Tokens> {
        let mut writer = self.lock.write().await;
        if unused.is_some_and(|then| self.used.load(Ordering::Relaxed) != then) {
            return None;
        }
        let tokens = self.snapshot().tokens.clone();
        // Before the record is deleted, which would revoke the same tokens again.
        self.mark_revoked(&tokens);
        self.step(&mut writer, Event::SignedOut { next: Epoch::random() });
        Some(tokens)
    }

    /// Revokes tokens, unless they have been revoked already.
    pub(super) fn revoke_in_background(self: &Arc<Self>, tokens: Tokens) -> Option<RevocationTask> {
        self.mark_revoked(&tokens).then(|| self.spawn(Revocation::new(self, tokens).run()))
    }

    /// Returns whether these tokens have to be revoked, and have not been.
    fn mark_revoked(&self, tokens: &Tokens) -> bool {
        if self.config.revoke.is_none() || tokens.is_empty() {
            return false;
        }
        let mut revoked = self.watchers().revoked.lock().unwrap_or_else(PoisonError::into_inner);
        let secrets = (
            tokens.access_token().map(AccessToken::expose_secret),
            tokens.refresh_token().map(RefreshToken::expose_secret),
        );
        let digest = Some(revoked.keys.hash_one(secrets));
        if revoked.digests.contains(&digest) {
            return false;
        }
        let next = revoked.next;
        revoked.digests[next] = digest;
        revoked.next = (next + 1) % revoked.digests.len();
        true
    }

    /// Forgets which tokens were revoked: a user may sign in with the same ones again.
    fn forget_revoked(&self) {
        if let Some(watchers) = self.watchers.get() {
            *watchers.revoked.lock().unwrap_or_else(PoisonError::into_inner) = Revoked::default();
        }
    }

    /// Returns `true` if accepted first attempts are to be recorded.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::Relaxed)
    }

    /// Records that an API accepted this generation: in a replay, or in a first attempt while the loop guard watches.
    pub(crate) fn accepted(self: &Arc<Self>, target: Target, generation: Generation) {
        let event = {
            let state = self.snapshot();
            self.results.record(&state.guard, target, generation, true);
            let results = self.results.load();
            if !state.guard.is_changed_by_acceptance(target, generation, results) {
                return;
            }
            Event::Accepted { target, generation, results }
        };
        if let Ok(mut writer) = self.lock.try_write() {
            self.step(&mut writer, event);
        } else {
            let cell = Arc::clone(self);
            self.spawn(async move { cell.change(event).await });
        }
    }

    /// Records that an API refused this generation in a replay.
    pub(crate) fn refused_again(&self, target: Target, generation: Generation) {
        self.results.record(&self.snapshot().guard, target, generation, false);
    }
}

/// Notifies the watchers. A waker is foreign code: if one panics, the change of the state goes on.
fn notify(states: &watch::Sender<SessionState>, state: SessionState) {
    let send = || {
        states.send_if_modified(|seen| {
            let changed = *seen != state;
            *seen = state;
            changed
        })
    };
    let _ = catch_unwind(AssertUnwindSafe(send));
}
