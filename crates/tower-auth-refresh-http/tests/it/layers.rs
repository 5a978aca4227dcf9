//! Each refresh call in a session, under tower's layers.

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::json;
use tower::timeout::error::Elapsed;
use tower::{Service, ServiceBuilder, service_fn};
use tower_auth_refresh::refresh::RevokeService;
use tower_auth_refresh::store::{MemoryStore, TokenStore};
use tower_auth_refresh::{
    NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, RefreshService, RefreshToken, Rotation, Session,
    SessionState, Tokens,
};
use tower_auth_refresh_http::{
    AuthClient, AuthServerError, ClientAuth, ClientCredentials, JsonLogin, JsonLogout, JsonRefresh, LoginError,
    OAuthRefresh, OAuthRevoke,
};

use crate::support::{Answer, Scripted, access, answer, failing, old_tokens, refresh as refresh_of};

const URL: &str = "https://api.example.com/auth/refresh";

fn granted() -> Answer {
    answer(200, r#"{"access_token":"a2","refresh_token":"r2"}"#).header("set-cookie", "rt=r2")
}

fn layered<S, F>(service: S) -> impl RefreshService
where
    S: RefreshService + tower::Service<RefreshRequest, Response = Tokens, Error = RefreshError, Future = F>,
    F: Future<Output = Result<Tokens, RefreshError>> + Send + 'static,
{
    ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .map_err(|error: RefreshError| error)
        .concurrency_limit(1)
        .service(service)
}

async fn session(refresh: impl RefreshService) -> Session {
    Session::builder(refresh).tokens(old_tokens()).build().await.unwrap()
}

#[tokio::test]
async fn every_refresh_call_serves_a_session_under_layers() {
    let client = || Scripted::with([granted()]).client();
    let sessions = [
        session(layered(JsonRefresh::new(client(), URL).unwrap())).await,
        session(layered(OAuthRefresh::new(client(), URL, ClientAuth::public("app")).unwrap())).await,
        session(layered(JsonRefresh::new(client(), URL).unwrap().cookie("rt"))).await,
    ];
    for session in sessions {
        session.refresh().await.unwrap();
        let tokens = session.tokens();
        assert_eq!(access(&tokens), "a2");
        assert_eq!(tokens.refresh_token().map(RefreshToken::expose_secret), Some("r2"));
    }
}

#[tokio::test]
async fn a_session_of_client_credentials_acquires_by_itself() {
    let scripted = Scripted::with([granted()]);
    let grant = ClientCredentials::new(scripted.client(), URL, ClientAuth::basic("svc", "s")).unwrap();
    let session = Session::client_credentials(layered(grant)).build().await.unwrap();
    session.refresh().await.unwrap();
    assert_eq!(access(&session.tokens()), "a2");
    assert_eq!(session.tokens().refresh_token(), None);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_around_the_call_is_in_doubt_and_keeps_the_session() {
    let silent = service_fn(|_: Request<Full<Bytes>>| pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let session = session(layered(JsonRefresh::new(AuthClient::new(silent), URL).unwrap())).await;
    let NotRefreshed::Failed(error) = session.refresh().await.unwrap_err() else { panic!() };
    assert_eq!(error.kind(), RefreshErrorKind::InDoubt);
    assert!(error.source().unwrap().is::<Elapsed>());
    assert_eq!(failing(&session), RefreshErrorKind::InDoubt);
}

#[tokio::test]
async fn an_error_keeps_its_meaning_under_layers() {
    let refused = Scripted::with([answer(400, r#"{"error":"invalid_grant"}"#)]).client();
    let session = session(layered(OAuthRefresh::new(refused, URL, ClientAuth::public("app")).unwrap())).await;
    let NotRefreshed::Ended(error) = session.refresh().await.unwrap_err() else { panic!() };
    assert!(session.state().is_ended());
    let mut cause: &dyn Error = &*error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    assert_eq!(cause.downcast_ref::<AuthServerError>().unwrap().code(), Some("invalid_grant"));
}

#[tokio::test]
async fn a_misconfigured_call_keeps_the_tokens() {
    let wrong = Scripted::with([answer(401, r#"{"error":"invalid_client"}"#)]);
    let refresh = OAuthRefresh::new(wrong.client(), URL, ClientAuth::basic("app", "wrong")).unwrap();
    let session = session(refresh).await;
    let NotRefreshed::Failed(error) = session.refresh().await.unwrap_err() else { panic!() };
    assert_eq!(error.kind(), RefreshErrorKind::Misconfigured);
    assert_eq!((failing(&session), session.tokens()), (RefreshErrorKind::Misconfigured, old_tokens()));
    assert_eq!(wrong.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_sent_is_repeated_and_one_in_doubt_only_as_the_rotation_allows() {
    for (rotation, first, calls) in [
        (Rotation::Strict, answer(429, "").header("retry-after", "1"), 2),
        (Rotation::Strict, answer(502, ""), 1),
        (Rotation::Grace(Duration::from_secs(10)), answer(502, ""), 2),
        (Rotation::Reusable, answer(502, ""), 2),
    ] {
        let scripted = Scripted::with([first, granted()]);
        let session = Session::builder(JsonRefresh::new(scripted.client(), URL).unwrap())
            .tokens(old_tokens())
            .rotation(rotation)
            .build()
            .await
            .unwrap();
        assert_eq!(session.refresh().await.is_ok(), calls == 2, "{rotation:?}");
        assert_eq!(scripted.requests().len(), calls, "{rotation:?}");
        if calls == 2 {
            assert_eq!(session.state(), SessionState::Active);
        } else {
            assert_eq!(failing(&session), RefreshErrorKind::InDoubt);
        }
    }
}

#[tokio::test]
async fn login_signs_a_session_in_and_wrong_credentials_leave_it_as_it_was() {
    let scripted = Scripted::with([answer(401, ""), granted()]);
    let refresh = JsonRefresh::new(scripted.client(), URL).unwrap();
    let session = Session::builder(refresh).build().await.unwrap();
    let login = JsonLogin::new(scripted.client(), URL).unwrap();

    let error = login.sign_in(&session, &json!({"password": "wrong"})).await.unwrap_err();
    assert!(matches!(&error, LoginError::Call(error) if error.is_rejected()));
    assert_eq!(session.state(), SessionState::SignedOut);

    login.sign_in(&session, &json!({"password": "right"})).await.unwrap();
    assert_eq!(session.state(), SessionState::Active);
    assert_eq!(access(&session.tokens()), "a2");
}

#[tokio::test]
async fn logout_calls_the_server_and_clears_locally_whatever_the_answer() {
    for (status, succeeds) in [(204, true), (401, true), (500, false)] {
        let scripted = Scripted::with([answer(status, "")]);
        let logout = JsonLogout::new(scripted.client(), "https://api.example.com/auth/logout").unwrap();
        let session = Session::builder(JsonRefresh::new(scripted.client(), URL).unwrap())
            .tokens(old_tokens())
            .revoke(logout)
            .build()
            .await
            .unwrap();
        assert_eq!(session.sign_out().await.is_ok(), succeeds);
        assert_eq!((session.state(), session.tokens()), (SessionState::SignedOut, Tokens::default()));
        assert_eq!(scripted.only().json(), json!({"refresh_token": "old-refresh"}));
    }
}

/// Signs out with this revoke service, waits, and returns whether the sign-out succeeded and the number of calls.
async fn signed_out(scripted: &Scripted, revoke: impl RevokeService) -> (bool, usize) {
    let refresh = JsonRefresh::new(scripted.client(), URL).unwrap();
    let session = Session::builder(refresh).tokens(old_tokens()).revoke(revoke).build().await.unwrap();
    let signed_out = session.sign_out().await.is_ok();
    tokio::time::sleep(Duration::from_secs(600)).await;
    (signed_out, scripted.requests().len())
}

#[tokio::test(start_paused = true)]
async fn a_logout_is_repeated_after_a_failure_that_may_pass_and_after_no_other_answer() {
    for (first, expected) in [
        (answer(204, ""), (true, 1)),
        // The user is signed out already.
        (answer(401, ""), (true, 1)),
        (answer(403, r#"{"message":"forbidden"}"#), (true, 1)),
        (answer(404, ""), (true, 1)),
        (answer(500, ""), (false, 2)),
        (answer(502, "<html>"), (false, 2)),
        (answer(503, ""), (false, 2)),
        (answer(503, "").header("retry-after", "120"), (false, 2)),
        (answer(429, ""), (false, 2)),
        (answer(400, r#"{"error":"temporarily_unavailable"}"#), (false, 2)),
        // The same call would fail again.
        (answer(302, "").header("location", "/login"), (false, 1)),
        (answer(400, ""), (false, 1)),
        (answer(401, r#"{"error":"invalid_client"}"#), (false, 1)),
        (answer(403, "<html>blocked"), (false, 1)),
    ] {
        let case = format!("{first:?}");
        let scripted = Scripted::with([first, answer(204, "")]);
        let logout = JsonLogout::new(scripted.client(), URL).unwrap();
        assert_eq!(signed_out(&scripted, logout).await, expected, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_is_repeated_after_a_failure_that_may_pass_and_after_no_other_answer() {
    for (first, expected) in [
        (answer(200, ""), (true, 1)),
        (answer(400, r#"{"error":"invalid_token"}"#), (true, 1)),
        (answer(503, "").header("retry-after", "120"), (false, 2)),
        (answer(500, ""), (false, 2)),
        (answer(400, r#"{"error":"unsupported_token_type"}"#), (false, 1)),
        (answer(401, r#"{"error":"invalid_client"}"#), (false, 1)),
        // Of a revocation endpoint, they are about the client or the URL.
        (answer(403, ""), (false, 1)),
        (answer(404, ""), (false, 1)),
    ] {
        let case = format!("{first:?}");
        let scripted = Scripted::with([first, answer(200, "")]);
        let revoke = OAuthRevoke::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
        assert_eq!(signed_out(&scripted, revoke).await, expected, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_logout_that_never_reached_the_server_is_repeated() {
    for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::ConnectionReset] {
        let scripted = Scripted::with([answer(204, "")]);
        let (then, failed) = (scripted.clone(), Arc::new(AtomicBool::new(false)));
        let client = AuthClient::new(service_fn(move |request: Request<Full<Bytes>>| {
            let (fails, mut then) = (!failed.swap(true, Ordering::Relaxed), then.clone());
            async move {
                if fails {
                    return Err(io::Error::from(kind));
                }
                then.call(request).await.map_err(io::Error::other)
            }
        }));
        let logout = JsonLogout::new(client, URL).unwrap();
        assert_eq!(signed_out(&scripted, logout).await, (false, 1), "{kind}");
    }
}

#[tokio::test]
async fn sign_out_revokes_under_layers_too() {
    let scripted = Scripted::with([answer(200, "")]);
    let revoke = OAuthRevoke::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
    let revoke = ServiceBuilder::new().timeout(Duration::from_secs(1)).service(revoke);
    let refresh = OAuthRefresh::new(scripted.client(), URL, ClientAuth::public("app")).unwrap();
    let session = Session::builder(refresh).tokens(old_tokens()).revoke(revoke).build().await.unwrap();
    session.sign_out().await.unwrap();
    assert!(scripted.only().body.contains("token=old-refresh"));
}

#[tokio::test]
async fn cookie_attributes_outlive_a_rotation_without_attributes() {
    let scripted = Scripted::with([
        answer(200, r#"{"access_token":"a2"}"#).header("set-cookie", "rt=r2; Path=/auth; Max-Age=60"),
        answer(200, r#"{"access_token":"a3"}"#),
    ]);
    let session = session(JsonRefresh::new(scripted.client(), URL).unwrap().cookie("rt")).await;
    session.refresh().await.unwrap();
    session.refresh().await.unwrap();
    let tokens = session.tokens();
    assert_eq!(tokens.refresh_token().map(RefreshToken::expose_secret), Some("r2"));
    assert_eq!(tokens.extra("refresh_cookie").unwrap()["path"], "/auth");
}

#[tokio::test]
async fn a_refresh_token_beside_no_usable_access_token_is_stored_and_presented_next_and_the_failure_reported() {
    for (unusable, kind) in [
        (r#"{"refresh_token":"rt-2"}"#, RefreshErrorKind::Misconfigured),
        (r#"{"access_token":7,"refresh_token":"rt-2"}"#, RefreshErrorKind::InDoubt),
    ] {
        let scripted = Scripted::with([answer(200, unusable), granted()]);
        let store = Arc::new(MemoryStore::new());
        let refresh = JsonRefresh::new(scripted.client(), URL).unwrap();
        let builder = Session::builder(refresh).tokens(old_tokens()).store(Arc::clone(&store));
        let session = builder.build().await.unwrap();

        let NotRefreshed::Failed(error) = session.refresh().await.unwrap_err() else { panic!("it failed") };
        assert_eq!((error.kind(), failing(&session)), (kind, kind));
        let stored = store.load().await.unwrap().unwrap().tokens().clone();
        assert_eq!((access(&stored), refresh_of(&stored)), ("old-access", Some("rt-2")));

        session.refresh().await.unwrap();
        assert_eq!(scripted.requests()[1].json(), json!({"refresh_token": "rt-2"}));
    }
}
