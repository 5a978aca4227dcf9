//! The rules of [`TokenStore`](tower_auth_refresh::store::TokenStore), one case each.

mod claims;
mod ends;
mod races;
mod records;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh::store::{
    Claim, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, Record, TokenStore, Version,
};
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};

use super::Handles;

/// The limit for one case, by `tokio`'s clock, paused or not.
const CASE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest lease with which a case is repeated, in leases.
const LONGEST_LEASE: u32 = 8;

/// Checks a store against every rule of [`TokenStore`].
///
/// `open` is called once for each run of a case, and once more. Each call opens a new, empty store and returns two handles
/// on it. Claims are made for `lease`, and the store's clock may deviate by a quarter of `lease`. A case in which a claim
/// may have expired too soon, since the machine was slow, is repeated with a longer lease.
///
/// # Panics
///
/// If the store breaks a rule, or a lease of eight times `lease` is too short. The name of each case is printed to standard error when the case begins.
pub async fn stores(lease: Duration, open: impl AsyncFn() -> Handles) {
    let foreign = {
        let [other, _] = open().await;
        other.replace(&entry("1")).await.expect("replace")
    };
    macro_rules! run {
        ($($case:path)*) => {$(
            eprintln!("conformance of stores: {}", stringify!($case));
            let mut leases = 1;
            loop {
                let [a, b] = open().await;
                let fixture = Fixture { a, b, lease: lease * leases, foreign: foreign.clone(), held: Mutex::default() };
                let run = AssertUnwindSafe($case(fixture)).catch_unwind();
                match timeout(CASE_TIMEOUT, run).await.expect("the case timed out") {
                    Ok(()) => break,
                    Err(panic) if panic.is::<TooSlow>() => {
                        assert!(leases < LONGEST_LEASE, "a claim takes longer than {:?}", lease * leases);
                    }
                    Err(panic) => resume_unwind(panic),
                }
                leases *= 2;
            }
        )*};
    }
    run! {
        records::an_empty_store_holds_nothing
        records::a_record_written_by_one_handle_is_read_by_the_other
        records::the_second_of_two_inserts_finds_the_first
        records::every_record_is_read_back_unchanged
        records::every_generation_is_read_back_unchanged
        claims::a_claim_excludes_all_others
        claims::the_reported_end_of_a_lease_approaches_and_moves_when_the_claim_is_renewed
        claims::a_token_stays_in_doubt_after_a_claim_has_expired
        claims::a_renewed_claim_lasts_longer
        claims::a_lost_claim_is_not_renewed
        claims::a_token_released_unused_is_claimed_without_doubt
        claims::a_token_released_in_doubt_is_claimed_in_doubt
        claims::a_claim_released_in_doubt_is_not_released_again
        claims::a_late_release_does_not_free_another_claim
        records::a_commit_stores_a_new_version_and_ends_the_claim
        records::the_second_of_two_commits_conflicts
        records::a_late_commit_is_stored_if_the_version_is_unchanged
        records::a_late_commit_after_a_clear_conflicts
        records::a_clear_of_another_version_deletes_nothing
        records::a_late_commit_after_a_replace_conflicts
        records::versions_are_never_reused
        ends::the_ends_of_a_record_are_read_back_to_the_millisecond
        ends::an_extension_moves_the_end_and_nothing_else
        ends::an_extension_of_another_version_does_nothing
        ends::an_extended_record_outlives_its_first_end
        ends::a_record_past_its_end_is_in_the_way_of_nothing
        races::exactly_one_of_many_concurrent_claims_succeeds
        races::a_concurrent_commit_and_clear_agree_on_their_order
        races::a_dropped_call_does_not_block_later_calls
    }
}

/// Two handles on one new store, with calls that assert the outcome.
struct Fixture {
    a: Arc<dyn TokenStore>,
    b: Arc<dyn TokenStore>,
    lease: Duration,
    /// A version that another store has made. It is of the kind that these stores make.
    foreign: Version,
    /// The version that was claimed last, and the moment until which its claim holds by any clock.
    held: Mutex<Option<(Version, Instant)>>,
}

/// The panic of a case whose claim may have expired: it shows nothing of the store.
struct TooSlow;

impl Fixture {
    async fn sign_in(&self, name: &str) -> Version {
        self.a.replace(&entry(name)).await.expect("replace")
    }

    async fn load(&self) -> Option<Record> {
        let (by_a, by_b) = (self.a.load().await.expect("load"), self.b.load().await.expect("load"));
        assert_eq!(by_a, by_b, "the two handles load different records");
        by_a
    }

    async fn expect_claimed(&self, store: &Arc<dyn TokenStore>, version: &Version) -> Claim {
        let begun = Instant::now();
        match store.claim(version, self.lease).await.expect("claim") {
            ClaimOutcome::Claimed(claim) => {
                assert_eq!(claim.version(), version, "the claim is for another version");
                self.note_held(version, begun, self.lease);
                claim
            }
            other => panic!("the version is not claimed, but the store returned {other:?}"),
        }
    }

    async fn expect_busy(&self, store: &Arc<dyn TokenStore>, version: &Version) -> Duration {
        match store.claim(version, self.lease).await.expect("claim") {
            ClaimOutcome::Busy { retry_in } => retry_in,
            ClaimOutcome::Claimed(_) if self.may_have_expired(version) => resume_unwind(Box::new(TooSlow)),
            other => panic!("the version is claimed, but the store returned {other:?}"),
        }
    }

    async fn expect_changed(&self, store: &Arc<dyn TokenStore>, version: &Version) -> Option<Record> {
        match store.claim(version, self.lease).await.expect("claim") {
            ClaimOutcome::Changed(record) => record,
            other => panic!("the record has another version, but the store returned {other:?}"),
        }
    }

    async fn expect_renewed(&self, store: &Arc<dyn TokenStore>, claim: &Claim, lease: Duration) {
        let begun = Instant::now();
        let is_renewed = store.renew(claim, lease).await.expect("renew");
        if !is_renewed && self.may_have_expired(claim.version()) {
            resume_unwind(Box::new(TooSlow));
        }
        assert!(is_renewed, "the claim is held");
        self.note_held(claim.version(), begun, lease);
    }

    fn note_held(&self, version: &Version, begun: Instant, lease: Duration) {
        let until = begun + lease.saturating_sub(self.lease / 4);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some((version.clone(), until));
    }

    /// Returns `true` if the claim that was made last, on this version, may have ended by itself.
    fn may_have_expired(&self, version: &Version) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().is_some_and(|(held, until)| held == version && *until <= Instant::now())
    }

    /// Waits a quarter of a lease longer than a claim made now lasts.
    async fn expire(&self) {
        sleep(self.lease * 5 / 4).await;
    }

    /// Waits until calls that were dropped have ended, as far as loads can tell: a store may run them on other threads.
    async fn settle(&self) {
        let (mut last, mut unchanged) = (None, 0);
        while unchanged < 5 {
            sleep((self.lease / 100).max(Duration::from_millis(5))).await;
            let loaded = (self.a.load().await.expect("load"), self.b.load().await.expect("load"));
            unchanged = if loaded.0 == loaded.1 && last.as_ref() == Some(&loaded) { unchanged + 1 } else { 0 };
            last = Some(loaded);
        }
    }
}

/// The entry of a user's tokens by their number, such as `"1"`. Those without a number have the highest one.
fn entry(name: &str) -> Entry {
    Entry::new(Epoch::from(7), name.parse().unwrap_or(u64::MAX), tokens(name))
}

fn record(version: &Version, name: &str) -> Record {
    Record::new(version.clone(), entry(name))
}

fn tokens(name: &str) -> Tokens {
    let access = AccessToken::new(format!("access-{name}")).expect("the token is visible ASCII");
    Tokens::new(access, refresh_token(&format!("refresh-{name}")))
}

fn refresh_token(text: &str) -> RefreshToken {
    RefreshToken::new(text).expect("the token is printable ASCII")
}

async fn commit(store: &Arc<dyn TokenStore>, claim: &Claim, name: &str) -> CommitOutcome {
    store.commit(claim, &entry(name)).await.expect("commit")
}

async fn expect_stored(store: &Arc<dyn TokenStore>, claim: &Claim, name: &str) -> Version {
    match commit(store, claim, name).await {
        CommitOutcome::Stored(version) => version,
        other => panic!("the claimed version is unchanged, but the store returned {other:?}"),
    }
}

async fn expect_conflict(store: &Arc<dyn TokenStore>, claim: &Claim, name: &str) -> Option<Record> {
    match commit(store, claim, name).await {
        CommitOutcome::Conflict(found) => found,
        other => panic!("the claimed version was replaced, but the store returned {other:?}"),
    }
}

async fn expect_cleared(store: &Arc<dyn TokenStore>, version: &Version) {
    let clear = store.clear(version).await.expect("clear");
    assert!(matches!(clear, ClearOutcome::Cleared), "the version is unchanged, but the store returned {clear:?}");
}
