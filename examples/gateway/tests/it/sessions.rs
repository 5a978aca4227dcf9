//! Signing in, signing out, and what ends a session.

use std::time::Duration;

use http::Method;
use http::header::{CONTENT_TYPE, SET_COOKIE};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::Origin;
use tower_auth_refresh_testkit::{Fault, Route};

use crate::support::World;

#[tokio::test]
async fn a_browser_gets_a_cookie_and_no_token() {
    let world = World::start().await;
    let mut browser = world.stranger();
    let answer = browser.login("ada", "correct horse").await;
    assert_eq!(answer.status, 204);
    let set = answer.headers[SET_COOKIE].to_str().unwrap();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert_eq!(pair.strip_prefix("session=").unwrap().len(), 43, "256 bits");
    assert_eq!(attributes, "HttpOnly; SameSite=Strict; Path=/");
    assert!(answer.body.is_empty());
    assert_eq!(browser.get("/api/me").await.json()["user"], "ada");
    let told = browser.get("/session").await.json();
    assert_eq!((told["state"].as_str(), told["generation"].as_u64()), (Some("active"), Some(1)));
}

#[tokio::test]
async fn over_tls_the_cookie_is_bound_to_the_host() {
    let world = World::start_with(|settings| {
        let origin = Origin::parse("https://app.example.com").unwrap();
        settings.public = gateway::PublicOrigin::Named(origin);
    });
    let world = world.await;
    let answer = world.stranger().login("ada", "correct horse").await;
    let set = answer.headers[SET_COOKIE].to_str().unwrap();
    assert!(set.starts_with("__Host-session="), "{set}");
    assert!(set.ends_with("; HttpOnly; SameSite=Strict; Secure; Path=/"), "{set}");
}

#[tokio::test]
async fn the_cookie_of_a_signed_out_user_is_dead() {
    let world = World::start().await;
    let (ada, eve) = (world.browser("ada").await, world.browser("eve").await);
    let out = ada.post("/logout", "").await;
    assert_eq!(out.status, 204);
    assert!(out.clears_cookie());
    for _ in 0..3 {
        let answer = ada.get("/api/me").await;
        answer.is_problem(401, "sign-in-first");
        assert!(answer.clears_cookie());
    }
    assert_eq!(ada.get("/session").await.json(), json!({ "state": "signed_out" }));
    assert_eq!(world.kit.counters().logouts, 1, "the authorization server is told");
    assert_eq!(eve.get("/api/me").await.json()["user"], "eve");
    // Signing out twice is no error.
    assert_eq!(ada.post("/logout", "").await.status, 204);
}

#[tokio::test]
async fn a_new_login_makes_a_new_session_and_ends_the_one_before() {
    let world = World::start().await;
    let mut browser = world.browser("ada").await;
    let before = browser.clone();
    assert_eq!(browser.login("eve", "correct horse").await.status, 204);
    assert_ne!(before.cookie, browser.cookie);
    assert_eq!(browser.get("/api/me").await.json()["user"], "eve");
    before.get("/api/me").await.is_problem(401, "sign-in-first");
}

#[tokio::test]
async fn a_failed_login_leaves_the_session_as_it_was() {
    let world = World::start().await;
    let mut browser = world.browser("ada").await;
    browser.login("ada", "wrong").await.is_problem(401, "wrong-credentials");
    assert_eq!(browser.get("/api/me").await.json()["user"], "ada");
}

#[tokio::test]
async fn an_ended_session_is_told_and_its_cookie_cleared() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    world.kit.revoke("ada");
    let answer = browser.get("/api/me").await;
    answer.is_problem(401, "session-ended");
    assert!(answer.clears_cookie());
    browser.get("/api/me").await.is_problem(401, "sign-in-first");
    assert_eq!(world.kit.violations(), []);
}

#[tokio::test]
async fn a_token_is_refreshed_before_it_expires_where_that_is_asked_for() {
    let world = World::start_with(|settings| settings.refresh_early = Some(Duration::from_secs(10))).await;
    world.kit.configure(|settings| settings.access_lifetime = Duration::from_secs(2));
    let browser = world.browser("ada").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.kit.counters().granted < 2 {
        assert!(Instant::now() < deadline);
        assert_eq!(browser.get("/api/me").await.status, 200);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.kit.counters().unauthorized(), 0);
}

#[tokio::test]
async fn nobody_gets_through_without_a_session() {
    let world = World::start().await;
    let mut stranger = world.stranger();
    stranger.get("/api/me").await.is_problem(401, "sign-in-first");
    for cookie in ["session=", "session=x", &format!("session={}", "A".repeat(43)), "session=\u{1}", ";;;=;"] {
        stranger.cookie = Some(cookie.to_owned());
        if http::HeaderValue::from_str(cookie).is_ok() {
            stranger.get("/api/me").await.is_problem(401, "sign-in-first");
        }
    }
    assert_eq!(world.kit.counters().api, 0);
}

#[tokio::test]
async fn a_full_gateway_refuses_a_login_and_gives_the_tokens_back() {
    let world = World::start_with(|settings| settings.max_sessions = 2).await;
    let (first, _second) = (world.browser("ada").await, world.browser("eve").await);
    let refused = world.stranger().login("bob", "correct horse").await;
    refused.is_problem(503, "too-many-sessions");
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(world.kit.counters().logouts, 1);
    first.post("/logout", "").await;
    world.browser("bob").await;
}

#[tokio::test]
async fn what_is_no_login_is_refused() {
    let world = World::start().await;
    let browser = world.stranger();
    let post = async |kind: &str, body: String| {
        let request = browser.request(Method::POST, "/login").header(CONTENT_TYPE, kind);
        browser.ask(request.body(body.into()).unwrap()).await
    };
    post("text/plain", "{}".into()).await.is_problem(415, "wrong-media-type");
    post("application/json", "[]".into()).await.is_problem(400, "malformed-request");
    post("application/json", "{".into()).await.is_problem(400, "malformed-request");
    post("application/json", format!("\"{}\"", "x".repeat(20_000))).await.is_problem(413, "body-too-large");
    browser.get("/login").await.is_problem(405, "method-not-allowed");
    assert_eq!(world.kit.counters().logins, 0);

    world.kit.inject(Route::Login, Fault::status(503).header("retry-after", "7").times(1));
    let answer = post("application/json", json!({"username": "ada", "password": "x"}).to_string()).await;
    answer.is_problem(503, "auth-server-unavailable");
    assert_eq!(answer.headers["retry-after"], "7");
    world.kit.inject(Route::Login, Fault::status(404).times(1));
    let answer = post("application/json", json!({"username": "ada", "password": "x"}).to_string()).await;
    answer.is_problem(502, "auth-server-failed");
}
