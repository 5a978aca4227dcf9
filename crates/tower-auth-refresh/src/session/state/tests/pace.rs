//! An hour of an API that refuses, and of one that works.

use std::collections::HashMap;
use std::time::Duration;

use super::super::Decision;
use super::action::{Action, Brought, Failure, Wait};
use super::world::World;
use crate::refresh::{NotRefreshed, Trigger};
use crate::session::loop_guard;

const HOUR: Duration = Duration::from_secs(60 * 60);

/// The most refreshes that an API can cause within what is left of the hour, if it never accepts a token and chooses
/// the moments of its refusals, and whether the authorization server fails in between.
fn most_refreshes(world: &World, end: tokio::time::Instant, known: &mut HashMap<(Duration, u128), u32>) -> u32 {
    let left = end.saturating_duration_since(world.now);
    if left.is_zero() {
        return 0;
    }
    let key = (left, world.canon());
    if let Some(most) = known.get(&key) {
        return *most;
    }
    let mut most = 0;
    let refused = world.after(Action::Board(Trigger::Challenge, 0)).unwrap();
    if refused.flight.is_some() {
        let claimed = refused.after(Action::Claims).unwrap();
        let refreshed = claimed.after(Action::Refreshed(Brought::New, true)).unwrap();
        most = 1 + most_refreshes(&refreshed, end, known);
        // Before the loop guard bites, a failure only costs time.
        if world.failures == 0 && world.state.guard.strikes >= loop_guard::LOOPING {
            let failed = claimed.after(Action::Fails(Failure::Unavailable)).unwrap();
            most = most.max(most_refreshes(&failed, end, known));
        }
    } else {
        let cooled = refused.after(Action::Passes(Wait::Cooled)).expect("nothing but a cool-down holds it up");
        most = most.max(most_refreshes(&cooled, end, known));
    }
    if !world.challenged {
        // Or it refuses this token when it is no longer on probation.
        let later = world.after(Action::Passes(Wait::Probation)).unwrap();
        most = most.max(most_refreshes(&later, end, known));
    }
    known.insert(key, most);
    most
}

#[test]
fn an_api_that_answers_401_for_ever_causes_at_most_75_refreshes_in_an_hour_whatever_its_timing() {
    let world = World::ordinary();
    let end = world.now + HOUR;
    let mut known = HashMap::new();
    let most = most_refreshes(&world, end, &mut known);
    println!("{most} refreshes at most, over {} states", known.len());
    assert!((60..=75).contains(&most), "{most}");
}

#[test]
fn tokens_that_live_two_seconds_and_work_are_refreshed_for_an_hour() {
    let mut world = World::ordinary();
    let end = world.now + HOUR;
    let mut refreshes = 0;
    while world.now < end {
        for action in [
            Action::Board(Trigger::Challenge, 0),
            Action::Claims,
            Action::Refreshed(Brought::New, true),
            Action::Replayed(true, 0),
        ] {
            world = world.after(action).unwrap_or_else(|| panic!("{action:?} after {refreshes}"));
        }
        world.now += Duration::from_secs(2);
        refreshes += 1;
    }
    assert_eq!(refreshes, 1800);
}

#[test]
fn an_app_may_refresh_by_hand_while_the_api_loops() {
    let mut world = World::ordinary();
    let mut refused = None;
    while refused.is_none() {
        world = world.after(Action::Board(Trigger::Challenge, 0)).unwrap();
        if world.flight.is_none() {
            refused = Some(world.decide(Trigger::Challenge, world.state.generation));
            break;
        }
        world = world.after(Action::Claims).unwrap().after(Action::Refreshed(Brought::New, true)).unwrap();
    }
    assert!(matches!(refused, Some(Decision::Refuse(NotRefreshed::Looping))));
    let by_hand = world.after(Action::Board(Trigger::Manual, 0)).unwrap();
    assert!(by_hand.flight.is_some());
}
