//! Gateways in this process, on real sockets.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[path = "../support/world.rs"]
mod support;

mod cancellation;
mod credentials;
mod failures;
mod oauth;
mod sessions;
mod streaming;
mod users;
