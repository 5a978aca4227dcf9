//! The token cell: the state of one session behind its lock, the snapshot that requests read, and those who watch it.
//!
//! The lock is held to change the state and to start a flight, never across a call to the store or to the
//! authorization server. A request on its ordinary way only reads the published snapshot.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use futures_util::FutureExt;
use futures_util::future::join;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, RwLock, RwLockWriteGuard, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

use super::SessionState;
use super::flight::{Flight, Landing};
use super::state::{At, Demand, Due, Effect, Event, Phase, State};
use super::sync::{Attempt, SAVE_TIMEOUT};
use super::traffic::Traffic;
use super::{Rotation, SessionError};
use crate::TARGET;
use crate::refresh::{Generation, NotRefreshed, RefreshError, RefreshRequest, RevokeRequest, Trigger};
use crate::store::{Epoch, Record, TokenStore};
use crate::token::Tokens;

/// What a session was built with.
pub(crate) struct Config {
    pub(crate) refresh: BoxCloneSyncService<RefreshRequest, Tokens, BoxError>,
    pub(crate) revoke: Option<BoxCloneSyncService<RevokeRequest, (), BoxError>>,
    pub(crate) refresh_timeout: Duration,
    pub(crate) rotation: Rotation,
    pub(crate) refresh_early: Option<Duration>,
    pub(crate) client_credentials: bool,
    pub(crate) runtime: Handle,
    /// Only where many sessions belong together.
    pub(crate) traffic: Option<Arc<Traffic>>,
}

// What a look-up among many touches comes first: beside the count of who holds it, so that memory is waited for once.
#[repr(C)]
pub(crate) struct TokenCell {
    /// When it was last asked for, by the clock of those who keep many.
    pub(crate) used: AtomicU32,
    /// Whether nobody is signed in. As in the state, but at hand.
    over: AtomicBool,
    /// Whether a task retries what the store would not take.
    pub(super) saving: AtomicBool,
    seat: RwLock<Seat>,
    published: ArcSwap<State>,
    /// How often a state was published.
    revision: AtomicU64,
    rare: OnceLock<Box<Rare>>,
    /// The newest generation with which a replay was accepted, or a request that none could follow.
    proven: AtomicU64,
    /// The newest generation with which a replay was refused.
    refused: AtomicU64,
    pub(super) store: Arc<dyn TokenStore>,
    /// Serializes what is written outside of flights, so that the store ends with what the state says. Holds the last
    /// sign-in that was tried.
    pub(super) writes: Mutex<Option<Box<Attempt>>>,
    pub(super) config: Arc<Config>,
}

/// What few sessions have.
struct Rare {
    watchers: watch::Sender<SessionState>,
    /// Wakes the task that retries.
    more_to_save: Notify,
}

/// The number of a published state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision(u64);

/// What a new request is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// Go out with what is in force.
    Send,
    /// Wait for newer tokens first.
    Wait(Trigger),
}

/// What somebody who wants newer tokens is to do.
enum Boarding {
    Newer,
    Wait(Arc<Flight>),
    Refused(NotRefreshed),
}

/// The right to change the state. The state itself is in `published`, which only its holder writes.
struct Seat {
    flight: Option<Arc<Flight>>,
}

tokio::task_local! {
    /// The cell whose refresh call runs in this task.
    static REFRESHING: usize;
}

impl TokenCell {
    /// A cell for what the store holds.
    pub(crate) fn new(stored: Option<Record>, store: Arc<dyn TokenStore>, config: Arc<Config>) -> Self {
        let state = match stored {
            None => State::signed_out(Epoch::random()),
            Some(record) => {
                let due = config.due(&record.tokens, At::now());
                State::restored(record, due)
            }
        };
        Self::of(state, store, config)
    }

    /// A cell in which these tokens are in force, still to be stored.
    pub(crate) fn signed_in(tokens: Tokens, store: Arc<dyn TokenStore>, config: Arc<Config>) -> Self {
        let at = At::now();
        let due = config.due(&tokens, at);
        let signed_in = Event::SignedIn { next: Epoch::random(), tokens, due };
        let (state, _) = State::signed_out(Epoch::random()).step(signed_in, at);
        Self::of(state, store, config)
    }

    fn of(state: State, store: Arc<dyn TokenStore>, config: Arc<Config>) -> Self {
        Self {
            seat: RwLock::new(Seat { flight: None }),
            over: AtomicBool::new(state.is_over()),
            published: ArcSwap::from_pointee(state),
            revision: AtomicU64::new(0),
            rare: OnceLock::new(),
            proven: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            used: AtomicU32::new(0),
            saving: AtomicBool::new(false),
            store,
            writes: Mutex::new(None),
            config,
        }
    }

    /// The state now. Don't hold the guard for long.
    pub(crate) fn snapshot(&self) -> Guard<Arc<State>> {
        self.published.load()
    }

    /// While it stays the same, so does the state; and with it the [outlook](Self::outlook), if there is a token and it
    /// isn't [due](State::due). Costs less to read than the state.
    #[inline]
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<SessionState> {
        let watchers = &self.rare().watchers;
        // Pairs with the fence in `publish`: either it sees the sender, or this sees its state.
        fence(Ordering::SeqCst);
        notify(watchers, SessionState::of(&self.snapshot()));
        watchers.subscribe()
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(|| {
            let watchers = watch::Sender::new(SessionState::of(&self.snapshot()));
            Box::new(Rare { watchers, more_to_save: Notify::new() })
        })
    }

    /// Runs the refresh call so that requests it makes through this session's own layer are recognised.
    pub(super) async fn marked<F: Future>(self: &Arc<Self>, refresh_call: F) -> F::Output {
        REFRESHING.scope(self.id(), refresh_call).await
    }

    /// Whether this task is the session's own refresh call.
    pub(crate) fn is_refreshing_here(self: &Arc<Self>) -> bool {
        REFRESHING.try_with(|id| *id == self.id()).unwrap_or(false)
    }

    fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// What a new request is to do. Starts an early refresh where one is due.
    #[inline]
    pub(crate) fn outlook(self: &Arc<Self>, state: &State) -> Outlook {
        match (state.phase, state.tokens.access_token(), state.due.as_deref()) {
            (Phase::Active, Some(_), Some(due)) => self.outlook_early(due),
            (Phase::Refreshing, _, _) if state.is_pointless_to_send() => Outlook::Wait(Trigger::Acquire),
            (Phase::Refreshing, _, Some(due)) if Instant::now() >= due.expired => Outlook::Wait(Trigger::Early),
            (Phase::Active, None, _) => {
                let (needs_refresh_token, now) = (self.needs_refresh_token(), Instant::now());
                match state.demand(state.epoch, state.generation, Trigger::Acquire, needs_refresh_token, now) {
                    Demand::Refused(_) => Outlook::Send,
                    _ => Outlook::Wait(Trigger::Acquire),
                }
            }
            _ => Outlook::Send,
        }
    }

    fn outlook_early(self: &Arc<Self>, due: &Due) -> Outlook {
        let now = Instant::now();
        if now < due.early {
            Outlook::Send
        } else if now < due.expired {
            self.begin_early();
            Outlook::Send
        } else {
            Outlook::Wait(Trigger::Early)
        }
    }

    /// Whether nobody is signed in.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Whether nobody else holds it, or watches it.
    #[inline]
    pub(crate) fn is_alone(self: &Arc<Self>) -> bool {
        let alone = Arc::strong_count(self) == 1;
        // What the last who held it did is seen from here on.
        fence(Ordering::Acquire);
        alone && self.rare.get().is_none_or(|rare| rare.watchers.receiver_count() == 0)
    }

    /// Whether its tokens outlive this process.
    pub(crate) fn is_durable(&self) -> bool {
        self.store.is_durable()
    }

    /// Whether nothing is lost with it, if nobody asks for it at this moment: nobody holds it, nothing is under way or
    /// to be remembered, and a store can bring it back, if there is anything to bring back.
    pub(crate) fn is_forgettable(self: &Arc<Self>) -> bool {
        self.is_alone() && (self.is_over() || self.is_durable()) && {
            let refused = Generation(self.refused.load(Ordering::Relaxed));
            self.snapshot().is_at_rest(refused, Instant::now())
        }
    }

    /// Why a request that was made in `epoch` and went out bare had no token.
    pub(crate) fn refusal(&self, epoch: Epoch) -> Option<NotRefreshed> {
        let state = self.snapshot();
        match state.demand(epoch, state.generation, Trigger::Acquire, self.needs_refresh_token(), Instant::now()) {
            Demand::Refused(why) => Some(why),
            _ => None,
        }
    }

    /// A request that no replay can follow was accepted with `generation`: that is as good as an accepted replay, unless
    /// one was refused.
    pub(crate) fn accepted(&self, generation: Generation) {
        if self.refused.load(Ordering::Relaxed) < generation.0 {
            self.replayed(generation, true);
        }
    }

    /// A replay with `generation` was answered.
    pub(crate) fn replayed(&self, generation: Generation, accepted: bool) {
        let newest = if accepted { &self.proven } else { &self.refused };
        // Looked at first, so that a thousand replays don't fight for the line.
        if newest.load(Ordering::Relaxed) < generation.0 {
            newest.fetch_max(generation.0, Ordering::Relaxed);
        }
    }

    /// Waits until newer tokens than `generation` are in force: at once if they are, by the flight that is up, or by
    /// one that is started. Dropping it at any point changes nothing for anybody else. `deadline`: of one who has waited
    /// before.
    pub(crate) async fn newer_than(
        self: Arc<Self>,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        mut deadline: Option<Instant>,
    ) -> Result<(), NotRefreshed> {
        loop {
            let flight = match self.board(epoch, generation, trigger).await {
                Boarding::Wait(flight) => flight,
                Boarding::Newer => return Ok(()),
                Boarding::Refused(why) => return Err(why),
            };
            // Reckoned once he has boarded: no earlier than the flight's clock begins, be it that he started it.
            let deadline = *deadline.get_or_insert_with(|| self.config.deadline());
            let _clock = flight.clock_for(deadline, &self.config.runtime);
            let outcome = match flight.landing(deadline).await {
                Landing::Landed(outcome) => outcome,
                Landing::Died => self.bury().await,
                Landing::GivenUp => Ok(()),
                Landing::Late => {
                    let late = RefreshError::in_doubt("no answer by the deadline");
                    return Err(NotRefreshed::Failed(Arc::new(late)));
                }
                Landing::Queued => {
                    let late = RefreshError::unavailable("too many other sessions are refreshing");
                    return Err(NotRefreshed::Failed(Arc::new(late)));
                }
            };
            let state = self.snapshot();
            if state.epoch != epoch {
                return match state.demand(epoch, generation, trigger, self.needs_refresh_token(), Instant::now()) {
                    Demand::Refused(why) => Err(why),
                    _ => Err(NotRefreshed::SessionChanged),
                };
            }
            outcome?;
            if state.has_newer_than(generation, trigger) {
                return Ok(());
            }
            if state.generation <= flight.generation {
                return Err(NotRefreshed::SameToken);
            }
            // The new tokens were refused already: the next are coming.
        }
    }

    /// The flight to wait for, or why there is none to wait for.
    async fn board(self: &Arc<Self>, epoch: Epoch, generation: Generation, trigger: Trigger) -> Boarding {
        if let Some(boarding) = self.board_unlocked(epoch, generation, trigger) {
            return boarding;
        }
        self.seated(move |cell, seat| cell.board_locked(seat, epoch, generation, trigger))
            .await
            .unwrap_or_else(|gone| Boarding::Refused(NotRefreshed::Failed(Arc::new(RefreshError::unavailable(gone)))))
    }

    /// For the many that come together, or late.
    fn board_unlocked(&self, epoch: Epoch, generation: Generation, trigger: Trigger) -> Option<Boarding> {
        let state = self.snapshot();
        match state.demand(epoch, generation, trigger, self.needs_refresh_token(), Instant::now()) {
            Demand::Newer => Some(Boarding::Newer),
            Demand::Refused(why @ (NotRefreshed::SessionChanged | NotRefreshed::Ended(_))) => {
                Some(Boarding::Refused(why))
            }
            Demand::Join if state.is_rejected() || trigger != Trigger::Challenge => {
                let seat = self.seat.try_read().ok()?;
                let flight = seat.flight.as_ref().filter(|flight| flight.is_up())?;
                Some(Boarding::Wait(flight.join()))
            }
            _ => None,
        }
    }

    /// Does something under the lock. A task queues for it where it isn't free: the lock is handed to the next in the
    /// queue, and a caller that is polled no longer, yet not dropped, would keep it from everybody for ever.
    async fn seated<T: Send + 'static>(
        self: &Arc<Self>,
        action: impl FnOnce(&Arc<Self>, &mut RwLockWriteGuard<'_, Seat>) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        if let Ok(mut seat) = self.seat.try_write() {
            return Ok(action(self, &mut seat));
        }
        let cell = Arc::clone(self);
        self.spawn(async move {
            let mut seat = cell.seat.write().await;
            action(&cell, &mut seat)
        })
        .await
    }

    fn board_locked(
        self: &Arc<Self>,
        seat: &mut RwLockWriteGuard<'_, Seat>,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
    ) -> Boarding {
        self.bury_locked(seat);
        let [proven, refused] = [&self.proven, &self.refused].map(|it| Generation(it.load(Ordering::Relaxed)));
        if trigger == Trigger::Challenge && self.snapshot().epoch == epoch {
            self.step(seat, Event::Challenged { generation, proven, refused });
        } else if trigger == Trigger::Early && self.snapshot().is_redeemed(proven) {
            self.step(seat, Event::Redeemed);
        }
        let demand = self.snapshot().demand(epoch, generation, trigger, self.needs_refresh_token(), Instant::now());
        match demand {
            Demand::Newer => Boarding::Newer,
            Demand::Refused(why) => Boarding::Refused(why),
            Demand::Join => {
                let flight = seat.flight.as_ref().expect("a state that says `Refreshing` was stepped to with a flight");
                Boarding::Wait(flight.join())
            }
            Demand::Start => {
                let base = self.step(seat, Event::Started);
                let flight = Flight::start(self, base, trigger);
                let boarding = Boarding::Wait(flight.join());
                seat.flight = Some(flight);
                boarding
            }
        }
    }

    /// Starts a refresh in the background, if the lock is free this moment. If not, the next request will do it.
    fn begin_early(self: &Arc<Self>) {
        if let Ok(mut seat) = self.seat.try_write() {
            let state = self.snapshot();
            let (epoch, generation) = (state.epoch, state.generation);
            drop(state);
            self.board_locked(&mut seat, epoch, generation, Trigger::Early);
        }
    }

    /// Settles a flight whose task is gone without having landed: it panicked, or its runtime shut down.
    async fn bury(self: &Arc<Self>) -> Result<(), NotRefreshed> {
        // Where the runtime is gone too, whoever boards next will do it.
        let _ = self.seated(Self::bury_locked).await;
        Err(NotRefreshed::Failed(Arc::new(RefreshError::in_doubt("the refresh task died"))))
    }

    fn bury_locked(self: &Arc<Self>, seat: &mut RwLockWriteGuard<'_, Seat>) {
        let state = Arc::clone(&self.snapshot());
        // Where there is none it was never begun: what subscribes to spans is anybody's code, and may panic.
        if state.phase == Phase::Refreshing && !seat.flight.as_ref().is_some_and(|flight| flight.is_up()) {
            let error = Arc::new(RefreshError::in_doubt("the refresh task died"));
            self.step(seat, Event::Failed { epoch: state.epoch, error, in_doubt: true });
        }
    }

    /// Changes the state as a flight, or the store, says.
    pub(super) async fn change(self: &Arc<Self>, event: Event) -> Arc<State> {
        let mut seat = self.seat.write().await;
        self.step(&mut seat, event)
    }

    /// The only place where the state changes. What the step asks for is begun in tasks of its own.
    fn step(self: &Arc<Self>, seat: &mut RwLockWriteGuard<'_, Seat>, event: Event) -> Arc<State> {
        let ends = matches!(event, Event::Rejected { .. });
        let state = Arc::clone(&self.snapshot());
        let (next, effect) = state.step(event, At::now());
        let next = Arc::new(next);
        self.publish(&next);
        // Who waits for it has a share of his own. Kept, what it leaves behind would stay for as long as the session.
        if next.phase != Phase::Refreshing && next.epoch == state.epoch {
            seat.flight = None;
        }
        if ends && next.phase == Phase::Ended {
            tracing::info!(target: TARGET, generation = next.generation.0, "session ended");
        }
        match effect {
            Effect::Nothing => {}
            Effect::Sync => self.save_in_background(),
            Effect::Discard(tokens) => self.revoke_in_background(tokens),
        }
        // Nobody is kept waiting in another epoch.
        if next.epoch != state.epoch
            && let Some(flight) = seat.flight.take()
        {
            flight.give_up();
        }
        next
    }

    fn publish(&self, state: &Arc<State>) {
        self.published.store(Arc::clone(state));
        self.over.store(state.is_over(), Ordering::Release);
        // After it: who reads the new number finds the new state.
        self.revision.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Some(rare) = self.rare.get() {
            notify(&rare.watchers, SessionState::of(state));
        }
    }

    /// Wakes the task that retries what the store would not take.
    pub(super) fn more_to_save(&self) -> &Notify {
        &self.rare().more_to_save
    }

    /// When tokens are to be refreshed early, if the session does that.
    pub(super) fn due(&self, tokens: &Tokens) -> Option<Due> {
        self.config.due(tokens, At::now())
    }

    /// Carries something out, whoever goes away.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.config.spawn(task)
    }

    /// Until when anybody waits who begins now.
    pub(crate) fn deadline(&self) -> Instant {
        self.config.deadline()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.config.runtime
    }

    pub(crate) fn needs_refresh_token(&self) -> bool {
        !self.config.client_credentials
    }

    /// Takes the tokens at once, then stores them. On an error they are in force all the same, and the write is
    /// retried.
    pub(crate) async fn sign_in(self: Arc<Self>, tokens: Tokens) -> Result<(), SessionError> {
        let due = self.due(&tokens);
        self.change(Event::SignedIn { next: Epoch::random(), tokens, due }).await;
        self.save().await
    }

    /// Stores what was signed in with. On an error the write is retried.
    pub(crate) async fn save(self: Arc<Self>) -> Result<(), SessionError> {
        self.sync_or_retry().await.map_err(SessionError::store)
    }

    /// Forgets the tokens at once, then has them deleted and revoked.
    pub(crate) async fn sign_out(self: Arc<Self>) -> Result<(), SessionError> {
        let tokens = self.forget(None).await.unwrap_or_default();
        let (cleared, revoked) = join(self.sync_or_retry(), Arc::clone(&self).revoke(tokens)).await;
        cleared.map_err(SessionError::store)?;
        revoked.map_err(SessionError::revoke)
    }

    /// The first part of a sign-out: what is left is to [`save`](Self::save) it, and to revoke the tokens. `None` if it
    /// was asked for since it was last used `unused`: whoever signs in again asks for it first.
    pub(crate) async fn forget(self: &Arc<Self>, unused: Option<u32>) -> Option<Tokens> {
        let mut seat = self.seat.write().await;
        if unused.is_some_and(|then| self.used.load(Ordering::Relaxed) != then) {
            return None;
        }
        let tokens = self.snapshot().tokens.clone();
        self.step(&mut seat, Event::SignedOut { next: Epoch::random() });
        Some(tokens)
    }

    pub(super) fn revoke_in_background(self: &Arc<Self>, tokens: Tokens) {
        self.spawn(Arc::clone(self).revoke(tokens));
    }

    pub(super) async fn revoke(self: Arc<Self>, tokens: Tokens) -> Result<(), BoxError> {
        self.marked(self.config.revoke(tokens)).await
    }
}

impl At {
    fn now() -> Self {
        Self { now: Instant::now(), roll: fastrand::f64() }
    }
}

impl Config {
    /// Until when anybody waits for newer tokens who begins now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.refresh_timeout + SAVE_TIMEOUT
    }

    /// How long a claim holds when it is renewed, for as long as its tokens can't be saved.
    pub(super) fn lease(&self) -> Duration {
        self.refresh_timeout + 60 * SAVE_TIMEOUT
    }

    /// Carries something out, whoever goes away. It is under way from now on: a shutdown should wait for it.
    pub(crate) fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let under_way = self.traffic.as_ref().map(Traffic::begin);
        // An `async` block around it would hold it twice: as what it caught, and as what it awaits.
        self.runtime.spawn(task.inspect(|_| drop(under_way)))
    }

    /// Tells the authorization server to forget tokens, where there is a service for it.
    pub(crate) async fn revoke(&self, tokens: Tokens) -> Result<(), BoxError> {
        let Some(revoke) = self.revoke.clone().filter(|_| tokens != Tokens::default()) else { return Ok(()) };
        // A service that panicked is dropped here and never called again, so nothing sees it half-way.
        let call = AssertUnwindSafe(revoke.oneshot(RevokeRequest { tokens })).catch_unwind();
        let revoked = match tokio::time::timeout(self.refresh_timeout, call).await {
            Ok(Ok(revoked)) => revoked,
            Ok(Err(_panic)) => Err("the revoke service panicked".into()),
            Err(elapsed) => Err(elapsed.into()),
        };
        if revoked.is_err() {
            tracing::warn!(target: TARGET, "tokens not revoked");
        }
        revoked
    }

    pub(crate) fn due(&self, tokens: &Tokens, at: At) -> Option<Due> {
        let window = self.refresh_early?;
        let lifetime = tokens.expires_at()?.duration_since(SystemTime::now()).unwrap_or_default();
        Some(Due::before_expiry(lifetime, window, at))
    }
}

/// Tells those who watch. Their wakers are anybody's code: one that panics is no reason to stop half-way.
fn notify(watchers: &watch::Sender<SessionState>, state: SessionState) {
    let tell = || {
        watchers.send_if_modified(|seen| {
            let changed = *seen != state;
            *seen = state;
            changed
        })
    };
    let _ = catch_unwind(AssertUnwindSafe(tell));
}
