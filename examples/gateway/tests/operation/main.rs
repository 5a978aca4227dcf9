//! What operators rely on: readiness, restarts behind balancers, and supervisors.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "../support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

mod readiness;
