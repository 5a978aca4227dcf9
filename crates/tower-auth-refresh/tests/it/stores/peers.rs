//! Two sessions on one store.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};
use tower_auth_refresh::{NotRefreshed, RefreshError, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use super::{MINUTE, SECOND, peer_on, stored, stored_with};
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn of_two_sessions_that_are_refused_at_once_one_refreshes_and_the_other_adopts() {
    let (mut one, store) = stored().await;
    let mut two = peer_on(&store).await;
    let first = one.get_refused().await;
    let refresh = one.auth.next().await;
    let second = two.get_refused().await;
    sleep(3 * SECOND).await;
    assert!(two.auth.is_idle().await);
    let answered = Instant::now();
    refresh.answer(Ok(pair(2)));
    one.accepts(first, 2).await;
    two.accepts(second, 2).await;
    assert!(answered.elapsed() <= SECOND);
    assert!(two.auth.is_idle().await && one.auth.is_idle().await);
    assert_eq!(two.session.tokens(), pair(2));
    assert_eq!(store.tokens().await, Some(pair(2)));
    // The session that adopted can refresh next, and the other adopts.
    two.refreshes_from(2, false).await;
    let response = one.get_refused().await;
    one.accepts(response, 3).await;
    assert!(one.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_refused_after_a_peers_refresh_adopts_without_a_call() {
    let (mut one, store) = stored().await;
    let mut two = peer_on(&store).await;
    one.refreshes_from(1, false).await;
    let response = two.get_refused().await;
    two.accepts(response, 2).await;
    assert!(two.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn session_refresh_adopts_the_tokens_that_a_peer_has_stored() {
    let (mut one, store) = stored().await;
    let mut two = peer_on(&store).await;
    one.refreshes_from(1, false).await;
    two.session.refresh().await.unwrap();
    assert_eq!(two.session.tokens(), pair(2));
    assert!(two.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_peers_tokens_that_expire_before_a_replay_can_arrive_are_refreshed_instead_of_adopted() {
    for expiry in [SystemTime::UNIX_EPOCH, SystemTime::now(), SystemTime::now() + Duration::from_millis(499)] {
        let (mut it, store) = stored().await;
        store.refresh_as_peer(&pair(2).with_expires_at(expiry)).await;
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        assert_eq!(refresh.presented(), "r2");
        refresh.answer(Ok(pair(3)));
        it.accepts(response, 3).await;
        assert_eq!(store.tokens().await, Some(pair(3)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_leaves_a_peers_tokens_that_expire_before_a_replay_can_arrive_to_the_refresh() {
    let (mut it, store) = stored().await;
    let response = it.get();
    let call = it.api.next().await;
    store.refresh_as_peer(&pair(2).with_expires_at(SystemTime::now() + Duration::from_millis(499))).await;
    it.session.recheck().await.unwrap();
    call.reply(401).await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r2");
    refresh.answer(Ok(pair(3)));
    it.accepts(response, 3).await;
    assert_eq!(store.tokens().await, Some(pair(3)));
}

#[tokio::test(start_paused = true)]
async fn a_peers_tokens_that_live_for_longer_than_a_replay_takes_are_adopted() {
    let (mut it, store) = stored().await;
    // By the wall clock, which isn't paused.
    store.refresh_as_peer(&pair(2).with_expires_at(SystemTime::now() + 20 * SECOND)).await;
    let response = it.get_refused().await;
    it.accepts(response, 2).await;
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_peers_refresh_token_is_presented_if_its_access_token_is_the_refused_one() {
    let (mut it, store) = stored().await;
    store.refresh_as_peer(&Tokens::new(access("a1"), refresh("r2"))).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r2");
    refresh.answer(Ok(pair(3)));
    it.accepts(response, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_peers_sign_out_is_noticed_before_a_refresh_token_is_presented() {
    let (one, store) = stored().await;
    let mut two = peer_on(&store).await;
    one.session.sign_out().await.unwrap();
    let response = two.get_refused().await.await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(not_refreshed(&response), NotRefreshed::SignedOut | NotRefreshed::SessionChanged));
    assert_eq!(two.session.state(), SessionState::SignedOut);
    assert!(two.auth.is_idle().await);
    two.sends_no_token().await;
}

#[tokio::test(start_paused = true)]
async fn a_peers_sign_in_is_noticed_and_nothing_is_replayed_as_the_new_user() {
    let (one, store) = stored().await;
    let mut two = peer_on(&store).await;
    one.session.sign_in(pair(5)).await.unwrap();
    let response = two.get_refused().await.await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(not_refreshed(&response), NotRefreshed::SessionChanged));
    assert!(two.api.is_idle().await && two.auth.is_idle().await);
    // Requests from now on are the new user's.
    two.sends(5).await;
    two.refreshes_from(5, false).await;
}

#[tokio::test(start_paused = true)]
async fn late_tokens_are_discarded_and_revoked_if_a_peer_signs_out_during_the_call() {
    let (revoke, revoked) = revocations();
    let (mut it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    store.sign_out_as_peer().await;
    refresh.answer(Ok(pair(2)));
    assert_eq!(response.await.unwrap().status(), 401);
    assert!(it.api.is_idle().await);
    assert_eq!(it.session.state(), SessionState::SignedOut);
    assert_eq!(store.tokens().await, None);
    assert_eq!(*revoked.lock().unwrap(), [pair(2)]);
}

#[tokio::test(start_paused = true)]
async fn late_tokens_are_revoked_and_not_stored_if_a_peer_signs_another_user_in_during_the_call() {
    let (revoke, revoked) = revocations();
    let (mut it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    store.sign_in_as_peer(&pair(5)).await;
    refresh.answer(Ok(pair(2)));
    let response = response.await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(not_refreshed(&response), NotRefreshed::SessionChanged));
    assert!(it.api.is_idle().await);
    assert_eq!(store.tokens().await, Some(pair(5)));
    assert_eq!(*revoked.lock().unwrap(), [pair(2)]);
    it.sends(5).await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_finds_a_newer_generation_adopts_it_and_discards_its_own() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    // A peer whose clock is ahead considered the claim expired, and refreshed first.
    store.overwrite_as_peer(&pair(7)).await;
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 7).await;
    assert_eq!(it.session.tokens(), pair(7));
    assert_eq!(store.tokens().await, Some(pair(7)));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_finds_the_same_tokens_ends_the_refresh() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    // A peer whose clock is ahead refreshed first, and the server answers a repeated call with the same tokens.
    store.overwrite_as_peer(&pair(2)).await;
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
    assert_eq!(it.session.state(), SessionState::Active);
    it.refreshes_from(2, false).await;
}

#[tokio::test(start_paused = true)]
async fn newer_tokens_that_are_found_while_writing_make_a_call_unnecessary() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    store.inject(StoreCall::Renew, StoreFault::fail());
    it.refreshes_from(1, false).await;
    sleep(5 * MINUTE).await;
    store.refresh_as_peer(&pair(7)).await;
    store.clear_faults();
    // At once, before the background retry of the write.
    let response = it.get_refused().await;
    it.accepts(response, 7).await;
    assert!(it.auth.is_idle().await);
    assert_eq!(it.session.state(), SessionState::Active);
    it.refreshes_from(7, false).await;
}

/// Refuses every fresh token, and returns the number of refreshes until the session reports a loop.
async fn refreshes_until_looping(
    it: &mut Fixture,
    mut first: u32,
    store: &FaultyStore,
    fault: Option<StoreFault>,
) -> u32 {
    for refreshes in 0.. {
        let response = it.get_refused().await;
        settle().await;
        if response.is_finished() {
            assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Looping));
            return refreshes;
        }
        let refresh = it.auth.next().await;
        if let Some(fault) = fault {
            store.inject(StoreCall::Commit, fault);
        }
        first += 1;
        refresh.answer(Ok(pair(first)));
        it.api.reply(1, &format!("a{first}"), 401).await;
        assert_eq!(response.await.unwrap().status(), 401);
        store.clear_faults();
    }
    unreachable!("the loop guard ends the loop")
}

#[tokio::test(start_paused = true)]
async fn a_write_that_took_effect_although_its_answer_was_lost_is_no_strike() {
    let (mut it, store) = stored().await;
    assert_eq!(refreshes_until_looping(&mut it, 1, &store, None).await, 6);
    // The answer to each commit is lost.
    let (mut it, store) = stored().await;
    assert_eq!(refreshes_until_looping(&mut it, 1, &store, Some(StoreFault::fail().after_effect())).await, 6);
    // The answer to the sign-in is lost.
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Replace, StoreFault::hang_until_cleared().after_effect());
    let signed_in = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_in(pair(5)).await }
    });
    settle().await;
    // The write is found once the token has been refused, before its background retry.
    store.inject(StoreCall::Load, StoreFault::fail());
    assert!(signed_in.await.unwrap().is_err());
    settle().await;
    store.clear_faults();
    assert_eq!(refreshes_until_looping(&mut it, 5, &store, None).await, 6);
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_that_issued_a_refresh_token_adopts_what_a_peer_has_stored_meanwhile() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let call = it.auth.next().await;
    store.overwrite_as_peer(&pair(7)).await;
    call.answer(Err(RefreshError::in_doubt("no access token").with_refresh_token(refresh("r2"))));
    it.accepts(response, 7).await;
    settle().await;
    assert_eq!((it.session.state(), it.session.tokens()), (SessionState::Active, pair(7)));
    it.refreshes_from(7, false).await;
}
