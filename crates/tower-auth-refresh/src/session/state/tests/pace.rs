//! Tests of the number of refreshes in an hour: of an API that refuses every token, of one that works, and of endpoints
//! of both kinds.

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Decision;
use super::action::{Action, Commit, Endpoint, Failure, Received, Wait};
use super::environment::{Environment, target};
use super::requested_depth;
use crate::refresh::{NotRefreshed, Trigger};
use crate::session::loop_guard;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// The part of the hour that the ordinary run searches beside a healthy endpoint.
const QUARTER: Duration = Duration::from_secs(15 * 60);

/// A search for the most refreshes that endpoints which accept no token can cause, over every timing of their refusals,
/// of failures of the authorization server, and of the answers of a healthy endpoint.
struct Search {
    /// The endpoints that refuse every token.
    refusing: Vec<Endpoint>,
    /// An endpoint that accepts every token until it expires, which may be at any time.
    healthy: Option<Endpoint>,
    /// `true` if the callers of the refusing endpoints wait for the replay, `false` if they are dropped before.
    replays: bool,
    /// `true` if no request may be sent for a minute, so that a token outlives its probation.
    pauses: bool,
    /// `true` if the authorization server fails at times.
    fails: bool,
    span: Duration,
    end: Instant,
    known: HashMap<(Duration, u128), u32>,
}

impl Search {
    fn new(refusing: &[Endpoint], replays: bool) -> Self {
        let (pauses, fails, span, end, known) = (true, false, HOUR, Instant::now(), HashMap::new());
        Self { refusing: refusing.to_vec(), healthy: None, replays, pauses, fails, span, end, known }
    }

    /// A search of an hour only if a depth is requested: it takes a minute without optimization.
    fn beside(self, healthy: Endpoint) -> Self {
        let span = requested_depth().map_or(QUARTER, |_| HOUR);
        Self { healthy: Some(healthy), span, ..self }
    }

    fn assert_at_most_75_in_an_hour(self) {
        // The search recurses at each event of the hour.
        let search = thread::Builder::new().stack_size(64 << 20).spawn(move || self.run()).unwrap();
        search.join().unwrap_or_else(|panic| resume_unwind(panic));
    }

    fn run(mut self) {
        let environment = Environment::ordinary();
        self.end = environment.now + self.span;
        let most = self.most(&environment);
        let (Self { refusing, healthy, replays, span, .. }, states) = (&self, self.known.len());
        println!(
            "{refusing:?} beside {healthy:?}, replays {replays}: {most} refreshes at most in {span:?}, {states} states"
        );
        let expected = if self.span == HOUR { 60..=75 } else { 15..=30 };
        assert!(expected.contains(&most), "{most}");
    }

    /// Returns the most refreshes that the refusing endpoints cause from here until the end.
    fn most(&mut self, environment: &Environment) -> u32 {
        let left = self.end.saturating_duration_since(environment.now);
        if left.is_zero() {
            return 0;
        }
        let key = (left, environment.canon());
        if let Some(most) = self.known.get(&key) {
            return *most;
        }
        let mut most = 0;
        for endpoint in self.refusing.clone() {
            most = most.max(self.most_after_refusal(environment, endpoint));
        }
        let accepted = self.healthy.and_then(|healthy| environment.after(Action::Accepted(healthy)));
        if let Some(accepted) = accepted
            && accepted.canon() != environment.canon()
        {
            most = most.max(self.most(&accepted));
        }
        most = most.max(self.most_after_expiry(environment));
        if self.pauses && !environment.challenged {
            // Alternatively, no request is sent until the probation of the token is over.
            let later = environment.after(Action::Advance(Wait::Probation)).unwrap();
            most = most.max(self.most(&later));
        }
        self.known.insert(key, most);
        most
    }

    fn most_after_refusal(&mut self, environment: &Environment, endpoint: Endpoint) -> u32 {
        let refused = environment.after(Action::Challenge(endpoint, 0)).unwrap();
        if refused.flight.is_none() {
            let waits = [Wait::Cooled, Wait::Released].map(|wait| refused.after(Action::Advance(wait)));
            assert!(waits.iter().any(Option::is_some), "only a cool-down prevents the refresh");
            return waits.iter().flatten().map(|cooled| self.most(cooled)).max().unwrap();
        }
        let claimed = refused.after(Action::Claims).unwrap();
        let refreshed = claimed.after(Action::Refreshed(Received::New, Commit::Saved)).unwrap();
        let replayed = self.replays.then(|| refreshed.after(Action::Replayed(endpoint, false, 0)).unwrap());
        let mut most = 1 + self.most(&replayed.unwrap_or(refreshed));
        // Before the loop guard applies, a failure only costs time.
        let wasted = environment.state.guard.row.as_ref().map_or(0, |row| row.wasted);
        if self.fails && environment.failures == 0 && wasted >= loop_guard::LOOPING {
            let failed = claimed.after(Action::Fails(Failure::Unavailable)).unwrap();
            most = most.max(self.most(&failed));
        }
        most
    }

    /// The token expires, and the healthy endpoint is the first to refuse it.
    fn most_after_expiry(&mut self, environment: &Environment) -> u32 {
        let Some(healthy) = self.healthy else { return 0 };
        let is_new = environment.obtained_at == Some(environment.now);
        if is_new && environment.state.guard.starter.is_some_and(|starter| starter.target == target(healthy))
            || environment.failures > 0
        {
            return 0;
        }
        let challenged = environment.after(Action::Challenge(healthy, 0)).unwrap();
        assert!(challenged.flight.is_some(), "18: the refresh that the healthy endpoint needs is started");
        let replayed =
            [Action::Claims, Action::Refreshed(Received::New, Commit::Saved), Action::Replayed(healthy, true, 0)]
                .iter()
                .fold(challenged, |environment, action| environment.after(*action).unwrap());
        self.most(&replayed)
    }
}

#[test]
fn an_api_that_always_answers_401_causes_at_most_75_refreshes_in_an_hour_at_any_timing() {
    for replays in [false, true] {
        Search { fails: true, ..Search::new(&[0], replays) }.assert_at_most_75_in_an_hour();
    }
}

#[test]
fn two_endpoints_that_always_answer_401_cause_at_most_75_refreshes_in_an_hour_at_any_timing() {
    for replays in [false, true] {
        Search { pauses: replays, ..Search::new(&[0, 1], replays) }.assert_at_most_75_in_an_hour();
    }
}

#[test]
fn an_endpoint_that_always_answers_401_causes_at_most_75_refreshes_in_an_hour_beside_one_that_works() {
    for replays in [false, true] {
        Search::new(&[0], replays).beside(1).assert_at_most_75_in_an_hour();
    }
}

#[test]
fn two_endpoints_that_always_answer_401_cause_at_most_75_refreshes_in_an_hour_beside_one_that_works() {
    Search { pauses: false, ..Search::new(&[0, 2], true) }.beside(1).assert_at_most_75_in_an_hour();
}

#[test]
fn accepted_tokens_with_a_lifetime_of_two_seconds_are_refreshed_for_an_hour() {
    let mut environment = Environment::ordinary();
    let end = environment.now + HOUR;
    let mut refreshes = 0;
    while environment.now < end {
        for action in [
            Action::Challenge(0, 0),
            Action::Claims,
            Action::Refreshed(Received::New, Commit::Saved),
            Action::Replayed(0, true, 0),
        ] {
            environment = environment.after(action).unwrap_or_else(|| panic!("{action:?} after {refreshes}"));
        }
        environment.now += Duration::from_secs(2);
        refreshes += 1;
    }
    assert_eq!(refreshes, 1800);
}

#[test]
fn a_manual_refresh_is_allowed_while_the_loop_guard_refuses_others() {
    let mut environment = Environment::ordinary();
    let mut refused = None;
    while refused.is_none() {
        environment = environment.after(Action::Challenge(0, 0)).unwrap();
        if environment.flight.is_none() {
            refused = Some(environment.decide(Trigger::Challenge, Some(0), environment.state.generation));
            break;
        }
        environment =
            environment.after(Action::Claims).unwrap().after(Action::Refreshed(Received::New, Commit::Saved)).unwrap();
    }
    assert!(matches!(refused, Some(Decision::Refuse(NotRefreshed::Looping))));
    let manual = environment.after(Action::Request(Trigger::Manual, 0)).unwrap();
    assert!(manual.flight.is_some());
}
