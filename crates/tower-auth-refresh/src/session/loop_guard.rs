//! [`LoopGuard`]: bounds the refreshes that refusals of fresh tokens cause, without stopping those that work.
//!
//! A refresh is *wasted* if its token does not get the challenged request accepted. The guard limits wasted refreshes on
//! two levels, by the same schedule: the first five in a row are free. From the sixth on each starts a cool-down of 1 s,
//! doubling to 60 s, jittered upward only.
//!
//! **The session.** A *strike* is a fresh token that an API refuses: within [`PROBATION`] of its arrival, or in a replay,
//! without having been accepted before. In the cool-down after a strike, challenges are answered with `Looping` instead
//! of a refresh. The strikes are cleared, and the cool-down lifted, by an accepted token that is newer than the last
//! strike's, or by a request that was sent after the last strike. Slower refusals than [`PROBATION`] need no guard: they
//! cause at most 60 refreshes in an hour. Together: an API that refuses everything causes at most 75 refreshes in any
//! hour.
//!
//! **The [`Target`].** Some endpoints refuse a token that others accept: they require another scope, or a more recent
//! sign-in. Acceptances elsewhere clear the session's strikes, so these refusals are counted by target. The flight that
//! a challenge starts is on the account of the challenged target until the next challenge or flight settles it:
//!
//! - If the target accepted the new token, its account is closed.
//! - If it refused the new token, that weighs [`REFUSED`].
//! - Otherwise (the caller was dropped, or the body could not be replayed) it weighs [`UNKNOWN`].
//! - If the flight failed, it weighs nothing.
//!
//! A target of weight [`SUSPECT`] is *held*: in the cool-down that all targets with an account share, its challenges start
//! no flight, add no strike, and are answered with `RequestRefused`. They may still join a flight, or use newer tokens.
//! The schedule is shared so that ten such endpoints cause no more refreshes than one. Once the cool-down is at its
//! longest, one refused token is enough.
//!
//! Two exemptions keep the guard from stopping a refresh that a healthy target needs:
//!
//! - A target without an account may start a flight in the session's cool-down, [`EXEMPTIONS`] times until a token is
//!   accepted. An API that refuses everything has that many refreshes more.
//! - A token that was accepted and is past its known expiry may be refreshed at any time.
//!
//! If [`MOST_SUSPECTS`] targets have an account, the guard can't tell further ones apart: they share the cool-down, too.
//!
//! The guard has two parts. [`LoopGuard`] is part of the session's state and changes under the lock. [`ReplayResults`]
//! lies beside it in atomics, because each replay writes it; an event carries its values into the state. First attempts
//! that are accepted are recorded only while there are strikes or accounts: see [`LoopGuard::watch`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::{SHORTEST, doubled};
use super::state::At;
use crate::refresh::Generation;
use crate::target::Target;

/// The wasted refresh in a row from which on each starts a cool-down.
pub(crate) const LOOPING: u32 = 6;

/// The age up to which the refusal of a token that was never accepted is a strike.
pub(crate) const PROBATION: Duration = Duration::from_secs(60);

/// The time for which a session with strikes is kept in memory, so that evicting it does not clear them. The account of a
/// target is forgotten after as long.
pub(crate) const MEMORY: Duration = Duration::from_secs(60 * 60);

/// The weight of a flight whose token its target refused.
const REFUSED: u8 = 3;

/// The weight of a flight whose token its target neither accepted nor refused.
const UNKNOWN: u8 = 1;

/// The weight from which on a target is held, until so many refreshes were wasted that the cool-down is at its longest.
pub(super) const SUSPECT: u8 = 6;

/// The most targets with an account.
pub(super) const MOST_SUSPECTS: usize = 16;

/// The flights that targets without an account may start in the session's cool-down until a token is accepted.
pub(super) const EXEMPTIONS: u8 = 3;

/// The strikes of a session, and the accounts of its targets.
#[derive(Clone, Debug)]
pub(super) struct LoopGuard {
    /// Strikes in a row.
    pub(super) strikes: u32,
    /// The target that started the last flight, until that is settled.
    pub(super) starter: Option<Target>,
    /// The generation of the last strike.
    pub(super) last_refusal: Generation,
    /// The time at which a flight brought the generation in force.
    pub(super) issued: Option<Instant>,
    /// Boxed: most sessions have none.
    pub(super) suspects: Option<Box<Suspects>>,
}

/// The targets with an account, and what they share.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspects {
    /// Wasted refreshes in a row.
    pub(super) wasted: u32,
    /// The end of the cool-down after the last one.
    pub(super) until: Option<Instant>,
    /// The exemptions used since a token was accepted.
    pub(super) exemptions: u8,
    pub(super) accounts: Vec<Account>,
}

/// The wasted refreshes of a target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) target: Target,
    pub(super) weight: u8,
    /// The acceptance of a newer generation closes the account.
    pub(super) refused: Generation,
    /// The time of the last one.
    pub(super) at: Instant,
}

impl LoopGuard {
    pub(super) fn new() -> Self {
        Self { strikes: 0, starter: None, last_refusal: Generation(0), issued: None, suspects: None }
    }

    /// Returns 0 if accepted first attempts need not be recorded; otherwise a number that dates a request: it grows with
    /// each strike.
    pub(super) fn watch(&self) -> u32 {
        if self.strikes == 0 && self.suspects.is_none() { 0 } else { self.strikes.saturating_add(1) }
    }

    /// Whether a token newer than the last strike's was accepted.
    pub(super) fn has_recovered(&self, accepted: Generation) -> bool {
        self.strikes > 0 && accepted > self.last_refusal
    }

    /// Whether the acceptance of a request proves that fresh tokens are accepted. `watch`: of the moment of its sending.
    pub(super) fn is_cleared_by(&self, generation: Generation, watch: u32) -> bool {
        let sent_since = generation == self.last_refusal && watch == self.watch();
        self.has_recovered(generation) || self.strikes > 0 && sent_since
    }

    /// Clears the strikes.
    pub(super) fn clear_strikes(&mut self) {
        self.strikes = 0;
        if let Some(suspects) = &mut self.suspects {
            suspects.exemptions = 0;
        }
        self.drop_empty();
    }

    /// Whether the refusal of `generation`, which is in force, is a strike.
    pub(super) fn is_strike(&self, generation: Generation, results: Results, now: Instant) -> bool {
        let refused_in_replay = results.refused >= generation;
        self.issued.is_some() && results.accepted < generation && (self.is_fresh(now) || refused_in_replay)
    }

    /// Adds a strike and returns the cool-down that it starts.
    pub(super) fn strike(&mut self, generation: Generation, jitter: f64) -> Option<Duration> {
        self.strikes = self.strikes.saturating_add(1);
        self.last_refusal = generation;
        self.cool_down(jitter)
    }

    /// Returns the cool-down after the last strike, if there is one.
    pub(super) fn cool_down(&self, jitter: f64) -> Option<Duration> {
        cool_down(self.strikes, jitter)
    }

    /// Opens the account of a flight that starts. `None`: no challenge started it.
    pub(super) fn start(&mut self, target: Option<Target>) {
        self.starter = target;
    }

    /// Drops the account of a flight that failed.
    pub(super) fn forget_start(&mut self) {
        self.starter = None;
    }

    /// Whether a flight has ended, or is under way, that is not settled yet.
    pub(super) fn has_unsettled_start(&self) -> bool {
        self.starter.is_some()
    }

    /// Settles the last flight. `challenger`: the target that has just refused `in_force`, which is the newest generation.
    pub(super) fn settle(&mut self, in_force: Generation, challenger: Option<Target>, results: Results, at: At) {
        let now = at.now;
        if let Some(suspects) = &mut self.suspects {
            suspects.accounts.retain(|account| now.duration_since(account.at) < MEMORY);
        }
        if let Some(target) = self.starter.take() {
            let refused_again = challenger == Some(target) && self.is_fresh(now);
            if results.starter.refused || refused_again && !results.starter.accepted {
                self.waste(target, REFUSED, in_force, at);
            } else if results.starter.accepted {
                self.close(target);
            } else if self.is_fresh(now) {
                self.waste(target, UNKNOWN, Generation(in_force.0.saturating_sub(1)), at);
            }
        }
        self.drop_empty();
    }

    /// Settles a flight that brought the very token that its target has refused.
    pub(super) fn refused_again(&mut self, in_force: Generation, at: At) {
        if let Some(target) = self.starter.take() {
            self.waste(target, REFUSED, in_force, at);
        }
    }

    /// Whether the acceptance of `generation` closes the account of the target.
    pub(super) fn is_closed_by(&self, target: Target, generation: Generation, results: Results) -> bool {
        // A target that has refused a token in its replay proves nothing by accepting the same token.
        let refused = self.starter == Some(target) && results.starter.refused;
        !refused && self.account(target).is_some_and(|account| generation > account.refused)
    }

    /// Closes the account of a target.
    pub(super) fn close(&mut self, target: Target) {
        if let Some(suspects) = &mut self.suspects {
            suspects.accounts.retain(|account| account.target != target);
        }
        self.drop_empty();
    }

    /// Whether challenges by this target start no flight now.
    pub(super) fn is_held(&self, target: Target, now: Instant) -> bool {
        self.suspects.as_deref().is_some_and(|suspects| {
            suspects.until.is_some_and(|until| now < until)
                && self.account(target).map_or(suspects.is_full(), |account| account.weight >= suspects.limit())
        })
    }

    /// Ends the cool-down of the targets.
    pub(super) fn release(&mut self) {
        if let Some(suspects) = &mut self.suspects {
            suspects.until = None;
        }
    }

    /// Whether a target has no account.
    pub(super) fn is_clean(&self, target: Target) -> bool {
        self.suspects.as_deref().is_none_or(|suspects| !suspects.is_full()) && self.account(target).is_none()
    }

    /// Uses an exemption from the session's cool-down, if the target has one.
    pub(super) fn use_exemption(&mut self, target: Target) -> bool {
        let is_clean = self.is_clean(target);
        let suspects = self.suspects.get_or_insert_default();
        let may = is_clean && suspects.exemptions < EXEMPTIONS;
        suspects.exemptions += u8::from(may);
        may
    }

    /// Whether evicting the session would let its API cause more refreshes.
    pub(super) fn must_be_remembered(&self, in_force: Generation, refused: Generation, now: Instant) -> bool {
        let is_refusing = self.strikes > 0 || self.suspects.is_some() || refused >= in_force;
        is_refusing && self.issued.is_some_and(|issued| now.duration_since(issued) < MEMORY)
    }

    /// Whether the token in force arrived a moment ago.
    fn is_fresh(&self, now: Instant) -> bool {
        self.issued.is_some_and(|issued| now.duration_since(issued) < PROBATION)
    }

    fn waste(&mut self, target: Target, weight: u8, refused: Generation, At { now, jitter, .. }: At) {
        let suspects = self.suspects.get_or_insert_default();
        suspects.wasted = suspects.wasted.saturating_add(1);
        suspects.until = cool_down(suspects.wasted, jitter).map(|pause| now + pause);
        let account = suspects.accounts.iter_mut().find(|account| account.target == target);
        if let Some(account) = account {
            let weight = account.weight.saturating_add(weight);
            *account = Account { target, weight, refused, at: now };
        } else if !suspects.is_full() {
            suspects.accounts.push(Account { target, weight, refused, at: now });
        }
    }

    fn account(&self, target: Target) -> Option<&Account> {
        self.suspects.as_deref()?.accounts.iter().find(|account| account.target == target)
    }

    fn drop_empty(&mut self) {
        let is_empty = |suspects: &Suspects| suspects.accounts.is_empty() && suspects.exemptions == 0;
        if self.suspects.as_deref().is_some_and(is_empty) {
            self.suspects = None;
        }
    }
}

impl Suspects {
    fn is_full(&self) -> bool {
        self.accounts.len() >= MOST_SUSPECTS
    }

    /// Returns the weight from which on a target is held.
    fn limit(&self) -> u8 {
        if self.wasted < 2 * LOOPING { SUSPECT } else { REFUSED }
    }
}

/// Returns the cool-down after so many wasted refreshes in a row, if there is one.
fn cool_down(wasted: u32, jitter: f64) -> Option<Duration> {
    let over = wasted.checked_sub(LOOPING)?;
    Some(doubled(SHORTEST, over).mul_f64(1.0 + jitter / 4.0))
}

/// The newest generations with which a request was accepted, and refused in a replay; and the results of the target that
/// started the last flight.
#[derive(Debug, Default)]
pub(super) struct ReplayResults {
    accepted: AtomicU64,
    refused: AtomicU64,
    /// The target in the upper half. In the lower half the generation that its flight replaces, shifted by the two bits
    /// of its [`StarterResults`].
    starter: AtomicU64,
}

/// The values of [`ReplayResults`] at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Results {
    pub(crate) accepted: Generation,
    pub(crate) refused: Generation,
    pub(crate) starter: StarterResults,
}

/// The results, with the tokens of a flight or newer ones, of the target that started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct StarterResults {
    pub(crate) accepted: bool,
    /// In a replay.
    pub(crate) refused: bool,
}

const STARTER_ACCEPTED: u64 = 1;
const STARTER_REFUSED: u64 = 2;

impl ReplayResults {
    pub(super) fn load(&self) -> Results {
        let [accepted, refused] = [&self.accepted, &self.refused].map(|it| Generation(it.load(Ordering::Relaxed)));
        let starter = self.starter.load(Ordering::Relaxed);
        let starter =
            StarterResults { accepted: starter & STARTER_ACCEPTED != 0, refused: starter & STARTER_REFUSED != 0 };
        Results { accepted, refused, starter }
    }

    /// Begins to record the results of a target whose flight replaces `generation`.
    pub(super) fn start(&self, target: Option<Target>, generation: Generation) {
        let target = target.map_or(0, |target| u64::from(target.get()));
        self.starter.store(target << 32 | shifted(generation), Ordering::Relaxed);
    }

    /// Records the result of a request: of a replay, or an accepted first attempt.
    pub(super) fn record(&self, target: Target, generation: Generation, accepted: bool) {
        self.record_newest(generation, accepted);
        let bit = if accepted { STARTER_ACCEPTED } else { STARTER_REFUSED };
        let recorded = |starter: u64| {
            let is_newer = shifted(generation) > starter & u64::from(u32::MAX - 3);
            let is_its_own = starter >> 32 == u64::from(target.get()) && is_newer;
            (is_its_own && starter & bit == 0).then_some(starter | bit)
        };
        let _ = self.starter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, recorded);
    }

    /// Records that a request was accepted that can't be replayed. That proves as much as an accepted replay, unless a
    /// replay was refused.
    pub(super) fn record_accepted_unreplayable(&self, generation: Generation) {
        if self.refused.load(Ordering::Relaxed) < generation.0 {
            self.record_newest(generation, true);
        }
    }

    fn record_newest(&self, generation: Generation, accepted: bool) {
        let newest = if accepted { &self.accepted } else { &self.refused };
        // Loads first, to avoid contention on the cache line.
        if newest.load(Ordering::Relaxed) < generation.0 {
            newest.fetch_max(generation.0, Ordering::Relaxed);
        }
    }
}

/// The lower half of [`ReplayResults::starter`] for a generation. It wraps around after 2^30 generations.
fn shifted(generation: Generation) -> u64 {
    generation.0 << 2 & u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::Method;

    use super::super::backoff::LONGEST;
    use super::*;

    const NOTHING: StarterResults = StarterResults { accepted: false, refused: false };

    fn target(path: &str) -> Target {
        Target::new(&Method::GET, "api.example.com", path)
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
            Self { guard: LoopGuard { issued: Some(at.now), ..LoopGuard::new() }, in_force: Generation(1), at }
        }

        fn results(starter: StarterResults) -> Results {
            Results { accepted: Generation(0), refused: Generation(0), starter }
        }

        /// A challenge by this target starts a flight, whose starter gets these results.
        fn flight(&mut self, target: Target, starter: StarterResults) {
            self.guard.start(Some(target));
            self.in_force.0 += 1;
            self.guard.issued = Some(self.at.now);
            self.settle(None, starter);
        }

        fn settle(&mut self, challenger: Option<Target>, starter: StarterResults) {
            self.guard.settle(self.in_force, challenger, Self::results(starter), self.at);
        }

        fn refused(&mut self, target: Target, times: u32) {
            for _ in 0..times {
                self.flight(target, StarterResults { refused: true, ..NOTHING });
            }
        }

        fn is_held(&self, target: Target) -> bool {
            self.guard.is_held(target, self.at.now)
        }

        fn is_closed_by(&self, target: Target, generation: Generation) -> bool {
            self.guard.is_closed_by(target, generation, Self::results(NOTHING))
        }
    }

    #[test]
    fn five_strikes_are_free_and_the_sixth_starts_a_cool_down() {
        let after = |strikes, jitter| LoopGuard { strikes, ..LoopGuard::new() }.cool_down(jitter);
        assert_eq!(after(5, 0.5), None);
        assert_eq!(after(6, 0.0), Some(SHORTEST));
        assert_eq!(after(8, 0.0), Some(4 * SHORTEST));
        assert!(after(u32::MAX, 0.99).unwrap() >= LONGEST);
    }

    #[test]
    fn a_target_is_held_from_its_sixth_wasted_refresh_on_for_as_long_as_the_cool_down_lasts() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        it.refused(fresh, 5);
        assert!(!it.is_held(fresh));
        let mut pause = SHORTEST;
        for _ in 6..15 {
            it.refused(fresh, 1);
            it.at.now += pause - Duration::from_millis(1);
            assert!(it.is_held(fresh) && !it.is_held(target("/ok")));
            it.at.now += Duration::from_millis(1);
            assert!(!it.is_held(fresh));
            pause = (2 * pause).min(LONGEST);
        }
    }

    #[test]
    fn targets_share_their_cool_down_and_each_is_held_after_two_refusals() {
        let mut it = Guarded::new();
        let [a, b] = ["/a", "/b"].map(target);
        it.refused(a, 5);
        it.refused(b, 1);
        assert!(it.is_held(a) && !it.is_held(b));
        it.refused(b, 1);
        assert!(it.is_held(b));
    }

    #[test]
    fn one_refusal_is_enough_at_the_longest_cool_down() {
        let mut it = Guarded::new();
        it.refused(target("/a"), 11);
        it.refused(target("/b"), 1);
        assert!(it.is_held(target("/b")));
    }

    #[test]
    fn unknown_results_weigh_less_and_nothing_after_the_probation() {
        let mut it = Guarded::new();
        let upload = target("/upload");
        it.refused(target("/fresh"), 6);
        for _ in 0..5 {
            it.flight(upload, NOTHING);
        }
        assert!(!it.is_held(upload));
        it.guard.start(Some(upload));
        it.at.now += PROBATION;
        it.settle(Some(upload), NOTHING);
        it.refused(target("/fresh"), 1);
        assert!(it.is_held(target("/fresh")) && !it.is_held(upload));
        it.flight(upload, NOTHING);
        assert!(it.is_held(upload));
    }

    #[test]
    fn a_target_that_refuses_its_own_fresh_token_in_a_first_attempt_has_refused_it() {
        let mut it = Guarded::new();
        let upload = target("/upload");
        it.refused(target("/fresh"), 6);
        for _ in 0..2 {
            assert!(!it.is_held(upload));
            it.guard.start(Some(upload));
            it.settle(Some(upload), NOTHING);
        }
        assert!(it.is_held(upload));
    }

    #[test]
    fn an_accepted_token_closes_the_account_if_the_target_has_not_refused_it() {
        let mut it = Guarded::new();
        let [fresh, upload] = ["/fresh", "/upload"].map(target);
        it.refused(fresh, 1);
        let refused = it.in_force;
        assert!(!it.is_closed_by(fresh, refused) && it.is_closed_by(fresh, Generation(refused.0 + 1)));
        assert!(!it.is_closed_by(target("/ok"), Generation(refused.0 + 1)));
        it.flight(upload, NOTHING);
        assert!(it.is_closed_by(upload, it.in_force));
        it.guard.close(upload);
        it.flight(fresh, StarterResults { accepted: true, ..NOTHING });
        assert!(it.guard.suspects.is_none());
        assert_eq!(it.guard.watch(), 0);
    }

    #[test]
    fn the_acceptance_of_a_token_that_the_target_refused_in_its_replay_closes_nothing() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        it.refused(fresh, 1);
        it.guard.start(Some(fresh));
        let results = Guarded::results(StarterResults { accepted: true, refused: true });
        assert!(!it.guard.is_closed_by(fresh, Generation(it.in_force.0 + 1), results));
        it.refused(fresh, 4);
        it.flight(fresh, StarterResults { accepted: true, refused: true });
        assert!(it.is_held(fresh));
    }

    #[test]
    fn a_failed_flight_weighs_nothing_and_the_same_token_again_is_a_refusal() {
        let mut it = Guarded::new();
        let fresh = target("/fresh");
        for _ in 0..10 {
            it.guard.start(Some(fresh));
            it.guard.forget_start();
            it.settle(Some(fresh), NOTHING);
        }
        assert!(it.guard.suspects.is_none());
        for _ in 0..6 {
            it.guard.start(Some(fresh));
            it.guard.refused_again(it.in_force, it.at);
        }
        assert!(it.is_held(fresh));
    }

    #[test]
    fn accounts_are_forgotten_after_an_hour() {
        let mut it = Guarded::new();
        it.refused(target("/fresh"), 6);
        it.at.now += MEMORY;
        it.settle(None, NOTHING);
        assert!(it.guard.suspects.is_none());
    }

    #[test]
    fn further_targets_share_the_cool_down_once_there_is_no_room_for_them() {
        let mut it = Guarded::new();
        let letter = |n: usize| target(&format!("/{}", char::from(b'a' + u8::try_from(n).unwrap())));
        for n in 0..MOST_SUSPECTS {
            assert!(!it.is_held(letter(n)) && it.guard.is_clean(letter(n)));
            it.refused(letter(n), 1);
        }
        let further = letter(MOST_SUSPECTS);
        assert!(it.is_held(further) && !it.guard.is_clean(further) && !it.guard.use_exemption(further));
        it.refused(further, 1);
        assert_eq!(it.guard.suspects.as_ref().unwrap().accounts.len(), MOST_SUSPECTS);
        it.at.now += 2 * LONGEST;
        assert!(!it.is_held(further));
    }

    #[test]
    fn exemptions_are_used_up_until_the_strikes_are_cleared() {
        let mut it = Guarded::new();
        it.refused(target("/fresh"), 1);
        for _ in 0..2 {
            assert!(!it.guard.use_exemption(target("/fresh")));
            for _ in 0..EXEMPTIONS {
                assert!(it.guard.use_exemption(target("/ok")));
            }
            assert!(!it.guard.use_exemption(target("/ok")));
            it.guard.clear_strikes();
        }
    }

    #[test]
    fn strikes_are_cleared_by_a_newer_token_or_by_a_request_that_was_sent_since() {
        let mut guard = LoopGuard::new();
        assert_eq!(guard.watch(), 0);
        guard.strike(Generation(4), 0.0);
        let before = guard.watch();
        guard.strike(Generation(5), 0.0);
        assert!(guard.is_cleared_by(Generation(6), 0));
        assert!(guard.is_cleared_by(Generation(5), guard.watch()));
        assert!(!guard.is_cleared_by(Generation(5), before) && !guard.is_cleared_by(Generation(4), guard.watch()));
        guard.clear_strikes();
        assert!(!guard.is_cleared_by(Generation(6), guard.watch()));
    }

    #[test]
    fn only_the_starters_results_with_newer_tokens_are_recorded_as_its_own() {
        let results = ReplayResults::default();
        let [fresh, ok] = ["/fresh", "/ok"].map(target);
        results.start(Some(fresh), Generation(7));
        results.record(ok, Generation(8), true);
        results.record(fresh, Generation(7), false);
        assert_eq!(results.load().starter, NOTHING);
        assert_eq!((results.load().accepted, results.load().refused), (Generation(8), Generation(7)));
        results.record(fresh, Generation(8), false);
        assert_eq!(results.load().starter, StarterResults { refused: true, ..NOTHING });
        results.record(fresh, Generation(9), true);
        assert_eq!(results.load().starter, StarterResults { accepted: true, refused: true });
        results.start(None, Generation(9));
        assert_eq!(results.load().starter, NOTHING);
    }
}
