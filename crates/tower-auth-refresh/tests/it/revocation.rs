//! Revocations that fail, and their repetition in the background (RFC 7009 §2.2.1).

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, ServiceExt, service_fn};
use tower_auth_refresh::refresh::RevokeRequest;
use tower_auth_refresh::session::SessionErrorKind;
use tower_auth_refresh::{
    AuthRefresh, AuthRefreshLayer, NotRefreshed, RefreshError, RefreshRequest, ReplayBody, Session, SessionRegistry,
    SessionState, Tokens,
};

use crate::support::{Calls, ORIGIN, Script, origin, pair, script, settle};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

type Revocations = Calls<RevokeRequest, (), BoxError>;

/// A session that is signed in with [`pair`]`(1)`, and its calls to the revoke service.
async fn session() -> (Session, Revocations) {
    let (revoke, revocations): (Script<_, _, BoxError>, _) = script();
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(pair(9)) });
    let session = Session::builder(refresh).tokens(pair(1)).revoke(revoke).build().await.unwrap();
    (session, revocations)
}

/// Signs out, and has the first call fail.
async fn sign_out_failing(session: &Session, revocations: &mut Revocations, error: impl Into<BoxError>) {
    let signing_out = tokio::spawn({
        let session = session.clone();
        async move { session.sign_out().await }
    });
    revocations.next().await.answer(Err(error.into()));
    assert_eq!(signing_out.await.unwrap().unwrap_err().kind(), SessionErrorKind::Revoke);
}

fn unreachable() -> RefreshError {
    RefreshError::unavailable("connection refused")
}

/// Answers the calls of the next time, and counts them.
async fn further_calls(revocations: &mut Revocations) -> usize {
    let mut calls = 0;
    while let Ok(call) = timeout(30 * MINUTE, revocations.next()).await {
        call.answer(Ok(()));
        calls += 1;
    }
    calls
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_fails_on_the_network_is_repeated_until_it_succeeds() {
    let (session, mut revocations) = session().await;
    let begun = Instant::now();
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "the sign-out waits for one call only");
    for (failures, pause) in [1, 2, 4, 8].into_iter().enumerate() {
        let begun = Instant::now();
        let call = revocations.next().await;
        assert_eq!(*call.request.tokens(), pair(1));
        assert!(begun.elapsed() >= SECOND * pause / 2 && begun.elapsed() <= SECOND * pause, "{:?}", begun.elapsed());
        call.answer(if failures == 3 { Ok(()) } else { Err(unreachable().into()) });
    }
    assert_eq!(further_calls(&mut revocations).await, 0);
    assert_eq!(session.state(), SessionState::SignedOut);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_is_repeated_unless_its_failure_is_final() {
    let cases: [(BoxError, bool); 8] = [
        (unreachable().into(), true),
        (RefreshError::in_doubt("the answer broke off").into(), true),
        (io::Error::from(io::ErrorKind::ConnectionReset).into(), true),
        // As a source.
        (NotRefreshed::Failed(Arc::new(unreachable())).into(), true),
        (RefreshError::unavailable("429").without_retry().into(), true),
        (RefreshError::misconfigured("invalid_client").into(), false),
        (RefreshError::rejected("no").into(), false),
        (NotRefreshed::Failed(Arc::new(RefreshError::misconfigured("invalid_client"))).into(), false),
    ];
    for (error, repeated) in cases {
        let (session, mut revocations) = session().await;
        let message = format!("{error:?}");
        sign_out_failing(&session, &mut revocations, error).await;
        assert_eq!(further_calls(&mut revocations).await, usize::from(repeated), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_sign_out_leads_to_the_revoke_services_own_error() {
    let (session, mut revocations) = session().await;
    let signing_out = tokio::spawn(async move { session.sign_out().await });
    revocations.next().await.answer(Err(RefreshError::misconfigured("invalid_client").into()));
    let error = signing_out.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the user is signed out, but the tokens could not be revoked");
    assert_eq!(error.source().unwrap().to_string(), "invalid_client");
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_hangs_is_repeated_and_one_that_panics_is_not() {
    for panics in [false, true] {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let revoke = service_fn(move |_: RevokeRequest| {
            let call = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    0 if panics => panic!("the first call panics"),
                    0 => std::future::pending().await,
                    _ => Ok::<_, BoxError>(()),
                }
            }
        });
        let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(pair(9)) });
        let session = Session::builder(refresh).tokens(pair(1)).revoke(revoke).build().await.unwrap();
        session.sign_out().await.unwrap_err();
        sleep(60 * MINUTE).await;
        assert_eq!(calls.load(Ordering::Relaxed), if panics { 1 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_is_repeated_no_earlier_than_the_server_asked_for() {
    for (asked, waits) in [(2 * MINUTE, 2 * MINUTE), (60 * MINUTE, 5 * MINUTE)] {
        let (session, mut revocations) = session().await;
        sign_out_failing(&session, &mut revocations, unreachable().with_retry_after(asked)).await;
        let begun = Instant::now();
        revocations.next().await.answer(Ok(()));
        assert_eq!(begun.elapsed(), waits);
    }
    // It asked for fewer calls, without a time.
    let (session, mut revocations) = session().await;
    sign_out_failing(&session, &mut revocations, unreachable().without_retry()).await;
    let begun = Instant::now();
    revocations.next().await.answer(Ok(()));
    assert_eq!(begun.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_is_given_up_after_ten_minutes() {
    let (session, mut revocations) = session().await;
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    let (begun, mut calls, mut last) = (Instant::now(), 0, Duration::ZERO);
    while let Ok(call) = timeout(2 * MINUTE, revocations.next()).await {
        call.answer(Err(unreachable().into()));
        calls += 1;
        last = begun.elapsed();
    }
    assert!(last > 9 * MINUTE && last <= 10 * MINUTE, "{last:?}");
    assert!((14..=30).contains(&calls), "{calls}");
    assert_eq!(further_calls(&mut revocations).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_turns_final_is_given_up() {
    let (session, mut revocations) = session().await;
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    revocations.next().await.answer(Err(RefreshError::misconfigured("invalid_client").into()));
    assert_eq!(further_calls(&mut revocations).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_does_not_wait_for_a_revocation_and_its_tokens_are_not_revoked() {
    let (session, mut revocations) = session().await;
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    let begun = Instant::now();
    session.sign_in(pair(2)).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // The call is under way while the session is refreshed.
    let call = revocations.next().await;
    assert_eq!(*call.request.tokens(), pair(1));
    assert_eq!(session.refresh().await.unwrap(), pair(9));
    call.answer(Ok(()));
    assert_eq!(further_calls(&mut revocations).await, 0);
    assert_eq!(session.tokens(), pair(9));
}

#[tokio::test(start_paused = true)]
async fn tokens_that_the_user_signs_in_with_again_are_not_revoked_afterwards() {
    let (session, mut revocations) = session().await;
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    session.sign_in(pair(1)).await.unwrap();
    assert_eq!(further_calls(&mut revocations).await, 0);
    // They are at the next sign-out.
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    assert_eq!(further_calls(&mut revocations).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_outlives_its_session() {
    let (session, mut revocations) = session().await;
    sign_out_failing(&session, &mut revocations, unreachable()).await;
    drop(session);
    assert_eq!(*revocations.next().await.request.tokens(), pair(1));
}

type Api = tower::util::BoxCloneSyncService<Request<ReplayBody<Full<Bytes>>>, Response<Full<Bytes>>, Infallible>;

#[tokio::test(start_paused = true)]
async fn a_repeated_revocation_through_the_sessions_own_layer_gets_no_token_of_the_next_user() {
    let client = Arc::<OnceLock<AuthRefresh<Api, Session>>>::default();
    let used = Arc::clone(&client);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let revoke = service_fn(move |_: RevokeRequest| {
        let (client, call) = (used.get().unwrap().clone(), counted.fetch_add(1, Ordering::Relaxed));
        async move {
            let request = Request::get(format!("{ORIGIN}/revoke")).body(Full::default()).unwrap();
            let _ = client.oneshot(request).await;
            if call == 0 { Err(BoxError::from("the network failed")) } else { Ok(()) }
        }
    });
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(pair(9)) });
    let session = Session::builder(refresh).tokens(pair(1)).revoke(revoke).build().await.unwrap();
    let seen = Arc::<Mutex<Vec<Option<HeaderValue>>>>::default();
    let log = Arc::clone(&seen);
    let api = service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
        log.lock().unwrap().push(request.headers().get(AUTHORIZATION).cloned());
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::default())))
    });
    let layer = AuthRefreshLayer::new(session.clone(), origin());
    assert!(client.set(tower::Layer::layer(&layer, Api::new(api))).is_ok());

    session.sign_out().await.unwrap_err();
    session.sign_in(pair(2)).await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(*seen.lock().unwrap(), [None, None]);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_sign_outs_while_the_server_is_down_hold_at_most_1024_tasks_for_ten_minutes() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let revoke = service_fn(|_: RevokeRequest| async { Err::<(), _>(unreachable()) });
    let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
    let sessions = SessionRegistry::builder(Session::builder(refresh).revoke(revoke)).build().unwrap();
    settle().await;
    let before = tasks();
    for user in 0..10_000 {
        drop(sessions.sign_in(user, pair(user)).await.unwrap());
        assert!(sessions.sign_out(&user).await.is_err());
    }
    assert_eq!(tasks() - before, 1_024);
    // The sessions themselves are over, and leave.
    sleep(2 * MINUTE).await;
    assert!(sessions.is_empty());
    // A shutdown waits for them, within the bound.
    let begun = Instant::now();
    sessions.wait_idle().await;
    assert!(begun.elapsed() > 6 * MINUTE && begun.elapsed() <= 8 * MINUTE, "{:?}", begun.elapsed());
    assert_eq!(tasks(), before);
    // The bound is on those of one time.
    drop(sessions.sign_in(1, pair(1)).await.unwrap());
    assert!(sessions.sign_out(&1).await.is_err());
    assert_eq!(tasks() - before, 1);
}
