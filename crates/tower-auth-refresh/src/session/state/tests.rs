//! The state machine under every order of events that its surroundings can produce.
//!
//! `world.rs` is a model of those surroundings: the cell, the flight that is up and those that go on after their epoch,
//! the writes to the store, the requests, the app, the clock. `rules.rs` says what must hold in each state and of each
//! step. `canon.rs` tells which worlds behave alike, so that each is looked at once, and far more steps can be taken
//! than by trying one sequence after the other.
//!
//! The ordinary run ends at a few steps. To go to the end where there is one, and elsewhere as deep as 60 s allow:
//!
//! ```text
//! DEPTH=99 cargo test --release -p tower-auth-refresh --lib session::state::tests -- --nocapture
//! ```

mod action;
mod canon;
mod due;
mod pace;
mod rest;
mod rules;
mod world;

use std::collections::HashSet;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::action::Action;
use self::world::World;

/// How long to go on, at any depth.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a world came about.
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

/// Takes these actions in every order, so many of them one after the other at most. Whether nothing was left to try.
fn explore(what: &str, beginnings: Vec<World>, actions: &[Action], depth: u32) -> bool {
    let begun = Instant::now();
    let mut seen = HashSet::new();
    let mut frontier: Vec<(World, Option<Rc<Path>>)> = beginnings.into_iter().map(|it| (it, None)).collect();
    let (mut steps, mut reached) = (0_u64, 0);
    'deeper: while reached < depth && !frontier.is_empty() {
        let mut next = Vec::new();
        for (world, path) in frontier {
            if begun.elapsed() > PATIENCE {
                frontier = next;
                break 'deeper;
            }
            for &action in actions {
                let step = || {
                    let after = world.after(action)?;
                    let is_new = seen.insert(after.canon());
                    if is_new {
                        after.check_state();
                    }
                    Some((after, is_new))
                };
                let taken = catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
                    let before = path.as_ref().map(|path| path.actions()).unwrap_or_default();
                    eprintln!("from {:?}, after {before:?}, then {action:?}", world.beginning);
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
    let seconds = begun.elapsed().as_secs_f32();
    println!("{what}: all sequences {sequences}, {} states, {steps} steps, {seconds:.1} s", seen.len());
    all
}

/// What the run was asked for, if it isn't the ordinary one.
fn asked_depth() -> Option<u32> {
    env::var("DEPTH").ok().map(|depth| depth.parse().unwrap())
}

#[test]
fn no_order_of_events_breaks_an_invariant() {
    explore("everything", World::beginnings(), &Action::all(), asked_depth().unwrap_or(6));
}

#[test]
fn no_order_of_refusals_failures_and_pauses_breaks_an_invariant_however_many() {
    let (depth, must_end) = asked_depth().map_or((12, false), |_| (u32::MAX, true));
    let beginnings = vec![World::ordinary(), World::ordinary().refused_often(), World::ordinary().failed_often()];
    let ended = explore("pace", beginnings, &Action::of_pace(), depth);
    assert!(ended || !must_end);
}

#[test]
fn no_order_of_sign_ins_writes_and_late_flights_breaks_an_invariant_however_many() {
    let (depth, must_end) = asked_depth().map_or((8, false), |_| (u32::MAX, true));
    let ended = explore("epochs", World::beginnings(), &Action::of_epochs(), depth);
    assert!(ended || !must_end);
}
