//! Model-based tests: the middleware's public API against a plain reference model of a session.
//!
//! A random script orders requests, expiry, revocation, failures of network and store, sign-ins, sign-outs, a peer and
//! the passing of time. `script` defines the scripts, `model` predicts the observable state after each line, and
//! `driver` executes the line and observes. `regressions` holds scripts that once failed. A script on which model and
//! driver disagree is shrunk.
//!
//! The ordinary run takes the same scripts each time. `PROPTEST_CASES=20000` takes that many new ones, seeded by
//! `PROPTEST_RNG_SEED` if it is set.

#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod driver;
mod model;
mod regressions;
mod script;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};

use script::Script;

/// The extent of a comparison: the whole script, or up to a point where jitter decides the order of two events.
#[derive(PartialEq, Eq)]
enum Compared {
    Fully,
    Partly,
}

/// Executes a script and compares the observable state with the model's after each line.
fn compare(script: &Script) -> Result<Compared, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut model = model::Model::new(script.rotates);
        let mut driver = driver::Driver::new(script.rotates, script.seed).await;
        for (number, line) in script.lines.iter().enumerate() {
            model.line(number, line);
            driver.line(number, line).await;
            // Waits past each moment at which jitter decides whether an event has happened.
            let until = model.wait_until(driver.now());
            driver.wait_until(until).await;
            if model.is_undetermined() {
                return Ok(Compared::Partly);
            }
            let (expected, observed) = (model.observed(), driver.observed().await);
            if let Some(difference) = expected.difference(&observed) {
                return Err(format!("after line {number}, {line:?}: {difference}"));
            }
        }
        Ok(Compared::Fully)
    })
}

#[test]
fn the_session_behaves_as_the_model_for_any_script() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let config = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 4_000, rng_seed: RngSeed::Fixed(1), ..config },
    };
    let cases = config.cases;
    let complete = Cell::new(0);
    let agree = |script: Script| {
        complete.set(complete.get() + u32::from(compare(&script).map_err(TestCaseError::fail)? == Compared::Fully));
        Ok(())
    };
    match TestRunner::new(config).run(&script::script(), agree) {
        Ok(()) => {}
        Err(TestError::Fail(reason, script)) => panic!("{reason}\n{script}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    println!("{cases} scripts, {} of them compared completely", complete.get());
    assert!(complete.get() >= cases / 2, "only {} of {cases} scripts were compared completely", complete.get());
}
