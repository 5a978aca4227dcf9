//! Signing in and out.

use std::error::Error;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower::BoxError;
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::{RefreshError, Session, SessionError, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, StoreFault};

use super::{FAILURES, LOST_ANSWERS, MINUTE, SECOND, TIMEOUT, peer_on, stored, stored_with};
use crate::support::*;

/// Signs out in a task that runs until it waits.
async fn begin_sign_out(it: &Fixture) -> JoinHandle<Result<(), SessionError>> {
    let session = it.session.clone();
    let signed_out = tokio::spawn(async move { session.sign_out().await });
    settle().await;
    signed_out
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_deletes_the_tokens_that_a_peer_has_refreshed() {
    let (it, store) = stored().await;
    store.refresh_as_peer(&pair(2)).await;
    it.session.sign_out().await.unwrap();
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_revokes_the_tokens_that_only_the_store_held() {
    let (revoke, revoked) = revocations();
    let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    store.refresh_as_peer(&pair(2)).await;
    it.session.sign_out().await.unwrap();
    assert_eq!(*revoked.lock().unwrap(), [pair(1), pair(2)]);
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_that_is_written_late_revokes_each_of_the_tokens_once() {
    for call in [StoreCall::Load, StoreCall::Clear] {
        for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
            let (revoke, revoked) = revocations();
            let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
            store.refresh_as_peer(&pair(2)).await;
            store.inject(call, fault);
            let error = it.session.sign_out().await.unwrap_err();
            assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, true));
            assert!(revoked.lock().unwrap().contains(&pair(1)));
            if store.tokens().await.is_some() {
                // Another process refreshes before it notices the sign-out.
                store.overwrite_as_peer(&pair(3)).await;
            }
            let last = store.tokens().await;
            sleep(10 * MINUTE).await;
            store.clear_faults();
            sleep(2 * MINUTE).await;
            assert_eq!(store.tokens().await, None);
            let revoked = revoked.lock().unwrap();
            let is_revoked = |tokens: &Tokens| revoked.iter().filter(|it| *it == tokens).count();
            assert_eq!(is_revoked(&pair(1)), 1, "{call:?}, {fault:?}: {revoked:?}");
            assert!(is_revoked(&pair(2)) <= 1, "{call:?}, {fault:?}: {revoked:?}");
            assert_eq!(is_revoked(&last.unwrap_or(pair(2))), 1, "{call:?}, {fault:?}: {revoked:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_that_is_written_after_a_late_refresh_revokes_each_of_the_tokens_once() {
    let (revoke, revoked) = revocations();
    let (mut it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    let response = it.get_refused().await;
    let call = it.auth.next().await;
    store.inject(StoreCall::Load, StoreFault::fail());
    it.session.sign_out().await.unwrap_err();
    assert_eq!(response.await.unwrap().status(), 401);
    call.answer(Ok(pair(2)));
    settle().await;
    store.clear_faults();
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, None);
    assert_eq!(*revoked.lock().unwrap(), [pair(1), pair(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_of_a_session_that_has_no_token_revokes_nothing() {
    let (revoke, revoked) = revocations();
    let (service, _auth): (_, AuthCalls) = script();
    let session = Session::client_credentials(service).revoke(revoke).build().await.unwrap();
    session.sign_out().await.unwrap();
    assert_eq!(session.state(), SessionState::SignedOut);
    assert!(revoked.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_reports_that_the_tokens_that_only_the_store_held_could_not_be_revoked() {
    let (revoke, mut revocations) = script::<RevokeRequest, (), BoxError>();
    let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    store.refresh_as_peer(&pair(2)).await;
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    for call in revocations.take(2).await {
        let is_known = *call.request.tokens() == pair(1);
        call.answer(if is_known { Ok(()) } else { Err("it is down".into()) });
    }
    let error = signed_out.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Revoke, true));
    assert_eq!(error.source().unwrap().to_string(), "it is down");
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_revokes_neither_a_user_whom_a_peer_has_signed_in_nor_does_the_end_of_a_session() {
    let (revoke, revoked) = revocations();
    let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    store.sign_in_as_peer(&pair(5)).await;
    it.session.sign_out().await.unwrap();
    assert_eq!(*revoked.lock().unwrap(), [pair(1)]);

    let (revoke, revoked) = revocations();
    let (mut it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
    response.await.unwrap();
    settle().await;
    assert_eq!(store.tokens().await, None);
    assert_eq!(*revoked.lock().unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_signed_in_with_again_are_revoked_again() {
    let (revoke, revoked) = revocations();
    let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    for signed_out in 1..=2 {
        store.refresh_as_peer(&pair(2)).await;
        it.session.sign_out().await.unwrap();
        let expected: Vec<_> = [pair(1), pair(2)].into_iter().cycle().take(2 * signed_out).collect();
        assert_eq!(*revoked.lock().unwrap(), expected);
        it.session.sign_in(pair(1)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_does_not_sign_out_a_user_whom_a_peer_has_signed_in() {
    let (it, store) = stored().await;
    store.sign_in_as_peer(&pair(5)).await;
    it.session.sign_out().await.unwrap();
    assert_eq!(it.session.state(), SessionState::SignedOut);
    assert_eq!(store.tokens().await, Some(pair(5)));
}

#[tokio::test(start_paused = true)]
async fn tokens_that_a_peer_refreshes_during_the_deletion_by_a_sign_out_are_deleted_too() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Clear, StoreFault::hang_until_cleared());
    let signed_out = begin_sign_out(&it).await;
    store.refresh_as_peer(&pair(2)).await;
    store.clear_faults();
    signed_out.await.unwrap().unwrap();
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_user_whom_a_peer_signs_in_during_the_deletion_by_a_sign_out_stays_signed_in() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Clear, StoreFault::hang_until_cleared());
    let signed_out = begin_sign_out(&it).await;
    store.sign_in_as_peer(&pair(5)).await;
    store.clear_faults();
    signed_out.await.unwrap().unwrap();
    assert_eq!(store.tokens().await, Some(pair(5)));
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_after_a_sign_in_that_was_never_written_does_not_restore_the_first_user() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Replace, StoreFault::fail());
    assert!(it.session.sign_in(pair(5)).await.is_err());
    it.session.sign_out().await.unwrap();
    store.clear_faults();
    sleep(2 * MINUTE).await;
    // The first user signed out when the second signed in, and the second has signed out since.
    assert_eq!(store.tokens().await, None);
    assert_eq!(peer_on(&store).await.session.state(), SessionState::SignedOut);
}

#[tokio::test(start_paused = true)]
async fn an_unwritten_sign_out_is_still_written_after_an_unwritten_sign_in() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Clear, StoreFault::fail());
    store.inject(StoreCall::Replace, StoreFault::fail());
    for user in [5, 6] {
        assert!(it.session.sign_out().await.is_err());
        assert!(it.session.sign_in(pair(user)).await.is_err());
    }
    assert!(it.session.sign_out().await.is_err());
    store.clear_faults();
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn after_concurrent_sign_ins_and_sign_outs_the_store_matches_the_session() {
    for fault in [
        None,
        Some(StoreFault::fail()),
        Some(StoreFault::fail().after_effect()),
        Some(StoreFault::hang_until_cleared()),
    ] {
        let (it, store) = stored().await;
        if let Some(fault) = fault {
            store.inject(StoreCall::Replace, fault);
            store.inject(StoreCall::Clear, fault);
        }
        let mut tasks = Vec::new();
        for user in 5..15 {
            let session = it.session.clone();
            tasks.push(tokio::spawn(async move {
                let _ = session.sign_in(pair(user)).await;
            }));
            let session = it.session.clone();
            tasks.push(tokio::spawn(async move {
                let _ = session.sign_out().await;
            }));
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        store.clear_faults();
        sleep(2 * MINUTE).await;
        let in_force = it.session.tokens();
        assert_eq!(store.tokens().await, Some(in_force).filter(|tokens| *tokens != Tokens::default()), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_revokes_the_tokens_and_reports_a_failure() {
    let (revoke, mut revocations) = script::<RevokeRequest, (), BoxError>();
    let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    let call = revocations.next().await;
    assert_eq!(*call.request.tokens(), pair(1));
    // Deletion and revocation do not wait for each other.
    settle().await;
    assert_eq!(store.tokens().await, None);
    call.answer(Err("it is down".into()));
    let error = signed_out.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the user is signed out, but the tokens could not be revoked");
    assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Revoke, true));
    assert_eq!(error.source().unwrap().to_string(), "it is down");
    assert_eq!(it.session.state(), SessionState::SignedOut);
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_revoke_service_that_hangs_is_abandoned_at_the_time_out() {
    let (revoke, mut revocations) = script::<RevokeRequest, (), BoxError>();
    let (it, _store) = stored_with(|builder| builder.revoke(revoke)).await;
    let begun = Instant::now();
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    let _unanswered = revocations.next().await;
    assert!(signed_out.await.unwrap().is_err());
    assert!((TIMEOUT..TIMEOUT + SECOND).contains(&begun.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_revoke_service_that_panics_does_not_keep_the_tokens_in_the_store() {
    let revoke = tower::service_fn(|_: RevokeRequest| -> std::future::Ready<Result<(), BoxError>> {
        panic!("the revoke service panics, as injected")
    });
    let (it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    // The store is slower than the panic.
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared());
    let signed_out = begin_sign_out(&it).await;
    store.clear_faults();
    assert!(signed_out.await.unwrap().is_err());
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, None);
}
