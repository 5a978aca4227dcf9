//! Tests of the public API, by scenario.

#![expect(clippy::unwrap_used, reason = "what fails in a test, fails the test")]

#[cfg(all(feature = "oidc", feature = "private-key-jwt"))]
mod assertion;
mod call;
mod cancellation;
#[cfg(feature = "client")]
mod certificates;
mod cookie;
mod corpus;
mod decisions;
mod fuzzed;
mod hostile;
#[cfg(feature = "client")]
mod interop;
mod issued;
mod json;
#[cfg(all(feature = "oidc", feature = "private-key-jwt"))]
mod keys;
mod layers;
mod login;
#[cfg(feature = "client")]
mod node;
mod oauth;
mod properties;
mod recipes;
mod rotating;
mod secrets;
mod sending;
#[cfg(feature = "sign-in")]
mod sign_in;
mod skew;
mod support;
#[cfg(feature = "client")]
mod tls;
mod token_response;
#[cfg(feature = "client")]
mod wire;
