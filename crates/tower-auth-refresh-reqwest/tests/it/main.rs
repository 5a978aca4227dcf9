//! Tests of the public API over real sockets, by scenario.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

mod as_reqwest;
mod auth_calls;
mod cancellation;
#[cfg(feature = "rmcp")]
mod mcp;
#[cfg(feature = "middleware")]
mod middleware;
#[cfg(feature = "object-store")]
mod object_store;
mod redirects;
mod refreshing;
mod service;
mod support;
mod wire;
