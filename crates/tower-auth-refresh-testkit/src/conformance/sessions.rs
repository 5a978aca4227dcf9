//! Two sessions on one store, as two replicas of a service hold them.

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
use tower_auth_refresh::{AuthRefreshLayer, Origin, RefreshRequest, Session, SessionBuilder, SessionState, Tokens};

use super::{Call, FaultyStore, Handles};
use crate::{Fault, Rotation, Route, TestKit};

/// No case takes this long, by whichever clock, unless a session is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Runs two sessions over one store through all that they may do to each other. `lease` and `open` are those of
/// [`stores`](super::stores).
///
/// # Panics
///
/// If the sessions present a token twice, lose one, or don't end up with the same. The name of the case is printed to
/// standard error.
pub async fn sessions(lease: Duration, open: impl AsyncFn() -> Handles) {
    macro_rules! run {
        ($($case:ident)*) => {$(
            eprintln!("conformance of sessions on a store: {}", stringify!($case));
            let fleet = Fleet::new(lease, open().await);
            timeout(STUCK, $case(fleet)).await.expect("a session is stuck");
        )*};
    }
    run! {
        two_refreshes_at_once_make_one_call
        a_stampede_on_both_causes_one_refresh
        in_many_rounds_each_generation_is_refreshed_once
        one_adopts_what_the_other_has_bought
        a_session_built_later_takes_what_is_stored
        two_sessions_built_at_once_agree
        the_claim_of_a_dead_peer_is_waited_out_and_in_doubt
        what_one_has_lost_the_other_recovers
        a_sign_out_beats_the_others_refresh
        a_sign_in_beats_the_others_refresh
        after_a_sign_out_the_other_presents_nothing
        when_the_server_ends_it_neither_is_signed_in
    }
}

/// Two processes, one store, one authorization server.
struct Fleet {
    kit: TestKit,
    /// They count the calls of each process.
    stores: [FaultyStore; 2],
    lease: Duration,
}

impl Fleet {
    fn new(lease: Duration, handles: Handles) -> Self {
        Self { kit: TestKit::new(), stores: handles.map(FaultyStore::shared), lease }
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

    /// Two sessions, with ada signed in.
    async fn signed_in(&self) -> [Session; 2] {
        let tokens = self.tokens_of("ada");
        let first = self.builder(0).tokens(tokens.clone()).build().await.expect("the store works");
        let second = self.build(1).await;
        for session in [&first, &second] {
            assert_eq!((session.state(), session.tokens()), (SessionState::Active, tokens.clone()));
        }
        [first, second]
    }

    /// `calls` requests of each session at once. All are answered 200.
    async fn call_at_once(&self, sessions: &[Session; 2], calls: usize) {
        let origin = Origin::parse("http://127.0.0.1").expect("it is an origin");
        let calls = sessions.iter().flat_map(|session| {
            let client = AuthRefreshLayer::new(session.clone(), origin.clone()).layer(self.kit.clone());
            (0..calls).map(move |_| {
                let request = Request::get("http://127.0.0.1/api/me").body(Full::<Bytes>::default());
                tokio::spawn(client.clone().oneshot(request.expect("it is a valid URI")))
            })
        });
        for answer in join_all(calls.collect::<Vec<_>>()).await {
            let answer = answer.expect("a request doesn't panic").expect("the kit drops nothing");
            assert_eq!(answer.status(), 200);
        }
    }

    /// Waits until a process has made this call.
    async fn called(&self, process: usize, call: Call) {
        while self.stores[process].count(call) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Both sessions hold what is stored, and nobody has presented a token twice.
    async fn agrees(&self, sessions: &[Session; 2]) {
        let stored = self.stores[0].load().await.expect("load").map(|record| record.tokens).unwrap_or_default();
        for session in sessions {
            assert_eq!(session.tokens(), stored);
        }
        assert_eq!(self.kit.violations(), []);
    }
}

/// Starts a refresh in a task of its own.
fn refresh(session: &Session) -> tokio::task::JoinHandle<bool> {
    let session = session.clone();
    tokio::spawn(async move { session.refresh().await.is_ok() })
}

async fn two_refreshes_at_once_make_one_call(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let gate = fleet.kit.hold_refreshes();
    let first = refresh(&sessions[0]);
    gate.arrived(1).await;
    let second = refresh(&sessions[1]);
    fleet.called(1, Call::Claim).await;
    gate.open();
    assert!(first.await.expect("no panic") && second.await.expect("no panic"));
    assert_eq!(fleet.kit.counters().refreshes, 1);
    assert_ne!(sessions[0].generation().get(), 0);
    fleet.agrees(&sessions).await;
}

async fn a_stampede_on_both_causes_one_refresh(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    fleet.kit.expire_access_tokens();
    fleet.kit.hold_unauthorized_until(20);
    fleet.call_at_once(&sessions, 10).await;
    let counters = fleet.kit.counters();
    assert_eq!((counters.unauthorized(), counters.refreshes), (20, 1));
    fleet.agrees(&sessions).await;
}

async fn in_many_rounds_each_generation_is_refreshed_once(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    for round in 1..=10 {
        fleet.kit.expire_access_tokens();
        fleet.call_at_once(&sessions, 3).await;
        let counters = fleet.kit.counters();
        assert_eq!((counters.refreshes, counters.granted), (round, round));
    }
    fleet.agrees(&sessions).await;
}

async fn one_adopts_what_the_other_has_bought(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    assert!(refresh(&sessions[0]).await.expect("no panic"));
    assert_ne!(sessions[0].tokens(), sessions[1].tokens());
    assert!(refresh(&sessions[1]).await.expect("no panic"));
    assert_eq!(fleet.kit.counters().refreshes, 1);
    fleet.agrees(&sessions).await;
}

async fn a_session_built_later_takes_what_is_stored(fleet: Fleet) {
    let old = fleet.tokens_of("ada");
    let first = fleet.builder(0).tokens(old.clone()).build().await.expect("the store works");
    assert!(refresh(&first).await.expect("no panic"));
    let second = fleet.builder(1).tokens(old).build().await.expect("the store works");
    fleet.agrees(&[first, second]).await;
}

async fn two_sessions_built_at_once_agree(fleet: Fleet) {
    let tokens = fleet.tokens_of("ada");
    let start = |process: usize| tokio::spawn(fleet.builder(process).tokens(tokens.clone()).build());
    let (first, second) = (start(0), start(1));
    let built = [first.await.expect("no panic"), second.await.expect("no panic")];
    let sessions = built.map(|session| session.expect("the store works"));
    fleet.kit.expire_access_tokens();
    fleet.call_at_once(&sessions, 3).await;
    assert_eq!(fleet.kit.counters().refreshes, 1);
    fleet.agrees(&sessions).await;
}

async fn the_claim_of_a_dead_peer_is_waited_out_and_in_doubt(fleet: Fleet) {
    let record = {
        fleet.builder(0).tokens(fleet.tokens_of("ada")).build().await.expect("the store works");
        fleet.stores[0].load().await.expect("load").expect("ada is signed in")
    };
    let begun = Instant::now();
    let claim = fleet.stores[0].claim(record.version, fleet.lease).await.expect("claim");
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
    assert!(begun.elapsed() >= fleet.lease * 3 / 4, "it didn't wait");
    assert!(in_doubt.load(Ordering::SeqCst), "the refresh wasn't marked as in doubt");
    fleet.agrees(&[session.clone(), session]).await;
}

async fn what_one_has_lost_the_other_recovers(fleet: Fleet) {
    fleet.kit.configure(|settings| settings.rotation = Rotation::Grace(STUCK));
    let sessions = fleet.signed_in().await;
    fleet.kit.inject(Route::Refresh, Fault::drop_connection().after_processing().times(1));
    assert!(!refresh(&sessions[0]).await.expect("no panic"), "the answer was lost");
    assert_eq!(sessions[0].state(), SessionState::Active, "network trouble signed the user out");
    assert!(refresh(&sessions[1]).await.expect("no panic"));
    assert!(refresh(&sessions[0]).await.expect("no panic"));
    let counters = fleet.kit.counters();
    assert_eq!((counters.refreshes, counters.excused), (2, 1));
    fleet.agrees(&sessions).await;
}

async fn a_sign_out_beats_the_others_refresh(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let gate = fleet.kit.hold_refreshes();
    let late = refresh(&sessions[1]);
    gate.arrived(1).await;
    sessions[0].sign_out().await.expect("the store works");
    gate.open();
    late.await.expect("no panic");
    assert_eq!(fleet.stores[0].load().await.expect("load"), None, "the late refresh was stored");
    assert!(sessions.iter().all(|session| session.state() == SessionState::SignedOut), "{sessions:?}");
    fleet.agrees(&sessions).await;
}

async fn a_sign_in_beats_the_others_refresh(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    let gate = fleet.kit.hold_refreshes_of("ada");
    let late = refresh(&sessions[1]);
    gate.arrived(1).await;
    let bob = fleet.tokens_of("bob");
    sessions[0].sign_in(bob.clone()).await.expect("the store works");
    gate.open();
    late.await.expect("no panic");
    assert_eq!(sessions[1].tokens(), bob, "the late refresh is in force");
    fleet.agrees(&sessions).await;
}

async fn after_a_sign_out_the_other_presents_nothing(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    sessions[0].sign_out().await.expect("the store works");
    assert!(!refresh(&sessions[1]).await.expect("no panic"));
    assert_eq!(sessions[1].state(), SessionState::SignedOut);
    assert_eq!(fleet.kit.counters().refreshes, 0);
    fleet.agrees(&sessions).await;
}

async fn when_the_server_ends_it_neither_is_signed_in(fleet: Fleet) {
    let sessions = fleet.signed_in().await;
    fleet.kit.revoke("ada");
    for session in &sessions {
        assert!(!refresh(session).await.expect("no panic"));
        assert!(matches!(session.state(), SessionState::Ended | SessionState::SignedOut), "{session:?}");
    }
    assert_eq!(fleet.kit.violations(), []);
}
