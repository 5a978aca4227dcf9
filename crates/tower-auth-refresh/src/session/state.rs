//! The life of a session as a pure state machine: no clock, no lock, no I/O, no randomness of its own.
//!
//! [`State::decide`] answers a caller that wants newer tokens; [`State::step`] is the only place where anything changes.
//! The cell around it (`cell.rs`) holds the lock and carries out the effects of a step.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::backoff::{self, At};
use super::loop_guard::{LoopGuard, Results};
use crate::refresh::{Generation, NotRefreshed, RefreshError, RefreshErrorKind, Trigger};
use crate::store::{Claim, EndOfSignIn, Entry, Epoch, Record, Version};
use crate::target::Target;
use crate::token::Tokens;

/// The time after its arrival in which a token is not replaced early, however soon it expires.
const SHORTEST_EARLY: Duration = Duration::from_secs(1);

/// The cap on a lifetime, so that deadlines don't overflow.
const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The whole state of a session at one moment. Published as a whole, never changed in place.
///
/// A process may hold a million of them, so rare fields are boxed.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) epoch: Epoch,
    /// The epoch that the authorization server ended, and its error: for the requests of that epoch.
    pub(crate) ended: Option<Box<(Epoch, Arc<RefreshError>)>>,
    pub(crate) generation: Generation,
    pub(crate) tokens: Tokens,
    /// The number of the tokens within their epoch, which all processes count alike.
    pub(crate) place: u64,
    /// The end of the epoch, if it has one.
    pub(crate) ends_at: Option<EndOfSignIn>,
    /// The times of an early refresh, where the session refreshes early.
    pub(crate) due: Option<Box<RefreshSchedule>>,
    pub(crate) stored: Stored,
    /// `true` if an API has refused the generation in force.
    rejected: bool,
    /// `true` if the refresh token was presented and the answer lost.
    pub(crate) in_doubt: bool,
    /// The failed flights since the last one that succeeded.
    pub(crate) failures: Option<Box<Failures>>,
    pub(super) guard: LoopGuard,
    cooling: Option<Box<Cooling>>,
}

/// The phase of a session's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// No user is signed in.
    SignedOut,
    /// Tokens are in force.
    Active,
    /// Tokens are in force and a flight is under way to replace them.
    Refreshing,
    /// The authorization server ended the session.
    Ended,
}

/// The times from which the access token should be, and must be, replaced.
///
/// The first of the two clocks decides. While the machine is suspended, the monotonic clock may stand still and the wall
/// clock goes on; the wall clock may be set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RefreshSchedule {
    pub(crate) early: Instant,
    pub(crate) expired: Instant,
    /// The expiry by the wall clock.
    pub(crate) expired_wall: SystemTime,
}

/// The store's content, compared with the state.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// The store holds the state's tokens under this version, or no record.
    Clean(Option<Version>),
    /// The tokens of a sign-in are still to be written, over a record of one of these epochs.
    SignInPending(Arc<[Epoch]>),
    /// The tokens that a flight obtained under this claim are still to be written.
    CommitPending(Arc<Claim>),
    /// The store holds older tokens of this epoch under this version, to be written over.
    OverwritePending(Version),
    /// A record of one of these epochs, which are over, is still to be deleted.
    DeletePending(Arc<[Epoch]>),
}

/// Failed flights in a row.
#[derive(Clone, Debug)]
pub(crate) struct Failures {
    pub(crate) since: SystemTime,
    pub(crate) count: u32,
    pub(crate) last: Arc<RefreshError>,
}

/// The time after a failed flight in which challenges start no flight.
#[derive(Clone, Debug)]
struct Cooling {
    until: Instant,
    why: NotRefreshed,
}

/// The answer to a caller that wants newer tokens than it has.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// Newer tokens are in force: use them.
    UseNewer,
    /// A flight is under way: wait for it.
    Join,
    /// Start a flight.
    Start,
    /// There will be no newer tokens.
    Refuse(NotRefreshed),
}

/// An event in a session's life. Events of a flight carry the epoch that it was started in.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// An API answered 401 to a request to this target with this generation.
    Challenged { target: Target, generation: Generation, results: Results },
    /// An API accepted a request to this target with this generation.
    Accepted { target: Target, generation: Generation, results: Results },
    /// A flight was started. `target`: that of the challenge, if one started the flight.
    Started { trigger: Trigger, target: Option<Target>, results: Results },
    /// The flight obtained tokens. They are stored, or are to be.
    Refreshed { epoch: Epoch, place: u64, tokens: Tokens, stored: Stored, due: Option<RefreshSchedule> },
    /// A call that failed issued a new refresh token all the same. The access token in force stays; the failure follows.
    Salvaged { epoch: Epoch, place: u64, tokens: Tokens, stored: Stored },
    /// The flight failed in a way that keeps the tokens.
    Failed { epoch: Epoch, error: Arc<RefreshError>, in_doubt: bool },
    /// The flight's refresh token was rejected, and the store holds no newer one; or the epoch is past its end.
    Rejected { epoch: Epoch, error: Arc<RefreshError>, next: Epoch },
    /// The store holds the write of another process. `ends_flight`: a flight found it and is over.
    Adopted { epoch: Epoch, record: Record, due: Option<RefreshSchedule>, ends_flight: bool },
    /// The store holds older tokens of this epoch under this version: it has lost writes (a failover, a restored backup).
    StoreWentBack { epoch: Epoch, version: Version },
    /// The older record, which is to be written over, was claimed.
    OverwriteClaimed { epoch: Epoch, claim: Arc<Claim> },
    /// The flight found that newer tokens are in force already.
    Finished { epoch: Epoch },
    /// The record is gone from the store: another process signed the user out.
    RecordGone { epoch: Epoch, next: Epoch },
    /// These tokens are stored now.
    Saved { epoch: Epoch, tokens: Tokens, version: Version },
    /// No record of these epochs is stored any more.
    Deleted { epochs: Arc<[Epoch]> },
    /// The app handed in newer tokens of the same sign-in than `generation`.
    Renewed { epoch: Epoch, generation: Generation, tokens: Tokens, due: Option<RefreshSchedule> },
    /// The app signed a user in, and writes the store itself.
    SignedIn { next: Epoch, tokens: Tokens, due: Option<RefreshSchedule>, ends_at: Option<EndOfSignIn> },
    /// The app signed the user out, and deletes from the store itself.
    SignedOut { next: Epoch },
}

/// The work that a step leaves to the cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// Bring the store in line with the state.
    Sync,
    /// Revoke these tokens, which arrived after their epoch was over.
    Discard(Tokens),
}

impl State {
    /// The state without a user, and with an empty store.
    pub(crate) fn signed_out(epoch: Epoch) -> Self {
        Self {
            phase: Phase::SignedOut,
            epoch,
            ended: None,
            generation: Generation(0),
            tokens: Tokens::default(),
            place: 0,
            ends_at: None,
            due: None,
            stored: Stored::Clean(None),
            rejected: false,
            in_doubt: false,
            failures: None,
            guard: LoopGuard::new(),
            cooling: None,
        }
    }

    /// The state for a record that the store holds at the start.
    pub(crate) fn restored(record: Record, due: Option<RefreshSchedule>) -> Self {
        Self::signed_out(record.epoch()).adopted_epoch(record, due)
    }

    /// Returns `true` if a new request should wait for the flight under way, since its token is known to be refused or
    /// absent.
    pub(crate) fn is_pointless_to_send(&self) -> bool {
        self.phase == Phase::Refreshing && (self.rejected || self.tokens.access_token().is_none())
    }

    /// Returns `true` if an API refused the generation in force and nothing has replaced it yet.
    pub(crate) fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// Returns `true` if the loop guard is to be told of accepted first attempts.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        self.guard.is_watching()
    }

    /// Returns `true` if no user is signed in.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::SignedOut | Phase::Ended)
    }

    /// Returns `true` if nothing is under way or pending, and the state holds nothing that must be remembered and that
    /// no store holds.
    pub(crate) fn is_at_rest(&self, results: Results, now: Instant) -> bool {
        self.phase != Phase::Refreshing
            && matches!(self.stored, Stored::Clean(_))
            && self.cooling_at(now).is_none()
            && !self.guard.must_be_remembered(results, now)
    }

    /// Returns `true` if newer tokens than `generation` are in force that are worth a request. Tokens that an API has
    /// refused already are not, except to a refresh by hand, which asked for newer tokens and nothing else.
    pub(crate) fn has_newer_than(&self, generation: Generation, trigger: Trigger) -> bool {
        generation < self.generation && (!self.rejected || trigger == Trigger::Manual)
    }

    /// Returns `true` if newer tokens of the same sign-in can replace `generation` now: it is in force, and no flight
    /// is about to replace it.
    pub(crate) fn is_renewable(&self, epoch: Epoch, generation: Generation) -> bool {
        self.phase == Phase::Active && epoch == self.epoch && generation == self.generation
    }

    /// Whether a record is of this epoch and older than the tokens in force.
    fn is_newer_than(&self, record: &Record) -> bool {
        record.epoch() == self.epoch && record.generation() < self.place
    }

    /// The tokens in force, to be stored.
    pub(crate) fn entry(&self) -> Entry {
        self.entry_of(self.place, self.tokens.clone())
    }

    /// Tokens of this epoch, to be stored.
    pub(crate) fn entry_of(&self, place: u64, tokens: Tokens) -> Entry {
        let entry = Entry::new(self.epoch, place, tokens);
        match self.ends_at {
            Some(end) => entry.with_ends_at(end.into()),
            None => entry,
        }
    }

    /// Returns `true` if the authorization server has ended the session, and with it the tokens.
    pub(super) fn was_rejected(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.1.kind() == RefreshErrorKind::Rejected)
    }

    /// Answers a caller that holds `generation` of `epoch` and wants newer tokens. `target`: that of the challenge, if
    /// there was one. `needs_refresh_token`: whether the refresh service can't do without a refresh token.
    pub(crate) fn decide(
        &self,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        target: Option<Target>,
        needs_refresh_token: bool,
        now: Instant,
    ) -> Decision {
        if let Some((of, error)) = self.ended.as_deref()
            && (epoch == *of || epoch == self.epoch)
        {
            return Decision::Refuse(NotRefreshed::Ended(Arc::clone(error)));
        }
        if epoch != self.epoch {
            return Decision::Refuse(NotRefreshed::SessionChanged);
        }
        match self.phase {
            Phase::SignedOut | Phase::Ended => Decision::Refuse(NotRefreshed::SignedOut),
            Phase::Active | Phase::Refreshing if self.has_newer_than(generation, trigger) => Decision::UseNewer,
            Phase::Refreshing => Decision::Join,
            Phase::Active if needs_refresh_token && self.tokens.refresh_token().is_none() => {
                Decision::Refuse(NotRefreshed::NoRefreshToken)
            }
            Phase::Active => match (trigger, self.cooling_at(now)) {
                (Trigger::Manual, _) => Decision::Start,
                (_, Some(why)) => Decision::Refuse(why),
                // While an API refuses fresh tokens, none is fetched ahead of need.
                (Trigger::Early, None) if self.guard.is_refusing() => Decision::Refuse(NotRefreshed::Looping),
                (_, None) => {
                    let refusal = self.guard.refusal(target.unwrap_or(Target::SESSION), now);
                    refusal.map_or(Decision::Start, Decision::Refuse)
                }
            },
        }
    }

    /// Returns the state after `event`, and its effect.
    pub(crate) fn step(&self, event: Event, at: At) -> (Self, Effect) {
        let mut next = self.clone();
        let effect = next.apply(event, at);
        (next, effect)
    }

    fn apply(&mut self, event: Event, at: At) -> Effect {
        match event {
            Event::Challenged { target, generation, results } => self.challenged(target, generation, results, at),
            Event::Accepted { target, generation, results } => self.guard.accept(target, generation, results),
            Event::Started { trigger, target, results } => {
                let target = (trigger != Trigger::Manual).then(|| target.unwrap_or(Target::SESSION));
                self.guard.start(target, self.generation, results, at);
                self.phase = Phase::Refreshing;
                self.cooling = None;
            }
            Event::Refreshed { epoch, tokens, .. } | Event::Salvaged { epoch, tokens, .. } if epoch != self.epoch => {
                return Effect::Discard(tokens);
            }
            Event::Refreshed { place, tokens, stored, due, .. } => {
                self.finish_flight();
                self.stored = stored;
                self.put_in_force(place, tokens, due, at);
                if !matches!(self.stored, Stored::Clean(_)) {
                    return Effect::Sync;
                }
            }
            Event::Salvaged { place, tokens, stored, .. } => {
                self.stored = stored;
                self.tokens = tokens;
                self.place = place;
                self.in_doubt = false;
                if !matches!(self.stored, Stored::Clean(_)) {
                    return Effect::Sync;
                }
            }
            Event::Failed { epoch, error, in_doubt } if epoch == self.epoch => {
                self.finish_flight();
                self.in_doubt |= in_doubt;
                let retry_after = error.retry_after();
                let count = self.failed(Arc::clone(&error), at);
                self.cool(at.now + backoff::cool_down(count, retry_after, at.jitter), NotRefreshed::CoolingDown(error));
                self.guard.fail(at);
            }
            Event::Rejected { epoch, error, next } if epoch == self.epoch => {
                self.end(Phase::Ended, next, Stored::DeletePending(self.stale_epochs()));
                self.ended = Some(Box::new((epoch, error)));
                return Effect::Sync;
            }
            Event::Adopted { epoch, record, due, ends_flight } if epoch == self.epoch => {
                return self.adopt(record, due, ends_flight, at);
            }
            Event::StoreWentBack { epoch, version } if epoch == self.epoch => {
                self.stored = Stored::OverwritePending(version);
                return Effect::Sync;
            }
            Event::OverwriteClaimed { epoch, claim } if epoch == self.epoch => {
                if matches!(&self.stored, Stored::OverwritePending(older) if older == claim.version()) {
                    self.stored = Stored::CommitPending(claim);
                }
            }
            Event::Finished { epoch } if epoch == self.epoch => self.finish_flight(),
            Event::RecordGone { epoch, next } if epoch == self.epoch => {
                self.end(Phase::SignedOut, next, Stored::Clean(None));
            }
            Event::Saved { epoch, tokens, version } if epoch == self.epoch && tokens == self.tokens => {
                self.stored = Stored::Clean(Some(version));
            }
            Event::Deleted { epochs } if matches!(&self.stored, Stored::DeletePending(of) if *of == epochs) => {
                self.stored = Stored::Clean(None);
            }
            Event::Renewed { epoch, generation, tokens, due } if self.is_renewable(epoch, generation) => {
                let tokens = tokens.completed_from(&self.tokens);
                if tokens != self.tokens {
                    if let Stored::Clean(Some(version)) = &self.stored {
                        self.stored = Stored::OverwritePending(version.clone());
                    }
                    self.put_in_force(self.place + 1, tokens, due, at);
                    return Effect::Sync;
                }
            }
            Event::SignedIn { next, tokens, due, ends_at } => {
                *self = self.new_epoch(next, 1, tokens, Stored::SignInPending(self.stale_epochs()), due);
                self.ends_at = ends_at;
            }
            Event::SignedOut { next } => {
                let stale_epochs = self.stale_epochs();
                let stored =
                    if stale_epochs.is_empty() { Stored::Clean(None) } else { Stored::DeletePending(stale_epochs) };
                self.end(Phase::SignedOut, next, stored);
            }
            // Events of an epoch that is over, or about tokens that have been replaced.
            Event::Failed { .. }
            | Event::Rejected { .. }
            | Event::Adopted { .. }
            | Event::Renewed { .. }
            | Event::StoreWentBack { .. }
            | Event::OverwriteClaimed { .. }
            | Event::Finished { .. }
            | Event::RecordGone { .. }
            | Event::Saved { .. }
            | Event::Deleted { .. } => {}
        }
        Effect::Nothing
    }

    /// Adopts a record that another process wrote.
    fn adopt(&mut self, record: Record, due: Option<RefreshSchedule>, ends_flight: bool, at: At) -> Effect {
        if ends_flight {
            self.finish_flight();
        }
        if self.is_newer_than(&record) {
            // Newer tokens were handed in after the store was read.
            self.stored = Stored::OverwritePending(record.version().clone());
            return Effect::Sync;
        }
        if record.epoch() == self.epoch {
            self.stored = Stored::Clean(Some(record.version().clone()));
            self.put_in_force(record.generation(), record.into_tokens(), due, at);
        } else {
            *self = self.adopted_epoch(record, due);
        }
        Effect::Nothing
    }

    /// Takes a refusal of the generation in force into account.
    fn challenged(&mut self, target: Target, generation: Generation, results: Results, at: At) {
        if generation != self.generation {
            return;
        }
        // While a flight is under way, its starter has no new token yet.
        if self.phase == Phase::Active {
            self.guard.settle(true, results, at);
        }
        if self.tokens.expires_at().is_some_and(|expiry| expiry <= at.wall) {
            self.guard.expire(generation);
        }
        // The refusal by a suspect says nothing of the token.
        self.rejected |= self.guard.refusal(target, at.now).is_none();
    }

    /// Counts a failed flight and returns the count.
    fn failed(&mut self, error: Arc<RefreshError>, at: At) -> u32 {
        let (since, before) = self.failures.take().map_or((at.wall, 0), |failures| (failures.since, failures.count));
        let count = before.saturating_add(1);
        self.failures = Some(Box::new(Failures { since, count, last: error }));
        count
    }

    fn cool(&mut self, until: Instant, why: NotRefreshed) {
        self.cooling = Some(Box::new(Cooling { until, why }));
        if let Some(due) = &mut self.due {
            due.early = due.early.max(until);
        }
    }

    /// Puts tokens of the same epoch in force.
    fn put_in_force(&mut self, place: u64, tokens: Tokens, due: Option<RefreshSchedule>, at: At) {
        let same = tokens.access_token() == self.tokens.access_token();
        self.tokens = tokens;
        self.place = place;
        self.due = due.map(Box::new);
        self.in_doubt = false;
        self.failures = None;
        self.cooling = None;
        if !same {
            self.generation.0 += 1;
            self.rejected = false;
            self.guard.issued = Some(at.now);
        } else if self.rejected || self.tokens.access_token().is_none() {
            self.guard.settle_without_token(self.generation, at);
        }
    }

    /// Returns the state of a new epoch with tokens.
    fn new_epoch(
        &self,
        epoch: Epoch,
        place: u64,
        tokens: Tokens,
        stored: Stored,
        due: Option<RefreshSchedule>,
    ) -> Self {
        Self {
            phase: Phase::Active,
            generation: Generation(self.generation.0 + 1),
            tokens,
            place,
            due: due.map(Box::new),
            stored,
            ..Self::signed_out(epoch)
        }
    }

    /// Returns the state of a record's epoch.
    fn adopted_epoch(&self, record: Record, due: Option<RefreshSchedule>) -> Self {
        let stored = Stored::Clean(Some(record.version().clone()));
        let ends_at = record.entry().ends_at().map(EndOfSignIn::from);
        Self { ends_at, ..self.new_epoch(record.epoch(), record.generation(), record.into_tokens(), stored, due) }
    }

    /// Begins a new epoch without tokens.
    fn end(&mut self, phase: Phase, epoch: Epoch, stored: Stored) {
        *self = Self { phase, generation: self.generation, stored, ..Self::signed_out(epoch) };
    }

    /// Returns the epochs of which the store may hold a record once this one is over. A sign-in that was never written
    /// has not replaced the record of the epoch before.
    fn stale_epochs(&self) -> Arc<[Epoch]> {
        match &self.stored {
            Stored::Clean(None) => Arc::default(),
            Stored::Clean(Some(_)) | Stored::CommitPending(_) | Stored::OverwritePending(_) => Arc::new([self.epoch]),
            Stored::SignInPending(over) => over.iter().copied().chain([self.epoch]).collect(),
            Stored::DeletePending(of) => Arc::clone(of),
        }
    }

    fn finish_flight(&mut self) {
        if self.phase == Phase::Refreshing {
            self.phase = Phase::Active;
        }
    }

    fn cooling_at(&self, now: Instant) -> Option<NotRefreshed> {
        self.cooling.as_ref().filter(|cooling| now < cooling.until).map(|cooling| cooling.why.clone())
    }
}

impl RefreshSchedule {
    /// Schedules an early refresh a `window` before the expiry. The window is spread over a quarter of it, so that
    /// sessions that sign in together don't refresh together, and never reaches into the first half of the token's life,
    /// where every request would refresh a short-lived token.
    pub(crate) fn before_expiry(lifetime: Duration, window: Duration, at: At) -> Self {
        let lifetime = lifetime.min(LONGEST_LIFETIME);
        let window = window.min(lifetime / 2).mul_f64(1.0 - at.jitter / 4.0);
        let early = lifetime.saturating_sub(window).max(SHORTEST_EARLY);
        Self { early: at.now + early, expired: at.now + lifetime, expired_wall: at.wall + lifetime }
    }

    /// Returns `true` if the token has expired, by either clock.
    pub(crate) fn has_expired(&self, now: Instant, wall: SystemTime) -> bool {
        now >= self.expired || wall >= self.expired_wall
    }

    /// Returns `true` if the token should be replaced, by either clock.
    pub(crate) fn is_due(&self, now: Instant, wall: SystemTime) -> bool {
        let window = self.expired.saturating_duration_since(self.early);
        now >= self.early || wall.checked_add(window).is_some_and(|then| then >= self.expired_wall)
    }
}

#[cfg(test)]
mod tests;
