//! Tests of gateways in this process, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../support/nginx.rs"]
mod nginx;
#[path = "../support/test_gateway.rs"]
mod test_gateway;

mod cancellation;
mod credentials;
mod failures;
mod fields;
mod oauth;
mod sessions;
mod streaming;
mod uploads;
mod users;
mod versions;
