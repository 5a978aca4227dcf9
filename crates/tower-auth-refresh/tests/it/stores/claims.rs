//! Claims on the refresh token.

use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::{ClaimOutcome, Presented};
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use super::{MINUTE, SECOND, is_unavailable, peer_on, stored};
use crate::faults::WithReadiness;
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_released_unused_can_be_claimed_without_doubt() {
    let (mut it, store) = stored().await;
    let claim = store.claim_as_peer(MINUTE).await;
    let response = it.get_refused().await;
    sleep(2 * SECOND).await;
    assert!(it.auth.is_idle().await);
    store.inner().release(&claim, Presented::Unused).await.unwrap();
    let refresh = it.auth.next().await;
    assert!(!refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_released_in_doubt_is_claimed_in_doubt() {
    let (mut it, store) = stored().await;
    let claim = store.claim_as_peer(MINUTE).await;
    let response = it.get_refused().await;
    store.inner().release(&claim, Presented::InDoubt).await.unwrap();
    let refresh = it.auth.next().await;
    assert!(refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_holder_died_is_claimed_in_doubt_when_its_lease_ends() {
    let (mut it, store) = stored().await;
    let _claim = store.claim_as_peer(10 * SECOND).await;
    let begun = Instant::now();
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert!((10 * SECOND..11 * SECOND).contains(&begun.elapsed()));
    assert!(refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_held_for_longer_than_a_refresh_may_take_is_respected() {
    let (mut it, store) = stored().await;
    let claim = store.claim_as_peer(10 * MINUTE).await;
    let begun = Instant::now();
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)));
    assert!((29 * SECOND..31 * SECOND).contains(&begun.elapsed()));
    assert!(it.auth.is_idle().await);
    it.sends(1).await;
    // Until its holder commits.
    store.commit_as_peer(&claim, &pair(2)).await;
    sleep(MINUTE).await;
    let response = it.get_refused().await;
    it.accepts(response, 2).await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_claim_holds_for_as_long_as_its_refresh_takes() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    let record = store.record().await.unwrap();
    for second in 1..=28 {
        sleep(SECOND).await;
        // For 9 s the store doesn't answer.
        match second {
            6 => store.inject(StoreCall::Renew, StoreFault::hang_until_cleared()),
            15 => store.clear_faults(),
            _ => {}
        }
        let outcome = store.inner().claim(record.version(), MINUTE).await.unwrap();
        assert!(matches!(outcome, ClaimOutcome::Busy { .. }), "{outcome:?}");
    }
    let renewals = store.count(StoreCall::Renew);
    assert!((4..=6).contains(&renewals), "{renewals} renewals in 28 s");
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
    assert_eq!(store.tokens().await.unwrap(), pair(2));
    sleep(MINUTE).await;
    assert_eq!(store.count(StoreCall::Renew), renewals, "renewed after the refresh");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_is_answered_within_5_s_renews_nothing() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    sleep(Duration::from_millis(4_998)).await;
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
    assert_eq!(store.calls(), [StoreCall::Claim, StoreCall::Commit]);
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_a_process_that_has_died_is_free_after_15_s() {
    let (mut it, store) = stored().await;
    let _response = it.get_refused().await;
    let _refresh = it.auth.next().await;
    let begun = Instant::now();
    // It renews nothing any more.
    store.inject(StoreCall::Renew, StoreFault::hang());
    let mut peer = peer_on(&store).await;
    let response = peer.get_refused().await;
    let refresh = peer.auth.next().await;
    assert!((15 * SECOND..16 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(2)));
    peer.accepts(response, 2).await;
}

/// A session whose refresh service is ready from 16 s after the test's begin on, and whose claims can't be renewed.
async fn ready_after_the_lease() -> (Fixture, FaultyStore) {
    let store = faulty_store();
    let ready_at = Instant::now() + 16 * SECOND;
    let ready = move || if Instant::now() < ready_at { Poll::Pending } else { Poll::Ready(Ok(())) };
    let (then, auth) = script();
    let shared = store.clone();
    let it = Fixture::over(WithReadiness { ready, then }, auth, |builder| builder.tokens(pair(1)).store(shared)).await;
    store.inject(StoreCall::Renew, StoreFault::fail());
    (it, store)
}

#[tokio::test(start_paused = true)]
async fn a_token_is_not_presented_once_the_lease_of_its_claim_is_over() {
    let (mut it, store) = ready_after_the_lease().await;
    let response = it.get_refused().await;
    sleep(15 * SECOND + SECOND / 2).await;
    // Another process takes the claim over and is about to present the token.
    let claim = store.claim_as_peer(MINUTE).await;
    assert!(claim.is_in_doubt());
    let response = response.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)));
    assert!(it.auth.is_idle().await);
    store.commit_as_peer(&claim, &pair(2)).await;
    store.clear_faults();
    sleep(MINUTE).await;
    let response = it.get_refused().await;
    it.accepts(response, 2).await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_presented_after_its_lease_if_the_claim_can_still_be_renewed() {
    let (mut it, store) = ready_after_the_lease().await;
    let response = it.get_refused().await;
    sleep(Duration::from_millis(15_995)).await;
    assert!(it.auth.is_idle().await);
    store.clear_faults();
    let refresh = it.auth.next().await;
    assert!(!refresh.request.is_in_doubt());
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_reports_busy_until_now_is_not_called_without_a_pause() {
    let (mut it, store) = stored().await;
    let _claim = store.claim_as_peer(10 * MINUTE).await;
    store.inject(StoreCall::Claim, StoreFault::busy_until_now());
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)));
    let calls = store.calls().len();
    assert!(calls < 10_000, "{calls} calls in 30 seconds");
}

#[tokio::test(start_paused = true)]
async fn a_token_left_in_doubt_is_marked_when_the_next_process_presents_it() {
    let (mut one, store) = stored().await;
    let response = one.get_refused().await;
    one.auth.next().await.answer(Err(RefreshError::in_doubt("connection reset")));
    response.await.unwrap();
    drop(one);
    let mut next = peer_on(&store).await;
    next.refreshes_from(1, true).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_presented_but_not_used_is_not_marked_in_the_next_process() {
    let (mut one, store) = stored().await;
    let response = one.get_refused().await;
    one.auth.next().await.answer(Err(RefreshError::misconfigured("invalid_client")));
    response.await.unwrap();
    drop(one);
    let mut next = peer_on(&store).await;
    next.refreshes_from(1, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_rewritten_does_not_clear_the_doubt_about_its_refresh_token() {
    let (mut it, store) = stored().await;
    for error in [RefreshError::in_doubt("connection reset"), RefreshError::misconfigured("a firewall's page")] {
        let response = it.get_refused().await;
        it.auth.next().await.answer(Err(error));
        response.await.unwrap();
        sleep(MINUTE).await;
    }
    // For example restored from a backup: the store no longer has a claim.
    let record = store.record().await.unwrap();
    store.inner().replace(record.entry()).await.unwrap();
    it.refreshes_from(1, true).await;
}

#[tokio::test(start_paused = true)]
async fn the_doubt_about_one_refresh_token_is_not_carried_over_to_its_successor() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::in_doubt("connection reset")));
    response.await.unwrap();
    sleep(MINUTE).await;
    store.refresh_as_peer(&Tokens::new(access("a1"), refresh("r2"))).await;
    it.refreshes_from(2, false).await;
}
