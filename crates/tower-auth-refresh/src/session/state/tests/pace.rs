//! Tests of the number of refreshes in an hour, for an API that refuses every token and for one that works.

use std::collections::HashMap;
use std::time::Duration;

use super::super::Decision;
use super::action::{Action, Commit, Failure, Received, Wait};
use super::environment::Environment;
use crate::refresh::{NotRefreshed, Trigger};
use crate::session::loop_guard;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Returns the most refreshes that an API can cause until `end` if it never accepts a token, over every timing of its
/// refusals and of failures of the authorization server in between.
fn most_refreshes(
    environment: &Environment,
    end: tokio::time::Instant,
    known: &mut HashMap<(Duration, u128), u32>,
) -> u32 {
    let left = end.saturating_duration_since(environment.now);
    if left.is_zero() {
        return 0;
    }
    let key = (left, environment.canon());
    if let Some(most) = known.get(&key) {
        return *most;
    }
    let mut most = 0;
    let refused = environment.after(Action::Request(Trigger::Challenge, 0)).unwrap();
    if refused.flight.is_some() {
        let claimed = refused.after(Action::Claims).unwrap();
        let refreshed = claimed.after(Action::Refreshed(Received::New, Commit::Saved)).unwrap();
        most = 1 + most_refreshes(&refreshed, end, known);
        // Before the loop guard applies, a failure only costs time.
        if environment.failures == 0 && environment.state.guard.strikes >= loop_guard::LOOPING {
            let failed = claimed.after(Action::Fails(Failure::Unavailable)).unwrap();
            most = most.max(most_refreshes(&failed, end, known));
        }
    } else {
        let cooled = refused.after(Action::Advance(Wait::Cooled)).expect("only a cool-down prevents the refresh");
        most = most.max(most_refreshes(&cooled, end, known));
    }
    if !environment.challenged {
        // Alternatively, the API refuses this token after its probation.
        let later = environment.after(Action::Advance(Wait::Probation)).unwrap();
        most = most.max(most_refreshes(&later, end, known));
    }
    known.insert(key, most);
    most
}

#[test]
fn an_api_that_always_answers_401_causes_at_most_75_refreshes_in_an_hour_at_any_timing() {
    let environment = Environment::ordinary();
    let end = environment.now + HOUR;
    let mut known = HashMap::new();
    let most = most_refreshes(&environment, end, &mut known);
    println!("{most} refreshes at most, over {} states", known.len());
    assert!((60..=75).contains(&most), "{most}");
}

#[test]
fn accepted_tokens_with_a_lifetime_of_two_seconds_are_refreshed_for_an_hour() {
    let mut environment = Environment::ordinary();
    let end = environment.now + HOUR;
    let mut refreshes = 0;
    while environment.now < end {
        for action in [
            Action::Request(Trigger::Challenge, 0),
            Action::Claims,
            Action::Refreshed(Received::New, Commit::Saved),
            Action::Replayed(true, 0),
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
        environment = environment.after(Action::Request(Trigger::Challenge, 0)).unwrap();
        if environment.flight.is_none() {
            refused = Some(environment.decide(Trigger::Challenge, environment.state.generation));
            break;
        }
        environment =
            environment.after(Action::Claims).unwrap().after(Action::Refreshed(Received::New, Commit::Saved)).unwrap();
    }
    assert!(matches!(refused, Some(Decision::Refuse(NotRefreshed::Looping))));
    let manual = environment.after(Action::Request(Trigger::Manual, 0)).unwrap();
    assert!(manual.flight.is_some());
}
