//! One refresh under way: a task that claims, calls, saves and publishes, and what all its waiters share.
//!
//! The task owns the whole of it, so that a rotated token is never lost to a waiter that goes away. Once its turn has
//! come it ends by its time-out, plus the time that a store may take to save what was bought.
//!
//! Each waiter has a deadline of his own, whether or not its turn has come. One clock wakes them all to look whether
//! theirs is near; who has waited before brings one of his own. A timer each would cost them more than all the rest of
//! waiting.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tower::ServiceExt;
use tower_service::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::cell::TokenCell;
use super::pace;
use super::state::{Event, State, Stored};
use super::sync::{SAVE_TIMEOUT, bounded, shielded};
use crate::TARGET;
use crate::alarm::Alarm;
use crate::announcement::Announcement;
use crate::refresh::{Generation, NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, Trigger};
use crate::store::{Claim, ClaimOutcome, CommitOutcome, Epoch, Presented, Record, StoreError, StoreFuture};
use crate::token::Tokens;

/// How often to look whether the process that holds the claim is done.
const CLAIM_POLL: Duration = Duration::from_millis(200);

/// How often at most, whatever a store with a clock of its own says about the end of his lease.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// How long a claim holds from when the refresh token was rejected: enough to look at the record and delete it. Who dies
/// in between leaves the user waiting for as long.
const END_LEASE: Duration = Duration::from_secs(15);

/// How much longer than it needs a claim's lease lasts, for clocks and stores that are slow.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// How often the clock ticks once anybody's time may be over. Who has less than two ticks left waits no longer.
const TICK: Duration = Duration::from_millis(500);

/// A refresh that is under way, or over.
pub(super) struct Flight {
    /// What it is to replace.
    pub(super) generation: Generation,
    landing: Announcement<Landing>,
    /// When the clock first rings: as soon as the time of the first waiter is over.
    clock_from: Instant,
    /// Its turn has come, among all the sessions that share a limit.
    begun: AtomicBool,
    waiters: AtomicU32,
}

/// What a flight brought: newer tokens in force, or the reason why not.
type Outcome = Result<(), NotRefreshed>;

/// How a flight ended, for those who wait for it.
#[derive(Clone)]
pub(super) enum Landing {
    /// It settled the state and says how.
    Landed(Outcome),
    /// Its task panicked or was aborted: the state still says that it is up.
    Died,
    /// It may go on, but its epoch is over.
    GivenUp,
    /// It may go on, but the waiter's time is over.
    Late,
    /// The same, and its turn has not come yet.
    Queued,
}

impl Flight {
    /// Starts the refresh of `base`, in a task of its own.
    pub(super) fn start(cell: &Arc<TokenCell>, base: Arc<State>, trigger: Trigger) -> Arc<Self> {
        let span = tracing::info_span!(
            target: TARGET, parent: None, "refresh",
            generation = base.generation.0, trigger = trigger.as_str(),
            attempts = Empty, outcome = Empty, waiters = Empty, duration_ms = Empty,
        );
        span.follows_from(Span::current());
        let flight = Arc::new(Self {
            generation: base.generation,
            landing: Announcement::new(),
            clock_from: cell.config.deadline(),
            begun: AtomicBool::new(false),
            waiters: AtomicU32::new(0),
        });
        let [ours, the_clocks] = [(); 2].map(|()| Lifeline(Arc::clone(&flight)));
        let tick = move || the_clocks.0.landing.ring();
        let clock = Alarm::calling(&cell.config.runtime, flight.clock_from, TICK, tick);
        cell.spawn(Task::new(Arc::clone(cell), base, trigger).run(ours, clock).instrument(span));
        flight
    }

    /// One more waiter.
    pub(super) fn join(self: &Arc<Self>) -> Arc<Self> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        Arc::clone(self)
    }

    /// Waits until it is over, or the waiter's time is.
    pub(super) async fn landing(&self, deadline: Instant) -> Landing {
        self.landing.heard_unless(|| is_near(deadline)).await.map_or_else(|| self.late(), Landing::clone)
    }

    /// A clock for one who waited for something else before: for him the flight's own begins too late.
    pub(super) fn clock_for(self: &Arc<Self>, deadline: Instant, runtime: &Handle) -> Option<Alarm> {
        (deadline < self.clock_from && !is_near(deadline)).then(|| {
            let flight = Arc::clone(self);
            Alarm::calling(runtime, deadline, TICK, move || flight.landing.ring())
        })
    }

    fn late(&self) -> Landing {
        if self.begun.load(Ordering::Relaxed) { Landing::Late } else { Landing::Queued }
    }

    /// Sends its waiters away. The task goes on: what it buys has to be revoked.
    pub(super) fn give_up(&self) {
        self.landing.make(Landing::GivenUp);
    }

    /// Whether it is still to end. One that isn't while the state says that it is has died.
    pub(super) fn is_up(&self) -> bool {
        !self.landing.is_made()
    }
}

/// Whether somebody's time to wait is over, or so near to its end that the clock may not tick in it again.
pub(crate) fn is_near(deadline: Instant) -> bool {
    Instant::now() + 2 * TICK > deadline
}

/// Held by a flight's task and by its clock, which a runtime that shuts down ends in any order. If one is dropped before
/// the flight has landed, it has died.
struct Lifeline(Arc<Flight>);

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.0.landing.make(Landing::Died);
    }
}

/// The flight's task.
struct Task {
    cell: Arc<TokenCell>,
    /// The state that the flight was started from.
    base: Arc<State>,
    /// The tokens to replace: the base's, or what a peer stored since.
    tokens: Tokens,
    trigger: Trigger,
    attempts: u32,
}

/// How a flight ends without tokens of its own.
enum Grounded {
    /// The session has newer tokens already.
    Overtaken,
    /// The store holds a peer's tokens.
    Adopted(Record),
    /// The store holds nothing: a peer signed out.
    Vanished,
    /// The refresh token was rejected, and the store knows no newer one.
    Rejected(RefreshError),
    /// It failed in a way that keeps the tokens.
    Failed { error: RefreshError, in_doubt: bool },
}

impl Grounded {
    fn unavailable(error: RefreshError) -> Self {
        Self::Failed { error, in_doubt: false }
    }
}

impl Task {
    fn new(cell: Arc<TokenCell>, base: Arc<State>, trigger: Trigger) -> Self {
        Self { cell, tokens: base.tokens.clone(), base, trigger, attempts: 0 }
    }

    async fn run(self, lifeline: Lifeline, _clock: Alarm) {
        let outcome = self.fly_in_turn(&lifeline.0).await;
        lifeline.0.landing.make(Landing::Landed(outcome));
    }

    async fn fly_in_turn(mut self, flight: &Flight) -> Outcome {
        let config = Arc::clone(&self.cell.config);
        let _turn = match &config.traffic {
            Some(traffic) => Some(traffic.turn().await),
            None => None,
        };
        flight.begun.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        let outcome = self.fly(begun + config.refresh_timeout).await;
        let span = Span::current();
        span.record("attempts", self.attempts);
        span.record("outcome", outcome.as_ref().map_or_else(NotRefreshed::as_str, |()| "refreshed"));
        span.record("waiters", flight.waiters.load(Ordering::Relaxed));
        span.record("duration_ms", u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        outcome
    }

    /// The whole of a refresh: claim, call, save, publish.
    async fn fly(&mut self, deadline: Instant) -> Outcome {
        // While it waited for its turn.
        if self.cell.snapshot().epoch != self.base.epoch {
            return Err(NotRefreshed::SessionChanged);
        }
        let claim = match self.claim(deadline).await {
            Ok(claim) => claim,
            Err(grounded) => return self.land(grounded).await,
        };
        match self.buy(&claim, deadline).await {
            Ok(tokens) => self.save_and_publish(claim, tokens).await,
            Err(grounded) => {
                self.release(&claim, &grounded).await;
                self.land(grounded).await
            }
        }
    }

    /// Earns the right to present the refresh token, or finds that somebody else has presented it.
    async fn claim(&mut self, deadline: Instant) -> Result<Claim, Grounded> {
        if !matches!(self.base.stored, Stored::Clean(_)) {
            self.save_first(deadline).await?;
        }
        let Stored::Clean(Some(mut version)) = self.base.stored else {
            let error = RefreshError::unavailable("the session has no record in its store");
            return Err(Grounded::unavailable(error));
        };
        let cell = Arc::clone(&self.cell);
        loop {
            let lease = deadline.saturating_duration_since(Instant::now()) + SAVE_TIMEOUT + LEASE_MARGIN;
            match until(deadline, || cell.store.claim(version, lease)).await? {
                ClaimOutcome::Claimed(claim) => return Ok(claim),
                ClaimOutcome::Busy { until } => {
                    let now = Instant::now();
                    let look_again = until.clamp(now + CLAIM_PAUSE, now + CLAIM_POLL);
                    if look_again >= deadline {
                        let error = RefreshError::unavailable("somebody else is refreshing this session");
                        return Err(Grounded::unavailable(error));
                    }
                    sleep_until(look_again).await;
                }
                ClaimOutcome::Changed(None) => return Err(Grounded::Vanished),
                ClaimOutcome::Changed(Some(record)) if self.is_news(&record) => return Err(Grounded::Adopted(record)),
                // A peer's tokens, no better than ours: go on from them.
                ClaimOutcome::Changed(Some(record)) => {
                    version = record.version;
                    self.tokens = record.tokens;
                }
            }
        }
    }

    /// Tokens that the store would not take have to be in it before their refresh token may be claimed: who presents
    /// it and dies must not leave an older one behind.
    async fn save_first(&mut self, deadline: Instant) -> Result<(), Grounded> {
        let cell = Arc::clone(&self.cell);
        until(deadline, || Box::pin(cell.sync())).await?;
        let state = Arc::clone(&self.cell.snapshot());
        if (state.epoch, state.generation) != (self.base.epoch, self.base.generation) {
            return Err(Grounded::Overtaken);
        }
        self.tokens = state.tokens.clone();
        self.base = state;
        Ok(())
    }

    /// Whether a record that a peer wrote spares us the call.
    fn is_news(&self, record: &Record) -> bool {
        let expired = record.tokens.expires_at().is_some_and(|expiry| expiry <= SystemTime::now());
        let same = record.tokens.access_token() == self.base.tokens.access_token();
        record.epoch != self.base.epoch || !(expired || same)
    }

    /// Calls the refresh service, again where the failure allows it.
    async fn buy(&mut self, claim: &Claim, deadline: Instant) -> Result<Tokens, Grounded> {
        let first = Instant::now();
        // The doubt is about one refresh token, not about the one that a peer has stored since.
        let same = self.tokens.refresh_token() == self.base.tokens.refresh_token();
        let marked = claim.in_doubt || self.base.in_doubt && same;
        let mut in_doubt = false;
        loop {
            self.attempts += 1;
            let error = match self.call(marked || in_doubt, deadline).await {
                Ok(tokens) => return Ok(tokens.completed_from(&self.tokens)),
                Err(error) => error,
            };
            tracing::debug!(target: TARGET, attempt = self.attempts, kind = error.kind().as_str(), "refresh attempt failed");
            let retry_after = match error.kind() {
                RefreshErrorKind::Rejected => return Err(self.rejected(claim, error, in_doubt).await),
                RefreshErrorKind::Misconfigured => return Err(Grounded::Failed { error, in_doubt }),
                RefreshErrorKind::Unavailable => error.retry_after(),
                RefreshErrorKind::InDoubt => {
                    in_doubt = true;
                    None
                }
            };
            let again = Instant::now() + pace::backoff(self.attempts, retry_after, fastrand::f64());
            let allowed = !in_doubt || self.cell.config.rotation.allows(again - first);
            if !allowed || self.attempts >= pace::ATTEMPTS || again >= deadline {
                return Err(Grounded::Failed { error, in_doubt });
            }
            sleep_until(again).await;
        }
    }

    /// One attempt. Past the deadline it is in doubt, unless the service never got ready to be called.
    async fn call(&self, in_doubt: bool, deadline: Instant) -> Result<Tokens, RefreshError> {
        let request = RefreshRequest {
            tokens: self.tokens.clone(),
            generation: self.base.generation,
            trigger: self.trigger,
            in_doubt,
        };
        let mut service = self.cell.config.refresh.clone();
        let presented = &mut false;
        let attempt = async {
            service.ready().await.map_err(RefreshError::classify_unsent)?;
            if self.cell.snapshot().epoch != self.base.epoch {
                return Err(RefreshError::unavailable("somebody signed in or out meanwhile"));
            }
            *presented = true;
            service.call(request).await.map_err(RefreshError::classify)
        };
        // A service that panicked is dropped here and never called again, so nothing sees it half-way.
        let attempt = AssertUnwindSafe(self.cell.marked(attempt)).catch_unwind();
        let tokens = match timeout_at(deadline, attempt).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_panic)) => return Err(RefreshError::in_doubt("the refresh service panicked")),
            Err(elapsed) if *presented => return Err(RefreshError::in_doubt(elapsed)),
            Err(elapsed) => return Err(RefreshError::unavailable(elapsed)),
        };
        if tokens.access_token().is_none() {
            return Err(RefreshError::in_doubt("the answer holds no access token"));
        }
        Ok(tokens)
    }

    /// The server's word is final, unless a peer has presented the token before us, or is about to: then it may have
    /// bought newer ones with it.
    async fn rejected(&self, claim: &Claim, error: RefreshError, in_doubt: bool) -> Grounded {
        // Without that, what an earlier attempt left in doubt stays so. The rejection itself leaves no doubt: the server
        // has said that this presentation used nothing up, so whoever presents the token again needs no mark.
        let unknown = |error| Grounded::Failed { error, in_doubt };
        let cell = &self.cell;
        // A process that was suspended for longer than its lease comes back to find that a peer has taken over.
        let held = match bounded(|| cell.store.renew(claim, END_LEASE)).await {
            // What it stored meanwhile, if anything, is read after that.
            Ok(held) => bounded(|| cell.store.load()).await.map(|found| (held, found)),
            Err(error) => Err(error),
        };
        match held {
            Ok((_, None)) => Grounded::Vanished,
            Ok((_, Some(record))) if record.version != claim.version => Grounded::Adopted(record),
            Ok((true, Some(_))) => Grounded::Rejected(error),
            Ok((false, Some(_))) => unknown(RefreshError::unavailable("somebody else is refreshing this session")),
            // Not to be known: keep the tokens.
            Err(error) => unknown(RefreshError::unavailable(error)),
        }
    }

    /// Gives the claim back, so that peers need not wait for the end of its lease.
    async fn release(&self, claim: &Claim, grounded: &Grounded) {
        let presented = match grounded {
            Grounded::Failed { in_doubt: true, .. } => Presented::InDoubt,
            Grounded::Failed { in_doubt: false, .. } => Presented::Unused,
            _ => return,
        };
        if bounded(|| self.cell.store.release(claim, presented)).await.is_err() {
            tracing::debug!(target: TARGET, "claim not released");
        }
    }

    /// Settles a flight that brought no tokens of its own.
    async fn land(&self, grounded: Grounded) -> Outcome {
        let epoch = self.base.epoch;
        let (event, outcome) = match grounded {
            Grounded::Overtaken => (Event::Landed { epoch }, Ok(())),
            Grounded::Adopted(record) => {
                let due = self.cell.due(&record.tokens);
                (Event::Adopted { epoch, record, due, landed: true }, Ok(()))
            }
            Grounded::Vanished => (Event::Vanished { epoch, next: Epoch::random() }, Err(NotRefreshed::SignedOut)),
            Grounded::Rejected(error) => {
                let error = Arc::new(error);
                let event = Event::Rejected { epoch, error: Arc::clone(&error), next: Epoch::random() };
                (event, Err(NotRefreshed::Ended(error)))
            }
            Grounded::Failed { error, in_doubt } => {
                let error = Arc::new(error);
                let event = Event::Failed { epoch, error: Arc::clone(&error), in_doubt };
                (event, Err(NotRefreshed::Failed(error)))
            }
        };
        self.cell.change(event).await;
        outcome
    }

    /// Stores what was bought, then puts it in force; whatever the store does, within a bounded time.
    async fn save_and_publish(&self, claim: Claim, tokens: Tokens) -> Outcome {
        // What has expired when it is issued has not: one of both clocks is wrong. The API will say when. A peer would
        // take it for expired too, and present the refresh token instead of adopting it.
        let tokens = tokens.unless_expired_at(SystemTime::now());
        let epoch = self.base.epoch;
        let signed_out = self.cell.snapshot().epoch != epoch;
        let commit = if signed_out { None } else { Some(bounded(|| self.cell.store.commit(&claim, &tokens)).await) };
        let stored = match commit {
            // Discarded in the next step.
            None => Stored::Clean(None),
            Some(Ok(CommitOutcome::Stored(version))) => Stored::Clean(Some(version)),
            Some(Ok(CommitOutcome::Conflict(found))) => {
                self.cell.yield_to(epoch, tokens, found, true).await;
                return Ok(());
            }
            Some(Err(_)) => {
                tracing::warn!(target: TARGET, "tokens not saved");
                Stored::Unsaved(Arc::new(claim))
            }
        };
        // Nor has what expired while it was saved, for all that is known.
        let due = self.cell.due(&tokens).filter(|due| due.expired > Instant::now());
        self.cell.change(Event::Refreshed { epoch, tokens, stored, due }).await;
        Ok(())
    }
}

/// A call to the store that the flight's deadline bounds.
async fn until<'a, T>(deadline: Instant, call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, Grounded> {
    let answer = match timeout_at(deadline, shielded(call)).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(StoreError::new(elapsed)),
    };
    answer.map_err(|error| Grounded::unavailable(RefreshError::unavailable(error)))
}
