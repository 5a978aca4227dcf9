//! Concurrent calls, and calls that are dropped.

use std::panic::resume_unwind;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::time::Instant;
use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, CommitOutcome, Presented};

use super::{Fixture, TooSlow, commit, entry, expect_stored};

pub(super) async fn exactly_one_of_many_concurrent_claims_succeeds(fixture: Fixture) {
    for _ in 0..10 {
        let version = fixture.sign_in("1").await;
        fixture.note_held(&version, Instant::now(), fixture.lease);
        let claims: Vec<_> = (0..20)
            .map(|i| {
                let (store, lease) = (Arc::clone(if i % 2 == 0 { &fixture.a } else { &fixture.b }), fixture.lease);
                let version = version.clone();
                tokio::spawn(async move { store.claim(&version, lease).await.expect("claim") })
            })
            .collect();
        let mut made = 0;
        for claim in claims {
            match claim.await.expect("the store does not panic") {
                ClaimOutcome::Claimed(_) => made += 1,
                ClaimOutcome::Busy { .. } => {}
                other => panic!("the record is unchanged, but the store returned {other:?}"),
            }
        }
        if made > 1 && fixture.may_have_expired(&version) {
            resume_unwind(Box::new(TooSlow));
        }
        assert_eq!(made, 1, "exactly one of twenty concurrent claims succeeds");
    }
}

pub(super) async fn a_concurrent_commit_and_clear_agree_on_their_order(fixture: Fixture) {
    for round in 0..20 {
        let version = fixture.sign_in("1").await;
        let claim = fixture.expect_claimed(&fixture.a, &version).await;
        let committing = {
            let store = Arc::clone(&fixture.a);
            async move { commit(&store, &claim, "2").await }
        };
        let clearing = {
            let store = Arc::clone(&fixture.b);
            async move { store.clear(&version).await.expect("clear") }
        };
        // Each is started first in half of the rounds.
        let (commit, clear) = if round % 2 == 0 {
            let commit = tokio::spawn(committing);
            let clear = tokio::spawn(clearing);
            (commit.await, clear.await)
        } else {
            let clear = tokio::spawn(clearing);
            let commit = tokio::spawn(committing);
            (commit.await, clear.await)
        };
        let left = fixture.load().await;
        match (commit.expect("the store does not panic"), clear.expect("the store does not panic")) {
            (CommitOutcome::Stored(version), ClearOutcome::Conflict(found)) => {
                assert_eq!((found.version(), found.entry()), (&version, &entry("2")));
                assert_eq!(left, Some(found));
            }
            (CommitOutcome::Conflict(None), ClearOutcome::Cleared) => assert_eq!(left, None),
            (commit, clear) => panic!("the commit and the clear contradict each other: {commit:?}, {clear:?}"),
        }
    }
}

pub(super) async fn a_dropped_call_does_not_block_later_calls(fixture: Fixture) {
    // A call that is polled once and dropped may have taken effect or not.
    let version = fixture.sign_in("1").await;
    let a = &fixture.a;
    drop(a.load().now_or_never());
    drop(a.claim(&version, fixture.lease).now_or_never());
    fixture.settle().await;
    let record = fixture.load().await.expect("a claim deletes nothing");
    assert_eq!(*record.version(), version, "a claim writes nothing");
    fixture.expire().await;

    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    drop(a.renew(&claim, fixture.lease).now_or_never());
    drop(a.release(&claim, Presented::InDoubt).now_or_never());
    drop(a.commit(&claim, &entry("2")).now_or_never());
    fixture.settle().await;
    let record = fixture.load().await.expect("a commit deletes nothing");
    assert!([entry("1"), entry("2")].contains(record.entry()), "a partial record was written");
    drop(a.replace(&entry("3")).now_or_never());
    fixture.settle().await;
    let record = fixture.load().await.expect("a sign-in deletes nothing");
    drop(a.clear(record.version()).now_or_never());
    fixture.settle().await;

    let version = fixture.sign_in("4").await;
    let claim = fixture.expect_claimed(&fixture.b, &version).await;
    expect_stored(&fixture.b, &claim, "5").await;
}
