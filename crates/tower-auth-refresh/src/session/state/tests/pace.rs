//! Tests of the number of refreshes in an hour, for an API that refuses every token and for one that works.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Decision;
use super::action::{Action, Commit, Endpoint, Failure, Received, Wait};
use super::environment::Environment;
use crate::refresh::{NotRefreshed, Trigger};
use crate::session::loop_guard;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A search for the most refreshes that endpoints which accept no token can cause in an hour, over every timing of their
/// refusals, of failures of the authorization server, and of the answers of a healthy endpoint.
struct Search {
    /// The endpoints that refuse every token.
    refusing: Vec<Endpoint>,
    /// An endpoint that accepts every token until it expires, which may be at any time.
    healthy: Option<Endpoint>,
    /// Whether the refusing endpoints' callers wait for the replay, or are dropped before.
    replays: &'static [bool],
    /// Whether no request may be sent for a minute, so that a token outlives its probation.
    pauses: bool,
    /// Whether the authorization server fails at times.
    fails: bool,
    end: Instant,
    known: HashMap<(Duration, u128), u32>,
}

impl Search {
    fn new(refusing: &[Endpoint], replays: &'static [bool]) -> (Self, Environment) {
        let environment = Environment::ordinary();
        let end = environment.now + HOUR;
        let refusing = refusing.to_vec();
        (Self { refusing, healthy: None, replays, pauses: true, fails: false, end, known: HashMap::new() }, environment)
    }

    fn assert_at_most_75(&mut self, environment: &Environment) {
        let most = self.most(environment);
        println!(
            "{:?} beside {:?}: {most} refreshes at most, {} states",
            self.refusing,
            self.healthy,
            self.known.len()
        );
        assert!((60..=75).contains(&most), "{most}");
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
        let mut most = 0;
        for replays in self.replays {
            let replayed = replays.then(|| refreshed.after(Action::Replayed(endpoint, false, 0)).unwrap());
            most = most.max(1 + self.most(&replayed.unwrap_or_else(|| refreshed.clone())));
        }
        // Before the loop guard applies, a failure only costs time.
        let wasted = environment.state.guard.suspects.as_ref().map_or(0, |suspects| suspects.wasted);
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
        if is_new && environment.starter.is_some_and(|(starter, _)| starter == healthy) || environment.failures > 0 {
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
    let (mut search, environment) = Search::new(&[0], &[false]);
    search.fails = true;
    search.assert_at_most_75(&environment);
}

#[test]
fn two_endpoints_that_always_answer_401_cause_at_most_75_refreshes_in_an_hour_at_any_timing() {
    for replays in [&[false], &[true]] {
        let (mut search, environment) = Search::new(&[0, 1], replays);
        search.pauses = replays[0];
        search.assert_at_most_75(&environment);
    }
}

#[test]
fn an_endpoint_that_always_answers_401_causes_at_most_75_refreshes_in_an_hour_beside_one_that_works() {
    for replays in [&[false], &[true]] {
        let (mut search, environment) = Search::new(&[0], replays);
        search.healthy = Some(1);
        search.assert_at_most_75(&environment);
    }
}

#[test]
fn two_endpoints_that_always_answer_401_cause_at_most_75_refreshes_in_an_hour_beside_one_that_works() {
    let (mut search, environment) = Search::new(&[0, 2], &[true]);
    search.pauses = false;
    search.healthy = Some(1);
    search.assert_at_most_75(&environment);
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
