//! Sign-in, sign-out, and the end of sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::header::{AUTHORIZATION, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tower_auth_refresh_testkit::{Fault, Route};

use crate::test_gateway::{Browser, TestGateway, disconnect, wait_for_counters};

#[tokio::test]
async fn a_browser_gets_a_cookie_and_no_token() {
    let gateway = TestGateway::start().await;
    let mut browser = gateway.anonymous();
    let response = browser.login("ada", "correct horse").await;
    assert_eq!(response.status, 204);
    let set = response.headers[SET_COOKIE].to_str().unwrap();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert_eq!(pair.strip_prefix("session=").unwrap().len(), 22, "128 bits");
    assert_eq!(attributes, "HttpOnly; SameSite=Strict; Path=/");
    assert!(response.body.is_empty());
    assert_eq!(browser.get("/api/me").await.json()["user"], "ada");
    let session = browser.get("/session").await.json();
    assert_eq!((session["state"].as_str(), session["generation"].as_u64()), (Some("active"), Some(1)));
}

#[tokio::test]
async fn over_tls_the_cookie_is_bound_to_the_host() {
    let gateway = TestGateway::start_behind_tls().await;
    let response = gateway.anonymous().login("ada", "correct horse").await;
    let set = response.headers[SET_COOKIE].to_str().unwrap();
    assert!(set.starts_with("__Host-session="), "{set}");
    assert!(set.ends_with("; HttpOnly; SameSite=Strict; Secure; Path=/"), "{set}");
}

#[tokio::test]
async fn the_cookie_of_a_signed_out_user_is_rejected() {
    let gateway = TestGateway::start().await;
    let (ada, eve) = (gateway.browser("ada").await, gateway.browser("eve").await);
    let out = ada.post("/logout", "").await;
    assert_eq!(out.status, 204);
    assert!(out.clears_cookie());
    for _ in 0..3 {
        let response = ada.get("/api/me").await;
        response.assert_problem(401, "sign-in-first");
        // A late request must not clear the cookie of a later login.
        assert!(!response.headers.contains_key(SET_COOKIE));
    }
    assert_eq!(ada.get("/session").await.json(), json!({ "state": "signed_out" }));
    assert_eq!(gateway.kit.counters().logouts, 1, "sign-outs at the authorization server");
    assert_eq!(eve.get("/api/me").await.json()["user"], "eve");
    // A second sign-out succeeds.
    assert_eq!(ada.post("/logout", "").await.status, 204);
}

#[tokio::test]
async fn a_new_login_replaces_the_previous_session() {
    let gateway = TestGateway::start().await;
    let mut browser = gateway.browser("ada").await;
    let before = browser.clone();
    assert_eq!(browser.login("eve", "correct horse").await.status, 204);
    assert_ne!(before.cookie, browser.cookie);
    assert_eq!(browser.get("/api/me").await.json()["user"], "eve");
    // A late request with the old cookie must not clear the new one.
    let late = before.get("/api/me").await;
    late.assert_problem(401, "sign-in-first");
    assert!(!late.headers.contains_key(SET_COOKIE), "{late:?}");
}

/// The revocation of the previous session continues in the background.
#[tokio::test]
async fn a_revocation_that_hangs_does_not_delay_requests() {
    let gateway = TestGateway::start().await;
    let mut browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Logout, Fault::hang());
    let before = browser.clone();
    let started = Instant::now();
    assert_eq!(browser.login("eve", "correct horse").await.status, 204);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    before.get("/api/me").await.assert_problem(401, "sign-in-first");
    assert_eq!(browser.get("/api/me").await.json()["user"], "eve");
    let started = Instant::now();
    assert_eq!(browser.post("/logout", "").await.status, 204);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    browser.get("/api/me").await.assert_problem(401, "sign-in-first");
}

/// The response arrives after the new cookie, and would remove it.
#[tokio::test]
async fn a_late_response_to_the_previous_session_does_not_clear_the_new_cookie() {
    let gateway = TestGateway::start().await;
    let mut browser = gateway.browser("ada").await;
    gateway.kit.expire_access_tokens();
    let gate = gateway.kit.hold_unauthorized();
    let late = browser.spawn_get("/api/me");
    gate.arrived(1).await;
    assert_eq!(browser.login("eve", "correct horse").await.status, 204);
    gate.open();
    let late = late.await.unwrap();
    late.assert_problem(401, "sign-in-first");
    assert!(!late.headers.contains_key(SET_COOKIE), "{late:?}");
    assert_eq!(browser.get("/api/me").await.json()["user"], "eve");
}

#[tokio::test]
async fn a_failed_login_keeps_the_current_session() {
    let gateway = TestGateway::start().await;
    let mut browser = gateway.browser("ada").await;
    browser.login("ada", "wrong").await.assert_problem(401, "wrong-credentials");
    assert_eq!(browser.get("/api/me").await.json()["user"], "ada");
}

#[tokio::test]
async fn an_ended_session_is_reported_and_its_cookie_cleared() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    gateway.kit.revoke("ada");
    let response = browser.get("/api/me").await;
    response.assert_problem(401, "session-ended");
    assert!(response.clears_cookie());
    browser.get("/api/me").await.assert_problem(401, "sign-in-first");
    assert_eq!(gateway.kit.violations(), []);
}

/// While a request holds the session, the gateway can tell an ended session from an unknown one.
#[tokio::test]
async fn a_session_that_ended_without_a_waiter_is_reported_to_the_next_request() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Api, Fault::hang().times(1));
    let held = browser.spawn_get("/api/me");
    wait_for_counters(&gateway.kit, |counters| counters.api > 0).await;
    gateway.kit.revoke("ada");
    let gate = gateway.kit.hold_refreshes();
    let call = browser.spawn_get("/api/me");
    gate.arrived(1).await;
    disconnect(call).await;
    gate.open();
    while browser.get("/session").await.json()["state"] != "ended" {
        sleep(Duration::from_millis(5)).await;
    }
    let response = browser.get("/api/me").await;
    response.assert_problem(401, "session-ended");
    assert!(response.clears_cookie());
    let response = browser.get("/api/me").await;
    response.assert_problem(401, "sign-in-first");
    assert!(!response.headers.contains_key(SET_COOKIE));
    held.abort();
}

/// The gauge excludes an ended session before any further request with its cookie.
#[tokio::test]
async fn a_session_that_has_ended_is_not_counted() {
    let gateway = TestGateway::start().await;
    let (ada, eve) = (gateway.browser("ada").await, gateway.browser("eve").await);
    assert_eq!(gateway.metric("gateway_sessions").await, 2);
    gateway.kit.revoke("ada");
    ada.get("/api/me").await.assert_problem(401, "session-ended");
    assert_eq!(gateway.metric("gateway_sessions").await, 1);
    eve.post("/logout", "").await;
    assert_eq!(gateway.metric("gateway_sessions").await, 0);
}

#[tokio::test]
async fn a_token_is_refreshed_before_its_expiry_if_configured() {
    let gateway = TestGateway::start_with(|settings| settings.refresh_early = Some(Duration::from_secs(10))).await;
    gateway.kit.configure(|settings| settings.access_lifetime = Duration::from_secs(2));
    let browser = gateway.browser("ada").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while gateway.kit.counters().granted < 2 {
        assert!(Instant::now() < deadline);
        assert_eq!(browser.get("/api/me").await.status, 200);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(gateway.kit.counters().unauthorized(), 0);
}

#[tokio::test]
async fn a_request_without_a_session_is_rejected() {
    let gateway = TestGateway::start().await;
    let mut anonymous = gateway.anonymous();
    anonymous.get("/api/me").await.assert_problem(401, "sign-in-first");
    for cookie in ["session=", "session=x", &format!("session={}", "A".repeat(22)), "session=\u{1}", ";;;=;"] {
        anonymous.cookie = Some(cookie.to_owned());
        if http::HeaderValue::from_str(cookie).is_ok() {
            anonymous.get("/api/me").await.assert_problem(401, "sign-in-first");
        }
    }
    assert_eq!(gateway.kit.counters().api, 0);
}

#[tokio::test]
async fn a_full_gateway_rejects_a_login_revokes_its_tokens_and_evicts_no_session() {
    let gateway = TestGateway::start_with(|settings| settings.max_sessions = 2).await;
    let (first, second) = (gateway.browser("ada").await, gateway.browser("eve").await);
    for attempt in 1..=10 {
        let mut bob = gateway.anonymous();
        let refused = bob.login("bob", "correct horse").await;
        refused.assert_problem(503, "too-many-sessions");
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(bob.cookie, None);
        assert_eq!(gateway.kit.counters().logouts, attempt);
    }
    for (browser, user) in [(&first, "ada"), (&second, "eve")] {
        assert_eq!(browser.get("/api/me").await.json()["user"], user);
    }
    first.post("/logout", "").await;
    let bob = gateway.browser("bob").await;
    assert_eq!(bob.get("/api/me").await.json()["user"], "bob");
    assert_eq!(second.get("/api/me").await.json()["user"], "eve");
}

/// The session that the login replaces makes room for it.
#[tokio::test]
async fn a_user_of_a_full_gateway_can_log_in_again() {
    let gateway = TestGateway::start_with(|settings| settings.max_sessions = 2).await;
    let (mut ada, eve) = (gateway.browser("ada").await, gateway.browser("eve").await);
    for user in ["ada", "bob", "ada"] {
        let before = ada.clone();
        assert_eq!(ada.login(user, "correct horse").await.status, 204);
        assert_eq!(ada.get("/api/me").await.json()["user"], user);
        before.get("/api/me").await.assert_problem(401, "sign-in-first");
    }
    assert_eq!(eve.get("/api/me").await.json()["user"], "eve");
    // Others still find no room, whatever cookie they send.
    let mut stranger = gateway.anonymous();
    stranger.cookie = Some("session=AAAAAAAAAAAAAAAAAAAAAA".to_owned());
    stranger.login("bob", "correct horse").await.assert_problem(503, "too-many-sessions");
    // Nor does a login that fails end the session.
    ada.login("ada", "wrong").await.assert_problem(401, "wrong-credentials");
    assert_eq!(ada.get("/api/me").await.json()["user"], "ada");
}

/// An earlier request is still pending and holds the session.
#[tokio::test]
async fn the_end_of_a_session_applies_to_the_next_request() {
    let gateway = TestGateway::start().await;
    for revoked in [false, true] {
        let browser = gateway.browser("ada").await;
        gateway.kit.inject(Route::Api, Fault::hang().times(1));
        let before = gateway.kit.counters().api;
        let call = browser.spawn_get("/api/me");
        wait_for_counters(&gateway.kit, |counters| counters.api > before).await;
        if revoked {
            gateway.kit.revoke("ada");
            let response = browser.get("/api/me").await;
            response.assert_problem(401, "session-ended");
            assert!(response.clears_cookie());
        } else {
            assert_eq!(browser.post("/logout", "").await.status, 204);
        }
        let api_requests = gateway.kit.counters().api;
        for _ in 0..3 {
            let response = browser.get("/api/me").await;
            response.assert_problem(401, "sign-in-first");
            assert!(!response.headers.contains_key(SET_COOKIE));
        }
        assert_eq!(gateway.kit.counters().api, api_requests, "no request reaches the upstream");
        call.abort();
    }
}

/// An API that allows anonymous requests must not take a user's request for one.
#[tokio::test]
async fn a_request_whose_session_ends_before_the_send_is_not_sent_without_a_token() {
    let anonymous_requests = Arc::<AtomicUsize>::default();
    let api = {
        let anonymous_requests = anonymous_requests.clone();
        async move |headers: HeaderMap| {
            if headers.contains_key(AUTHORIZATION) {
                return (StatusCode::UNAUTHORIZED, "expired");
            }
            anonymous_requests.fetch_add(1, Ordering::Relaxed);
            (StatusCode::OK, "anonymous")
        }
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(api)), |_| {}).await;
    for revoked in [false, true] {
        let browser = gateway.browser("ada").await;
        if revoked {
            gateway.kit.revoke("ada");
        }
        let gate = gateway.kit.hold_refreshes();
        let call = |browser: Browser| tokio::spawn(async move { browser.post("/api/act", "once").await });
        let first = call(browser.clone());
        gate.arrived(1).await;
        // Its token has been rejected before, so it waits for the refresh.
        let second = call(browser.clone());
        sleep(Duration::from_millis(100)).await;
        if !revoked {
            assert_eq!(browser.post("/logout", "").await.status, 204);
        }
        gate.open();
        let mut cleared = false;
        for call in [first, second] {
            let response = call.await.unwrap();
            assert_eq!(response.status, 401, "{response:?}");
            let ended = revoked && response.json()["type"] == "/problems/session-ended";
            response.assert_problem(401, if ended { "session-ended" } else { "sign-in-first" });
            // After a sign-out, the response to the logout has cleared the cookie.
            assert_eq!(response.clears_cookie(), ended, "{response:?}");
            cleared |= response.clears_cookie();
        }
        assert_eq!(cleared, revoked);
        assert_eq!(anonymous_requests.load(Ordering::Relaxed), 0);
    }
}

/// A session with a pending request is not idle.
#[tokio::test]
async fn an_idle_session_is_signed_out_and_its_cookie_rejected() {
    let gateway = TestGateway::start_with(|settings| settings.idle = Duration::from_secs(1)).await;
    let busy = gateway.browser("eve").await;
    gateway.kit.inject(Route::Api, Fault::hang().of("eve").times(1));
    let call = busy.spawn_get("/api/me");
    let idle = gateway.browser("ada").await;
    assert_eq!(idle.get("/api/me").await.status, 200);
    let started = Instant::now();
    wait_for_counters(&gateway.kit, |counters| counters.logouts >= 1).await;
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    let api_requests = gateway.kit.counters().api;
    let response = idle.get("/api/me").await;
    response.assert_problem(401, "sign-in-first");
    assert!(!response.headers.contains_key(SET_COOKIE));
    assert_eq!(idle.get("/session").await.json(), json!({ "state": "signed_out" }));
    assert_eq!(gateway.kit.counters().api, api_requests, "no request reaches the upstream");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(busy.get("/session").await.json()["state"], "active");
    // The client disconnects, and the session becomes idle.
    call.abort();
    wait_for_counters(&gateway.kit, |counters| counters.logouts >= 2).await;
    busy.get("/api/me").await.assert_problem(401, "sign-in-first");
}

/// Pages poll the state of their session without their user.
#[tokio::test]
async fn a_poll_of_the_state_is_no_use_of_the_session() {
    let gateway = TestGateway::start_with(|settings| settings.idle = Duration::from_secs(1)).await;
    let browser = gateway.browser("ada").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while browser.get("/session").await.json()["state"] == "active" {
        assert!(Instant::now() < deadline, "the session has not become idle");
        sleep(Duration::from_millis(50)).await;
    }
    wait_for_counters(&gateway.kit, |counters| counters.logouts == 1).await;
    browser.get("/api/me").await.assert_problem(401, "sign-in-first");
}

#[tokio::test]
async fn concurrent_refreshes_stay_within_their_limit() {
    let gateway = TestGateway::start_with(|settings| settings.refreshes_in_flight = 2).await;
    let mut users = Vec::new();
    for number in 0..8 {
        users.push(gateway.browser(&format!("user-{number}")).await);
    }
    gateway.kit.expire_access_tokens();
    let gate = gateway.kit.hold_refreshes();
    let calls: Vec<_> = users.iter().map(|user| user.spawn_get("/api/me")).collect();
    gate.arrived(2).await;
    wait_for_counters(&gateway.kit, |counters| counters.unauthorized() >= 8).await;
    // Time for a refresh over the limit to arrive.
    sleep(Duration::from_millis(200)).await;
    assert_eq!(gate.count(), 2);
    gateway.kit.inject(Route::Refresh, Fault::delay(Duration::from_millis(20)));
    gate.open();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().json()["user"], format!("user-{number}"));
    }
    let refreshes: Vec<_> = gateway.kit.log().into_iter().filter(|entry| entry.route == Route::Refresh).collect();
    assert_eq!(refreshes.len(), 8);
    for entry in &refreshes {
        let concurrent = refreshes.iter().filter(|other| (other.at..other.at + other.took).contains(&entry.at)).count();
        assert!(concurrent <= 2, "{concurrent} at once");
    }
    assert_eq!(gateway.kit.violations(), []);
}

#[tokio::test]
async fn an_invalid_login_is_rejected() {
    let gateway = TestGateway::start().await;
    let browser = gateway.anonymous();
    let post = async |kind: &str, body: String| {
        let request = browser.request(Method::POST, "/login").header(CONTENT_TYPE, kind);
        browser.fetch(request.body(body.into()).unwrap()).await
    };
    post("text/plain", "{}".into()).await.assert_problem(415, "wrong-media-type");
    post("application/json", "[]".into()).await.assert_problem(400, "malformed-request");
    post("application/json", "{".into()).await.assert_problem(400, "malformed-request");
    post("application/json", format!("\"{}\"", "x".repeat(20_000))).await.assert_problem(413, "body-too-large");
    browser.get("/login").await.assert_problem(405, "method-not-allowed");
    assert_eq!(gateway.kit.counters().logins, 0);

    gateway.kit.inject(Route::Login, Fault::status(503).header("retry-after", "7").times(1));
    let response = post("application/json", json!({"username": "ada", "password": "x"}).to_string()).await;
    response.assert_problem(503, "auth-server-unavailable");
    assert_eq!(response.headers["retry-after"], "7");
    gateway.kit.inject(Route::Login, Fault::status(404).times(1));
    let response = post("application/json", json!({"username": "ada", "password": "x"}).to_string()).await;
    response.assert_problem(502, "auth-server-failed");
}
