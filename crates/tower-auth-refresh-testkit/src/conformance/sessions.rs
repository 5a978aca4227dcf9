//! Tests of two sessions on one store, as two replicas of a service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt};
use tower_auth_refresh::store::{ClaimOutcome, TokenStore};
use tower_auth_refresh::{
    AuthRefreshLayer, Credential, NotRefreshed, Origin, RefreshErrorKind, RefreshRequest, Session, SessionBuilder,
    SessionState, Tokens,
};

use super::{Call, FaultyStore, Handles};
use crate::{Fault, Rotation, Route, TestKit};

/// The limit for one case, by `tokio`'s clock, paused or not.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// Checks two sessions that share a store, as two processes do.
///
/// The cases are concurrent refreshes, sign-ins, sign-outs and expired claims. `lease` and `open` are those of
/// [`stores`](super::stores).
///
/// # Panics
///
/// If the sessions present a refresh token twice, lose a token, or hold different tokens at the end. The name of each
/// case is printed to standard error when the case begins.
pub async fn sessions(lease: Duration, open: impl AsyncFn() -> Handles) {
    macro_rules! run {
        ($($case:ident)*) => {$(
            eprintln!("conformance of sessions on a store: {}", stringify!($case));
            let fleet = Fleet::new(lease, open().await);
            timeout(CASE_TIMEOUT, $case(fleet)).await.expect("the case timed out");
        )*};
    }
    run! {
        two_concurrent_refreshes_make_one_call
        concurrent_401s_on_both_sessions_cause_one_refresh
        each_generation_is_refreshed_once_over_many_rounds
        a_session_adopts_the_tokens_that_the_other_refreshed
        a_session_built_later_loads_the_stored_tokens
        two_sessions_built_concurrently_hold_the_same_tokens
        an_abandoned_claim_expires_and_leaves_the_token_in_doubt
        a_refresh_that_one_session_lost_is_recovered_by_the_other
        a_sign_out_overrides_a_concurrent_refresh_of_the_other_session
        a_sign_in_overrides_a_concurrent_refresh_of_the_other_session
        after_a_sign_out_the_other_session_presents_no_token
        a_revoked_sign_in_ends_both_sessions
        an_older_record_is_written_over_and_neither_presented_nor_adopted
    }
}

/// Two processes that share a store and an authorization server.
struct Fleet {
    kit: TestKit,
    /// The store as each process sees it. Counts the calls of that process.
    stores: [FaultyStore; 2],
    lease: Duration,
}

impl Fleet {
    fn new(lease: Duration, handles: Handles) -> Self {
        Self { kit: TestKit::new(), stores: handles.map(FaultyStore::new), lease }
    }

    fn builder(&self, process: usize) -> SessionBuilder {
        Session::builder(self.kit.refresh_service()).store(self.stores[process].clone())
    }

    async fn build(&self, process: usize) -> Session {
        self.builder(process).build().await.expect("the store works")
    }

    fn tokens_of(&self, user: &str) -> Tokens {
        self.kit.sign_in(user).try_into().expect("the kit's tokens are valid")
    }

    /// Returns two sessions in which the user "ada" is signed in.
    async fn signed_in(&self) -> [Session; 2] {
        let tokens = self.tokens_of("ada");
        let first = self.builder(0).tokens(tokens.clone()).build().await.expect("the store works");
        let second = self.build(1).await;
        for session in [&first, &second] {
            assert_eq!((session.state(), session.tokens()), (SessionState::Active, tokens.clone()));
        }
        [first, second]
    }

    /// Sends `calls` concurrent requests by each session, and asserts that all succeed.
    async fn call_at_once(&self, sessions: &[Session; 2], calls: usize) {
        let origin = Origin::parse("http://127.0.0.1").expect("the origin is valid");
        let calls = sessions.iter().flat_map(|session| {
            let client = AuthRefreshLayer::new(session.clone(), origin.clone()).layer(self.kit.clone());
            (0..calls).map(move |_| {
                let request = Request::get("http://127.0.0.1/api/me").body(Full::<Bytes>::default());
                tokio::spawn(client.clone().oneshot(request.expect("the URI is valid")))
            })
        });
        for answer in join_all(calls.collect::<Vec<_>>()).await {
            let answer = answer.expect("no panic").expect("no connection is dropped");
            assert_eq!(answer.status(), 200);
        }
    }

    /// Waits until a process has made this call.
    async fn wait_for_call(&self, process: usize, call: Call) {
        while self.stores[process].count(call) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Asserts that both sessions hold the stored tokens, and that no refresh token was presented twice.
    async fn assert_consistent(&self, sessions: &[Session; 2]) {
        let stored =
            self.stores[0].load().await.expect("load").map(|record| record.tokens().clone()).unwrap_or_default();
        for session in sessions {
            assert_eq!(session.tokens(), stored);
        }
        assert_eq!(self.kit.violations(), []);
    }
}

/// Starts a refresh in a new task.
fn refresh(session: &Session) -> tokio::task::JoinHandle<bool> {
    let session = session.clone();
    tokio::spawn(async move { session.refresh().await.is_ok() })
}

/// Has a session ask for newer tokens than `held` until it has adopted those of the other one.
///
/// It may have adopted them, or those before, by itself: a store that pushes reports them, and one that begins to push has
/// its sessions look. [`refresh`] would refresh them once more.
async fn adopt(session: &Session, mut held: Credential, newest: &Tokens) {
    while Some(held.access_token()) != newest.access_token() {
        match session.renewed(&held).await {
            Ok(newer) => held = newer,
            Err(why) => {
                assert!(matches!(why, NotRefreshed::CoolingDown(_)), "{why}");
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

async fn two_concurrent_refreshes_make_one_call(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let gate = fleet.kit.hold_refreshes();
    let first = refresh(&sessions[0]);
    gate.arrived(1).await;
    let second = refresh(&sessions[1]);
    fleet.wait_for_call(1, Call::Claim).await;
    gate.open();
    assert!(first.await.expect("no panic") && second.await.expect("no panic"));
    assert_eq!(fleet.kit.counters().refreshes, 1);
    assert_ne!(sessions[0].generation().get(), 0);
    fleet.assert_consistent(&sessions).await;
}

async fn concurrent_401s_on_both_sessions_cause_one_refresh(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    fleet.kit.expire_access_tokens();
    fleet.kit.hold_unauthorized_until(20);
    fleet.call_at_once(&sessions, 10).await;
    let counters = fleet.kit.counters();
    assert_eq!((counters.unauthorized(), counters.refreshes), (20, 1));
    fleet.assert_consistent(&sessions).await;
}

async fn each_generation_is_refreshed_once_over_many_rounds(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    for round in 1..=10 {
        fleet.kit.expire_access_tokens();
        fleet.call_at_once(&sessions, 3).await;
        let counters = fleet.kit.counters();
        assert_eq!((counters.refreshes, counters.granted), (round, round));
        let stored = fleet.stores[0].load().await.expect("load").expect("ada is signed in");
        assert_eq!(stored.generation(), round + 1, "the stored tokens have the number of the refresh");
    }
    fleet.assert_consistent(&sessions).await;
}

async fn a_session_adopts_the_tokens_that_the_other_refreshed(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let refused = sessions[1].credential().await.expect("ada is signed in");
    assert!(refresh(&sessions[0]).await.expect("no panic"));
    adopt(&sessions[1], refused, &sessions[0].tokens()).await;
    assert_eq!(fleet.kit.counters().refreshes, 1);
    fleet.assert_consistent(&sessions).await;
}

async fn a_session_built_later_loads_the_stored_tokens(fleet: Fleet) {
    let old = fleet.tokens_of("ada");
    let first = fleet.builder(0).tokens(old.clone()).build().await.expect("the store works");
    assert!(refresh(&first).await.expect("no panic"));
    let second = fleet.builder(1).tokens(old).build().await.expect("the store works");
    fleet.assert_consistent(&[first, second]).await;
}

async fn two_sessions_built_concurrently_hold_the_same_tokens(fleet: Fleet) {
    let tokens = fleet.tokens_of("ada");
    let start = |process: usize| tokio::spawn(fleet.builder(process).tokens(tokens.clone()).build());
    let (first, second) = (start(0), start(1));
    let built = [first.await.expect("no panic"), second.await.expect("no panic")];
    let sessions = built.map(|session| session.expect("the store works"));
    fleet.kit.expire_access_tokens();
    fleet.call_at_once(&sessions, 3).await;
    assert_eq!(fleet.kit.counters().refreshes, 1);
    fleet.assert_consistent(&sessions).await;
}

async fn an_abandoned_claim_expires_and_leaves_the_token_in_doubt(fleet: Fleet) {
    let record = {
        fleet.builder(0).tokens(fleet.tokens_of("ada")).build().await.expect("the store works");
        fleet.stores[0].load().await.expect("load").expect("ada is signed in")
    };
    let begun = Instant::now();
    let claim = fleet.stores[0].claim(record.version(), fleet.lease).await.expect("claim");
    assert!(matches!(claim, ClaimOutcome::Claimed(_)), "{claim:?}");

    let in_doubt = Arc::new(AtomicBool::new(false));
    let service = fleet.kit.refresh_service();
    let observed = tower::service_fn({
        let in_doubt = Arc::clone(&in_doubt);
        move |request: RefreshRequest| {
            in_doubt.store(request.is_in_doubt(), Ordering::SeqCst);
            service.clone().oneshot(request)
        }
    });
    let session = Session::builder(observed).store(fleet.stores[1].clone()).build().await.expect("the store works");
    assert!(refresh(&session).await.expect("no panic"));
    assert!(begun.elapsed() >= fleet.lease * 3 / 4, "the session did not wait for the claim to expire");
    assert!(in_doubt.load(Ordering::SeqCst), "the refresh was not marked as in doubt");
    fleet.assert_consistent(&[session.clone(), session]).await;
}

async fn a_refresh_that_one_session_lost_is_recovered_by_the_other(fleet: Fleet) {
    fleet.kit.configure(|settings| settings.rotation = Rotation::Grace(CASE_TIMEOUT));
    let sessions = fleet.signed_in().await;
    let lost = sessions[0].credential().await.expect("ada is signed in");
    fleet.kit.inject(Route::Refresh, Fault::drop_connection().after_processing().times(1));
    assert!(!refresh(&sessions[0]).await.expect("no panic"), "the response was lost");
    let SessionState::Failing(failure) = sessions[0].state() else {
        panic!("a lost response changed the state to {:?}", sessions[0].state());
    };
    assert_eq!((failure.kind(), failure.count()), (RefreshErrorKind::InDoubt, 1));
    assert!(refresh(&sessions[1]).await.expect("no panic"));
    adopt(&sessions[0], lost, &sessions[1].tokens()).await;
    let counters = fleet.kit.counters();
    assert_eq!((counters.refreshes, counters.allowed_reuses), (2, 1));
    fleet.assert_consistent(&sessions).await;
}

async fn a_sign_out_overrides_a_concurrent_refresh_of_the_other_session(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let gate = fleet.kit.hold_refreshes();
    let late = refresh(&sessions[1]);
    gate.arrived(1).await;
    sessions[0].sign_out().await.expect("the store works");
    gate.open();
    late.await.expect("no panic");
    assert_eq!(fleet.stores[0].load().await.expect("load"), None, "the late refresh was stored");
    assert!(sessions.iter().all(|session| session.state() == SessionState::SignedOut), "{sessions:?}");
    fleet.assert_consistent(&sessions).await;
}

async fn a_sign_in_overrides_a_concurrent_refresh_of_the_other_session(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let gate = fleet.kit.hold_refreshes_of("ada");
    let late = refresh(&sessions[1]);
    gate.arrived(1).await;
    let bob = fleet.tokens_of("bob");
    sessions[0].sign_in(bob.clone()).await.expect("the store works");
    gate.open();
    late.await.expect("no panic");
    assert_eq!(sessions[1].tokens(), bob, "the late refresh replaced the sign-in");
    fleet.assert_consistent(&sessions).await;
}

async fn after_a_sign_out_the_other_session_presents_no_token(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    sessions[0].sign_out().await.expect("the store works");
    assert!(!refresh(&sessions[1]).await.expect("no panic"));
    assert_eq!(sessions[1].state(), SessionState::SignedOut);
    assert_eq!(fleet.kit.counters().refreshes, 0);
    fleet.assert_consistent(&sessions).await;
}

async fn a_revoked_sign_in_ends_both_sessions(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    fleet.kit.revoke("ada");
    for session in &sessions {
        assert!(!refresh(session).await.expect("no panic"));
        assert!(matches!(session.state(), SessionState::Ended(_) | SessionState::SignedOut), "{session:?}");
    }
    assert_eq!(fleet.kit.violations(), []);
}

async fn an_older_record_is_written_over_and_neither_presented_nor_adopted(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let old = fleet.stores[0].load().await.expect("load").expect("ada is signed in");
    let refused = sessions[1].credential().await.expect("ada is signed in");
    for _ in 0..2 {
        assert!(refresh(&sessions[0]).await.expect("no panic"));
    }
    adopt(&sessions[1], refused, &sessions[0].tokens()).await;

    // A failover loses the last two writes.
    let refused = [sessions[0].credential().await, sessions[1].credential().await];
    fleet.stores[0].replace(old.entry()).await.expect("replace");
    for (session, refused) in sessions.iter().zip(refused) {
        session.renewed(&refused.expect("ada is signed in")).await.expect("there are newer tokens");
    }
    let stored = fleet.stores[1].load().await.expect("load").expect("ada is signed in");
    assert!(stored.generation() > old.generation() + 2, "the store holds older tokens than the sessions");
    assert_eq!((fleet.kit.counters().refreshes, stored.generation()), (3, 4), "one refresh after the failover");
    fleet.assert_consistent(&sessions).await;
}
