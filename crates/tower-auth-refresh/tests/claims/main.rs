//! The claim protocol, model-checked: whole sessions, each in a process of its own, over a model of a store and of an
//! authorization server that rotates refresh tokens.
//!
//! The sessions are not modelled. Each process is a runtime with a paused clock of its own, and refreshes once or twice.
//! Every call to the store and to the server waits until the explorer lets it take effect, so it enumerates:
//!
//! - every order in which the calls of the processes take effect, and time passes in each of them;
//! - calls that fail: not made, made with the answer lost, or made later than they fail, or never;
//! - processes that die at any call, whose calls are made later or never, and start again;
//! - processes that are stopped for longer than the lease of their claim;
//! - a store that loses a claim, or a commit.
//!
//! The [`Bounds`] say how many of these happen in one run. Judged, after each step:
//!
//! - no refresh token is presented twice unmarked by a process that can know it (only after the store has lost a claim or
//!   a commit may a process not know), nor one that is older than the process has held;
//! - no process adopts older tokens than it has held, or loses its session;
//!
//! and at the end of each run, that nothing was lost: each process refreshes once more, and holds the server's newest
//! tokens, as does the store.
//!
//! A *state* is the content of the store, the server and the calls under way, the trouble still to come, and of each
//! process all that it has seen so far (its calls and their answers), of which its own state is a function. Runs are
//! repeated from their beginning, and cut off at a state that was seen before. An answer follows its effect at once:
//! a process that is slow to receive an answer does nothing else meanwhile that another one could see.
//!
//! ```text
//! CLAIM_STATES=10000000 cargo test --release -p tower-auth-refresh --test claims -- --nocapture
//! ```

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod explorer;
mod store;

use std::env;
use std::time::Instant;

use self::explorer::{Bounds, explore};

const NONE: Bounds = Bounds { processes: 2, refreshes: 1, failures: 0, crashes: 0, expiries: 0, losses: 0 };

/// The bounds that are always explored, to the end.
const SMALL: [Bounds; 6] = [
    Bounds { failures: 1, ..NONE },
    Bounds { crashes: 1, ..NONE },
    Bounds { losses: 1, expiries: 1, ..NONE },
    Bounds { failures: 1, losses: 1, ..NONE },
    Bounds { failures: 1, expiries: 1, ..NONE },
    Bounds { processes: 3, ..NONE },
];

/// The bounds that are explored in turn until there are as many states as wanted.
const LARGE: [Bounds; 8] = [
    Bounds { failures: 1, crashes: 1, ..NONE },
    Bounds { failures: 1, expiries: 1, losses: 1, ..NONE },
    Bounds { refreshes: 2, failures: 1, ..NONE },
    Bounds { processes: 3, failures: 1, ..NONE },
    Bounds { processes: 3, expiries: 1, losses: 1, ..NONE },
    Bounds { failures: 1, crashes: 1, expiries: 1, losses: 1, ..NONE },
    Bounds { processes: 3, failures: 1, crashes: 1, expiries: 1, losses: 1, ..NONE },
    Bounds { refreshes: 2, failures: 2, crashes: 1, expiries: 1, losses: 1, ..NONE },
];

/// Explores each of the bounds. Returns the number of states.
fn explore_all(all: &[Bounds], wanted: usize) -> usize {
    let mut states = 0;
    for (at, bounds) in all.iter().enumerate() {
        let start = Instant::now();
        // A fair part of what is left.
        let most = wanted.saturating_sub(states) / (all.len() - at);
        let findings = explore(*bounds, most);
        println!("{bounds:?}\n    {findings:?}, {:.0} s", start.elapsed().as_secs_f32());
        states += findings.states;
    }
    println!("{states} states");
    states
}

#[test]
fn no_order_of_calls_and_troubles_makes_a_token_be_lost_presented_again_or_adopted_though_older() {
    let states = explore_all(&SMALL, usize::MAX);
    assert!(states >= 10_000, "only {states} states");
}

#[test]
fn nor_does_any_in_larger_bounds() {
    let Ok(wanted) = env::var("CLAIM_STATES") else { return };
    let wanted = wanted.parse().unwrap();
    assert!(explore_all(&LARGE, wanted) >= wanted);
}
