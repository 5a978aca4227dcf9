//! [`LoopGuard`]: bounds the refreshes that refusals of fresh tokens cause, and stops none that works.
//!
//! A flight that a challenge starts is *wasted* if its token does not get the challenged [`Target`] accepted. The next
//! challenge settles it by the results of its starter:
//!
//! - Refused in the replay: the target is a *suspect*.
//! - Accepted: the target is no suspect any more.
//! - Neither (the caller was dropped, or the body could not be replayed): two of these make a suspect, if the token was
//!   refused within [`PROBATION`] of its arrival. Slower refusals need no guard: they cause at most 60 refreshes an hour.
//! - A flight that fails is not wasted. It only starts the pause anew.
//!
//! Wasted flights are counted in a row. The first five are free. From the sixth on each starts a pause of 1 s, doubling
//! to 60 s, jittered upward only. In the pause, a challenge by a suspect starts no flight. A challenge by another target
//! does, unless more than [`FEW`] targets have refused a token since one was accepted anywhere: then the API refuses
//! everything. So do challenges of a token that was accepted and is past its known expiry.
//!
//! The row ends when no suspect is left. An accepted token clears a target if it is newer than the one that the target
//! refused: a target that accepts some requests and refuses others remains a suspect. An hour without a wasted flight
//! clears a target, too.
//!
//! Together: an API that refuses everything causes at most 75 refreshes in any hour, and so do endpoints that refuse
//! everything beside others that accept, not counting those of expired tokens. There is one pause for all suspects, so
//! that ten cause no more refreshes than one. Beyond [`MOST_SUSPECTS`], targets can't be told apart: they count as suspects.
//!
//! The guard is part of the session's state and changes under the lock. The results of a flight's starter are in atomics
//! beside it, [`StarterResults`], since each replay may write them. First attempts that are accepted are only recorded
//! while the guard [watches](LoopGuard::is_watching).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::{SHORTEST, doubled};
use super::state::At;
use crate::refresh::{Generation, NotRefreshed};
use crate::target::Target;

/// The wasted flight in a row from which on each starts a pause.
pub(crate) const LOOPING: u32 = 6;

/// The age up to which the refusal of a token counts, if it is not known to be that of a replay.
pub(crate) const PROBATION: Duration = Duration::from_secs(60);

/// The time for which a suspect is remembered, and a session with suspects kept in memory.
pub(crate) const MEMORY: Duration = Duration::from_secs(60 * 60);

/// The most targets that may refuse a token, with none accepted since, before the API is taken to refuse everything.
pub(super) const FEW: usize = 3;

/// The most targets that are told apart.
pub(super) const MOST_SUSPECTS: usize = 16;

/// The weight of a wasted flight whose token the target refused, and from which on the target is a suspect.
const REFUSED: u8 = 2;

/// The weight of a wasted flight whose token the target neither accepted nor refused.
const UNKNOWN: u8 = 1;

/// The wasted flights of a session.
#[derive(Clone, Debug)]
pub(super) struct LoopGuard {
    /// The start of the last flight, until it is settled.
    pub(super) starter: Option<Starter>,
    /// The time at which a flight brought the generation in force.
    pub(super) issued: Option<Instant>,
    /// Boxed: most sessions have none.
    pub(super) row: Option<Box<Row>>,
}

/// The start of a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Starter {
    pub(super) target: Target,
    /// The generation that the flight replaces.
    pub(super) base: Generation,
}

/// Wasted flights in a row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) wasted: u32,
    /// The end of the pause.
    pub(super) until: Option<Instant>,
    /// The newest generation that was accepted in the row, by any target.
    pub(super) accepted: Generation,
    pub(super) accounts: Vec<Account>,
}

/// The wasted flights that a target started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) target: Target,
    pub(super) weight: u8,
    /// The acceptance of a newer generation closes the account.
    pub(super) refused: Generation,
    /// The time of the last of these flights.
    pub(super) at: Instant,
}

impl LoopGuard {
    pub(super) fn new() -> Self {
        Self { starter: None, issued: None, row: None }
    }

    /// Returns `true` if accepted first attempts are to be recorded.
    #[inline]
    pub(crate) fn is_watching(&self) -> bool {
        self.row.is_some()
    }

    /// Returns `true` if no token was accepted since one was refused.
    pub(super) fn is_refusing(&self) -> bool {
        self.row.as_ref().is_some_and(|row| row.refusing() > 0)
    }

    /// Takes the start of a flight into account. `target`: `None` if the app started it.
    pub(super) fn start(&mut self, target: Option<Target>, base: Generation, results: Results, at: At) {
        self.settle(false, results, at);
        self.starter = target.map(|target| Starter { target, base });
    }

    /// Takes the failure of a flight into account.
    pub(super) fn fail(&mut self, at: At) {
        self.starter = None;
        if let Some(row) = &mut self.row {
            row.pause(at);
        }
    }

    /// Settles the last flight. `challenged`: the generation in force has just been refused.
    pub(super) fn settle(&mut self, challenged: bool, results: Results, at: At) {
        self.forget(at.now);
        if let Some(Starter { target, base }) = self.starter.take() {
            // A refresh ahead of need is only wasted if its token is refused.
            let counts = self.is_fresh(at.now) && (challenged || target != Target::SESSION);
            if results.refused > base && results.refused >= results.accepted {
                self.waste(target, REFUSED, results.refused, at);
            } else if results.accepted > base {
                self.close(target);
            } else if counts {
                self.waste(target, UNKNOWN, base, at);
            }
        }
        self.end_row_without_accounts();
    }

    /// Settles a flight that brought no token, or the very token that was refused.
    pub(super) fn settle_without_token(&mut self, in_force: Generation, at: At) {
        self.forget(at.now);
        let target = self.starter.take().map_or(Target::SESSION, |starter| starter.target);
        self.waste(target, REFUSED, in_force, at);
    }

    /// Returns `true` if the results of this target are those of the last flight's starter, which is not settled yet. If
    /// no request started the flight, all are.
    pub(super) fn is_starter(&self, target: Target) -> bool {
        self.starter.is_some_and(|starter| starter.target == target || starter.target == Target::SESSION)
    }

    /// Returns `true` if it matters to the guard that a target accepted this generation.
    pub(super) fn is_changed_by_acceptance(&self, target: Target, generation: Generation, results: Results) -> bool {
        let refused = self.unsettled_refusal(target, results);
        self.row.as_deref().is_some_and(|row| {
            let closes = |account: &Account| account.is_closed_by(target, generation);
            generation > row.accepted || generation > refused && row.accounts.iter().any(closes)
        })
    }

    /// Takes into account that a target accepted this generation.
    pub(super) fn accept(&mut self, target: Target, generation: Generation, results: Results) {
        let refused = self.unsettled_refusal(target, results);
        if let Some(row) = &mut self.row {
            row.accepted = row.accepted.max(generation);
            row.accounts.retain(|account| generation <= refused || !account.is_closed_by(target, generation));
        }
        self.end_row_without_accounts();
    }

    /// Ends the pause, if the token in force was accepted. To be called if it has expired.
    pub(super) fn expire(&mut self, in_force: Generation) {
        if let Some(row) = self.row.as_mut().filter(|row| row.accepted >= in_force) {
            row.until = None;
        }
    }

    /// Returns why a target may start no flight now.
    pub(super) fn refusal(&self, target: Target, now: Instant) -> Option<NotRefreshed> {
        let row = self.row.as_deref().filter(|row| row.until.is_some_and(|until| now < until))?;
        match row.refusing() {
            0 => row.is_suspect(target).then_some(NotRefreshed::RequestRefused),
            refusing => (refusing > FEW || row.is_suspect(target)).then_some(NotRefreshed::Looping),
        }
    }

    /// Returns `true` if evicting the session would let its API cause more refreshes.
    pub(super) fn must_be_remembered(&self, results: Results, now: Instant) -> bool {
        let is_wasted = self.starter.is_some_and(|starter| results.refused > starter.base);
        (is_wasted || self.row.is_some()) && self.issued.is_some_and(|issued| now.duration_since(issued) < MEMORY)
    }

    /// Returns the generation that a target has refused in the replay of a flight that is not settled yet.
    fn unsettled_refusal(&self, target: Target, results: Results) -> Generation {
        let is_its_own = self.starter.is_some_and(|starter| starter.target == target && results.refused > starter.base);
        if is_its_own { results.refused } else { Generation(0) }
    }

    /// Returns `true` if the token in force arrived a moment ago.
    fn is_fresh(&self, now: Instant) -> bool {
        self.issued.is_some_and(|issued| now.duration_since(issued) < PROBATION)
    }

    fn forget(&mut self, now: Instant) {
        if let Some(row) = &mut self.row {
            row.accounts.retain(|account| now.duration_since(account.at) < MEMORY);
        }
        self.end_row_without_accounts();
    }

    fn waste(&mut self, target: Target, weight: u8, refused: Generation, at: At) {
        let row = self.row.get_or_insert_with(|| Box::new(Row::new()));
        row.wasted = row.wasted.saturating_add(1);
        row.pause(at);
        let account = Account { target, weight, refused, at: at.now };
        if let Some(of_target) = row.accounts.iter_mut().find(|of| of.target == target) {
            *of_target = Account { weight: weight.saturating_add(of_target.weight), ..account };
        } else if row.accounts.len() < MOST_SUSPECTS {
            row.accounts.push(account);
        }
    }

    fn close(&mut self, target: Target) {
        if let Some(row) = &mut self.row {
            row.accounts.retain(|account| account.target != target);
        }
    }

    fn end_row_without_accounts(&mut self) {
        self.row.take_if(|row| row.accounts.is_empty());
    }
}

impl Row {
    fn new() -> Self {
        Self { wasted: 0, until: None, accepted: Generation(0), accounts: Vec::new() }
    }

    /// Starts the pause after the last wasted flight, if there is one.
    fn pause(&mut self, At { now, jitter, .. }: At) {
        let pause = self.wasted.checked_sub(LOOPING).map(|over| doubled(SHORTEST, over).mul_f64(1.0 + jitter / 4.0));
        self.until = pause.map(|pause| now + pause);
    }

    /// Returns the number of targets that have refused a token since one was accepted.
    fn refusing(&self) -> usize {
        self.accounts.iter().filter(|account| account.refused > self.accepted).count()
    }

    fn is_suspect(&self, target: Target) -> bool {
        let account = self.accounts.iter().find(|account| account.target == target);
        account.map_or(self.accounts.len() >= MOST_SUSPECTS, |account| account.weight >= REFUSED)
    }
}

impl Account {
    fn is_closed_by(&self, target: Target, generation: Generation) -> bool {
        (self.target == target || self.target == Target::SESSION) && generation > self.refused
    }
}

/// The newest generations that the target that started the last flight has accepted, and has refused in a replay.
#[derive(Debug, Default)]
pub(super) struct StarterResults {
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// The values of [`StarterResults`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Results {
    pub(crate) accepted: Generation,
    pub(crate) refused: Generation,
}

impl StarterResults {
    pub(super) fn load(&self) -> Results {
        let [accepted, refused] = [&self.accepted, &self.refused].map(|it| Generation(it.load(Ordering::Relaxed)));
        Results { accepted, refused }
    }

    /// Records a result, if it is one of the starter's.
    pub(super) fn record(&self, guard: &LoopGuard, target: Target, generation: Generation, accepted: bool) {
        if !guard.is_starter(target) {
            return;
        }
        let newest = if accepted { &self.accepted } else { &self.refused };
        // Loads first, to avoid contention on the cache line.
        if newest.load(Ordering::Relaxed) < generation.0 {
            newest.fetch_max(generation.0, Ordering::Relaxed);
        }
    }
}
