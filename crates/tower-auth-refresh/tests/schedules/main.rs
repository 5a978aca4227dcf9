//! A session and its layer under a seeded scheduler: callers, sign-ins, sign-outs, refreshes by hand, lost answers,
//! store failures, time-outs and callers that go away, in an order that a random number decides.
//!
//! The runtime polls its tasks in the order in which they wake, always the same. So nothing is left to it: callers and
//! the app are polled by the schedule, and whatever the session's own tasks wait for (the refresh call, the store, the
//! revocation, the API) is a gate that the schedule opens. Time stands still until the schedule lets it pass. The
//! `judge` watches the authorization server and the API, and looks at the session and its store in the end.
//!
//! The ordinary run takes a few thousand schedules. For more of them:
//!
//! ```text
//! SCHEDULES=100000 cargo test --release -p tower-auth-refresh --test schedules -- --nocapture
//! ```
//!
//! A failure names its seed and prints its trace; `SEED=…` takes that schedule alone.
//!
//! In one of four, tokens expire by themselves and are refreshed early. Their expiry is by the wall clock, which is read
//! when they are issued and again when they come into force, microseconds later: from there on it is counted in the time
//! of the schedule.
//!
//! On one thread nobody ever waits for the session's lock, so what only threads can do to one another isn't seen here.

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod gates;
mod judge;
mod people;
mod schedule;
mod servers;
mod store;

use std::collections::HashSet;
use std::env;
use std::time::Instant;

use self::schedule::Schedule;

/// How many schedules, unless `SCHEDULES` says otherwise.
const SCHEDULES: u64 = 5_000;

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn no_order_of_tasks_breaks_an_invariant() {
    if let Some(seed) = setting("SEED") {
        let schedule = Schedule::run(seed, seed);
        println!("{schedule}");
        assert!(schedule.violations.is_empty());
        return;
    }
    let (schedules, begun) = (setting("SCHEDULES").unwrap_or(SCHEDULES), Instant::now());
    let (mut traces, mut early) = (HashSet::new(), 0);
    for seed in 0..schedules {
        let schedule = Schedule::run(seed, seed);
        assert!(schedule.violations.is_empty(), "{schedule}");
        traces.insert(schedule.trace);
        early += schedule.early_refreshes;
    }
    let seconds = begun.elapsed().as_secs_f32();
    println!("{schedules} schedules, {} of them different, {early} early refreshes, {seconds:.1} s", traces.len());
    assert!(u64::from(early) >= schedules / 20, "only {early} early refreshes");
}

#[test]
fn the_order_is_not_the_same_twice() {
    for scenario in 0..10 {
        let traces: HashSet<_> = (0..100).map(|order| Schedule::run(scenario, order).trace).collect();
        assert!(traces.len() > 90, "{} orders of scenario {scenario} in 100 schedules", traces.len());
    }
}
