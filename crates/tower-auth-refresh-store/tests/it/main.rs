//! Tests of the stores by their public interface.
#![cfg(feature = "file")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

#[cfg(target_os = "linux")]
mod clocks;
mod conformance;
#[cfg(feature = "encryption")]
mod corpus;
mod damage;
#[cfg(all(feature = "encryption", unix))]
mod encryption;
mod expired;
mod files;
#[cfg(feature = "encryption")]
mod fuzzed;
mod gathered;
#[cfg(all(feature = "keychain", target_os = "linux"))]
mod keychain;
mod model;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod operation;
mod peer;
#[cfg(unix)]
mod permissions;
#[cfg(all(feature = "postgres", unix))]
mod postgres;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod proxy;
#[cfg(feature = "redis")]
mod redis;
mod support;
mod url;

#[cfg(any(feature = "postgres", feature = "redis"))]
use support::TestDirectory;
use tower::BoxError;
use tower_auth_refresh_store::{StoreError, StoreErrorKind};

/// Returns the kind of an error of a call, which names the resource `of`.
fn kind<T: std::fmt::Debug>(outcome: Result<T, BoxError>, of: impl AsRef<std::path::Path>) -> StoreErrorKind {
    let (error, of) = (outcome.unwrap_err().downcast::<StoreError>().unwrap(), of.as_ref());
    assert!(error.to_string().starts_with(of.to_str().unwrap()), "{error} doesn't name {}", of.display());
    error.kind()
}
