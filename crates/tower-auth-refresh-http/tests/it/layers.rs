//! Each flavour in a session, under tower's layers.

use std::convert::Infallible;
use std::error::Error;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::json;
use tower::timeout::error::Elapsed;
use tower::{ServiceBuilder, service_fn};
use tower_auth_refresh::{
    NotRefreshed, RefreshError, RefreshErrorKind, RefreshRequest, RefreshService, RefreshToken, Rotation, Session,
    SessionState, Tokens,
};
use tower_auth_refresh_http::{
    AuthClient, AuthServerError, ClientAuth, ClientCredentials, CookieRefresh, JsonLogin, JsonLogout, JsonRefresh,
    LoginError, OAuthRefresh, OAuthRevoke,
};

use crate::support::{Answer, Scripted, access, answer, old_tokens};

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
async fn every_flavour_serves_a_session_under_layers() {
    let client = || Scripted::with([granted()]).client();
    let sessions = [
        session(layered(JsonRefresh::new(client(), URL).unwrap())).await,
        session(layered(OAuthRefresh::new(client(), URL, ClientAuth::public("app")).unwrap())).await,
        session(layered(CookieRefresh::new(client(), URL, "rt").unwrap())).await,
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
    let session = Session::builder(layered(grant)).client_credentials().build().await.unwrap();
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
    let SessionState::Failing(failure) = session.state() else { panic!("{:?}", session.state()) };
    assert_eq!((failure.kind(), failure.count()), (RefreshErrorKind::InDoubt, 1));
}

#[tokio::test]
async fn an_error_means_under_layers_what_it_meant_without() {
    let refused = Scripted::with([answer(400, r#"{"error":"invalid_grant"}"#)]).client();
    let session = session(layered(OAuthRefresh::new(refused, URL, ClientAuth::public("app")).unwrap())).await;
    let NotRefreshed::Ended(error) = session.refresh().await.unwrap_err() else { panic!() };
    assert!(matches!(session.state(), SessionState::Ended(of) if std::sync::Arc::ptr_eq(&of, &error)));
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
    let SessionState::Failing(failure) = session.state() else { panic!("{:?}", session.state()) };
    assert_eq!((failure.kind(), failure.count()), (RefreshErrorKind::Misconfigured, 1));
    assert_eq!(session.tokens(), old_tokens());
    assert_eq!(wrong.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_sent_again_and_what_is_in_doubt_only_as_the_rotation_allows() {
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
        assert_eq!(scripted.asked().len(), calls, "{rotation:?}");
        match session.state() {
            SessionState::Active => assert_eq!(calls, 2),
            SessionState::Failing(failure) => assert_eq!((failure.kind(), calls), (RefreshErrorKind::InDoubt, 1)),
            state => panic!("{state:?}"),
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
async fn logout_calls_the_server_and_clears_locally_whatever_it_answers() {
    for (status, said) in [(204, true), (401, false), (500, false)] {
        let scripted = Scripted::with([answer(status, "")]);
        let logout = JsonLogout::new(scripted.client(), "https://api.example.com/auth/logout").unwrap();
        let session = Session::builder(JsonRefresh::new(scripted.client(), URL).unwrap())
            .tokens(old_tokens())
            .revoke(logout)
            .build()
            .await
            .unwrap();
        assert_eq!(session.sign_out().await.is_ok(), said);
        assert_eq!((session.state(), session.tokens()), (SessionState::SignedOut, Tokens::default()));
        assert_eq!(scripted.only().json(), json!({"refresh_token": "old-refresh"}));
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
async fn cookie_attributes_outlive_a_rotation_that_says_nothing_of_them() {
    let scripted = Scripted::with([
        answer(200, r#"{"access_token":"a2"}"#).header("set-cookie", "rt=r2; Path=/auth; Max-Age=60"),
        answer(200, r#"{"access_token":"a3"}"#),
    ]);
    let session = session(CookieRefresh::new(scripted.client(), URL, "rt").unwrap()).await;
    session.refresh().await.unwrap();
    session.refresh().await.unwrap();
    let tokens = session.tokens();
    assert_eq!(tokens.refresh_token().map(RefreshToken::expose_secret), Some("r2"));
    assert_eq!(tokens.extra("refresh_cookie").unwrap()["path"], "/auth");
}
