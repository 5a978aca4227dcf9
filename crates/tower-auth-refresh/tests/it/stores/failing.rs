//! A store that fails, at each of its calls in turn.

use std::error::Error;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::store::ClaimOutcome;
use tower_auth_refresh::{NotRefreshed, RefreshError, RefreshErrorKind, Session, SessionState, Tokens};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, StoreFault};

use super::{FAILURES, LOST_ANSWERS, MINUTE, SECOND, STORE_TIMEOUT, TIMEOUT, is_unavailable, kind, stored};
use crate::support::*;

#[tokio::test(start_paused = true)]
async fn without_a_claim_nothing_is_presented_and_nothing_is_lost() {
    for fault in FAILURES {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Claim, fault);
        let begun = Instant::now();
        let response = it.get_refused().await.await.unwrap();
        assert!(is_unavailable(not_refreshed(&response)), "{fault:?}");
        assert!(begun.elapsed() <= TIMEOUT + SECOND);
        assert!(it.auth.is_idle().await);
        it.sends(1).await;

        store.clear_faults();
        sleep(MINUTE).await;
        it.refreshes_from(1, false).await;
        assert_eq!(store.tokens().await, Some(pair(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_in_doubt_when_its_lease_ends() {
    for fault in LOST_ANSWERS {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Claim, fault);
        let response = it.get_refused().await.await.unwrap();
        assert!(is_unavailable(not_refreshed(&response)), "{fault:?}");
        assert!(it.auth.is_idle().await);
        store.clear_faults();
        sleep(MINUTE).await;
        it.refreshes_from(1, true).await;
        assert_eq!(store.tokens().await, Some(pair(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_are_used_from_memory_while_they_cannot_be_committed_and_are_written_later() {
    for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Commit, fault);
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        let begun = Instant::now();
        refresh.answer(Ok(pair(2)));
        it.accepts(response, 2).await;
        assert!(begun.elapsed() <= STORE_TIMEOUT + SECOND, "{fault:?}");
        assert_eq!(it.session.state(), SessionState::Active);
        sleep(10 * MINUTE).await;
        it.sends(2).await;

        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, Some(pair(2)), "{fault:?}");
        store.clear_calls();
        it.refreshes_from(2, false).await;
        // No write was pending.
        assert_eq!(store.calls(), [StoreCall::Claim, StoreCall::Commit]);
        assert_eq!(store.tokens().await, Some(pair(3)));
    }
}

#[tokio::test(start_paused = true)]
async fn new_tokens_are_stored_before_they_are_used() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Commit, StoreFault::hang_until_cleared());
    let response = it.get_refused().await;
    it.auth.next().await.answer(Ok(pair(2)));
    sleep(4 * SECOND).await;
    assert!(it.api.is_idle().await);
    assert_eq!(it.session.tokens(), pair(1));
    store.clear_faults();
    it.accepts(response, 2).await;
    assert_eq!(store.tokens().await, Some(pair(2)));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_written_before_their_refresh_token_is_presented() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    it.refreshes_from(1, false).await;
    sleep(MINUTE).await;
    // r2 is not presented while the store holds r1: its successor would be lost with the process.
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)));
    assert!(it.auth.is_idle().await);
    it.sends(2).await;

    store.clear_faults();
    sleep(MINUTE).await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    it.refreshes_from(2, false).await;
    store.clear_faults();
    store.clear_calls();
    // The write does not wait for its background retry.
    it.refreshes_from(3, false).await;
    assert_eq!(store.calls(), [StoreCall::Commit, StoreCall::Renew, StoreCall::Claim, StoreCall::Commit]);
    assert_eq!(store.tokens().await, Some(pair(4)));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_does_not_delay_a_refresh_of_unsaved_tokens_past_its_time_out() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Commit, StoreFault::hang_until_cleared());
    it.refreshes_from(1, false).await;
    sleep(MINUTE).await;
    let begun = Instant::now();
    let response = it.get_refused().await.await.unwrap();
    assert!(is_unavailable(not_refreshed(&response)));
    assert!(begun.elapsed() <= TIMEOUT + SECOND);
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn while_tokens_are_unsaved_no_peer_can_claim_the_used_refresh_token() {
    for (fault, answered_after) in [
        (StoreFault::fail(), Duration::ZERO),
        (StoreFault::hang_until_cleared(), Duration::ZERO),
        (StoreFault::fail(), 29 * SECOND),
        // The call, the commit and its retry take the longest possible time.
        (StoreFault::hang_until_cleared(), Duration::from_millis(29_999)),
    ] {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Commit, fault);
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        sleep(answered_after).await;
        store.inject(StoreCall::Renew, StoreFault::hang_until_cleared());
        refresh.answer(Ok(pair(2)));
        it.accepts(response, 2).await;
        let version = store.record().await.unwrap().version().clone();
        for tenth in 0..12_000 {
            // The renewal hangs at first too.
            if tenth == 40 {
                store.clear_faults_of(StoreCall::Renew);
            }
            let claiming = store.inner().claim(&version, SECOND).await.unwrap();
            assert!(matches!(claiming, ClaimOutcome::Busy { .. }), "{fault:?}, {answered_after:?}: after {tenth}/10 s");
            sleep(SECOND / 10).await;
        }
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, Some(pair(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_unsaved_tokens_is_renewed_at_once_even_if_the_next_retry_is_far_off() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Replace, StoreFault::fail());
    it.session.sign_in(pair(2)).await.unwrap_err();
    // By now the write is retried once a minute.
    sleep(Duration::from_secs(300)).await;
    store.clear_faults();
    store.inject(StoreCall::Commit, StoreFault::fail());
    it.refreshes_from(2, false).await;
    settle().await;
    assert!(store.calls().contains(&StoreCall::Renew));
}

#[tokio::test(start_paused = true)]
async fn if_the_claim_cannot_be_renewed_either_the_tokens_of_the_peer_that_takes_over_are_adopted() {
    for fault in
        [StoreFault::fail(), StoreFault::hang_until_cleared(), StoreFault::panic(), StoreFault::panic_on_call()]
    {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Commit, fault);
        store.inject(StoreCall::Renew, fault);
        it.refreshes_from(1, false).await;
        sleep(5 * MINUTE).await;
        // Within its grace period, the server answers a repeated call with other tokens.
        store.refresh_as_peer(&pair(7)).await;
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(it.session.tokens(), pair(7));
        assert_eq!(store.tokens().await, Some(pair(7)));
        it.refreshes_from(7, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_token_that_a_peer_stored_with_the_same_access_token_is_presented_next() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    store.inject(StoreCall::Renew, StoreFault::fail());
    it.refreshes_from(1, false).await;
    sleep(5 * MINUTE).await;
    store.refresh_as_peer(&Tokens::new(access("a2"), refresh("r7"))).await;
    store.clear_faults();
    // At once, before the background retry of the write.
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r7");
    refresh.answer(Ok(pair(8)));
    it.accepts(response, 8).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_cannot_be_released_delays_the_answer_by_five_seconds_at_most() {
    for fault in FAILURES {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Release, fault);
        let begun = Instant::now();
        let response = it.get_refused().await;
        it.auth.next().await.answer(Err(RefreshError::misconfigured("invalid_client")));
        let response = response.await.unwrap();
        assert_eq!(kind(not_refreshed(&response)), RefreshErrorKind::Misconfigured, "{fault:?}");
        assert!(begun.elapsed() <= STORE_TIMEOUT + SECOND);
        store.clear_faults();
        sleep(MINUTE).await;
        // The claim was never released: its lease has expired.
        it.refreshes_from(1, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_is_in_force_at_once_and_is_written_when_the_store_recovers() {
    for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
        for call in [StoreCall::Load, StoreCall::Replace] {
            let (mut it, store) = stored().await;
            store.inject(call, fault);
            let begun = Instant::now();
            let signed_in = tokio::spawn({
                let session = it.session.clone();
                async move { session.sign_in(pair(5)).await }
            });
            settle().await;
            it.sends(5).await;
            assert!(signed_in.await.unwrap().is_err(), "{call:?}, {fault:?}");
            assert!(begun.elapsed() <= STORE_TIMEOUT + SECOND);
            it.sends(5).await;
            // r5 is not presented while the store doesn't hold it.
            if call == StoreCall::Load || !LOST_ANSWERS.contains(&fault) {
                let response = it.get_refused().await.await.unwrap();
                assert!(is_unavailable(not_refreshed(&response)), "{call:?}, {fault:?}");
                assert!(it.auth.is_idle().await);
            }

            store.clear_faults();
            sleep(2 * MINUTE).await;
            assert_eq!(store.tokens().await, Some(pair(5)), "{call:?}, {fault:?}");
            it.refreshes_from(5, false).await;
            assert_eq!(store.tokens().await, Some(pair(6)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_whose_answer_was_lost_does_not_undo_a_peers_refresh_of_it() {
    for fault in LOST_ANSWERS {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Replace, fault);
        assert!(it.session.sign_in(pair(5)).await.is_err());
        // A peer finds the sign-in in the store, and refreshes: r5 is used up.
        store.refresh_as_peer(&pair(6)).await;
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, Some(pair(6)), "{fault:?}");
        let response = it.get();
        let call = it.api.next().await;
        if call.token() == Some("a5") {
            call.reply(401).await;
            it.accepts(response, 6).await;
        } else {
            assert_eq!(call.token(), Some("a6"));
        }
        assert!(it.auth.is_idle().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_found_to_have_been_made_keeps_the_failure_of_a_later_refresh() {
    for signs_in in [false, true] {
        let (mut it, store) = stored().await;
        let lost = StoreFault::fail().after_effect();
        if signs_in {
            store.inject(StoreCall::Replace, lost);
            // The write is not found at once.
            store.inject(StoreCall::Load, StoreFault::fail().after_calls(1));
            it.session.sign_in(pair(2)).await.unwrap_err();
        } else {
            store.inject(StoreCall::Commit, lost);
            it.refreshes_from(1, false).await;
        }
        store.inject_any(StoreFault::fail());
        let response = it.get_refused().await;
        assert!(is_unavailable(not_refreshed(&response.await.unwrap())));
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, Some(pair(2)));
        assert!(matches!(it.session.state(), SessionState::Failing(_)), "{:?}", it.session.state());
        it.refreshes_from(2, false).await;
        assert_eq!(it.session.state(), SessionState::Active);
    }
}

#[tokio::test(start_paused = true)]
async fn signing_in_again_with_the_same_tokens_is_written_again() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Replace, StoreFault::hang_until_cleared());
    let sign_ins = [0, 1].map(|_| {
        let session = it.session.clone();
        tokio::spawn(async move { session.sign_in(pair(5)).await })
    });
    settle().await;
    store.clear_faults();
    for signed_in in sign_ins {
        signed_in.await.unwrap().unwrap();
    }
    assert_eq!(store.count(StoreCall::Replace), 2);
    assert_eq!(store.tokens().await, Some(pair(5)));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_during_the_deletion_by_a_sign_out_is_written() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Clear, StoreFault::hang_until_cleared().after_effect());
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    settle().await;
    let signed_in = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_in(pair(5)).await }
    });
    settle().await;
    store.clear_faults();
    signed_out.await.unwrap().unwrap();
    signed_in.await.unwrap().unwrap();
    assert_eq!(store.tokens().await, Some(pair(5)));
}

#[tokio::test(start_paused = true)]
async fn the_write_of_a_sign_in_is_retried_with_growing_delays() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Replace, StoreFault::fail());
    assert!(it.session.sign_in(pair(5)).await.is_err());
    store.clear_calls();
    sleep(60 * MINUTE).await;
    let writes = store.count(StoreCall::Replace);
    // Once in 30 to 60 s, and more often at first.
    assert!((60..=130).contains(&writes), "{writes} writes in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_that_is_written_late_does_not_undo_a_later_one() {
    for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Replace, fault);
        assert!(it.session.sign_in(pair(5)).await.is_err());
        store.sign_in_as_peer(&pair(7)).await;
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, Some(pair(7)), "{fault:?}");
        it.sends(7).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_overrides_a_peers_earlier_sign_in() {
    for fault in FAILURES {
        let (mut it, store) = stored().await;
        store.sign_in_as_peer(&pair(5)).await;
        store.inject(StoreCall::Replace, fault);
        assert!(it.session.sign_in(pair(7)).await.is_err());
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, Some(pair(7)), "{fault:?}");
        it.sends(7).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_is_in_force_at_once_and_is_written_when_the_store_recovers() {
    for call in [StoreCall::Load, StoreCall::Clear] {
        for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
            let (mut it, store) = stored().await;
            store.inject(call, fault);
            let begun = Instant::now();
            let signed_out = tokio::spawn({
                let session = it.session.clone();
                async move { session.sign_out().await }
            });
            settle().await;
            it.sends_no_token().await;
            assert!(signed_out.await.unwrap().is_err(), "{call:?}, {fault:?}");
            assert!(begun.elapsed() <= STORE_TIMEOUT + SECOND);
            assert_eq!(it.session.state(), SessionState::SignedOut);

            store.clear_faults();
            sleep(2 * MINUTE).await;
            assert_eq!(store.tokens().await, None, "{call:?}, {fault:?}");
            store.clear_calls();
            sleep(10 * MINUTE).await;
            assert_eq!(store.calls(), [], "no write is pending");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_is_written_when_the_store_recovers() {
    for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
        let (mut it, store) = stored().await;
        store.inject(StoreCall::Clear, fault);
        let response = it.get_refused().await;
        it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant")));
        assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
        sleep(MINUTE).await;
        assert!(it.session.state().is_ended());
        store.clear_faults();
        sleep(2 * MINUTE).await;
        assert_eq!(store.tokens().await, None, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_not_built_on_empty_tokens_unless_it_needs_no_refresh_token() {
    let (service, _auth): (_, AuthCalls) = script();
    let store = faulty_store();
    let builder = Session::builder(service).store(store.clone());
    let error = builder.tokens(Tokens::default()).build().await.unwrap_err();
    assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::NoTokens, false));
    assert_eq!(store.record().await, None);
    let (service, _auth): (_, AuthCalls) = script();
    let session = Session::client_credentials(service).tokens(Tokens::default()).build().await.unwrap();
    assert_eq!(session.state(), SessionState::Active);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_not_built_on_a_store_that_fails() {
    for call in [StoreCall::Load, StoreCall::Insert] {
        for fault in [FAILURES.as_slice(), &LOST_ANSWERS].concat() {
            let store = faulty_store();
            store.inject(call, fault);
            let (refresh, _auth) = script::<_, Tokens, RefreshError>();
            let begun = Instant::now();
            let session = Session::builder(refresh).tokens(pair(1)).store(store.clone()).build().await;
            let error = session.expect_err("the store failed");
            assert_eq!(error.to_string(), "the session's store failed", "{call:?}, {fault:?}");
            assert_eq!((error.kind(), error.took_effect()), (SessionErrorKind::Store, false));
            let cause = error.source().unwrap().to_string();
            let causes = ["injected fault", "the store panicked", "deadline has elapsed"];
            assert!(causes.contains(&&*cause), "{call:?}, {fault:?}: {cause}");
            assert!(begun.elapsed() <= STORE_TIMEOUT + SECOND);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stored_tokens_take_precedence_over_those_of_the_builder() {
    let (mut one, store) = stored().await;
    one.refreshes_from(1, false).await;
    let shared = store.clone();
    let mut next = Fixture::with(|builder| builder.tokens(pair(1)).store(shared)).await;
    next.sends(2).await;
    next.refreshes_from(2, false).await;
}
