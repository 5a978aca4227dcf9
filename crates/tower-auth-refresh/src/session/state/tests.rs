//! Exhaustive tests of the state machine: every order of events that its environment can produce.
//!
//! `environment.rs` models that environment: the cell, the current flight, flights of earlier epochs, the writes to the
//! store, the requests, the app and the clock. `rules.rs` checks the invariants of each state and of each step.
//! `canon.rs` maps environments that behave alike to one key, so that each is visited once. This reaches far more steps
//! than trying one sequence after the other.
//!
//! The ordinary run has a small depth. To run to the end where there is one, and otherwise for 60 s:
//!
//! ```text
//! DEPTH=99 cargo test --release -p tower-auth-refresh --lib session::state::tests -- --nocapture
//! ```

mod action;
mod canon;
mod due;
mod environment;
mod pace;
mod rest;
mod rules;

use std::collections::HashSet;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::action::{Action, Failure, Wait};
use self::environment::Environment;

/// The time limit of an exploration.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The actions that led to an environment.
struct Path {
    last: Action,
    before: Option<Rc<Path>>,
}

impl Path {
    fn actions(&self) -> Vec<Action> {
        let mut actions = vec![self.last];
        let mut at = &self.before;
        while let Some(path) = at {
            actions.push(path.last);
            at = &path.before;
        }
        actions.reverse();
        actions
    }
}

/// Explores every sequence of these actions, up to a depth. Returns whether all sequences of any length were covered.
fn explore(what: &str, initial: Vec<Environment>, actions: &[Action], depth: u32) -> bool {
    let started_at = Instant::now();
    let mut seen = HashSet::new();
    let mut frontier: Vec<(Environment, Option<Rc<Path>>)> = initial.into_iter().map(|it| (it, None)).collect();
    let (mut steps, mut reached) = (0_u64, 0);
    'deeper: while reached < depth && !frontier.is_empty() {
        let mut next = Vec::new();
        for (environment, path) in frontier {
            // One that has to end isn't cut off, however busy the machine is.
            if depth != u32::MAX && started_at.elapsed() > TIME_LIMIT {
                frontier = next;
                break 'deeper;
            }
            for &action in actions {
                let step = || {
                    let after = environment.after(action)?;
                    let is_new = seen.insert(after.canon());
                    if is_new {
                        after.check_state();
                    }
                    Some((after, is_new))
                };
                let taken = catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
                    let before = path.as_ref().map(|path| path.actions()).unwrap_or_default();
                    eprintln!("from {:?}, after {before:?}, then {action:?}", environment.initial_state);
                    resume_unwind(panic)
                });
                steps += u64::from(taken.is_some());
                if let Some((after, true)) = taken {
                    next.push((after, Some(Rc::new(Path { last: action, before: path.clone() }))));
                }
            }
        }
        frontier = next;
        reached += 1;
    }
    let all = frontier.is_empty();
    let sequences = if all { "of any length".to_owned() } else { format!("of {reached}") };
    let seconds = started_at.elapsed().as_secs_f32();
    println!("{what}: all sequences {sequences}, {} states, {steps} steps, {seconds:.1} s", seen.len());
    all
}

/// The depth that `DEPTH` asks for. `None` in the ordinary run.
fn requested_depth() -> Option<u32> {
    env::var("DEPTH").ok().map(|depth| depth.parse().unwrap())
}

#[test]
fn no_order_of_events_breaks_an_invariant() {
    explore("all actions", Environment::initial(), &Action::all(), requested_depth().unwrap_or(6));
}

#[test]
fn no_order_of_refusals_failures_and_pauses_breaks_an_invariant() {
    let (depth, must_end) = requested_depth().map_or((12, false), |_| (u32::MAX, true));
    let initial =
        vec![Environment::ordinary(), Environment::ordinary().refused_often(), Environment::ordinary().failed_often()];
    let ended = explore("pace", initial, &Action::of_pace(), depth);
    assert!(ended || !must_end);
}

#[test]
fn no_order_of_the_answers_of_two_endpoints_breaks_an_invariant() {
    let (depth, must_end) = requested_depth().map_or((12, false), |_| (u32::MAX, true));
    let initial = vec![Environment::ordinary(), Environment::ordinary().refused_often()];
    let actions = Action::of_endpoints();
    let ended = explore("endpoints", initial.clone(), &actions, depth);
    assert!(ended || !must_end);
    let of_failures = [Action::Fails(Failure::Unavailable), Action::Advance(Wait::Cooled)];
    explore("endpoints and failures", initial, &[actions, of_failures.into()].concat(), 11);
}

#[test]
fn no_order_of_sign_ins_writes_and_late_flights_breaks_an_invariant() {
    let (depth, must_end) = requested_depth().map_or((8, false), |_| (u32::MAX, true));
    let ended = explore("epochs", Environment::initial(), &Action::of_epochs(), depth);
    assert!(ended || !must_end);
}

#[test]
fn no_look_at_the_store_beside_other_events_breaks_an_invariant() {
    let (depth, must_end) = requested_depth().map_or((8, false), |_| (u32::MAX, true));
    let initial = vec![Environment::ordinary()];
    let ended = explore("looks", initial, &Action::of_looks(), depth);
    assert!(ended || !must_end);
}
