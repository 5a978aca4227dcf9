//! Tests of the stores by their public interface.
#![cfg(feature = "file")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod conformance;
mod damage;
mod directory;
#[cfg(feature = "encryption")]
mod encryption;
mod files;
mod model;
mod peer;
#[cfg(unix)]
mod permissions;

use std::time::Duration;

use tower::BoxError;
use tower_auth_refresh::store::{Claim, ClaimOutcome, Entry, Epoch, TokenStore, Version};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
use tower_auth_refresh_store::{StoreError, StoreErrorKind};

const LEASE: Duration = Duration::from_secs(60);

fn entry(generation: u64) -> Entry {
    let access = AccessToken::new(format!("access-{generation}")).unwrap();
    let refresh = RefreshToken::new(format!("refresh-{generation}")).unwrap();
    Entry::new(Epoch::from(7), generation, Tokens::new(access, refresh))
}

async fn claimed(store: &dyn TokenStore, version: &Version) -> Claim {
    match store.claim(version, LEASE).await.unwrap() {
        ClaimOutcome::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// Returns the kind of an error of a call, which names the resource `of`.
fn kind<T: std::fmt::Debug>(outcome: Result<T, BoxError>, of: &std::path::Path) -> StoreErrorKind {
    let error = outcome.unwrap_err().downcast::<StoreError>().unwrap();
    assert!(error.to_string().starts_with(of.to_str().unwrap()), "{error} doesn't name {}", of.display());
    error.kind()
}
