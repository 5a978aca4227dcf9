//! A record that can't be read: it is corrupt, of a newer format, or encrypted with an unknown key.

use std::sync::Arc;

use tokio::time::sleep;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::{RefreshError, Session, SessionRegistry, SessionRegistryError, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};

use super::{MINUTE, is_unavailable, stored};
use crate::support::*;

/// Makes each call fail that returns the record.
fn make_unreadable(store: &FaultyStore) {
    for call in [StoreCall::Load, StoreCall::Claim, StoreCall::Commit, StoreCall::Clear] {
        store.inject(call, StoreFault::fail());
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_not_built_on_a_record_that_cannot_be_read() {
    let (_first, store) = stored().await;
    let record = store.record().await;
    make_unreadable(&store);
    for tokens in [None, Some(pair(5))] {
        let (refresh, _auth) = script::<_, Tokens, RefreshError>();
        let builder = Session::builder(refresh).store(store.clone());
        let built = match tokens {
            Some(tokens) => builder.tokens(tokens).build().await,
            None => builder.build().await,
        };
        let error = built.expect_err("the record can't be read");
        assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, false));
        assert_eq!(store.record().await, record, "the record is left alone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_no_sign_out_at_a_claim() {
    let (mut it, store) = stored().await;
    store.refresh_as_peer(&pair(2)).await;
    make_unreadable(&store);
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)), "{response:?}");
    assert_eq!((failing(&it.session).count(), it.session.tokens()), (1, pair(1)));
    assert!(it.auth.is_idle().await);
    it.sends(1).await;
    store.clear_faults();
    sleep(MINUTE).await;
    let response = it.get_refused().await;
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_an_error_of_the_registry_and_not_a_user_who_is_signed_out() {
    let (_first, store) = stored().await;
    let record = store.record().await;
    let (refresh, _auth) = script::<_, Tokens, RefreshError>();
    let shared = Arc::new(store.clone());
    let sessions = SessionRegistry::builder(Session::builder(refresh)).store_factory(move |_: &u32| shared.clone());
    let sessions = sessions.build().unwrap();
    make_unreadable(&store);
    let is_store_error = |error: SessionRegistryError| match error {
        SessionRegistryError::Session(error) => (error.kind(), error.took_effect()) == (SessionErrorKind::Store, false),
        error => panic!("{error:?}"),
    };
    assert!(is_store_error(sessions.get(&1).await.unwrap_err()));
    assert!(is_store_error(sessions.sign_out(&1).await.unwrap_err()));
    assert_eq!((sessions.len(), store.record().await), (0, record), "nothing is kept, and nothing is deleted");
    store.clear_faults();
    assert_eq!(sessions.get(&1).await.unwrap().expect("the user is signed in").tokens(), pair(1));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_is_in_force_and_is_written_once_the_record_can_be_read() {
    let (mut it, store) = stored().await;
    make_unreadable(&store);
    let error = it.session.sign_in(pair(5)).await.unwrap_err();
    assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, true));
    sleep(10 * MINUTE).await;
    it.sends(5).await;
    assert_eq!(store.tokens().await, Some(pair(1)));
    store.clear_faults();
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, Some(pair(5)));
    it.refreshes_from(5, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_is_not_complete_before_the_record_can_be_read() {
    let (it, store) = stored().await;
    make_unreadable(&store);
    let error = it.session.sign_out().await.unwrap_err();
    assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, true));
    assert_eq!(it.session.state(), SessionState::SignedOut);
    sleep(10 * MINUTE).await;
    assert_eq!(store.tokens().await, Some(pair(1)));
    store.clear_faults();
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn tokens_stay_in_force_while_the_record_that_they_are_to_replace_cannot_be_read() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    make_unreadable(&store);
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
    sleep(10 * MINUTE).await;
    it.sends(2).await;
    assert_eq!(store.tokens().await, Some(pair(1)));
    assert!(it.session.state().is_signed_in());
    store.clear_faults();
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, Some(pair(2)));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_ends_nothing_while_the_record_cannot_be_read() {
    let (mut it, store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    make_unreadable(&store);
    refresh.answer(Err(RefreshError::rejected("invalid_grant")));
    let response = response.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)), "{response:?}");
    assert!(it.session.state().is_signed_in());
    it.sends(1).await;
}
