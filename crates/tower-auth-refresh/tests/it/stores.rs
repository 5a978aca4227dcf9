//! Sessions and their store: peers on the same store, and stores that fail.

use std::collections::HashSet;
use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service, ServiceExt};
use tower_auth_refresh::store::{ClaimOutcome, Presented};
use tower_auth_refresh::{
    AuthRefreshLayer, NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, ReplayBody, RevokeRequest,
    RevokeService, Session, SessionBuilder, SessionErrorKind, SessionRegistry, SessionRegistryError, SessionState,
    Tokens,
};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};
use tower_layer::Layer;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The default refresh time-out.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The time-out of a store call.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Faults that leave the store unchanged.
pub const FAILURES: [StoreFault; 4] =
    [StoreFault::fail(), StoreFault::hang_until_cleared(), StoreFault::panic_on_call(), StoreFault::panic()];

/// Faults after the effect of a call, whose answer is lost.
pub const LOST_ANSWERS: [StoreFault; 2] =
    [StoreFault::fail().after_effect(), StoreFault::hang_until_cleared().after_effect()];

/// A client over a session that was signed in with [`pair`]`(1)`, and its store.
pub async fn stored() -> (Fixture, FaultyStore) {
    stored_with(|builder| builder).await
}

async fn stored_with(configure: impl FnOnce(SessionBuilder) -> SessionBuilder) -> (Fixture, FaultyStore) {
    let store = faulty_store();
    let shared = store.clone();
    let it = Fixture::with(|builder| configure(builder.tokens(pair(1)).store(shared))).await;
    store.clear_calls();
    (it, store)
}

/// Another process on the same store, which the faults do not affect.
pub async fn peer_on(store: &FaultyStore) -> Fixture {
    let store = store.inner();
    Fixture::with(|builder| builder.store(store)).await
}

/// A revoke service that accepts everything, and the tokens that it was sent.
fn revocations() -> (impl RevokeService, Arc<Mutex<Vec<Tokens>>>) {
    let revoked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&revoked);
    let service = tower::service_fn(move |request: RevokeRequest| {
        log.lock().unwrap().push(request.tokens().clone());
        std::future::ready(Ok::<_, BoxError>(()))
    });
    (service, revoked)
}

fn kind(why: &NotRefreshed) -> RefreshErrorKind {
    match why {
        NotRefreshed::Failed(error) => error.kind(),
        other => panic!("{other:?}"),
    }
}

pub fn is_unavailable(why: &NotRefreshed) -> bool {
    matches!(kind(why), RefreshErrorKind::Unavailable)
}

impl Fixture {
    /// Sends a request that is refused, refreshes with `r{n}`, and accepts the replay.
    pub async fn refreshes_from(&mut self, n: u32, in_doubt: bool) {
        let response = self.get_refused().await;
        let refresh = self.auth.next().await;
        assert_eq!(refresh.presented(), format!("r{n}"));
        assert_eq!(refresh.request.is_in_doubt(), in_doubt);
        refresh.answer(Ok(pair(n + 1)));
        self.accepts(response, n + 1).await;
    }

    /// Asserts that the next call carries `a{n}` and accepts it, which completes `response`.
    pub async fn accepts(&mut self, response: JoinHandle<Response<Full<Bytes>>>, n: u32) {
        let call = self.api.next().await;
        assert_eq!(call.token(), Some(&*format!("a{n}")));
        call.reply(200).await;
        assert_eq!(response.await.unwrap().status(), 200);
    }

    /// Asserts that a new request carries `a{n}`.
    pub async fn sends(&mut self, n: u32) {
        let response = self.get();
        self.accepts(response, n).await;
    }

    /// Asserts that a new request carries no token.
    async fn sends_no_token(&mut self) {
        let response = self.get();
        let call = self.api.next().await;
        assert_eq!(call.token(), None);
        call.reply(200).await;
        assert_eq!(response.await.unwrap().status(), 200);
    }
}

// Two sessions on one store.

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
async fn a_peers_expired_tokens_are_refreshed_instead_of_adopted() {
    let (mut it, store) = stored().await;
    store.refresh_as_peer(&pair(2).with_expires_at(SystemTime::UNIX_EPOCH)).await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r2");
    refresh.answer(Ok(pair(3)));
    it.accepts(response, 3).await;
    assert_eq!(store.tokens().await, Some(pair(3)));
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

// Claims.

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

// A store that fails, at each of its calls in turn.

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
        store.inject(StoreCall::Renew, StoreFault::hang_until_cleared());
        let response = it.get_refused().await;
        let refresh = it.auth.next().await;
        sleep(answered_after).await;
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
async fn a_session_is_not_built_on_a_store_that_fails() {
    for call in [StoreCall::Load, StoreCall::Replace] {
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

// Signing in and out.

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
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    settle().await;
    store.refresh_as_peer(&pair(2)).await;
    store.clear_faults();
    signed_out.await.unwrap().unwrap();
    assert_eq!(store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_user_whom_a_peer_signs_in_during_the_deletion_by_a_sign_out_stays_signed_in() {
    let (it, store) = stored().await;
    store.inject(StoreCall::Clear, StoreFault::hang_until_cleared());
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    settle().await;
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
    let signed_out = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_out().await }
    });
    settle().await;
    store.clear_faults();
    assert!(signed_out.await.unwrap().is_err());
    sleep(2 * MINUTE).await;
    assert_eq!(store.tokens().await, None);
}

// Signing in and out while a refresh is under way, at each of its stages.

/// The stage that a refresh has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Claiming,
    /// The claim is stored, and its answer is pending.
    Claimed,
    Calling,
    /// Between two attempts.
    BackingOff,
    /// The server has rejected the token, and the store is read again.
    Rejected,
    /// The refresh failed, and the claim is being released.
    Releasing,
    Committing,
    /// The tokens are stored, and the answer is pending.
    Committed,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Claiming,
        Self::Claimed,
        Self::Calling,
        Self::BackingOff,
        Self::Rejected,
        Self::Releasing,
        Self::Committing,
        Self::Committed,
    ];
}

/// A refused request whose refresh has reached a [`Stage`]. The refresh completes once the faults are cleared and
/// `call`, if any, is answered.
struct Midway {
    it: Fixture,
    store: FaultyStore,
    revoked: Arc<Mutex<Vec<Tokens>>>,
    response: JoinHandle<Response<Full<Bytes>>>,
    call: Option<Call<RefreshRequest, Tokens, RefreshError>>,
}

async fn midway(stage: Stage) -> Midway {
    let (revoke, revoked) = revocations();
    let (mut it, store) = stored_with(|builder| builder.revoke(revoke)).await;
    let fault = match stage {
        Stage::Claiming => Some((StoreCall::Claim, StoreFault::hang_until_cleared())),
        Stage::Claimed => Some((StoreCall::Claim, StoreFault::hang_until_cleared().after_effect())),
        Stage::Rejected => Some((StoreCall::Load, StoreFault::hang_until_cleared())),
        Stage::Releasing => Some((StoreCall::Release, StoreFault::hang_until_cleared())),
        Stage::Committing => Some((StoreCall::Commit, StoreFault::hang_until_cleared())),
        Stage::Committed => Some((StoreCall::Commit, StoreFault::hang_until_cleared().after_effect())),
        Stage::Calling | Stage::BackingOff => None,
    };
    if let Some((call, fault)) = fault {
        store.inject(call, fault);
    }
    let response = it.get_refused().await;
    let mut call = None;
    match stage {
        Stage::Claiming | Stage::Claimed => {}
        Stage::Calling => call = Some(it.auth.next().await),
        Stage::BackingOff => {
            let later = RefreshError::unavailable("too many requests").with_retry_after(10 * SECOND);
            it.auth.next().await.answer(Err(later));
        }
        Stage::Rejected => it.auth.next().await.answer(Err(RefreshError::rejected("invalid_grant"))),
        Stage::Releasing => it.auth.next().await.answer(Err(RefreshError::in_doubt("connection reset"))),
        Stage::Committing | Stage::Committed => it.auth.next().await.answer(Ok(pair(2))),
    }
    settle().await;
    assert_eq!(it.session.state(), SessionState::Refreshing);
    Midway { it, store, revoked, response, call }
}

impl Midway {
    /// Completes the refresh, and returns the response to the request that started it.
    async fn end(&mut self) -> Response<Full<Bytes>> {
        self.store.clear_faults();
        if let Some(call) = self.call.take() {
            call.answer(Ok(pair(2)));
        }
        sleep(2 * MINUTE).await;
        (&mut self.response).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_out_beats_the_refresh_at_each_of_its_stages() {
    for stage in Stage::ALL {
        let mut midway = midway(stage).await;
        let signed_out = tokio::spawn({
            let session = midway.it.session.clone();
            async move { session.sign_out().await }
        });
        settle().await;
        assert_eq!(midway.it.session.state(), SessionState::SignedOut, "{stage:?}");
        assert!(midway.response.is_finished(), "{stage:?}: the request waits for another user's tokens");
        midway.it.sends_no_token().await;

        let response = midway.end().await;
        assert_eq!(response.status(), 401);
        let why = not_refreshed(&response);
        assert!(matches!(why, NotRefreshed::SessionChanged | NotRefreshed::SignedOut), "{stage:?}: {why:?}");
        signed_out.await.unwrap().unwrap();
        assert_eq!(midway.it.session.state(), SessionState::SignedOut, "{stage:?}");
        assert_eq!(midway.store.tokens().await, None, "{stage:?}");
        // The tokens in force are revoked, and late tokens too. No refresh token is presented after that.
        let obtained = matches!(stage, Stage::Calling | Stage::Committing | Stage::Committed);
        let expected = if obtained { [pair(1), pair(2)].to_vec() } else { [pair(1)].to_vec() };
        assert_eq!(*midway.revoked.lock().unwrap(), expected, "{stage:?}");
        assert!(midway.it.auth.is_idle().await, "{stage:?}: presented after the sign-out");
        assert!(midway.it.api.is_idle().await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_beats_the_refresh_at_each_of_its_stages() {
    for stage in Stage::ALL {
        let mut midway = midway(stage).await;
        let signed_in = tokio::spawn({
            let session = midway.it.session.clone();
            async move { session.sign_in(pair(5)).await }
        });
        settle().await;
        assert_eq!(midway.it.session.state(), SessionState::Active, "{stage:?}");
        assert!(midway.response.is_finished(), "{stage:?}: the request waits for another user's tokens");
        midway.it.sends(5).await;

        let response = midway.end().await;
        assert_eq!(response.status(), 401);
        assert!(matches!(not_refreshed(&response), NotRefreshed::SessionChanged), "{stage:?}: {response:?}");
        signed_in.await.unwrap().unwrap();
        assert_eq!(midway.it.session.tokens(), pair(5), "{stage:?}");
        assert_eq!(midway.store.tokens().await, Some(pair(5)), "{stage:?}");
        let obtained = matches!(stage, Stage::Calling | Stage::Committing | Stage::Committed);
        let expected = if obtained { [pair(2)].to_vec() } else { Vec::new() };
        assert_eq!(*midway.revoked.lock().unwrap(), expected, "{stage:?}");
        assert!(midway.it.auth.is_idle().await, "{stage:?}: presented after the sign-in");
        assert!(midway.it.api.is_idle().await);
        // The first user's refresh does not affect the next user's.
        midway.it.refreshes_from(5, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_arrive_after_a_sign_out_are_never_written() {
    let mut midway = midway(Stage::Calling).await;
    midway.store.inject(StoreCall::Clear, StoreFault::fail());
    assert!(midway.it.session.sign_out().await.is_err());
    midway.store.clear_calls();
    midway.call.take().unwrap().answer(Ok(pair(2)));
    settle().await;
    assert_eq!(midway.store.tokens().await, Some(pair(1)));
    assert!(!midway.store.calls().contains(&StoreCall::Commit));
    midway.end().await;
    assert_eq!(midway.store.tokens().await, None);
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_an_earlier_users_refresh_starts_no_cool_down() {
    let (mut it, _store) = stored().await;
    let response = it.get_refused().await;
    let refresh = it.auth.next().await;
    it.session.sign_in(pair(5)).await.unwrap();
    assert_eq!(response.await.unwrap().status(), 401);
    refresh.answer(Err(RefreshError::misconfigured("invalid_client")));
    settle().await;
    it.refreshes_from(5, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_finds_the_store_emptied_by_a_sign_out_does_not_sign_the_next_user_out() {
    let (mut it, store) = stored().await;
    let _response = it.get_refused().await;
    let refresh = it.auth.next().await;
    it.session.sign_out().await.unwrap();
    store.inject(StoreCall::Load, StoreFault::hang_until_cleared().after_effect());
    refresh.answer(Err(RefreshError::rejected("invalid_grant")));
    settle().await;
    // The answer of the store is on its way to the refresh.
    let signed_in = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_in(pair(5)).await }
    });
    settle().await;
    store.clear_faults();
    signed_in.await.unwrap().unwrap();
    settle().await;
    assert_eq!(it.session.tokens(), pair(5));
    assert_eq!(store.tokens().await, Some(pair(5)));
    it.refreshes_from(5, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_finds_the_next_users_record_does_not_affect_that_users_refresh() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Claim, StoreFault::hang_until_cleared());
    let first = it.get_refused().await;
    settle().await;
    it.session.sign_in(pair(5)).await.unwrap();
    assert_eq!(first.await.unwrap().status(), 401);
    let response = it.get_refused().await;
    settle().await;
    // Both refreshes claim: the first finds that the record has changed, the second gets the claim.
    store.clear_faults();
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r5");
    settle().await;
    assert_eq!(it.session.state(), SessionState::Refreshing);
    refresh.answer(Ok(pair(6)));
    it.accepts(response, 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_is_overtaken_by_a_sign_in_does_not_affect_the_next_users_refresh() {
    let (mut it, store) = stored().await;
    store.inject(StoreCall::Commit, StoreFault::fail());
    it.refreshes_from(1, false).await;
    // The unsaved tokens are written before they are refreshed.
    store.clear_faults();
    store.inject(StoreCall::Commit, StoreFault::hang_until_cleared().after_effect());
    let overtaken = it.get_refused().await;
    settle().await;
    let signed_in = tokio::spawn({
        let session = it.session.clone();
        async move { session.sign_in(pair(5)).await }
    });
    settle().await;
    assert_eq!(overtaken.await.unwrap().status(), 401);
    let response = it.get_refused().await;
    settle().await;
    store.clear_faults();
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r5");
    settle().await;
    assert_eq!(it.session.state(), SessionState::Refreshing);
    refresh.answer(Ok(pair(6)));
    it.accepts(response, 6).await;
    signed_in.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_next_user_refreshes_while_the_first_users_refresh_is_still_under_way() {
    let mut midway = midway(Stage::Calling).await;
    midway.it.session.sign_in(pair(5)).await.unwrap();
    midway.it.refreshes_from(5, false).await;
    let response = midway.end().await;
    assert_eq!(response.status(), 401);
    assert_eq!(midway.it.session.tokens(), pair(6));
    assert_eq!(midway.store.tokens().await, Some(pair(6)));
    assert_eq!(*midway.revoked.lock().unwrap(), [pair(2)]);
}

/// An API whose readiness the test can withhold.
#[derive(Clone)]
struct Gated {
    open: Arc<AtomicBool>,
    api: Api,
}

impl Service<Request<ReplayBody<Full<Bytes>>>> for Gated {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = <Api as Service<Request<ReplayBody<Full<Bytes>>>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.open.load(Ordering::Relaxed) {
            return self.api.poll_ready(cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn call(&mut self, request: Request<ReplayBody<Full<Bytes>>>) -> Self::Future {
        self.api.call(request)
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_carries_no_token_if_another_user_signs_in_while_it_waits_for_readiness() {
    let (mut it, _store) = stored().await;
    let (api, mut calls) = script();
    let gated = Gated { open: Arc::new(AtomicBool::new(true)), api };
    let client = AuthRefreshLayer::new(it.session.clone(), origin()).layer(gated.clone());
    let response = tokio::spawn(client.oneshot(Request::post(ORIGIN).body(Full::from("an order")).unwrap()));
    let call: ApiCall = calls.next().await;
    gated.open.store(false, Ordering::Relaxed);
    call.reply(401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    settle().await;
    assert_eq!(it.session.tokens(), pair(2));
    it.session.sign_in(pair(5)).await.unwrap();
    gated.open.store(true, Ordering::Relaxed);
    // The 401 is already drained and can't be returned, so the replay is sent without a token.
    let call = calls.next().await;
    assert_eq!(call.token(), None);
    call.reply(401).await;
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), 401);
    assert!(matches!(not_refreshed(&response), NotRefreshed::SessionChanged));
}

// Random operations and faults.

/// An authorization server that rotates refresh tokens, treats a second use as theft, and is sometimes unavailable.
struct RotatingServer {
    random: fastrand::Rng,
    reliable: bool,
    /// The number of rotations of each user's tokens; `None`: revoked.
    users: Vec<Option<u32>>,
    /// The refresh tokens that were used, or may have been.
    doubtful: HashSet<String>,
}

impl RotatingServer {
    fn tokens(user: usize, rotated: u32) -> Tokens {
        Tokens::new(access(&format!("a{user}.{rotated}")), refresh(&format!("r{user}.{rotated}")))
    }

    fn sign_in(&mut self) -> Tokens {
        self.users.push(Some(0));
        Self::tokens(self.users.len() - 1, 0)
    }

    /// Returns the delay of the answer, and the answer; `None` if it is lost.
    fn answer(&mut self, request: &RefreshRequest) -> (Duration, Option<Result<Tokens, RefreshError>>) {
        let delay = Duration::from_millis(self.random.u64(0..3_000));
        let fate = if self.reliable { 0 } else { self.random.u8(0..12) };
        match fate {
            8 => return (delay, Some(Err(RefreshError::unavailable("connection refused")))),
            9 => return (delay, Some(Err(RefreshError::misconfigured("a firewall's page")))),
            _ => {}
        }
        let presented = request.refresh_token().unwrap().expose_secret().to_owned();
        let (user, rotated) = presented[1..].split_once('.').unwrap();
        let (user, rotated) = (user.parse::<usize>().unwrap(), rotated.parse().unwrap());
        let fresh = self.doubtful.insert(presented);
        assert!(fresh || request.is_in_doubt(), "a token in doubt was presented again unmarked");
        if fate == 10 {
            // The request is lost.
            return (delay, None);
        }
        let answer = if self.users[user] == Some(rotated) {
            self.users[user] = Some(rotated + 1);
            Ok(Self::tokens(user, rotated + 1))
        } else {
            self.users[user] = None;
            Err(RefreshError::rejected("invalid_grant"))
        };
        (delay, Some(answer).filter(|_| fate != 11))
    }
}

/// Runs three processes on one store, with random operations and random faults.
async fn run_random_faults(seed: u64) {
    const CALLS: [StoreCall; 7] = [
        StoreCall::Load,
        StoreCall::Replace,
        StoreCall::Claim,
        StoreCall::Renew,
        StoreCall::Release,
        StoreCall::Commit,
        StoreCall::Clear,
    ];
    const FAULTS: [StoreFault; 5] = [
        StoreFault::fail(),
        StoreFault::hang_until_cleared(),
        StoreFault::fail().after_effect(),
        StoreFault::hang_until_cleared().after_effect(),
        StoreFault::panic(),
    ];
    // Seeds the jitter of the sessions too.
    fastrand::seed(seed);
    let mut random = fastrand::Rng::with_seed(seed);
    let server = RotatingServer { random: random.fork(), reliable: false, users: Vec::new(), doubtful: HashSet::new() };
    let server = Arc::new(Mutex::new(server));
    let first = server.lock().unwrap().sign_in();
    let store = faulty_store();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let server = Arc::clone(&server);
        let service = tower::service_fn(move |request: RefreshRequest| {
            let (delay, answer) = server.lock().unwrap().answer(&request);
            async move {
                sleep(delay).await;
                match answer {
                    Some(answer) => answer,
                    None if delay.subsec_millis() % 2 == 0 => Err(RefreshError::in_doubt("connection reset")),
                    None => std::future::pending().await,
                }
            }
        });
        let builder = Session::builder(service).tokens(first.clone()).store(store.clone());
        sessions.push(builder.build().await.unwrap());
    }
    for _ in 0..60 {
        let session = sessions[random.usize(0..sessions.len())].clone();
        match random.u8(0..20) {
            0 => {
                let tokens = server.lock().unwrap().sign_in();
                tokio::spawn(async move { session.sign_in(tokens).await });
            }
            1 => {
                tokio::spawn(async move { session.sign_out().await });
            }
            2..9 => {
                tokio::spawn(async move { session.refresh().await });
            }
            9..14 => {
                let (call, fault) = (*random.choice(&CALLS).unwrap(), *random.choice(&FAULTS).unwrap());
                // A sign-in whose answer was lost, and whose record a peer's sign-out has deleted since, can't be
                // distinguished from one that was never written.
                let lost_sign_in = call == StoreCall::Replace && LOST_ANSWERS.contains(&fault);
                store.clear_faults_of(call);
                store.inject(call, if lost_sign_in { StoreFault::fail() } else { fault });
            }
            14..16 => store.clear_faults(),
            _ => sleep(Duration::from_millis(random.u64(0..40_000))).await,
        }
        for _ in 0..random.u8(0..10) {
            tokio::task::yield_now().await;
        }
    }
    store.clear_faults();
    server.lock().unwrap().reliable = true;
    // Pending writes are made and claims expire; after that, the sessions agree.
    sleep(20 * MINUTE).await;
    for _ in 0..2 {
        for session in &sessions {
            let _ = session.refresh().await;
            sleep(MINUTE).await;
        }
    }
    let stored = store.tokens().await;
    for session in &sessions {
        assert_ne!(session.state(), SessionState::Refreshing);
        assert!(session.state() != SessionState::Active || stored.is_some());
    }
    let Some(stored) = stored else { return };
    assert!(sessions.iter().any(|session| session.tokens() == stored));
    let live = |user: usize| {
        let server = server.lock().unwrap();
        server.users[user].is_some_and(|rotated| RotatingServer::tokens(user, rotated) == stored)
    };
    let users = server.lock().unwrap().users.len();
    assert!((0..users).any(live), "the stored tokens are used up");
}

#[tokio::test(start_paused = true)]
async fn under_random_faults_no_refresh_token_is_presented_twice_unmarked_and_all_sessions_recover() {
    for seed in 0..300 {
        let failed = std::panic::AssertUnwindSafe(run_random_faults(seed)).catch_unwind().await;
        if let Err(panic) = failed {
            eprintln!("with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

// A record that can't be read: it is corrupt, of a newer format, or encrypted with an unknown key.

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
