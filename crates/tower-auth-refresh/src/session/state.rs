//! The life of a session as a pure state machine: no clock, no lock, no I/O, no randomness of its own.
//!
//! [`State::demand`] says what may be done for somebody who wants newer tokens; [`State::step`] is the only place
//! where anything changes. The cell around it (`cell.rs`) holds the lock and carries out what a step asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pace;
use crate::refresh::{Generation, NotRefreshed, RefreshError, RefreshErrorKind, Trigger};
use crate::store::{Claim, Epoch, Record, Version};
use crate::token::Tokens;

/// However soon a token expires, it is not replaced early within this time of its arrival.
const SHORTEST_EARLY: Duration = Duration::from_secs(1);

/// A later expiry is taken for this.
const LONGEST_DUE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// All that is known of a session at one moment. Published as a whole, never changed in place. There may be a million:
/// what few of them have is boxed.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) epoch: Epoch,
    /// The epoch that the authorization server ended and how, for the requests that were made in it.
    ended: Option<Box<(Epoch, Arc<RefreshError>)>>,
    pub(crate) generation: Generation,
    pub(crate) tokens: Tokens,
    /// When to refresh early; only where the session does.
    pub(crate) due: Option<Box<Due>>,
    pub(crate) stored: Stored,
    /// An API has refused the generation in force.
    rejected: bool,
    /// The refresh token was presented, and the answer lost.
    pub(crate) in_doubt: bool,
    /// Failed flights in a row.
    failures: u32,
    /// Fresh tokens refused in a row.
    strikes: u32,
    /// The generation of the last strike.
    struck: Generation,
    /// When the generation in force came out of a flight.
    issued: Option<Instant>,
    cooling: Option<Box<Cooling>>,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Nobody is signed in.
    SignedOut,
    /// Tokens are in force.
    Active,
    /// Tokens are in force and a flight is up to replace them.
    Refreshing,
    /// The authorization server ended the session.
    Ended,
}

/// When the access token should be, and must be, replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) early: Instant,
    pub(crate) expired: Instant,
}

/// What the store holds, compared with the state.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// The same as the state: this version, or no record.
    Clean(Option<Version>),
    /// Less than the state: what was signed in with is still to be written, over a record of one of these epochs.
    Unwritten(Arc<[Epoch]>),
    /// Less than the state: what was bought under a claim is still to be written.
    Unsaved(Arc<Claim>),
    /// More than the state: a record of one of these epochs, which are over, is still to be deleted.
    Uncleared(Arc<[Epoch]>),
}

/// A time in which nothing is called.
#[derive(Clone, Debug)]
struct Cooling {
    until: Instant,
    why: NotRefreshed,
}

/// What may be done for somebody who wants newer tokens than he has.
#[derive(Clone, Debug)]
pub(crate) enum Demand {
    /// Newer ones are in force: use them.
    Newer,
    /// A flight is up: wait for it.
    Join,
    /// Start a flight.
    Start,
    /// There will be none.
    Refused(NotRefreshed),
}

/// What happened. Events of a flight carry the epoch that it was started in.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// An API answered 401 to this generation. `proven` and `refused` are the newest generations with which a replay
    /// was accepted (or a request that none could follow), and refused.
    Challenged { generation: Generation, proven: Generation, refused: Generation },
    /// A token since the last strike was accepted.
    Redeemed,
    /// A flight is up.
    Started,
    /// The flight bought tokens. They are stored, or are to be.
    Refreshed { epoch: Epoch, tokens: Tokens, stored: Stored, due: Option<Due> },
    /// The flight failed in a way that keeps the tokens.
    Failed { epoch: Epoch, error: Arc<RefreshError>, in_doubt: bool },
    /// The flight's refresh token was rejected, and the store knows no newer one.
    Rejected { epoch: Epoch, error: Arc<RefreshError>, next: Epoch },
    /// The store holds somebody else's write. `landed`: a flight found it, and is over.
    Adopted { epoch: Epoch, record: Record, due: Option<Due>, landed: bool },
    /// The flight found that there are newer tokens already.
    Landed { epoch: Epoch },
    /// The store holds nothing any more: a peer signed out.
    Vanished { epoch: Epoch, next: Epoch },
    /// These tokens are stored now.
    Saved { epoch: Epoch, tokens: Tokens, version: Version },
    /// No record of these epochs is stored any more.
    Cleared { epochs: Arc<[Epoch]> },
    /// The app signed in, and sees to the store itself.
    SignedIn { next: Epoch, tokens: Tokens, due: Option<Due> },
    /// The app signed out, and sees to the store itself.
    SignedOut { next: Epoch },
}

/// What a step asks the cell to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// Bring the store to what the state says.
    Sync,
    /// These tokens arrived too late to be anybody's: revoke them.
    Discard(Tokens),
}

/// The moment of a step, and a random number in `0.0..1.0` for its jitter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) now: Instant,
    pub(crate) roll: f64,
}

impl State {
    /// Nobody is signed in, and the store is empty.
    pub(crate) fn signed_out(epoch: Epoch) -> Self {
        Self {
            phase: Phase::SignedOut,
            epoch,
            ended: None,
            generation: Generation(0),
            tokens: Tokens::default(),
            due: None,
            stored: Stored::Clean(None),
            rejected: false,
            in_doubt: false,
            failures: 0,
            strikes: 0,
            struck: Generation(0),
            issued: None,
            cooling: None,
        }
    }

    /// What the store holds at the start.
    pub(crate) fn restored(record: Record, due: Option<Due>) -> Self {
        let state = Self::signed_out(record.epoch);
        state.begun(record.epoch, record.tokens, Stored::Clean(Some(record.version)), due)
    }

    /// Whether a new request should wait for the flight that is up, rather than make a doomed round trip.
    pub(crate) fn is_pointless_to_send(&self) -> bool {
        self.phase == Phase::Refreshing && (self.rejected || self.tokens.access_token().is_none())
    }

    /// Whether an API refused the generation in force and nothing has replaced it yet.
    pub(crate) fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// Whether nobody is signed in.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::SignedOut | Phase::Ended)
    }

    /// Whether nothing is under way or outstanding, and nothing is to be remembered that no store holds. `refused`: the
    /// newest generation with which a replay was refused.
    pub(crate) fn is_at_rest(&self, refused: Generation, now: Instant) -> bool {
        let refusing = self.strikes > 0 || refused >= self.generation;
        let lately = self.issued.is_some_and(|issued| now.duration_since(issued) < pace::MEMORY);
        self.phase != Phase::Refreshing
            && matches!(self.stored, Stored::Clean(_))
            && self.cooling_at(now).is_none()
            && !(refusing && lately)
    }

    /// Newer tokens that an API has refused already are of no use to a request; who refreshes by hand has them.
    pub(crate) fn has_newer_than(&self, generation: Generation, trigger: Trigger) -> bool {
        generation < self.generation && (!self.rejected || trigger == Trigger::Manual)
    }

    /// Whether there are strikes, and a token since the last one was accepted. `proven`: the newest that was.
    pub(crate) fn is_redeemed(&self, proven: Generation) -> bool {
        self.strikes > 0 && proven > self.struck
    }

    /// What may be done for somebody who holds `generation`, of `epoch`, and wants newer tokens.
    /// `needs_refresh_token`: the refresh service can't do without one.
    pub(crate) fn demand(
        &self,
        epoch: Epoch,
        generation: Generation,
        trigger: Trigger,
        needs_refresh_token: bool,
        now: Instant,
    ) -> Demand {
        if let Some((of, error)) = self.ended.as_deref()
            && (epoch == *of || epoch == self.epoch)
        {
            return Demand::Refused(NotRefreshed::Ended(Arc::clone(error)));
        }
        if epoch != self.epoch {
            return Demand::Refused(NotRefreshed::SessionChanged);
        }
        match self.phase {
            Phase::SignedOut | Phase::Ended => Demand::Refused(NotRefreshed::SignedOut),
            Phase::Active | Phase::Refreshing if self.has_newer_than(generation, trigger) => Demand::Newer,
            Phase::Refreshing => Demand::Join,
            Phase::Active if needs_refresh_token && self.tokens.refresh_token().is_none() => {
                Demand::Refused(NotRefreshed::NoRefreshToken)
            }
            Phase::Active => match (trigger, self.cooling_at(now)) {
                (Trigger::Manual, _) => Demand::Start,
                (_, Some(why)) => Demand::Refused(why),
                // While an API refuses fresh tokens, none is fetched that nobody is waiting for.
                (Trigger::Early, None) if self.strikes > 0 => Demand::Refused(NotRefreshed::Looping),
                (_, None) => Demand::Start,
            },
        }
    }

    /// The state after `event`, and what it asks for.
    pub(crate) fn step(&self, event: Event, at: At) -> (Self, Effect) {
        let mut next = self.clone();
        let effect = next.apply(event, at);
        (next, effect)
    }

    fn apply(&mut self, event: Event, at: At) -> Effect {
        match event {
            Event::Challenged { generation, proven, refused } => self.challenged(generation, proven, refused, at),
            Event::Redeemed => self.strikes = 0,
            Event::Started => {
                self.phase = Phase::Refreshing;
                self.cooling = None;
            }
            Event::Refreshed { epoch, tokens, .. } if epoch != self.epoch => return Effect::Discard(tokens),
            Event::Refreshed { tokens, stored, due, .. } => {
                self.land();
                self.stored = stored;
                self.take(tokens, due, at);
                if let Stored::Unsaved(_) = self.stored {
                    return Effect::Sync;
                }
            }
            Event::Failed { epoch, error, in_doubt } if epoch == self.epoch => {
                self.land();
                self.in_doubt |= in_doubt;
                self.failures = self.failures.saturating_add(1);
                let retry_after = match error.kind() {
                    RefreshErrorKind::Unavailable => error.retry_after(),
                    _ => None,
                };
                // A failure in between is no way around the loop guard.
                let pause = pace::cool_down(self.failures, retry_after, at.roll)
                    .max(pace::loop_cool_down(self.strikes, at.roll).unwrap_or_default());
                self.cool(at.now + pause, NotRefreshed::CoolingDown(error));
            }
            Event::Rejected { epoch, error, next } if epoch == self.epoch => {
                self.end(Phase::Ended, next, Stored::Uncleared(self.leftovers()));
                self.ended = Some(Box::new((epoch, error)));
                return Effect::Sync;
            }
            Event::Adopted { epoch, record, due, landed } if epoch == self.epoch => {
                if landed {
                    self.land();
                }
                if record.epoch == self.epoch {
                    self.stored = Stored::Clean(Some(record.version));
                    self.take(record.tokens, due, at);
                } else {
                    *self = self.begun(record.epoch, record.tokens, Stored::Clean(Some(record.version)), due);
                }
            }
            Event::Landed { epoch } if epoch == self.epoch => self.land(),
            Event::Vanished { epoch, next } if epoch == self.epoch => {
                self.end(Phase::SignedOut, next, Stored::Clean(None));
            }
            Event::Saved { epoch, tokens, version } if epoch == self.epoch && tokens == self.tokens => {
                self.stored = Stored::Clean(Some(version));
            }
            Event::Cleared { epochs } if matches!(&self.stored, Stored::Uncleared(of) if *of == epochs) => {
                self.stored = Stored::Clean(None);
            }
            Event::SignedIn { next, tokens, due } => {
                *self = self.begun(next, tokens, Stored::Unwritten(self.leftovers()), due);
            }
            Event::SignedOut { next } => {
                let leftovers = self.leftovers();
                let stored = if leftovers.is_empty() { Stored::Clean(None) } else { Stored::Uncleared(leftovers) };
                self.end(Phase::SignedOut, next, stored);
            }
            // Of an epoch that is over, or of tokens that were replaced meanwhile.
            Event::Failed { .. }
            | Event::Rejected { .. }
            | Event::Adopted { .. }
            | Event::Landed { .. }
            | Event::Vanished { .. }
            | Event::Saved { .. }
            | Event::Cleared { .. } => {}
        }
        Effect::Nothing
    }

    /// The first 401 to the generation in force tells whether the API refuses even fresh tokens.
    fn challenged(&mut self, generation: Generation, proven: Generation, refused: Generation, at: At) {
        if generation != self.generation {
            return;
        }
        if self.is_redeemed(proven) {
            self.strikes = 0;
        }
        if self.rejected {
            return;
        }
        self.rejected = true;
        let fresh = self.issued.is_some_and(|issued| at.now.duration_since(issued) < pace::PROBATION);
        if self.issued.is_some() && proven < generation && (fresh || refused >= generation) {
            self.strike(at);
        }
    }

    fn strike(&mut self, at: At) {
        self.strikes = self.strikes.saturating_add(1);
        self.struck = self.generation;
        if let Some(pause) = pace::loop_cool_down(self.strikes, at.roll) {
            self.cool(at.now + pause, NotRefreshed::Looping);
        }
    }

    fn cool(&mut self, until: Instant, why: NotRefreshed) {
        self.cooling = Some(Box::new(Cooling { until, why }));
        if let Some(due) = &mut self.due {
            due.early = due.early.max(until);
        }
    }

    /// Tokens of the same epoch come into force.
    fn take(&mut self, tokens: Tokens, due: Option<Due>, at: At) {
        let same = tokens.access_token() == self.tokens.access_token();
        self.tokens = tokens;
        self.due = due.map(Box::new);
        self.in_doubt = false;
        self.failures = 0;
        self.cooling = None;
        if !same {
            self.generation.0 += 1;
            self.rejected = false;
            self.issued = Some(at.now);
        } else if self.rejected || self.tokens.access_token().is_none() {
            // No better than a fresh token that is refused.
            self.strike(at);
        }
    }

    /// A new epoch with tokens.
    fn begun(&self, epoch: Epoch, tokens: Tokens, stored: Stored, due: Option<Due>) -> Self {
        Self {
            phase: Phase::Active,
            generation: Generation(self.generation.0 + 1),
            tokens,
            due: due.map(Box::new),
            stored,
            ..Self::signed_out(epoch)
        }
    }

    /// A new epoch without tokens.
    fn end(&mut self, phase: Phase, epoch: Epoch, stored: Stored) {
        *self = Self { phase, generation: self.generation, stored, ..Self::signed_out(epoch) };
    }

    /// The epochs of which the store may hold a record once this one is over. A sign-in that was never written has not
    /// replaced the user before.
    fn leftovers(&self) -> Arc<[Epoch]> {
        match &self.stored {
            Stored::Clean(None) => Arc::default(),
            Stored::Clean(Some(_)) | Stored::Unsaved(_) => Arc::new([self.epoch]),
            Stored::Unwritten(over) => over.iter().copied().chain([self.epoch]).collect(),
            Stored::Uncleared(of) => Arc::clone(of),
        }
    }

    fn land(&mut self) {
        if self.phase == Phase::Refreshing {
            self.phase = Phase::Active;
        }
    }

    fn cooling_at(&self, now: Instant) -> Option<NotRefreshed> {
        self.cooling.as_ref().filter(|cooling| now < cooling.until).map(|cooling| cooling.why.clone())
    }
}

impl Due {
    /// A `window` before the expiry, spread over a quarter of it so that sessions of one moment don't refresh at one
    /// moment; never in the first half of the token's life, or a short-lived token would be refreshed by every request.
    pub(crate) fn before_expiry(lifetime: Duration, window: Duration, at: At) -> Self {
        // Far off is far enough, and can't overflow.
        let lifetime = lifetime.min(LONGEST_DUE);
        let window = window.min(lifetime / 2).mul_f64(1.0 - at.roll / 4.0);
        let early = lifetime.saturating_sub(window).max(SHORTEST_EARLY);
        Self { early: at.now + early, expired: at.now + lifetime }
    }
}

#[cfg(test)]
mod tests;
