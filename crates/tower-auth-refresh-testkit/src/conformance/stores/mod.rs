//! The rules of [`TokenStore`](tower_auth_refresh::store::TokenStore), one case each.

mod claims;
mod races;
mod records;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::{Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, Record, TokenStore, Version};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

use super::Handles;

/// No call takes this long, by whichever clock, unless the store is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// Runs a store through every rule of [`TokenStore`].
///
/// `open` opens a new, empty store each time, and returns two handles on it. Claims are made for `lease`; the store
/// may be off by a quarter of it.
///
/// # Panics
///
/// If the store breaks a rule. The name of the case is printed to standard error.
pub async fn stores(lease: Duration, open: impl AsyncFn() -> Handles) {
    macro_rules! run {
        ($($case:path)*) => {$(
            eprintln!("conformance of stores: {}", stringify!($case));
            let [a, b] = open().await;
            timeout(STUCK, $case(Bench { a, b, lease })).await.expect("the store is stuck");
        )*};
    }
    run! {
        records::an_empty_store_holds_nothing
        records::what_one_handle_writes_the_other_reads
        records::every_record_comes_back_as_it_came
        claims::a_claim_excludes_every_other
        claims::a_claim_that_expires_is_in_doubt_ever_after
        claims::a_renewed_claim_lasts_longer
        claims::a_claim_that_is_lost_is_not_renewed
        claims::a_token_that_was_not_presented_is_free_again
        claims::a_token_released_in_doubt_is_claimed_in_doubt
        claims::a_release_that_comes_too_late_frees_nobody_elses_claim
        records::a_commit_stores_a_new_version_and_ends_the_claim
        records::of_two_commits_the_second_conflicts
        records::a_late_commit_is_stored_while_the_version_stands
        records::a_cleared_store_takes_no_late_commit
        records::a_clear_of_another_version_deletes_nothing
        records::a_replaced_record_takes_no_late_commit
        records::a_version_is_never_used_again
        races::of_many_claims_at_once_exactly_one_is_made
        races::a_commit_and_a_clear_at_once_agree_on_who_was_first
        races::a_call_that_is_dropped_blocks_nobody
    }
}

/// Two handles on one fresh store, and what the cases ask of it.
struct Bench {
    a: Arc<dyn TokenStore>,
    b: Arc<dyn TokenStore>,
    lease: Duration,
}

impl Bench {
    async fn sign_in(&self, name: &str) -> Version {
        self.a.replace(Epoch(7), &tokens(name)).await.expect("replace")
    }

    async fn load(&self) -> Option<Record> {
        let (seen, also) = (self.a.load().await.expect("load"), self.b.load().await.expect("load"));
        assert_eq!(seen, also, "two handles see two records");
        seen
    }

    async fn claimed(&self, store: &Arc<dyn TokenStore>, version: Version) -> Claim {
        match store.claim(version, self.lease).await.expect("claim") {
            ClaimOutcome::Claimed(claim) => {
                assert_eq!(claim.version, version, "the claim is on another version");
                claim
            }
            other => panic!("the version is free to be claimed, but the store says {other:?}"),
        }
    }

    async fn busy(&self, store: &Arc<dyn TokenStore>, version: Version) -> Instant {
        match store.claim(version, self.lease).await.expect("claim") {
            ClaimOutcome::Busy { until } => until,
            other => panic!("somebody holds a claim, but the store says {other:?}"),
        }
    }

    async fn changed(&self, store: &Arc<dyn TokenStore>, version: Version) -> Option<Record> {
        match store.claim(version, self.lease).await.expect("claim") {
            ClaimOutcome::Changed(record) => record,
            other => panic!("the record has another version, but the store says {other:?}"),
        }
    }

    /// Waits until a claim made now would have expired, with something to spare.
    async fn expire(&self) {
        sleep(self.lease * 5 / 4).await;
    }
}

fn tokens(name: &str) -> Tokens {
    let access = AccessToken::new(format!("access-{name}")).expect("it is visible ASCII");
    Tokens::new(access, refresh_token(&format!("refresh-{name}")))
}

fn refresh_token(text: &str) -> RefreshToken {
    RefreshToken::new(text).expect("it is printable ASCII")
}

async fn commit(store: &Arc<dyn TokenStore>, claim: &Claim, name: &str) -> CommitOutcome {
    store.commit(claim, &tokens(name)).await.expect("commit")
}

async fn stored(store: &Arc<dyn TokenStore>, claim: &Claim, name: &str) -> Version {
    match commit(store, claim, name).await {
        CommitOutcome::Stored(version) => version,
        CommitOutcome::Conflict(found) => {
            panic!("the claimed version stands, but the store says it conflicts with {found:?}")
        }
    }
}

async fn conflicting(store: &Arc<dyn TokenStore>, claim: &Claim, name: &str) -> Option<Record> {
    match commit(store, claim, name).await {
        CommitOutcome::Conflict(found) => found,
        CommitOutcome::Stored(version) => panic!("the claimed version is gone, but the store has written {version:?}"),
    }
}

async fn cleared(store: &Arc<dyn TokenStore>, version: Version) {
    let clear = store.clear(version).await.expect("clear");
    assert!(matches!(clear, ClearOutcome::Cleared), "the version stands, but the store says {clear:?}");
}
