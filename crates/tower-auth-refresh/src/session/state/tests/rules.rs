//! The invariants of every state and every step, by the numbers of the promises in the crate documentation.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Decision, Effect, Event, Phase, State, Stored};
use super::action::Endpoint;
use super::environment::{Environment, Trial, foreign, target};
use crate::refresh::{Generation, NotRefreshed, Trigger};
use crate::session::loop_guard::{self, Account, Results, Starter};
use crate::store::Epoch;
use crate::target::Target;
use crate::token::Tokens;

const TRIGGERS: [Trigger; 4] = [Trigger::Challenge, Trigger::Early, Trigger::Acquire, Trigger::Manual];

/// The longest cool-down.
const LONGEST_COOL_DOWN: Duration = Duration::from_secs(300);

impl Environment {
    /// Updates the facts that are known independently of the state.
    pub(super) fn remember(&mut self, before: &State, event: &Event) {
        let epoch = before.epoch;
        match event {
            Event::Challenged { target, generation, .. } => {
                let is_held = self.state.guard.refusal(*target, self.now).is_some();
                self.challenged |= *generation == before.generation && !is_held;
            }
            Event::Refreshed { epoch: of, place, tokens, .. } if *of == epoch => {
                self.newest = *place;
                self.remember_tokens(before, tokens);
            }
            Event::Salvaged { epoch: of, place, .. } if *of == epoch => {
                self.newest = *place;
                self.doubted = false;
            }
            Event::Renewed { tokens, .. } if renews(before, event) => {
                self.newest += 1;
                self.remember_tokens(before, tokens);
            }
            Event::Adopted { epoch: of, record, .. } if *of == epoch => {
                self.may_hold = vec![record.epoch()];
                if record.epoch() == epoch && record.generation() >= self.newest {
                    self.newest = record.generation();
                    self.remember_tokens(before, record.tokens());
                }
            }
            Event::StoreWentBack { epoch: of, .. } if *of == epoch => self.may_hold = vec![epoch],
            Event::Failed { epoch: of, in_doubt, .. } if *of == epoch => {
                self.doubted |= in_doubt;
                self.failures += 1;
                self.failing_since.get_or_insert(self.wall());
            }
            Event::RecordGone { epoch: of, .. } if *of == epoch => self.may_hold.clear(),
            Event::Saved { epoch: of, .. } if *of == epoch => self.may_hold = vec![epoch],
            Event::Deleted { epochs } => self.may_hold.retain(|held| !epochs.contains(held)),
            Event::SignedIn { next, .. } => self.may_hold.push(*next),
            _ => {}
        }
        if self.state.epoch != epoch {
            (self.challenged, self.doubted, self.failures, self.obtained_at) = (false, false, 0, None);
            self.failing_since = None;
            self.newest = match event {
                Event::SignedIn { .. } => 1,
                Event::Adopted { record, .. } => record.generation(),
                _ => 0,
            };
            self.trials = [Trial::default(); 3];
            self.ended = matches!(event, Event::Rejected { .. }).then_some(epoch);
            self.note_first();
        }
    }

    fn remember_tokens(&mut self, before: &State, tokens: &Tokens) {
        (self.doubted, self.failures, self.failing_since) = (false, 0, None);
        if tokens.access_token() != before.tokens.access_token() {
            self.challenged = false;
            self.obtained_at = Some(self.now);
        } else if self.challenged || tokens.access_token().is_none() {
            self.trials.iter_mut().for_each(|trial| trial.refused_again = true);
        }
    }

    pub(super) fn note_first(&mut self) {
        let bare = u64::from(self.state.tokens.access_token().is_none());
        self.first = Generation(self.state.generation.0 + bare);
    }

    /// Checks a single state.
    pub(super) fn check_state(&self) {
        let State { phase, epoch, generation, tokens, stored, due, cooling, .. } = &self.state;
        let is_signed_in = matches!(phase, Phase::Active | Phase::Refreshing);

        assert_eq!(
            *phase == Phase::Refreshing,
            self.flight.is_some(),
            "1: the phase is `Refreshing` while a flight is in progress"
        );
        assert_eq!(*phase == Phase::Ended, self.ended.is_some(), "15: only a rejection by the server ends a session");
        assert_eq!(
            self.state.rejected,
            self.challenged && is_signed_in,
            "a refusal of the tokens in force is recorded"
        );
        assert_eq!(self.state.in_doubt, self.doubted, "2: a token stays in doubt until there is a definite answer");
        let failures = self.state.failures.as_deref();
        let failing = self.failing_since.map(|since| (since, self.failures));
        assert_eq!(failures.map(|failures| (failures.since, failures.count)), failing, "failures in a row are counted");
        assert_eq!(self.state.place, self.newest, "20: the newest tokens of the epoch that are known are in force");
        let Results { accepted, refused } = self.results;
        assert!(accepted <= *generation && refused <= *generation, "3: generations only grow");
        assert!(is_signed_in || *tokens == Tokens::default(), "without a signed-in user there are no tokens");
        assert!(
            is_signed_in || (due.is_none() && cooling.is_none()),
            "without a signed-in user no early refresh or cool-down is scheduled"
        );
        assert_ne!(*epoch, foreign(), "10: an epoch comes into force only by its own event");
        if let (Some(due), Some(cooling)) = (due, cooling) {
            assert!(due.early >= cooling.until, "no early refresh during a cool-down");
        }
        let pointless = *phase == Phase::Refreshing && (self.challenged || tokens.access_token().is_none());
        assert_eq!(self.state.is_pointless_to_send(), pointless);

        let accounts_for = |held: &Epoch| match stored {
            Stored::Clean(None) => false,
            Stored::Clean(Some(_)) | Stored::CommitPending(_) | Stored::OverwritePending(_) => held == epoch,
            Stored::SignInPending(over) => held == epoch || over.contains(held),
            Stored::DeletePending(of) => of.contains(held),
        };
        assert!(self.may_hold.iter().all(accounts_for), "14: no record of an earlier epoch is left in the store");
        let fits = match stored {
            Stored::Clean(version) => version.is_some() == is_signed_in,
            Stored::SignInPending(_) | Stored::CommitPending(_) | Stored::OverwritePending(_) => is_signed_in,
            Stored::DeletePending(_) => !is_signed_in,
        };
        assert!(fits, "the pending write fits the phase");

        self.check_demands();
    }

    fn check_demands(&self) {
        let State { phase, generation, tokens, .. } = &self.state;
        let needs_refresh_token = self.config.needs_refresh_token;
        let has_none = needs_refresh_token && tokens.refresh_token().is_none();
        let older = generation.0.checked_sub(1).map(Generation);
        for trigger in TRIGGERS {
            for over in [foreign(), self.ended.unwrap_or(Epoch::from(0))] {
                let now = self.state.decide(over, *generation, trigger, None, needs_refresh_token, self.now);
                let ended = self.ended == Some(over);
                let refused = match now {
                    Decision::Refuse(NotRefreshed::Ended(_)) => ended,
                    Decision::Refuse(NotRefreshed::SessionChanged) => !ended,
                    _ => false,
                };
                assert!(refused, "10: no refresh, join or replay in another epoch");
            }
            let endpoint = (trigger == Trigger::Challenge).then_some(0);
            match (phase, self.decide(trigger, endpoint, *generation)) {
                (Phase::SignedOut, Decision::Refuse(NotRefreshed::SignedOut))
                | (Phase::Ended, Decision::Refuse(NotRefreshed::Ended(_)))
                | (Phase::Refreshing, Decision::Join) => {}
                (Phase::Active, Decision::Refuse(NotRefreshed::NoRefreshToken)) => assert!(has_none),
                (Phase::Active, Decision::Start) => {
                    assert!(!has_none, "a flight needs a refresh token to present");
                    let unwanted = trigger == Trigger::Early && self.state.guard.is_refusing();
                    assert!(!unwanted, "8: while fresh tokens are refused, there is no early refresh");
                }
                (
                    Phase::Active,
                    Decision::Refuse(
                        NotRefreshed::CoolingDown(_) | NotRefreshed::Looping | NotRefreshed::RequestRefused,
                    ),
                ) => assert_ne!(trigger, Trigger::Manual, "a manual refresh is allowed in a cool-down"),
                (phase, demand) => panic!("1: {demand:?} while {phase:?}"),
            }
            let Some(older) = older.filter(|_| matches!(phase, Phase::Active | Phase::Refreshing)) else { continue };
            match self.decide(trigger, endpoint, older) {
                Decision::UseNewer => assert!(
                    !self.challenged || trigger == Trigger::Manual,
                    "newer tokens that were refused are not offered"
                ),
                _ => assert!(self.challenged && trigger != Trigger::Manual, "9: a stale 401 causes no refresh"),
            }
        }
        if *phase == Phase::Active && !has_none {
            let later = self.decide_at(self.now + LONGEST_COOL_DOWN);
            assert!(!needs_refresh_token || matches!(later, Decision::Start), "15: every cool-down ends");
        }
    }

    fn decide_at(&self, now: Instant) -> Decision {
        let State { epoch, generation, .. } = self.state;
        self.state.decide(epoch, generation, Trigger::Challenge, Some(target(0)), true, now)
    }

    /// Checks the answer to a challenge by an endpoint.
    pub(super) fn check_decision(&self, endpoint: Option<Endpoint>, decision: &Decision) {
        let Some(endpoint) = endpoint else { return };
        let Decision::Refuse(NotRefreshed::Looping | NotRefreshed::RequestRefused) = decision else { return };
        let Trial { flights, refused_again, .. } = self.trials[endpoint];
        assert!(
            flights >= 2 || flights == 1 && refused_again,
            "18: the refusals of one endpoint don't stop a refresh that another endpoint needs"
        );
    }

    /// Checks a step from one state to the next.
    pub(super) fn check_step(&mut self, before: &Self, event: &Event, effect: &Effect) {
        let (old, new) = (&before.state, &self.state.clone());
        assert!(new.generation >= old.generation, "3: generations only grow");
        if of_another_epoch(event, old.epoch) {
            assert!(self.is_unchanged_since(before), "3, 14: an event of an earlier epoch changes nothing");
            match event {
                Event::Refreshed { tokens, .. } | Event::Salvaged { tokens, .. } => {
                    assert_eq!(*effect, Effect::Discard(tokens.clone()), "14");
                }
                _ => assert_eq!(*effect, Effect::Nothing),
            }
            return;
        }
        let outstanding = match event {
            Event::Rejected { .. } | Event::StoreWentBack { .. } => true,
            Event::Refreshed { stored, .. } | Event::Salvaged { stored, .. } => !matches!(stored, Stored::Clean(_)),
            Event::Renewed { .. } => renews(old, event),
            Event::Adopted { .. } => is_older(old, event),
            _ => false,
        };
        assert_eq!(*effect, if outstanding { Effect::Sync } else { Effect::Nothing });
        assert_eq!(new.phase, phase_after(old, event));
        assert_eq!(
            new.tokens,
            *tokens_after(old, event),
            "15, 20: tokens are dropped only for newer ones or at the end of the session"
        );
        assert_eq!(new.epoch, epoch_after(old, event), "10: the epoch changes only with the sign-in state");
        if new.epoch == old.epoch {
            assert!(new.place >= old.place, "20: the place never shrinks within an epoch");
            let is_newer = new.tokens == old.tokens || new.place > old.place || matches!(event, Event::Adopted { .. });
            assert!(is_newer, "20: other tokens have another place, except those of a peer");
            self.check_overwrite(old, event);
            let other = new.tokens.access_token() != old.tokens.access_token();
            assert_eq!(new.generation.0 - old.generation.0, u64::from(other), "3: a generation is one access token");
            self.check_pace(before, event);
        } else {
            assert!(new.epoch.to_u64() > old.epoch.to_u64(), "10: an earlier epoch never returns");
            let grown = new.generation > old.generation;
            assert_eq!(grown, new.phase == Phase::Active, "3: other tokens have another generation");
        }
    }

    /// Checks that an older record of the epoch is going to be written over.
    fn check_overwrite(&self, old: &State, event: &Event) {
        let version = match event {
            Event::StoreWentBack { version, .. } => version,
            Event::Adopted { record, .. } if is_older(old, event) => record.version(),
            _ => return,
        };
        let overwrites = matches!(&self.state.stored, Stored::OverwritePending(over) if over == version);
        assert!(overwrites, "20: an older record is written over");
        assert_eq!(
            (self.state.place, &self.state.tokens),
            (old.place, &old.tokens),
            "20: an older record is not adopted"
        );
    }

    /// Checks the cool-downs of a step within an epoch, and the wasted flights that it counts.
    fn check_pace(&self, before: &Self, event: &Event) {
        let (old, new) = (&before.state, &self.state);
        let mut wastes = false;
        match event {
            Event::Challenged { generation, .. } if *generation < old.generation => {
                assert!(self.is_unchanged_since(before), "9: a stale 401 changes nothing");
            }
            Event::Challenged { .. } => wastes = old.phase == Phase::Active && before.has_wasted_flight(true),
            Event::Started { .. } => {
                assert!(new.cooling.is_none(), "a flight begins after a cool-down, or ends it");
                wastes = before.has_wasted_flight(false);
            }
            Event::Failed { error, .. } => {
                let asked = error.retry_after().unwrap_or_default().min(LONGEST_COOL_DOWN);
                let doubled = Duration::from_secs(1 << (self.failures - 1)).min(Duration::from_secs(60));
                let cooling = new.cooling.as_ref().expect("15: a failure causes a cool-down and keeps the tokens");
                assert_eq!(cooling.until - self.now, asked.max(doubled), "8");
                assert!(matches!(&cooling.why, NotRefreshed::CoolingDown(of) if Arc::ptr_eq(of, error)));
                self.check_pause();
            }
            Event::Renewed { .. } if !renews(old, event) => {}
            Event::Adopted { .. } if is_older(old, event) => {}
            Event::Refreshed { .. } | Event::Adopted { .. } | Event::Renewed { .. } => {
                assert!(new.cooling_at(self.now).is_none(), "new tokens lift a cool-down");
                let same = new.generation == old.generation;
                wastes = same && (before.challenged || new.tokens.access_token().is_none());
            }
            _ => {}
        }
        let count = |state: &State| state.guard.row.as_ref().map_or(0, |row| row.wasted);
        if wastes {
            let goes_on = before.remembers_row_at(self.now);
            assert_eq!(count(new), if goes_on { count(old) + 1 } else { 1 }, "8: a wasted flight is counted");
            self.check_pause();
        } else {
            let is_unchanged = count(new) == count(old) || new.guard.row.is_none();
            assert!(is_unchanged, "8: the count of wasted flights goes up by these alone, and down to none");
        }
    }

    /// Returns `true` if the last flight is known to be wasted, or counts as wasted since its result is not known.
    fn has_wasted_flight(&self, challenged: bool) -> bool {
        let Some(Starter { target, base }) = self.state.guard.starter else { return false };
        let age = self.obtained_at.map(|obtained_at| self.now.duration_since(obtained_at));
        let is_fresh = age.is_some_and(|age| age < loop_guard::PROBATION);
        let Results { accepted, refused } = self.results;
        if refused > base {
            refused >= accepted
        } else {
            accepted <= base && is_fresh && (challenged || target != Target::SESSION)
        }
    }

    /// Returns `true` if there are wasted flights that are not forgotten.
    fn remembers_row_at(&self, now: Instant) -> bool {
        let is_remembered = |account: &Account| now.duration_since(account.at) < loop_guard::MEMORY;
        self.state.guard.row.as_ref().is_some_and(|row| row.accounts.iter().any(is_remembered))
    }

    /// Checks the loop guard's pause after a wasted or a failed flight.
    fn check_pause(&self) {
        let Some(row) = &self.state.guard.row else { return };
        let left = row.until.map_or(Duration::ZERO, |until| until - self.now);
        assert_eq!(left, loop_pause(row.wasted), "8: the pause of the loop guard lasts long enough");
    }

    fn is_unchanged_since(&self, before: &Self) -> bool {
        let mut as_before = self.clone();
        as_before.state = before.state.clone();
        (self.state.epoch, self.state.generation) == (before.state.epoch, before.state.generation)
            && self.state.tokens == before.state.tokens
            && self.canon() == as_before.canon()
    }
}

/// The pause after so many wasted flights in a row, without jitter.
fn loop_pause(wasted: u32) -> Duration {
    match wasted.checked_sub(6) {
        None => Duration::ZERO,
        Some(over) => Duration::from_secs((1 << over.min(6)).min(60)),
    }
}

fn of_another_epoch(event: &Event, now: Epoch) -> bool {
    match event {
        Event::Refreshed { epoch, .. }
        | Event::Failed { epoch, .. }
        | Event::Rejected { epoch, .. }
        | Event::Adopted { epoch, .. }
        | Event::Salvaged { epoch, .. }
        | Event::StoreWentBack { epoch, .. }
        | Event::OverwriteClaimed { epoch, .. }
        | Event::Renewed { epoch, .. }
        | Event::Finished { epoch }
        | Event::RecordGone { epoch, .. }
        | Event::Saved { epoch, .. } => *epoch != now,
        _ => false,
    }
}

/// Returns `true` if tokens that were handed in replace the tokens in force.
fn renews(old: &State, event: &Event) -> bool {
    let Event::Renewed { epoch, generation, tokens, .. } = event else { return false };
    let is_current = old.phase == Phase::Active && (*epoch, *generation) == (old.epoch, old.generation);
    is_current && tokens.clone().completed_from(&old.tokens) != old.tokens
}

/// Returns `true` if a record that was found is older than the tokens in force.
fn is_older(old: &State, event: &Event) -> bool {
    let Event::Adopted { record, .. } = event else { return false };
    record.epoch() == old.epoch && record.generation() < old.place
}

fn phase_after(old: &State, event: &Event) -> Phase {
    match event {
        Event::Started { .. } => Phase::Refreshing,
        Event::Rejected { .. } => Phase::Ended,
        Event::RecordGone { .. } | Event::SignedOut { .. } => Phase::SignedOut,
        Event::Adopted { record, ends_flight: false, .. } if record.epoch() == old.epoch => old.phase,
        Event::Challenged { .. }
        | Event::Accepted { .. }
        | Event::Salvaged { .. }
        | Event::Saved { .. }
        | Event::Deleted { .. }
        | Event::StoreWentBack { .. }
        | Event::OverwriteClaimed { .. }
        | Event::Renewed { .. } => old.phase,
        _ => Phase::Active,
    }
}

fn tokens_after<'a>(old: &'a State, event: &'a Event) -> Cow<'a, Tokens> {
    Cow::Borrowed(match event {
        Event::Refreshed { tokens, .. } | Event::Salvaged { tokens, .. } | Event::SignedIn { tokens, .. } => tokens,
        Event::Adopted { record, .. } if !is_older(old, event) => record.tokens(),
        Event::Renewed { tokens, .. } if renews(old, event) => {
            return Cow::Owned(tokens.clone().completed_from(&old.tokens));
        }
        Event::Rejected { .. } | Event::RecordGone { .. } | Event::SignedOut { .. } => {
            return Cow::Owned(Tokens::default());
        }
        _ => &old.tokens,
    })
}

fn epoch_after(old: &State, event: &Event) -> Epoch {
    match event {
        Event::Adopted { record, .. } => record.epoch(),
        Event::Rejected { next, .. }
        | Event::RecordGone { next, .. }
        | Event::SignedIn { next, .. }
        | Event::SignedOut { next } => *next,
        _ => old.epoch,
    }
}
