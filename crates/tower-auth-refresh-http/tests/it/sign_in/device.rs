//! The device grant: codes, polls and their times, on paused time.

use std::collections::VecDeque;
#[cfg(feature = "private-key-jwt")]
use std::error::Error;
#[cfg(feature = "private-key-jwt")]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{BoxError, ServiceExt, service_fn};
#[cfg(feature = "private-key-jwt")]
use tower_auth_refresh::RefreshError;
use tower_auth_refresh_http::{
    AuthClient, AuthorizationServer, ClientAuth, DeviceSignIn, PendingDeviceSignIn, SignInErrorKind,
};
#[cfg(feature = "private-key-jwt")]
use tower_auth_refresh_http::{JwtSigner, SignInError};
use tower_auth_refresh_testkit::TestKit;

#[cfg(feature = "private-key-jwt")]
use super::ISSUER;
use super::{discovered, kind, metadata, tokens};
use crate::support::{Answer, Scripted, answer, pairs, refresh};

/// A device authorization response with an interval of 5 s.
fn codes() -> Value {
    json!({
        "device_code": "dc-secret",
        "user_code": "WDJB-MJHT",
        "verification_uri": "https://auth.example.com/device",
        "verification_uri_complete": "https://auth.example.com/device?user_code=WDJB-MJHT",
        "expires_in": 60,
        "interval": 5,
    })
}

#[expect(clippy::unnecessary_wraps, reason = "an item of a script, where None is a broken connection")]
fn error(code: &str) -> Option<Answer> {
    Some(answer(400, json!({ "error": code }).to_string()))
}

/// A server that gives these codes and then these answers; `None` breaks the connection. Records the time of each poll.
#[derive(Clone)]
struct Server {
    answers: Arc<Mutex<VecDeque<Option<Answer>>>>,
    polls: Arc<Mutex<Vec<u64>>>,
}

impl Server {
    async fn begin(codes: Value, answers: impl IntoIterator<Item = Option<Answer>>) -> (Self, PendingDeviceSignIn) {
        let answers = [Some(answer(200, codes.to_string()))].into_iter().chain(answers).collect();
        let this = Self { answers: Arc::new(Mutex::new(answers)), polls: Arc::default() };
        let (started, server) = (Instant::now(), this.clone());
        let client = AuthClient::new(service_fn(move |request: Request<Full<Bytes>>| {
            let server = server.clone();
            async move {
                if request.uri().path() == "/token" {
                    server.polls.lock().unwrap().push(started.elapsed().as_secs());
                }
                let answer = server.answers.lock().unwrap().pop_front().flatten();
                let answer = answer.ok_or("the connection broke")?;
                let response = Scripted::with([answer]).oneshot(request).await;
                response.map_err(BoxError::from) as Result<Response<_>, _>
            }
        }));
        let sign_in = DeviceSignIn::new(client, &discovered(metadata()).await, ClientAuth::public("app")).unwrap();
        let pending = sign_in.begin().await.unwrap();
        (this, pending)
    }

    fn polls(&self) -> Vec<u64> {
        self.polls.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_approves_on_another_device() {
    let kit = TestKit::new();
    let http = AuthClient::new(kit.clone());
    let server = AuthorizationServer::discover(&http, "http://127.0.0.1").await.unwrap();
    let sign_in = DeviceSignIn::new(http, &server, ClientAuth::public("app")).unwrap();
    let pending = sign_in.begin().await.unwrap();
    assert_eq!(pending.verification_uri(), "http://127.0.0.1/oauth/verify");
    assert!(pending.verification_uri_complete().unwrap().ends_with(pending.user_code()));
    assert_eq!(pending.expires_in(), Duration::from_secs(600));

    let user_code = pending.user_code().to_owned();
    let finishing = tokio::spawn(pending.finish());
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert!(kit.approve_device(&user_code, "grace"));
    let signed_in = finishing.await.unwrap().unwrap();
    let notes: Vec<_> = kit.log().iter().filter_map(|entry| entry.note).collect();
    assert_eq!(notes, ["authorization_pending"; 3]);
    assert!(refresh(&signed_in.tokens).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_requests_have_the_scope_the_resources_and_the_device_code() {
    let scripted = Scripted::with([answer(200, codes().to_string()), tokens()]);
    let sign_in = DeviceSignIn::new(scripted.client(), &discovered(metadata()).await, ClientAuth::public("app"));
    let sign_in =
        sign_in.unwrap().scope("notes offline_access").resource("https://a.example").param("audience", "api.example");
    assert!(format!("{sign_in:?}").contains("audience") && !format!("{sign_in:?}").contains("api.example"));
    let pending = sign_in.begin().await.unwrap();
    assert!(!format!("{pending:?}").contains("secret") && !format!("{pending:?}").contains("WDJB"));
    pending.finish().await.unwrap();
    let requests = scripted.requests();
    let expected = [
        ("scope", "notes offline_access"),
        ("resource", "https://a.example"),
        ("audience", "api.example"),
        ("client_id", "app"),
    ];
    assert_eq!(requests[0].form(), pairs(&expected));
    let expected = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("device_code", "dc-secret"),
        ("resource", "https://a.example"),
        ("client_id", "app"),
    ];
    assert_eq!(requests[1].form(), pairs(&expected));
}

#[tokio::test(start_paused = true)]
async fn polls_keep_the_interval_and_slow_down_when_told() {
    let answers = [error("authorization_pending"), error("slow_down"), error("authorization_pending"), Some(tokens())];
    let (server, pending) = Server::begin(codes(), answers).await;
    pending.finish().await.unwrap();
    assert_eq!(server.polls(), [5, 10, 20, 30]);
}

#[tokio::test(start_paused = true)]
async fn the_interval_is_five_seconds_by_default_and_never_none() {
    for (interval, polls) in [(None, [5, 10]), (Some(json!(0)), [1, 2]), (Some(json!(7)), [7, 14])] {
        let mut codes = codes();
        codes.as_object_mut().unwrap().remove("interval");
        if let Some(interval) = interval {
            codes["interval"] = interval;
        }
        let (server, pending) = Server::begin(codes, [error("authorization_pending"), Some(tokens())]).await;
        pending.finish().await.unwrap();
        assert_eq!(server.polls(), polls);
    }
}

#[tokio::test(start_paused = true)]
async fn the_interval_is_five_minutes_at_most_and_a_code_lives_for_a_day_at_most() {
    let mut codes = codes();
    (codes["interval"], codes["expires_in"]) = (json!(7_200), json!(1_000_000));
    let (server, pending) = Server::begin(codes, [error("authorization_pending"), None, Some(tokens())]).await;
    assert_eq!(pending.expires_in().as_secs(), 24 * 60 * 60);
    assert_eq!(format!("{pending:?}"), "PendingDeviceSignIn { expires_in: 86400s, .. }");
    pending.finish().await.unwrap();
    assert_eq!(server.polls(), [300, 600, 900]);
}

#[tokio::test(start_paused = true)]
async fn trouble_on_the_way_backs_off_and_a_verdict_returns_to_the_interval() {
    let trouble = [
        None,
        Some(answer(502, "<html>bad gateway")),
        error("authorization_pending"),
        Some(answer(429, "")),
        Some(tokens()),
    ];
    let mut codes = codes();
    codes["expires_in"] = json!(600);
    let (server, pending) = Server::begin(codes.clone(), trouble).await;
    pending.finish().await.unwrap();
    assert_eq!(server.polls(), [5, 15, 35, 40, 50]);

    let told = answer(503, "").header("retry-after", "90");
    let (server, pending) = Server::begin(codes, [Some(told), Some(tokens())]).await;
    pending.finish().await.unwrap();
    assert_eq!(server.polls(), [5, 95]);
}

#[tokio::test(start_paused = true)]
async fn a_code_expires_by_the_clock_here_and_by_the_servers_word() {
    let (server, pending) = Server::begin(codes(), std::iter::repeat_n(error("authorization_pending"), 99)).await;
    let started = Instant::now();
    assert_eq!(kind(pending.finish().await), SignInErrorKind::TimedOut);
    assert_eq!((started.elapsed().as_secs(), server.polls().len()), (60, 12));

    let (_, pending) = Server::begin(codes(), [error("expired_token")]).await;
    let failure = pending.finish().await.unwrap_err();
    assert_eq!((failure.kind(), failure.code()), (SignInErrorKind::TimedOut, Some("expired_token")));

    // The network is gone for as long as the code lives.
    let (server, pending) = Server::begin(codes(), []).await;
    let failure = pending.finish().await.unwrap_err();
    assert_eq!(failure.kind(), SignInErrorKind::TimedOut);
    assert!(failure.server_error().unwrap().is_in_doubt());
    assert_eq!(server.polls(), [5, 15, 35]);

    // It is back, and the user has not decided.
    let answers = [None].into_iter().chain(std::iter::repeat_n(error("authorization_pending"), 99));
    let (_, pending) = Server::begin(codes(), answers).await;
    let failure = pending.finish().await.unwrap_err();
    assert_eq!((failure.kind(), failure.server_error().is_none()), (SignInErrorKind::TimedOut, true));
}

#[tokio::test(start_paused = true)]
async fn a_verdict_ends_the_polls() {
    for (verdict, expected) in [
        (error("access_denied"), SignInErrorKind::Denied),
        (error("invalid_grant"), SignInErrorKind::Server),
        (error("invalid_client"), SignInErrorKind::Server),
        (Some(answer(200, "{}")), SignInErrorKind::Server),
        (Some(answer(302, "").header("location", "https://evil.example")), SignInErrorKind::Server),
    ] {
        let (server, pending) = Server::begin(codes(), [verdict, Some(tokens())]).await;
        assert_eq!(kind(pending.finish().await), expected);
        assert_eq!(server.polls(), [5]);
    }
}

/// A sign-in whose signer fails, for all calls but the first one, by what this makes.
#[cfg(feature = "private-key-jwt")]
async fn with_a_signer_that_fails(make: fn() -> BoxError) -> SignInError {
    let signatures = Arc::new(AtomicUsize::new(0));
    let signer = JwtSigner::new("ES256", move |_| {
        let is_first = signatures.fetch_add(1, Ordering::Relaxed) == 0;
        async move { if is_first { Ok(vec![7]) } else { Err(make()) } }
    });
    let scripted = Scripted::with([answer(200, codes().to_string()), tokens()]);
    let auth = ClientAuth::private_key_jwt("app", ISSUER, signer);
    let sign_in = DeviceSignIn::new(scripted.client(), &discovered(metadata()).await, auth).unwrap();
    let failure = sign_in.begin().await.unwrap().finish().await.unwrap_err();
    assert_eq!(scripted.only().uri.path(), "/device");
    failure
}

#[cfg(feature = "private-key-jwt")]
#[tokio::test(start_paused = true)]
async fn a_signer_whose_failure_cannot_pass_ends_the_polls_at_once() {
    let started = Instant::now();
    let failure = with_a_signer_that_fails(|| RefreshError::misconfigured("the key is unknown").into()).await;
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(failure.kind(), SignInErrorKind::Server);
    let failed = failure.server_error().unwrap();
    assert!(failed.is_misconfigured());
    assert_eq!(failed.to_string(), "https://auth.example.com/token: the client assertion could not be signed");
    let signer = failed.source().unwrap().downcast_ref::<RefreshError>().unwrap();
    assert_eq!(signer.source().unwrap().to_string(), "the key is unknown");
}

#[cfg(feature = "private-key-jwt")]
#[tokio::test(start_paused = true)]
async fn a_signer_whose_failure_may_pass_is_asked_until_the_code_expires() {
    let started = Instant::now();
    let failure = with_a_signer_that_fails(|| "the module is locked".into()).await;
    assert_eq!((started.elapsed().as_secs(), failure.kind()), (60, SignInErrorKind::TimedOut));
    assert_eq!(failure.server_error().unwrap().source().unwrap().to_string(), "the module is locked");
}

#[tokio::test]
async fn codes_that_are_of_no_use_are_refused() {
    let mut lying = codes();
    lying["verification_uri"] = json!("javascript:alert(1)");
    let mut complete = codes();
    complete["verification_uri_complete"] = json!("file:///etc/passwd");
    let mut plain = codes();
    plain["verification_uri"] = json!("http://auth.example.com/device");
    for body in [lying.to_string(), plain.to_string(), complete.to_string(), "{}".to_owned(), "<html>".to_owned()] {
        let scripted = Scripted::with([answer(200, body)]);
        let sign_in = DeviceSignIn::new(scripted.client(), &discovered(metadata()).await, ClientAuth::public("app"));
        let failure = sign_in.unwrap().begin().await.unwrap_err();
        assert_eq!(failure.kind(), SignInErrorKind::Server);
        assert_eq!(failure.server_error().unwrap().endpoint(), Some("https://auth.example.com/device"));
    }
}

#[tokio::test]
async fn a_server_without_the_grant_is_named() {
    let mut without = metadata();
    without.as_object_mut().unwrap().remove("device_authorization_endpoint");
    let client = Scripted::default().client();
    let failure = DeviceSignIn::new(client, &discovered(without).await, ClientAuth::public("app")).unwrap_err();
    assert_eq!(failure.kind(), SignInErrorKind::Misconfigured);
    assert_eq!(failure.to_string(), "the server has no device authorization endpoint");
}
