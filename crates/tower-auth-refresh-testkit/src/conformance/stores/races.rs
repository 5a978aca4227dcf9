//! Calls at the same moment, and calls that are dropped.

use std::sync::Arc;

use futures_util::FutureExt;
use tower_auth_refresh::store::{ClaimOutcome, ClearOutcome, CommitOutcome, Epoch, Presented};

use super::{Bench, commit, stored, tokens};

pub(super) async fn of_many_claims_at_once_exactly_one_is_made(bench: Bench) {
    for _ in 0..10 {
        let version = bench.sign_in("1").await;
        let claims: Vec<_> = (0..20)
            .map(|i| {
                let (store, lease) = (Arc::clone(if i % 2 == 0 { &bench.a } else { &bench.b }), bench.lease);
                tokio::spawn(async move { store.claim(version, lease).await.expect("claim") })
            })
            .collect();
        let mut made = 0;
        for claim in claims {
            match claim.await.expect("a store doesn't panic") {
                ClaimOutcome::Claimed(_) => made += 1,
                ClaimOutcome::Busy { .. } => {}
                ClaimOutcome::Changed(record) => panic!("nobody has written, but the store says {record:?}"),
            }
        }
        assert_eq!(made, 1, "of twenty claims at once");
    }
}

pub(super) async fn a_commit_and_a_clear_at_once_agree_on_who_was_first(bench: Bench) {
    for round in 0..20 {
        let version = bench.sign_in("1").await;
        let claim = bench.claimed(&bench.a, version).await;
        let committing = {
            let store = Arc::clone(&bench.a);
            async move { commit(&store, &claim, "2").await }
        };
        let clearing = {
            let store = Arc::clone(&bench.b);
            async move { store.clear(version).await.expect("clear") }
        };
        // Either is started first as often.
        let (commit, clear) = if round % 2 == 0 {
            let commit = tokio::spawn(committing);
            let clear = tokio::spawn(clearing);
            (commit.await, clear.await)
        } else {
            let clear = tokio::spawn(clearing);
            let commit = tokio::spawn(committing);
            (commit.await, clear.await)
        };
        let left = bench.load().await;
        match (commit.expect("a store doesn't panic"), clear.expect("a store doesn't panic")) {
            (CommitOutcome::Stored(version), ClearOutcome::Conflict(found)) => {
                assert_eq!(found.version, version);
                assert_eq!(left, Some(found));
            }
            (CommitOutcome::Conflict(None), ClearOutcome::Cleared) => assert_eq!(left, None),
            (commit, clear) => panic!("both or none was first: {commit:?}, {clear:?}"),
        }
    }
}

pub(super) async fn a_call_that_is_dropped_blocks_nobody(bench: Bench) {
    // Polled once and dropped, a call may have taken effect or not.
    let version = bench.sign_in("1").await;
    let a = &bench.a;
    drop(a.load().now_or_never());
    drop(a.claim(version, bench.lease).now_or_never());
    let record = bench.load().await.expect("a claim deletes nothing");
    assert_eq!(record.version, version, "a claim writes nothing");
    bench.expire().await;

    let claim = bench.claimed(&bench.b, version).await;
    drop(a.renew(&claim, bench.lease).now_or_never());
    drop(a.release(&claim, Presented::InDoubt).now_or_never());
    drop(a.commit(&claim, &tokens("2")).now_or_never());
    let record = bench.load().await.expect("a commit deletes nothing");
    assert!(record.tokens == tokens("1") || record.tokens == tokens("2"), "half a record was written");
    drop(a.replace(Epoch(8), &tokens("3")).now_or_never());
    let record = bench.load().await.expect("a sign-in deletes nothing");
    drop(a.clear(record.version).now_or_never());

    let version = bench.sign_in("4").await;
    let claim = bench.claimed(&bench.b, version).await;
    stored(&bench.b, &claim, "5").await;
}
