//! Signing in and out while a refresh is under way, at each of its stages.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tower::{Service, ServiceExt};
use tower_auth_refresh::{
    AuthRefreshLayer, NotRefreshed, RefreshError, RefreshRequest, ReplayBody, SessionState, Tokens,
};
use tower_auth_refresh_testkit::conformance::{Call as StoreCall, FaultyStore, StoreFault};
use tower_layer::Layer;

use super::{MINUTE, SECOND, stored, stored_with};
use crate::support::*;

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

/// Asserts that the refresh of the user who has signed in with `pair(5)` goes on, whatever the first user's refresh does.
async fn the_next_user_refreshes(it: &mut Fixture, response: JoinHandle<Response<Full<Bytes>>>) {
    let refresh = it.auth.next().await;
    assert_eq!(refresh.presented(), "r5");
    settle().await;
    assert_eq!(it.session.state(), SessionState::Refreshing);
    refresh.answer(Ok(pair(6)));
    it.accepts(response, 6).await;
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
    the_next_user_refreshes(&mut it, response).await;
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
    the_next_user_refreshes(&mut it, response).await;
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
