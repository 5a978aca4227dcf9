//! Scenarios over the public API of the middleware.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary: a panic is a failed test")]

#[cfg(feature = "blocking")]
mod blocking;
mod cancellation;
mod client_credentials;
mod contract;
mod early;
mod endpoints;
mod expired;
mod faults;
mod first_write;
mod hostile;
mod one_refresh;
mod origins;
mod pace;
mod policies;
mod push;
mod refusal;
mod registry;
mod replay;
mod replay_connections;
mod replay_wire;
mod replicas;
mod reports;
mod require_token;
mod revocation;
mod rewind;
mod secrets;
mod stacks;
mod states;
mod stores;
mod strict;
mod support;
mod token_api;
mod wire;
