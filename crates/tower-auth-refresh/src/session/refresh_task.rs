//! The refresh task: claim, call, save, publish. [`start`] runs it.
//!
//! The task owns the whole refresh, so that a rotated token is never lost to a caller that is dropped. Once it has its
//! permit it ends by the refresh time-out, plus the time that the store may take to save the new tokens.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tower::ServiceExt;
use tower_service::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::backoff;
use super::cell::TokenCell;
use super::flight::{CompletionGuard, Flight, Outcome};
use super::held_claim::{HeldClaim, LEASE};
use super::recheck::expire_before_a_replay;
use super::state::{Event, State, Stored};
use super::store_call::{bounded, bounded_by};
use super::store_sync::ClaimedByPeer;
use crate::TARGET;
use crate::random;
use crate::refresh::{NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, Trigger};
use crate::store::{Claim, ClaimOutcome, CommitOutcome, Entry, Epoch, Presented, Record, StoreFuture, Version};
use crate::timer::Ticker;
use crate::token::{RefreshToken, Tokens};

/// The pause between two looks at a claim that another process holds.
const CLAIM_POLL: Duration = Duration::from_millis(200);

/// The shortest such pause, whatever the store says about the end of the lease.
const SHORTEST_CLAIM_POLL: Duration = Duration::from_millis(10);

/// Starts the refresh of `base` in a task of its own.
pub(super) fn start(cell: &Arc<TokenCell>, base: Arc<State>, trigger: Trigger) -> Arc<Flight> {
    let span = tracing::info_span!(
        target: TARGET, parent: None, "refresh",
        generation = base.generation.0, trigger = trigger.as_str(),
        attempts = Empty, outcome = Empty, waiters = Empty, duration_ms = Empty,
    );
    span.follows_from(Span::current());
    let flight = Flight::new(base.generation, cell.deadline());
    let guard = CompletionGuard(Arc::clone(&flight));
    let clock = flight.start_clock(cell.runtime());
    let (tokens, place) = (base.tokens.clone(), base.place);
    let task = RefreshTask { cell: Arc::clone(cell), base, tokens, place, trigger, attempts: 0 };
    cell.spawn(task.run(guard, clock).instrument(span));
    flight
}

struct RefreshTask {
    cell: Arc<TokenCell>,
    /// The state that the flight was started from.
    base: Arc<State>,
    /// The tokens to be replaced: the base's, or those that another process has stored since.
    tokens: Tokens,
    /// Their number within the epoch.
    place: u64,
    trigger: Trigger,
    attempts: u32,
}

/// The end of a refresh without new tokens of its own.
enum RefreshAborted {
    /// The session has newer tokens already.
    Overtaken,
    /// The store holds another process's tokens.
    Adopted(Record),
    /// The store holds no record: another process signed the user out.
    RecordGone,
    /// The refresh token was rejected, and the store holds no newer one.
    Rejected(RefreshError),
    /// The refresh failed in a way that keeps the tokens.
    Failed { error: RefreshError, in_doubt: bool },
}

impl RefreshAborted {
    fn unavailable(error: RefreshError) -> Self {
        Self::Failed { error, in_doubt: false }
    }
}

impl RefreshTask {
    async fn run(self, guard: CompletionGuard, _clock: Ticker) {
        let outcome = self.refresh_with_permit(&guard.0).await;
        guard.0.finish(outcome);
    }

    async fn refresh_with_permit(mut self, flight: &Flight) -> Outcome {
        let config = Arc::clone(&self.cell.config);
        let _permit = match &config.limiter {
            Some(limiter) => Some(limiter.permit().await),
            None => None,
        };
        flight.grant_permit();
        let begun = Instant::now();
        let outcome = self.refresh(begun + config.refresh_timeout).await;
        let span = Span::current();
        span.record("attempts", self.attempts);
        span.record("outcome", outcome.as_ref().map_or_else(NotRefreshed::as_str, |()| "refreshed"));
        span.record("waiters", flight.waiters());
        span.record("duration_ms", u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        outcome
    }

    /// Runs the whole refresh: claim, call, save, publish.
    async fn refresh(&mut self, deadline: Instant) -> Outcome {
        // A user may have signed in or out while the task waited for its permit.
        if self.cell.snapshot().epoch != self.base.epoch {
            return Err(NotRefreshed::SessionChanged);
        }
        if let Some(ended) = self.cell.end_if_past_its_end().await {
            return Err(ended);
        }
        let claim = match self.claim(deadline).await {
            Ok(claim) => claim,
            Err(aborted) => return self.settle(aborted).await,
        };
        let cell = Arc::clone(&self.cell);
        let requested = claim.renewed_during(&*cell.store, self.request_tokens(&claim, deadline)).await;
        let claim = claim.into_claim();
        match requested {
            Ok(tokens) => self.save_and_publish(claim, tokens).await,
            Err(RefreshAborted::Failed { error, in_doubt }) => {
                let in_doubt = if let Some(token) = error.refresh_token() {
                    if !self.salvage(claim, token.clone()).await {
                        return Ok(());
                    }
                    false
                } else {
                    self.release(&claim, in_doubt).await;
                    in_doubt
                };
                self.settle(RefreshAborted::Failed { error, in_doubt }).await
            }
            Err(aborted) => self.settle(aborted).await,
        }
    }

    /// Claims the refresh token, or finds the tokens that another process has stored.
    async fn claim(&mut self, deadline: Instant) -> Result<HeldClaim, RefreshAborted> {
        if !matches!(self.base.stored, Stored::Clean(_)) {
            self.save_first(deadline).await?;
        }
        let Stored::Clean(Some(mut version)) = self.base.stored.clone() else {
            let error = RefreshError::unavailable("the session has no record in its store");
            return Err(RefreshAborted::unavailable(error));
        };
        let cell = Arc::clone(&self.cell);
        loop {
            let asked = Instant::now();
            let outcome = match within(deadline, || cell.store.claim(&version, LEASE)).await? {
                ClaimOutcome::Changed(found) => ClaimOutcome::Changed(cell.unless_ended(found)),
                outcome => outcome,
            };
            match outcome {
                ClaimOutcome::Claimed(claim) => return Ok(HeldClaim::new(claim, asked)),
                ClaimOutcome::Busy { retry_in } => {
                    let look_again = Instant::now() + retry_in.clamp(SHORTEST_CLAIM_POLL, CLAIM_POLL);
                    if look_again >= deadline {
                        let error = RefreshError::unavailable("another process is refreshing this session");
                        return Err(RefreshAborted::unavailable(error));
                    }
                    sleep_until(look_again).await;
                }
                ClaimOutcome::Changed(None) => return Err(RefreshAborted::RecordGone),
                // Newer tokens than the state's, which another process had stored before the store lost them.
                ClaimOutcome::Changed(Some(record)) if self.is_older(&record) && self.place > self.base.place => {
                    if let Some(written) = self.write_over(&record, deadline).await? {
                        version = written;
                    } else if Instant::now() + CLAIM_POLL < deadline {
                        sleep(CLAIM_POLL).await;
                    } else {
                        let error = RefreshError::unavailable("another process has claimed an older record");
                        return Err(RefreshAborted::unavailable(error));
                    }
                }
                ClaimOutcome::Changed(Some(record)) if self.is_older(&record) => {
                    let (epoch, found) = (self.base.epoch, record.version().clone());
                    cell.change(Event::StoreWentBack { epoch, version: found }).await;
                    self.save_first(deadline).await?;
                    let Stored::Clean(Some(written)) = &self.base.stored else {
                        let error = RefreshError::unavailable("the session has no record in its store");
                        return Err(RefreshAborted::unavailable(error));
                    };
                    version = written.clone();
                }
                ClaimOutcome::Changed(Some(record)) if self.is_worth_adopting(&record) => {
                    return Err(RefreshAborted::Adopted(record));
                }
                // Another process's tokens, no better than ours: go on from them.
                ClaimOutcome::Changed(Some(record)) => {
                    version = record.version().clone();
                    self.place = record.generation();
                    self.tokens = record.into_tokens();
                }
            }
        }
    }

    /// Saves tokens that the store has failed to take. They must be stored before their refresh token is claimed: if the
    /// process dies after presenting it, the store must not hold an older one.
    async fn save_first(&mut self, deadline: Instant) -> Result<(), RefreshAborted> {
        let cell = Arc::clone(&self.cell);
        while let Err(error) = bounded_by(deadline, || Box::pin(cell.sync())).await {
            // Perhaps the claim is that of a process that writes the same tokens back.
            if !error.is::<ClaimedByPeer>() || Instant::now() + CLAIM_POLL >= deadline {
                return Err(RefreshAborted::unavailable(RefreshError::unavailable(error)));
            }
            sleep(CLAIM_POLL).await;
        }
        let state = Arc::clone(&self.cell.snapshot());
        if (state.epoch, state.generation) != (self.base.epoch, self.base.generation) {
            return Err(RefreshAborted::Overtaken);
        }
        self.tokens = state.tokens.clone();
        self.place = state.place;
        self.base = state;
        Ok(())
    }

    /// Writes the tokens of this refresh over an older record. Returns `None` if the record has changed or is claimed.
    async fn write_over(&self, older: &Record, deadline: Instant) -> Result<Option<Version>, RefreshAborted> {
        let store = &self.cell.store;
        let ClaimOutcome::Claimed(claim) = within(deadline, || store.claim(older.version(), LEASE)).await? else {
            return Ok(None);
        };
        let entry = self.cell.with_ends(self.base.entry_of(self.place, self.tokens.clone()));
        match within(deadline, || store.commit(&claim, &entry)).await? {
            CommitOutcome::Stored(version) => Ok(Some(version)),
            CommitOutcome::Conflict(_) => Ok(None),
        }
    }

    /// Returns `true` if a record of the same epoch is older than the tokens that this refresh presents: its store has
    /// lost writes.
    fn is_older(&self, record: &Record) -> bool {
        record.epoch() == self.base.epoch && record.generation() < self.place
    }

    /// Returns `true` if a record that another process wrote makes the refresh call unnecessary.
    fn is_worth_adopting(&self, record: &Record) -> bool {
        let same = record.tokens().access_token() == self.base.tokens.access_token();
        record.epoch() != self.base.epoch || !(expire_before_a_replay(record.tokens()) || same)
    }

    /// Calls the refresh service, and repeats the call where the failure allows it.
    async fn request_tokens(&mut self, held: &HeldClaim, deadline: Instant) -> Result<Tokens, RefreshAborted> {
        let first = Instant::now();
        // The doubt is about the base's refresh token, not about one that another process has stored since.
        let same = self.tokens.refresh_token() == self.base.tokens.refresh_token();
        let claim = held.claim();
        let marked = claim.is_in_doubt() || self.base.in_doubt && same;
        let mut in_doubt = false;
        loop {
            self.attempts += 1;
            let error = match self.call(held, marked || in_doubt, deadline).await {
                Ok(tokens) => return Ok(tokens.completed_from(&self.tokens)),
                Err(error) => error,
            };
            tracing::debug!(target: TARGET, attempt = self.attempts, kind = error.kind().as_str(), "refresh attempt failed");
            match error.kind() {
                RefreshErrorKind::Rejected => return Err(self.rejected(claim, error, in_doubt).await),
                RefreshErrorKind::Misconfigured | RefreshErrorKind::LifetimeOver => {
                    return Err(RefreshAborted::Failed { error, in_doubt });
                }
                RefreshErrorKind::Unavailable => {}
                RefreshErrorKind::InDoubt => in_doubt = true,
            }
            let again = Instant::now() + backoff::backoff(self.attempts, error.retry_after(), random::fraction());
            // A refresh token that the failed call issued is saved first, by the end of this flight.
            let may_retry = error.may_retry() && error.refresh_token().is_none();
            let is_allowed = may_retry && (!in_doubt || self.cell.config.rotation.allows(again - first));
            if !is_allowed || self.attempts >= backoff::ATTEMPTS || again >= deadline {
                return Err(RefreshAborted::Failed { error, in_doubt });
            }
            sleep_until(again).await;
        }
    }

    /// Makes one attempt. If the deadline passes it is in doubt, unless the service was never ready to be called.
    async fn call(&self, held: &HeldClaim, in_doubt: bool, deadline: Instant) -> Result<Tokens, RefreshError> {
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
                return Err(RefreshError::unavailable("the session was signed in or out meanwhile"));
            }
            // A process may have been stopped for longer than its lease: another one may have presented the token meanwhile.
            if !held.holds() {
                return Err(RefreshError::unavailable("another process may have taken the claim over"));
            }
            if Instant::now() >= deadline {
                return Err(RefreshError::unavailable("the time for the refresh is over"));
            }
            *presented = true;
            service.call(request).await.map_err(RefreshError::classify)
        };
        // A service that panicked is dropped and never called again, so its broken state is never seen.
        let attempt = AssertUnwindSafe(TokenCell::marked(self.cell.id(), attempt)).catch_unwind();
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

    /// Takes a rejection as final, unless another process has presented the token before, or is about to: it may then
    /// have obtained newer ones.
    async fn rejected(&self, claim: &Claim, error: RefreshError, in_doubt: bool) -> RefreshAborted {
        // Otherwise a doubt that an earlier attempt left remains. The rejection itself leaves none: the server said that
        // this presentation used nothing up, so the token can be presented again without a mark.
        let unknown = |error| RefreshAborted::Failed { error, in_doubt };
        let cell = &self.cell;
        // A process that was suspended for longer than its lease may find that another one has taken the claim over.
        let held = match bounded(|| cell.store.renew(claim, LEASE)).await {
            // Read after the renewal, so that a write made meanwhile is seen.
            Ok(held) => bounded(|| cell.store.load()).await.map(|found| (held, cell.unless_ended(found))),
            Err(error) => Err(error),
        };
        match held {
            Ok((_, None)) => RefreshAborted::RecordGone,
            // Keep the tokens: the next refresh writes them back before it presents anything.
            Ok((_, Some(record))) if self.is_older(&record) => {
                unknown(RefreshError::unavailable("the store has lost writes"))
            }
            Ok((_, Some(record))) if record.version() != claim.version() => RefreshAborted::Adopted(record),
            Ok((true, Some(_))) => RefreshAborted::Rejected(error),
            Ok((false, Some(_))) => unknown(RefreshError::unavailable("another process is refreshing this session")),
            // The store does not tell: keep the tokens.
            Err(error) => unknown(RefreshError::unavailable(error)),
        }
    }

    /// Releases the claim, so that other processes need not wait for the end of its lease.
    async fn release(&self, claim: &Claim, in_doubt: bool) {
        let presented = if in_doubt { Presented::InDoubt } else { Presented::Unused };
        if bounded(|| self.cell.store.release(claim, presented)).await.is_err() {
            tracing::debug!(target: TARGET, "claim not released");
        }
    }

    /// Changes the state at the end of a refresh without new tokens of its own.
    async fn settle(&self, aborted: RefreshAborted) -> Outcome {
        let epoch = self.base.epoch;
        let (event, outcome) = match aborted {
            RefreshAborted::Overtaken => (Event::Finished { epoch }, Ok(())),
            RefreshAborted::Adopted(record) => {
                let due = self.cell.schedule(record.tokens());
                (Event::Adopted { epoch, record, due, ends_flight: true }, Ok(()))
            }
            RefreshAborted::RecordGone => {
                (Event::RecordGone { epoch, next: Epoch::random() }, Err(NotRefreshed::SignedOut))
            }
            RefreshAborted::Rejected(error) => {
                let error = Arc::new(error);
                let event = Event::Rejected { epoch, error: Arc::clone(&error), next: Epoch::random() };
                (event, Err(NotRefreshed::Ended(error)))
            }
            RefreshAborted::Failed { error, in_doubt } => {
                let error = Arc::new(error);
                let event = Event::Failed { epoch, error: Arc::clone(&error), in_doubt };
                (event, Err(NotRefreshed::Failed(error)))
            }
        };
        self.cell.change(event).await;
        outcome
    }

    /// Stores the new tokens, then puts them in force; within a bounded time, whatever the store does.
    async fn save_and_publish(&self, claim: Claim, tokens: Tokens) -> Outcome {
        // If the expiry is already past, the clocks disagree. The expiry is discarded, and the API's 401 decides. Stored,
        // it would make other processes present the refresh token instead of adopting the tokens.
        let tokens = tokens.unless_expired_at(SystemTime::now());
        let Some((entry, stored)) = self.save(claim, tokens).await else { return Ok(()) };
        let (epoch, place, tokens) = (entry.epoch(), entry.generation(), entry.into_tokens());
        // The same for a token that expired while it was saved.
        let due = self.cell.schedule(&tokens).filter(|due| due.expired > Instant::now());
        self.cell.change(Event::Refreshed { epoch, place, tokens, stored, due }).await;
        Ok(())
    }

    /// Stores a refresh token that a failed call issued all the same: its predecessor is used up. Returns `false` if the
    /// store holds another process's tokens: adopting them has ended the flight.
    async fn salvage(&self, claim: Claim, token: RefreshToken) -> bool {
        let tokens = self.tokens.clone().with_refresh_token(token);
        let Some((entry, stored)) = self.save(claim, tokens).await else { return false };
        let (epoch, place, tokens) = (entry.epoch(), entry.generation(), entry.into_tokens());
        self.cell.change(Event::Salvaged { epoch, place, tokens, stored }).await;
        true
    }

    /// Writes tokens under the claim. Returns the entry, and the store's content compared with it; `None` if the store
    /// holds another process's tokens, which have been adopted.
    async fn save(&self, claim: Claim, tokens: Tokens) -> Option<(Entry, Stored)> {
        let epoch = self.base.epoch;
        let entry = self.cell.with_ends(self.base.entry_of(self.place + 1, tokens));
        if self.cell.snapshot().epoch != epoch {
            // The next step discards the tokens.
            return Some((entry, Stored::Clean(None)));
        }
        let stored = match bounded(|| self.cell.store.commit(&claim, &entry)).await {
            Ok(CommitOutcome::Stored(version)) => Stored::Clean(Some(version)),
            Ok(CommitOutcome::Conflict(Some(found))) if is_older_than(&found, &entry) => {
                Stored::OverwritePending(found.version().clone())
            }
            Ok(CommitOutcome::Conflict(found)) => {
                self.cell.adopt_conflicting_write(entry, found, true).await;
                return None;
            }
            Err(_) => {
                tracing::warn!(target: TARGET, "tokens not saved");
                Stored::CommitPending(Arc::new(claim))
            }
        };
        Some((entry, stored))
    }
}

/// Returns `true` if a record is of the same epoch as an entry and older: its store has lost writes.
fn is_older_than(record: &Record, entry: &Entry) -> bool {
    record.epoch() == entry.epoch() && record.generation() < entry.generation()
}

/// Calls the store, bounded by the flight's deadline.
async fn within<'a, T>(deadline: Instant, call: impl FnOnce() -> StoreFuture<'a, T>) -> Result<T, RefreshAborted> {
    let answer = bounded_by(deadline, call).await;
    answer.map_err(|error| RefreshAborted::unavailable(RefreshError::unavailable(error)))
}
