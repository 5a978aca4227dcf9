//! Scenarios over the public API of the middleware.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

mod cancellation;
mod client_credentials;
mod contract;
mod early;
mod endpoints;
mod faults;
mod hostile;
mod one_refresh;
mod origins;
mod pace;
mod refusal;
mod registry;
mod replay;
mod replay_connections;
mod replay_wire;
mod rewind;
mod secrets;
mod stacks;
mod stores;
mod strict;
mod support;
mod wire;
