//! The middleware against a plain reference model of a session, through its public surface: whatever requests, expiry,
//! revocation, failures of network and store, sign-ins and sign-outs, peers and time do, in any order.
//!
//! `script` has the words of a script, `model` says what has to be seen after each of its lines, `world` carries it out
//! and looks. A script that they don't agree on is shrunk to a short one.
//!
//! The ordinary run tries the same scripts each time. With `PROPTEST_CASES=20000` it tries so many new ones, by
//! `PROPTEST_RNG_SEED` where that is set.

#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod found;
mod model;
mod script;
mod world;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};

use script::Script;

/// How far a script was compared: to its end, or to where jitter leaves open which of two things is first.
#[derive(PartialEq, Eq)]
enum Compared {
    ToItsEnd,
    InPart,
}

/// Carries out a script; what is seen after each line has to be what the model says.
fn compare(script: &Script) -> Result<Compared, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut model = model::Model::new(script.rotates);
        let mut world = world::World::new(script.rotates, script.seed).await;
        for (number, line) in script.lines.iter().enumerate() {
            model.line(number, line);
            world.line(number, line).await;
            // Wherever jitter leaves it open whether something has happened, it is waited for.
            let until = model.wait_until(world.now());
            world.wait_until(until).await;
            if model.is_unsure() {
                return Ok(Compared::InPart);
            }
            let (expected, seen) = (model.seen(), world.seen().await);
            if let Some(difference) = expected.difference(&seen) {
                return Err(format!("after line {number}, {line:?}: {difference}"));
            }
        }
        Ok(Compared::ToItsEnd)
    })
}

#[test]
fn whatever_happens_is_what_the_model_says() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let config = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 4_000, rng_seed: RngSeed::Fixed(1), ..config },
    };
    let cases = config.cases;
    let whole = Cell::new(0);
    let agree = |script: Script| {
        whole.set(whole.get() + u32::from(compare(&script).map_err(TestCaseError::fail)? == Compared::ToItsEnd));
        Ok(())
    };
    match TestRunner::new(config).run(&script::script(), agree) {
        Ok(()) => {}
        Err(TestError::Fail(reason, script)) => panic!("{reason}\n{script}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    println!("{cases} scripts, {} of them compared to their ends", whole.get());
    assert!(whole.get() >= cases / 2, "only {} of {cases} scripts were compared to their ends", whole.get());
}
