//! Tests of gateways in this process, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/test_gateway.rs"]
mod test_gateway;

mod cancellation;
mod credentials;
mod failures;
mod oauth;
mod sessions;
mod streaming;
mod users;
