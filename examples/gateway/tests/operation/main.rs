//! What operators rely on: readiness, restarts behind balancers, and supervisors.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../../crates/tower-auth-refresh-store/tests/it/directory.rs"]
mod directory;
#[path = "../support/haproxy.rs"]
mod haproxy;
#[path = "../support/nginx.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod nginx;
#[path = "../support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "../support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

mod readiness;
mod restarts;
mod supervisors;
