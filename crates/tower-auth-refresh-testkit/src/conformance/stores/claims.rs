//! Claims: exclusion, leases, and refresh tokens in doubt.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::{Claim, Presented, TokenStore, Version};

use super::{Fixture, expect_cleared, expect_stored, record};

pub(super) async fn a_claim_excludes_all_others(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let before = Instant::now();
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    assert!(!claim.is_in_doubt(), "the token has not been presented");
    let began = before..=Instant::now();
    for store in [&fixture.b, &fixture.a] {
        fixture.expect_lease(store, &version, fixture.lease, began.clone()).await;
    }
}

pub(super) async fn the_reported_end_of_a_lease_approaches_and_moves_when_the_claim_is_renewed(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let before = Instant::now();
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    let began = before..=Instant::now();
    sleep(fixture.lease / 2).await;
    fixture.expect_lease(&fixture.b, &version, fixture.lease, began).await;
    let before = Instant::now();
    fixture.expect_renewed(&fixture.a, &claim, fixture.lease * 3).await;
    let began = before..=Instant::now();
    fixture.expect_lease(&fixture.b, &version, fixture.lease * 3, began).await;
}

pub(super) async fn a_token_stays_in_doubt_after_a_claim_has_expired(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let first = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.expire().await;
    let second = fixture.expect_claimed(&fixture.b, &version).await;
    assert!(second.is_in_doubt(), "the doubt after an expired claim was lost");
    assert_ne!(first.id(), second.id(), "two claims have the same id");
    fixture.expect_busy(&fixture.a, &version).await;

    // The holder of the second claim can't know whether the first holder presented the token.
    fixture.b.release(&second, Presented::Unused).await.expect("release");
    let third = fixture.expect_claimed(&fixture.a, &version).await;
    assert!(third.is_in_doubt(), "the doubt was lost at a release");
    fixture.expire().await;
    let fourth = fixture.expect_claimed(&fixture.b, &version).await;
    assert!(fourth.is_in_doubt(), "the doubt was lost when another claim expired");

    // A new token is not in doubt.
    let version = expect_stored(&fixture.b, &fourth, "2").await;
    assert!(
        !fixture.expect_claimed(&fixture.a, &version).await.is_in_doubt(),
        "the doubt was carried over to the new token"
    );
}

pub(super) async fn a_renewed_claim_lasts_longer(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    for _ in 0..3 {
        sleep(fixture.lease / 2).await;
        fixture.expect_renewed(&fixture.a, &claim, fixture.lease).await;
        fixture.expect_busy(&fixture.b, &version).await;
    }
    fixture.expire().await;
    assert!(fixture.expect_claimed(&fixture.b, &version).await.is_in_doubt());
}

pub(super) async fn a_lost_claim_is_not_renewed(fixture: Fixture) {
    let renewed = async |claim: &Claim| fixture.a.renew(claim, fixture.lease).await.expect("renew");

    let version = fixture.sign_in("1").await;
    let expired = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.expire().await;
    let second = fixture.expect_claimed(&fixture.b, &version).await;
    assert!(!renewed(&expired).await, "another handle holds the claim");

    let version = expect_stored(&fixture.b, &second, "2").await;
    assert!(!renewed(&second).await, "the claim was committed");

    for presented in [Presented::InDoubt, Presented::Unused] {
        let released = fixture.expect_claimed(&fixture.a, &version).await;
        fixture.a.release(&released, presented).await.expect("release");
        assert!(!renewed(&released).await, "the claim was released");
    }

    let replaced = fixture.expect_claimed(&fixture.a, &version).await;
    let version = fixture.sign_in("3").await;
    assert!(!renewed(&replaced).await, "the record was replaced");

    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    expect_cleared(&fixture.b, &version).await;
    assert!(!renewed(&claim).await, "the record was cleared");
    assert_eq!(fixture.load().await, None);
}

pub(super) async fn a_token_released_unused_is_claimed_without_doubt(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.a.release(&claim, Presented::Unused).await.expect("release");
    let next = fixture.expect_claimed(&fixture.b, &version).await;
    assert!(!next.is_in_doubt(), "the token has not been presented");
    assert_ne!(claim.id(), next.id(), "two claims have the same id");
}

pub(super) async fn a_token_released_in_doubt_is_claimed_in_doubt(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.a.release(&claim, Presented::InDoubt).await.expect("release");
    assert_eq!(fixture.load().await, Some(record(&version, "1")));
    assert!(fixture.expect_claimed(&fixture.b, &version).await.is_in_doubt(), "the token may have been presented");
}

pub(super) async fn a_claim_released_in_doubt_is_not_released_again(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let claim = fixture.expect_claimed(&fixture.a, &version).await;
    for presented in [Presented::InDoubt, Presented::Unused] {
        fixture.a.release(&claim, presented).await.expect("release");
    }
    assert!(fixture.expect_claimed(&fixture.b, &version).await.is_in_doubt(), "the doubt was lost at a second release");
}

pub(super) async fn a_late_release_does_not_free_another_claim(fixture: Fixture) {
    let version = fixture.sign_in("1").await;
    let late = fixture.expect_claimed(&fixture.a, &version).await;
    fixture.expire().await;
    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    for presented in [Presented::Unused, Presented::InDoubt] {
        fixture.a.release(&late, presented).await.expect("release");
        fixture.expect_busy(&fixture.a, &version).await;
    }
    let version = expect_stored(&fixture.b, &claim, "2").await;
    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    fixture.a.release(&late, Presented::Unused).await.expect("release");
    fixture.expect_busy(&fixture.a, &version).await;
    fixture.expect_renewed(&fixture.b, &claim, fixture.lease).await;
}

impl Fixture {
    /// Asserts that a claim is reported to be held until the end of its lease, which began at a moment of this range.
    async fn expect_lease(
        &self,
        store: &Arc<dyn TokenStore>,
        version: &Version,
        lease: Duration,
        began: RangeInclusive<Instant>,
    ) {
        let asked = Instant::now();
        let retry_in = self.expect_busy(store, version).await;
        let spare = self.lease / 4;
        let left = |began: Instant, now: Instant| (began + lease).saturating_duration_since(now);
        let expected = left(*began.start(), Instant::now()).saturating_sub(spare)..=left(*began.end(), asked) + spare;
        assert!(expected.contains(&retry_in), "the lease ends in {retry_in:?}, not within {expected:?}");
    }
}
