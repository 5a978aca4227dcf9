//! The states that an app watches, and the edges of a session's life: no user, a user signed out, a token that has
//! expired while it was stored, a refused protocol upgrade.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tower::{BoxError, ServiceExt};
use tower_auth_refresh::refresh::Trigger;
use tower_auth_refresh::store::{Entry, Epoch, TokenStore};
use tower_auth_refresh::{
    AuthRefreshLayer, NotRefreshed, Origin, RefreshError, RefreshErrorKind, Session, SessionState, Tokens,
};
use tower_layer::Layer;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

/// Asserts that the watcher was notified of a new state, and returns the state.
async fn notified(states: &mut watch::Receiver<SessionState>) -> SessionState {
    settle().await;
    assert!(states.has_changed().unwrap(), "no notification");
    states.borrow_and_update().clone()
}

async fn assert_not_notified(states: &mut watch::Receiver<SessionState>) {
    settle().await;
    assert!(!states.has_changed().unwrap(), "notified of {:?}", *states.borrow_and_update());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_a_refresh_begin_and_succeed() {
    let mut it = Fixture::new().await;
    let mut states = it.session.subscribe();
    let response = it.get_refused().await;
    assert_eq!(notified(&mut states).await, SessionState::Refreshing);
    it.auth.next().await.answer(Ok(pair(2)));
    assert_eq!(notified(&mut states).await, SessionState::Active);
    it.api.reply(1, "a2", 200).await;
    response.await.unwrap();
    assert_not_notified(&mut states).await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_failures_and_the_success_after_them() {
    let mut it = Fixture::new().await;
    let mut states = it.session.subscribe();
    for count in 1..=2 {
        let response = it.get_refused().await;
        assert_eq!(notified(&mut states).await, SessionState::Refreshing);
        for _ in 0..3 {
            it.auth.next().await.answer(Err(RefreshError::unavailable("connection refused")));
        }
        response.await.unwrap();
        match notified(&mut states).await {
            SessionState::Failing(failure) => assert_eq!(failure.count(), count),
            other => panic!("{other:?}"),
        }
        sleep(10 * SECOND).await;
    }
    let response = it.get_refused().await;
    assert_eq!(notified(&mut states).await, SessionState::Refreshing);
    it.auth.next().await.answer(Ok(pair(2)));
    it.api.reply(1, "a2", 200).await;
    response.await.unwrap();
    assert_eq!(notified(&mut states).await, SessionState::Active);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_a_sign_out_and_the_next_sign_in() {
    let it = Fixture::new().await;
    let mut states = it.session.subscribe();
    it.session.sign_out().await.unwrap();
    assert_eq!(notified(&mut states).await, SessionState::SignedOut);
    it.session.sign_in(pair(2)).await.unwrap();
    assert_eq!(notified(&mut states).await, SessionState::Active);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_is_not_notified_where_nothing_has_changed() {
    let mut it = Fixture::with(|builder| builder.tokens(pair(1)).store(faulty_store())).await;
    let mut states = it.session.subscribe();
    let response = it.get();
    it.api.reply(1, "a1", 200).await;
    response.await.unwrap();
    it.session.recheck().await.unwrap();
    assert_not_notified(&mut states).await;

    // The tokens in force, handed in once more, and a newer one: the user stays signed in.
    let current = it.session.credential().await.unwrap();
    it.session.renew(&current, pair(1)).await.unwrap();
    it.session.renew(&current, pair(2)).await.unwrap();
    assert_not_notified(&mut states).await;

    // A sign-in in place of another is none, to an app that shows whether a user is signed in.
    it.session.sign_in(pair(3)).await.unwrap();
    assert_not_notified(&mut states).await;

    // A 401 to an older token only causes a replay.
    let late = it.get();
    let call = it.api.next().await;
    let refreshed = tokio::spawn({
        let session = it.session.clone();
        async move { session.refresh().await }
    });
    it.auth.next().await.answer(Ok(pair(4)));
    refreshed.await.unwrap().unwrap();
    states.borrow_and_update();
    call.reply(401).await;
    it.api.reply(1, "a4", 200).await;
    late.await.unwrap();
    assert_not_notified(&mut states).await;

    it.session.sign_out().await.unwrap();
    assert_eq!(notified(&mut states).await, SessionState::SignedOut);
    it.session.sign_out().await.unwrap();
    it.session.refresh().await.unwrap_err();
    assert_not_notified(&mut states).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_without_a_signed_in_user_is_refused_and_calls_nothing() {
    let mut it = Fixture::with(|builder| builder).await;
    assert!(matches!(it.session.refresh().await, Err(NotRefreshed::SignedOut)));
    it.session.sign_in(pair(1)).await.unwrap();
    it.session.sign_out().await.unwrap();
    let why = it.session.refresh().await.unwrap_err();
    assert!(matches!(why, NotRefreshed::SignedOut) && why.requires_sign_in());
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_of_a_session_that_has_ended_is_refused_with_the_reason() {
    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::rejected("revoked")));
    response.await.unwrap();
    let why = it.session.refresh().await.unwrap_err();
    assert!(why.requires_sign_in());
    match why {
        NotRefreshed::Ended(error) => assert_eq!(error.kind(), RefreshErrorKind::Rejected),
        other => panic!("{other:?}"),
    }
    assert!(it.auth.is_idle().await);
}

#[tokio::test(start_paused = true)]
async fn only_a_sign_in_helps_where_there_is_no_refresh_token_and_none_is_required_after_a_failure() {
    let it = Fixture::with(|builder| builder.tokens(Tokens::from_access_token(access("a1")))).await;
    let why = it.session.refresh().await.unwrap_err();
    assert!(matches!(why, NotRefreshed::NoRefreshToken) && why.requires_sign_in());

    let mut it = Fixture::new().await;
    let response = it.get_refused().await;
    it.auth.next().await.answer(Err(RefreshError::misconfigured("404")));
    assert!(!not_refreshed(&response.await.unwrap()).requires_sign_in());
    let response = it.get_refused().await.await.unwrap();
    assert!(matches!(not_refreshed(&response), NotRefreshed::CoolingDown(_)));
    assert!(!not_refreshed(&response).requires_sign_in());
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_that_is_rejected_ends_the_session_although_the_access_token_is_valid() {
    let tokens = pair(1).with_expires_in(100 * SECOND);
    let mut it = Fixture::with(|builder| builder.tokens(tokens).refresh_early(40 * SECOND)).await;
    let mut states = it.session.subscribe();
    sleep(75 * SECOND).await;
    let response = it.get();
    let in_time = it.api.next().await;
    let refresh = it.auth.next().await;
    assert_eq!(refresh.request.trigger(), Trigger::Early);
    assert_eq!(notified(&mut states).await, SessionState::Refreshing);
    refresh.answer(Err(RefreshError::rejected("revoked")));
    assert!(notified(&mut states).await.is_ended());

    // The request that is under way keeps its token, and its response.
    assert_eq!(in_time.token(), Some("a1"));
    in_time.reply(200).await;
    assert_eq!(response.await.unwrap().status(), 200);

    // The server has ended the session, so the next request carries no token.
    let response = it.get();
    let call = it.api.next().await;
    assert_eq!(call.token(), None);
    call.reply(401).await;
    assert!(matches!(not_refreshed(&response.await.unwrap()), NotRefreshed::Ended(_)));
    assert!(it.auth.is_idle().await);
}

/// A store with a record of the last hour, whose access token has expired.
async fn store_of_the_last_hour() -> impl TokenStore {
    let store = faulty_store();
    let expired = pair(1).with_expires_at(SystemTime::now() - 10 * SECOND);
    store.inner().insert(&Entry::new(Epoch::random(), 1, expired)).await.unwrap();
    store
}

#[tokio::test(start_paused = true)]
async fn a_session_restored_with_an_expired_access_token_is_refreshed_when_an_api_refuses_it() {
    let store = store_of_the_last_hour().await;
    let mut it = Fixture::with(|builder| builder.store(store)).await;
    assert_eq!(it.session.state(), SessionState::Active);
    let response = it.get();
    it.api.reply(1, "a1", 401).await;
    it.auth.next().await.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_restored_with_an_expired_access_token_is_refreshed_first_if_it_refreshes_early() {
    let store = store_of_the_last_hour().await;
    let mut it = Fixture::with(|builder| builder.store(store).refresh_early(40 * SECOND)).await;
    let response = it.get();
    let refresh = it.auth.next().await;
    assert!(it.api.is_idle().await, "the expired token was sent");
    refresh.answer(Ok(pair(2)));
    it.accepts(response, 2).await;
}

/// Upgrades to a protocol that echoes five bytes, if the request carries this token.
fn upgrade(mut request: Request<Incoming>, token: &str) -> Response<Full<Bytes>> {
    if request.headers().get(AUTHORIZATION).is_none_or(|value| *value != format!("Bearer {token}")) {
        return response(401);
    }
    assert_eq!(request.headers()[UPGRADE], "echo");
    assert_eq!(request.headers()[CONNECTION], "upgrade");
    tokio::spawn(async move {
        let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
        let mut bytes = [0; 5];
        io.read_exact(&mut bytes).await.unwrap();
        io.write_all(&bytes).await.unwrap();
    });
    let mut response = response(101);
    response.headers_mut().insert(UPGRADE, "echo".parse().unwrap());
    response.headers_mut().insert(CONNECTION, "upgrade".parse().unwrap());
    *response.body_mut() = Full::default();
    response
}

#[tokio::test]
async fn a_refused_upgrade_is_refreshed_and_then_switches_protocols() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(
                    TokioIo::new(io),
                    service_fn(|request| async { Ok::<_, Infallible>(upgrade(request, "a2")) }),
                )
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    let refresh = tower::service_fn(|_| async { Ok::<_, RefreshError>(pair(2)) });
    let session = Session::builder(refresh).tokens(pair(1)).build().await.unwrap();
    let client = AuthRefreshLayer::new(session, Origin::parse(&url).unwrap())
        .layer(Client::builder(TokioExecutor::new()).build_http());
    let request =
        Request::get(&url).header(UPGRADE, "echo").header(CONNECTION, "upgrade").body(Full::<Bytes>::default());
    let mut response = client.oneshot(request.unwrap()).await.map_err(BoxError::from).unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    io.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
}
