//! Tests at the steps of a write: failures, kills, and processes that share a directory.

mod clock;
mod crashes;
#[path = "../../../tests/it/directory.rs"]
mod directory;
mod disk;
mod fail;
mod fleet;
mod program;
pub(super) mod steps;

use tower_auth_refresh::store::{Claim, ClaimOutcome, Entry, Epoch, Record, TokenStore, Version};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

use super::*;
use directory::TestDirectory;

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

fn generation(record: Option<&Record>) -> Option<u64> {
    record.map(Record::generation)
}
