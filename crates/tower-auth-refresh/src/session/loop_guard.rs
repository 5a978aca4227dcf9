//! [`LoopGuard`]: bounds the refreshes that refusals of fresh tokens cause, and stops none that works.
//!
//! A flight that a challenge starts is *wasted* if its token does not get the challenged [`Target`] accepted. The next
//! challenge settles it by the results of its starter:
//!
//! - Refused in the replay: the target is a *suspect*.
//! - Accepted: the target is no suspect any more.
//! - Neither (the caller was dropped, or the body could not be replayed): two of these make a suspect, if the token was
//!   refused within [`PROBATION`] of its arrival. Slower refusals need no guard: they cause at most 60 refreshes an
//!   hour.
//! - A flight that fails is not wasted. It only starts the pause anew.
//!
//! Wasted flights are counted in a row. The first five are free. From the sixth on each starts a pause of 1 s, doubling
//! to 60 s, jittered upward only. In the pause, a challenge by a suspect starts no flight. A challenge by another
//! target does, unless more than [`FEW`] targets have refused a token since one was accepted anywhere: then the API
//! refuses everything. If a token was accepted and is past its known expiry, its challenge ends the pause.
//!
//! The row ends when no suspect is left. An accepted token clears a target if it is newer than the one that the target
//! refused: a target that accepts some requests and refuses others remains a suspect. An hour without a wasted flight
//! clears a target, too.
//!
//! Together: an API that refuses everything causes at most 75 refreshes in any hour, and so do endpoints that refuse
//! everything beside others that accept, not counting those of expired tokens. There is one pause for all suspects, so
//! that ten cause no more refreshes than one. Beyond [`MOST_SUSPECTS`], targets can't be told apart, and count as
//! suspects.
//!
//! The guard is part of the session's state and changes under the lock. The results of a flight's starter are in
//! atomics beside it, [`StarterResults`], since each replay may write them. First attempts that are accepted are only
//! recorded while the guard [watches](LoopGuard::is_watching): the cell has a copy of that flag, and a request reads no
//! more than the flag.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::{At, SHORTEST, doubled};
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

    /// Returns `true` if the results of this target are those of the starter of the last flight, which is not settled
    /// yet. If no challenge started the flight, the results of each target are.
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::Method;

    use super::super::backoff::LONGEST;
    use super::*;

    const NOTHING: Results = Results { accepted: Generation(0), refused: Generation(0) };

    fn target(path: &str) -> Target {
        Target::new(&Method::GET, b"api.example.com", path.as_bytes())
    }

    /// A guard and its clock. Each flight brings a new generation.
    struct Guarded {
        guard: LoopGuard,
        in_force: Generation,
        at: At,
    }

    impl Guarded {
        fn new() -> Self {
            let at = At { now: Instant::now(), wall: SystemTime::UNIX_EPOCH, jitter: 0.0 };
            Self { guard: LoopGuard::new(), in_force: Generation(1), at }
        }

        fn start(&mut self, target: Option<Target>) {
            self.guard.start(target, self.in_force, NOTHING, self.at);
            self.in_force.0 += 1;
            self.guard.issued = Some(self.at.now);
        }

        fn settle(&mut self, results: Results) {
            self.guard.settle(true, results, self.at);
        }

        /// Challenges by the target start flights, whose tokens it refuses in the replay.
        fn refused(&mut self, target: Target, times: u32) {
            for _ in 0..times {
                self.start(Some(target));
                self.settle(Results { refused: self.in_force, ..NOTHING });
            }
        }

        /// Challenges by the target start flights, whose callers are dropped.
        fn unknown(&mut self, target: Target, times: u32) {
            for _ in 0..times {
                self.start(Some(target));
                self.settle(NOTHING);
            }
        }

        fn accepts(&mut self, target: Target, generation: Generation) {
            self.accepts_after(NOTHING, target, generation);
        }

        /// Accepts after these results of the starter.
        fn accepts_after(&mut self, results: Results, target: Target, generation: Generation) {
            let changes = self.guard.is_changed_by_acceptance(target, generation, results);
            let before = format!("{:?}", self.guard);
            self.guard.accept(target, generation, results);
            assert_eq!(changes, format!("{:?}", self.guard) != before);
        }

        fn is_looping(&self, target: Target) -> bool {
            matches!(self.guard.refusal(target, self.at.now), Some(NotRefreshed::Looping))
        }

        fn is_request_refused(&self, target: Target) -> bool {
            matches!(self.guard.refusal(target, self.at.now), Some(NotRefreshed::RequestRefused))
        }

        fn may_start(&self, target: Target) -> bool {
            self.guard.refusal(target, self.at.now).is_none()
        }

        fn wasted(&self) -> u32 {
            self.guard.row.as_ref().map_or(0, |row| row.wasted)
        }
    }

    #[test]
    fn the_sixth_wasted_flight_and_each_further_one_start_a_pause_for_their_target() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        it.refused(fresh, 5);
        assert!(it.may_start(fresh));
        let mut pause = SHORTEST;
        for _ in 6..15 {
            it.refused(fresh, 1);
            let end = it.at.now + pause;
            it.at.now = end.checked_sub(Duration::from_millis(1)).unwrap();
            assert!(it.is_looping(fresh) && it.may_start(target("/ok")));
            it.at.now = end;
            assert!(it.may_start(fresh));
            pause = (2 * pause).min(LONGEST);
        }
    }

    #[test]
    fn a_failed_flight_is_not_wasted_and_starts_the_pause_anew() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        it.refused(fresh, 6);
        it.at.now += SHORTEST;
        it.start(Some(fresh));
        it.guard.fail(it.at);
        it.settle(NOTHING);
        assert!(it.is_looping(fresh));
        assert_eq!(it.wasted(), 6);
    }

    #[test]
    fn an_acceptance_that_says_nothing_new_changes_nothing() {
        let mut it = Guarded::new();
        let (fresh, ok) = (target("/fresh"), target("/ok"));
        it.refused(fresh, 1);
        it.start(Some(fresh));
        it.accepts(ok, it.in_force);
        it.accepts(ok, it.in_force);
        // Refused in the replay, and accepted in another request.
        it.accepts_after(Results { refused: it.in_force, ..NOTHING }, fresh, it.in_force);
        assert!(it.guard.is_watching());
    }

    #[test]
    fn an_unsettled_refusal_is_the_starters_own_and_of_the_token_that_its_flight_brought() {
        let (mine, other) = (target("/mine"), target("/other"));
        let mut it = Guarded::new();
        it.refused(other, 1);
        it.start(Some(mine));
        it.accepts_after(Results { refused: it.in_force, ..NOTHING }, other, it.in_force);
        assert!(!it.guard.is_watching(), "the account of the other target is closed");

        let mut it = Guarded::new();
        it.unknown(mine, 1);
        let base = it.in_force;
        it.start(Some(mine));
        it.accepts_after(Results { refused: base, ..NOTHING }, mine, base);
        assert!(!it.guard.is_watching(), "the base was refused before the flight");
    }

    #[test]
    fn a_session_is_remembered_while_the_token_of_its_flight_is_refused() {
        let mut it = Guarded::new();
        let base = it.in_force;
        it.start(Some(target("/fresh")));
        let remembers = |refused| it.guard.must_be_remembered(Results { refused, ..NOTHING }, it.at.now);
        assert!(!remembers(base) && remembers(it.in_force));
    }

    #[test]
    fn the_report_of_a_suspect_depends_on_whether_others_are_accepted() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        it.refused(fresh, 6);
        assert!(it.is_looping(fresh) && it.guard.is_refusing());
        it.accepts(target("/ok"), it.in_force);
        assert!(it.is_request_refused(fresh) && !it.guard.is_refusing());
    }

    #[test]
    fn if_more_than_few_targets_refuse_every_token_no_target_may_start_a_flight() {
        let mut it = Guarded::new();
        for path in ["/a", "/b", "/c"] {
            it.refused(target(path), 2);
        }
        assert!(it.may_start(target("/ok")));
        it.refused(target("/d"), 1);
        assert!(it.is_looping(target("/ok")));
        it.accepts(target("/other"), it.in_force);
        assert!(it.may_start(target("/ok")) && it.is_request_refused(target("/d")));
    }

    #[test]
    fn a_flight_without_a_result_counts_half_and_not_at_all_after_the_probation() {
        let mut it = Guarded::new();
        let upload = target("/upload");
        it.refused(target("/fresh"), 6);
        it.unknown(upload, 1);
        it.start(Some(upload));
        it.at.now += PROBATION;
        it.settle(NOTHING);
        it.refused(target("/fresh"), 1);
        assert!(it.is_looping(target("/fresh")) && it.may_start(upload));
        it.unknown(upload, 1);
        assert!(it.is_looping(upload));
    }

    #[test]
    fn a_refresh_ahead_of_need_is_wasted_only_if_its_token_is_refused() {
        let mut it = Guarded::new();
        for _ in 0..10 {
            it.start(Some(Target::SESSION));
        }
        assert_eq!(it.wasted(), 0);
        it.settle(NOTHING);
        assert_eq!(it.wasted(), 1);
        it.accepts(target("/any"), it.in_force);
        assert_eq!(it.wasted(), 0);
    }

    #[test]
    fn a_target_is_cleared_by_the_acceptance_of_a_newer_token_than_it_has_refused() {
        let mut it = Guarded::new();
        let [fresh, upload] = ["/fresh", "/upload"].map(target);
        it.refused(fresh, 1);
        it.accepts(fresh, it.in_force);
        it.start(None);
        it.accepts(target("/ok"), it.in_force);
        assert_eq!(it.wasted(), 1);
        it.accepts(fresh, it.in_force);
        assert!(!it.guard.is_watching());
        // As the starter of a flight.
        it.unknown(upload, 1);
        it.start(Some(upload));
        it.settle(Results { accepted: it.in_force, ..NOTHING });
        assert!(!it.guard.is_watching());
    }

    #[test]
    fn a_target_that_accepts_and_refuses_the_same_token_is_not_cleared() {
        let mut it = Guarded::new();
        let mixed = target("/mixed");
        for wasted in 1..=6 {
            it.start(Some(mixed));
            let results = Results { accepted: it.in_force, refused: it.in_force };
            assert!(!it.guard.is_changed_by_acceptance(mixed, it.in_force, results) || wasted > 1);
            it.guard.accept(mixed, it.in_force, results);
            it.settle(results);
            assert_eq!(it.wasted(), wasted);
        }
        assert!(!it.may_start(mixed));
    }

    #[test]
    fn an_accepted_token_may_be_refreshed_once_it_has_expired() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        it.refused(fresh, 6);
        it.guard.expire(it.in_force);
        assert!(it.is_looping(fresh));
        it.accepts(target("/ok"), it.in_force);
        it.guard.expire(it.in_force);
        assert!(it.may_start(fresh));
    }

    #[test]
    fn wasted_flights_are_forgotten_after_an_hour() {
        let mut it = Guarded::new();
        it.refused(target("/fresh"), 6);
        it.at.now += MEMORY;
        it.settle(NOTHING);
        assert!(!it.guard.is_watching());
    }

    #[test]
    fn targets_that_can_no_longer_be_told_apart_are_suspects() {
        let mut it = Guarded::new();
        let nth = |n: usize| target(&"/x".repeat(n + 1));
        for n in 0..MOST_SUSPECTS {
            it.accepts(target("/ok"), it.in_force);
            assert!(it.may_start(nth(n)));
            it.refused(nth(n), 1);
        }
        it.accepts(target("/ok"), it.in_force);
        assert!(it.is_request_refused(nth(MOST_SUSPECTS)));
        it.refused(nth(MOST_SUSPECTS), 1);
        assert_eq!(it.guard.row.as_ref().unwrap().accounts.len(), MOST_SUSPECTS);
        it.at.now += 2 * LONGEST;
        assert!(it.may_start(nth(MOST_SUSPECTS)));
    }

    #[test]
    fn only_results_of_the_starter_are_recorded() {
        let mut it = Guarded::new();
        let results = StarterResults::default();
        let [fresh, ok] = ["/fresh", "/ok"].map(target);
        results.record(&it.guard, fresh, Generation(1), true);
        it.start(Some(fresh));
        results.record(&it.guard, ok, Generation(2), true);
        assert_eq!(results.load(), NOTHING);
        results.record(&it.guard, fresh, Generation(2), false);
        results.record(&it.guard, fresh, Generation(1), false);
        assert_eq!(results.load(), Results { refused: Generation(2), ..NOTHING });
        it.start(Some(Target::SESSION));
        results.record(&it.guard, ok, Generation(3), true);
        assert_eq!(results.load(), Results { accepted: Generation(3), refused: Generation(2) });
    }
}
