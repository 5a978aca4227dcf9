//! Claims on the refresh token.

use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::Presented;
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, StoreFault};

use super::{MINUTE, SECOND, is_unavailable, peer_on, stored};
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
