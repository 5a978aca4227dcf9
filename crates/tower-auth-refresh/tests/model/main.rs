//! The middleware against a plain reference model of a session, through its public surface: whatever requests, expiry,
//! revocation, failures of network and store, sign-ins and sign-outs, peers and time do, in any order.
//!
//! `script` has the words of a script, `model` says what has to be seen after each of its lines, `world` carries it out
//! and looks. A script that they don't agree on is shrunk to a short one. `PROPTEST_CASES` says how many are tried.

#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod found;
mod model;
mod script;
mod world;

use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

use script::Script;

/// Carries out a script; what is seen after each line has to be what the model says.
fn compare(script: &Script) -> Result<(), String> {
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
                return Ok(());
            }
            let (expected, seen) = (model.seen(), world.seen().await);
            if let Some(difference) = expected.difference(&seen) {
                return Err(format!("after line {number}, {line:?}: {difference}"));
            }
        }
        Ok(())
    })
}

#[test]
fn whatever_happens_is_what_the_model_says() {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 4_000 };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let agree = |script: Script| compare(&script).map_err(TestCaseError::fail);
    match TestRunner::new(config).run(&script::script(), agree) {
        Ok(()) => {}
        Err(TestError::Fail(reason, script)) => panic!("{reason}\n{script}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
