//! A session and its layer under a seeded scheduler: callers, sign-ins, sign-outs, manual refreshes, lost answers,
//! store failures, time-outs and cancelled callers, in an order that a random number decides.
//!
//! The runtime polls its tasks in the order in which they wake, which is always the same. So the schedule decides
//! instead: it polls the callers and the app, and everything that the session's own tasks wait for (the refresh call,
//! the store, the revocation, the API) is a gate that the schedule opens. Time is paused until the schedule advances
//! it. The `oracle` records what the authorization server and the API see; at the end, the session and its store are
//! checked against that record.
//!
//! The ordinary run takes a few thousand schedules. To run more:
//!
//! ```text
//! SCHEDULES=100000 cargo test --release -p tower-auth-refresh --test schedules -- --nocapture
//! ```
//!
//! A failure names its seed and prints its trace; `SEED=…` runs that schedule alone.
//!
//! In one of four schedules, tokens expire by themselves and are refreshed early. The wall clock decides about expiry
//! only between issue and coming into force, which takes microseconds. From there on, expiry follows the schedule's
//! time.
//!
//! On one thread no task ever waits for the session's lock, so races between threads are not covered here.

#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod actors;
mod gates;
mod oracle;
mod schedule;
mod servers;
mod store;

use std::collections::HashSet;
use std::env;
use std::time::Instant;

use self::schedule::Schedule;

/// The number of schedules, unless `SCHEDULES` is set.
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
    let (schedules, started_at) = (setting("SCHEDULES").unwrap_or(SCHEDULES), Instant::now());
    let (mut traces, mut early) = (HashSet::new(), 0);
    for seed in 0..schedules {
        let schedule = Schedule::run(seed, seed);
        assert!(schedule.violations.is_empty(), "{schedule}");
        traces.insert(schedule.trace);
        early += schedule.early_refreshes;
    }
    let seconds = started_at.elapsed().as_secs_f32();
    println!("{schedules} schedules, {} of them different, {early} early refreshes, {seconds:.1} s", traces.len());
    assert!(u64::from(early) >= schedules / 20, "only {early} early refreshes");
}

#[test]
fn the_orders_of_one_scenario_differ() {
    for scenario in 0..10 {
        let traces: HashSet<_> = (0..100).map(|order| Schedule::run(scenario, order).trace).collect();
        assert!(traces.len() > 90, "{} orders of scenario {scenario} in 100 schedules", traces.len());
    }
}
