//! Signing in, signing out, and what ends a session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::header::{AUTHORIZATION, CONTENT_TYPE, SET_COOKIE};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tower_auth_refresh::Origin;
use tower_auth_refresh_testkit::{Fault, Route};

use crate::support::{Browser, World};

#[tokio::test]
async fn a_browser_gets_a_cookie_and_no_token() {
    let world = World::start().await;
    let mut browser = world.stranger();
    let answer = browser.login("ada", "correct horse").await;
    assert_eq!(answer.status, 204);
    let set = answer.headers[SET_COOKIE].to_str().unwrap();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert_eq!(pair.strip_prefix("session=").unwrap().len(), 22, "128 bits");
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
        // A request that is late must not clear the cookie of the login after this.
        assert!(!answer.headers.contains_key(SET_COOKIE));
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
    // It may come late, and the browser has the new cookie by then.
    let late = before.get("/api/me").await;
    late.is_problem(401, "sign-in-first");
    assert!(!late.headers.contains_key(SET_COOKIE), "{late:?}");
}

/// To revoke what was there before is for the gateway and the authorization server alone.
#[tokio::test]
async fn a_revocation_that_hangs_holds_nobody_up() {
    let world = World::start().await;
    let mut browser = world.browser("ada").await;
    world.kit.inject(Route::Logout, Fault::hang());
    let before = browser.clone();
    let begun = Instant::now();
    assert_eq!(browser.login("eve", "correct horse").await.status, 204);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    before.get("/api/me").await.is_problem(401, "sign-in-first");
    assert_eq!(browser.get("/api/me").await.json()["user"], "eve");
    let begun = Instant::now();
    assert_eq!(browser.post("/logout", "").await.status, 204);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    browser.get("/api/me").await.is_problem(401, "sign-in-first");
}

/// It comes after the new cookie, and would make the browser forget that.
#[tokio::test]
async fn a_late_answer_to_the_session_before_does_not_clear_the_new_ones_cookie() {
    let world = World::start().await;
    let mut browser = world.browser("ada").await;
    world.kit.expire_access_tokens();
    let gate = world.kit.hold_unauthorized();
    let late = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get("/api/me").await }
    });
    gate.arrived(1).await;
    assert_eq!(browser.login("eve", "correct horse").await.status, 204);
    gate.open();
    let late = late.await.unwrap();
    late.is_problem(401, "sign-in-first");
    assert!(!late.headers.contains_key(SET_COOKIE), "{late:?}");
    assert_eq!(browser.get("/api/me").await.json()["user"], "eve");
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

/// The next to ask hears of it, as long as something holds the session: then it can be told from one that never was.
#[tokio::test]
async fn a_session_that_ended_while_nobody_asked_is_told_to_the_next_request() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    world.kit.inject(Route::Api, Fault::hang().times(1));
    let call = || {
        let browser = browser.clone();
        tokio::spawn(async move { browser.get("/api/me").await })
    };
    let held = call();
    while world.kit.counters().api == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    world.kit.revoke("ada");
    let gate = world.kit.hold_refreshes();
    let leaving = call();
    gate.arrived(1).await;
    leaving.abort();
    assert!(leaving.await.unwrap_err().is_cancelled());
    gate.open();
    while browser.get("/session").await.json()["state"] != "ended" {
        sleep(Duration::from_millis(5)).await;
    }
    let answer = browser.get("/api/me").await;
    answer.is_problem(401, "session-ended");
    assert!(answer.clears_cookie());
    let answer = browser.get("/api/me").await;
    answer.is_problem(401, "sign-in-first");
    assert!(!answer.headers.contains_key(SET_COOKIE));
    held.abort();
}

/// Nor before anybody asks for it again: the gauge says how many are signed in.
#[tokio::test]
async fn a_session_that_is_over_is_not_counted() {
    let world = World::start().await;
    let (ada, eve) = (world.browser("ada").await, world.browser("eve").await);
    assert_eq!(world.metric("gateway_sessions").await, 2);
    world.kit.revoke("ada");
    ada.get("/api/me").await.is_problem(401, "session-ended");
    assert_eq!(world.metric("gateway_sessions").await, 1);
    eve.post("/logout", "").await;
    assert_eq!(world.metric("gateway_sessions").await, 0);
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
    for cookie in ["session=", "session=x", &format!("session={}", "A".repeat(22)), "session=\u{1}", ";;;=;"] {
        stranger.cookie = Some(cookie.to_owned());
        if http::HeaderValue::from_str(cookie).is_ok() {
            stranger.get("/api/me").await.is_problem(401, "sign-in-first");
        }
    }
    assert_eq!(world.kit.counters().api, 0);
}

#[tokio::test]
async fn a_full_gateway_refuses_a_login_gives_the_tokens_back_and_evicts_nobody() {
    let world = World::start_with(|settings| settings.max_sessions = 2).await;
    let (first, second) = (world.browser("ada").await, world.browser("eve").await);
    for attempt in 1..=10 {
        let mut bob = world.stranger();
        let refused = bob.login("bob", "correct horse").await;
        refused.is_problem(503, "too-many-sessions");
        assert!(refused.headers.contains_key("retry-after"));
        assert_eq!(bob.cookie, None);
        assert_eq!(world.kit.counters().logouts, attempt);
    }
    for (browser, user) in [(&first, "ada"), (&second, "eve")] {
        assert_eq!(browser.get("/api/me").await.json()["user"], user);
    }
    first.post("/logout", "").await;
    let bob = world.browser("bob").await;
    assert_eq!(bob.get("/api/me").await.json()["user"], "bob");
    assert_eq!(second.get("/api/me").await.json()["user"], "eve");
}

/// Though a request of its is still on its way, and holds it.
#[tokio::test]
async fn a_session_that_is_over_is_over_for_the_next_request() {
    let world = World::start().await;
    for revoked in [false, true] {
        let browser = world.browser("ada").await;
        world.kit.inject(Route::Api, Fault::hang().times(1));
        let before = world.kit.counters().api;
        let call = tokio::spawn({
            let browser = browser.clone();
            async move { browser.get("/api/me").await }
        });
        while world.kit.counters().api == before {
            sleep(Duration::from_millis(5)).await;
        }
        if revoked {
            world.kit.revoke("ada");
            let answer = browser.get("/api/me").await;
            answer.is_problem(401, "session-ended");
            assert!(answer.clears_cookie());
        } else {
            assert_eq!(browser.post("/logout", "").await.status, 204);
        }
        let asked = world.kit.counters().api;
        for _ in 0..3 {
            let answer = browser.get("/api/me").await;
            answer.is_problem(401, "sign-in-first");
            assert!(!answer.headers.contains_key(SET_COOKIE));
        }
        assert_eq!(world.kit.counters().api, asked, "the upstream hears nothing of it");
        call.abort();
    }
}

/// An API that answers strangers too must not take a user's request for a stranger's.
#[tokio::test]
async fn a_request_whose_session_ends_before_it_is_sent_is_not_sent_without_a_token() {
    let strangers = Arc::<AtomicUsize>::default();
    let api = {
        let strangers = strangers.clone();
        async move |headers: HeaderMap| {
            if headers.contains_key(AUTHORIZATION) {
                return (StatusCode::UNAUTHORIZED, "expired");
            }
            strangers.fetch_add(1, Ordering::Relaxed);
            (StatusCode::OK, "hello, stranger")
        }
    };
    let world = World::with_upstream(Router::new().fallback(any(api)), |_| {}).await;
    for revoked in [false, true] {
        let browser = world.browser("ada").await;
        if revoked {
            world.kit.revoke("ada");
        }
        let gate = world.kit.hold_refreshes();
        let call = |browser: Browser| tokio::spawn(async move { browser.post("/api/act", "once").await });
        let first = call(browser.clone());
        gate.arrived(1).await;
        // Its token is known to be refused: it waits for a better one.
        let second = call(browser.clone());
        sleep(Duration::from_millis(100)).await;
        if !revoked {
            assert_eq!(browser.post("/logout", "").await.status, 204);
        }
        gate.open();
        let mut cleared = false;
        for call in [first, second] {
            let answer = call.await.unwrap();
            assert_eq!(answer.status, 401, "{answer:?}");
            let ended = revoked && answer.json()["type"] == "/problems/session-ended";
            answer.is_problem(401, if ended { "session-ended" } else { "sign-in-first" });
            // Where he has been signed out meanwhile, the answer to that did.
            assert_eq!(answer.clears_cookie(), ended, "{answer:?}");
            cleared |= answer.clears_cookie();
        }
        assert_eq!(cleared, revoked);
        assert_eq!(strangers.load(Ordering::Relaxed), 0);
    }
}

/// Whoever is in the middle of something is not idle.
#[tokio::test]
async fn an_idle_session_is_signed_out_and_its_cookie_dead() {
    let world = World::start_with(|settings| settings.idle = Duration::from_secs(1)).await;
    let busy = world.browser("eve").await;
    world.kit.inject(Route::Api, Fault::hang().of("eve").times(1));
    let call = tokio::spawn({
        let busy = busy.clone();
        async move { busy.get("/api/me").await }
    });
    let idle = world.browser("ada").await;
    assert_eq!(idle.get("/api/me").await.status, 200);
    let begun = Instant::now();
    reached(&world, 1).await;
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    let asked = world.kit.counters().api;
    let answer = idle.get("/api/me").await;
    answer.is_problem(401, "sign-in-first");
    assert!(!answer.headers.contains_key(SET_COOKIE));
    assert_eq!(idle.get("/session").await.json(), json!({ "state": "signed_out" }));
    assert_eq!(world.kit.counters().api, asked, "the upstream hears nothing of it");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(busy.get("/session").await.json()["state"], "active");
    // Her client leaves; she is idle from then on.
    call.abort();
    reached(&world, 2).await;
    busy.get("/api/me").await.is_problem(401, "sign-in-first");
}

/// Waits until the authorization server has heard of so many sign-outs.
async fn reached(world: &World, logouts: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while world.kit.counters().logouts < logouts {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_authorization_server_sees_no_more_refreshes_at_once_than_it_may() {
    let world = World::start_with(|settings| settings.refreshes_in_flight = 2).await;
    let mut users = Vec::new();
    for number in 0..8 {
        users.push(world.browser(&format!("user-{number}")).await);
    }
    world.kit.expire_access_tokens();
    let gate = world.kit.hold_refreshes();
    let calls: Vec<_> =
        users.iter().cloned().map(|user| tokio::spawn(async move { user.get("/api/me").await })).collect();
    gate.arrived(2).await;
    while world.kit.counters().unauthorized() < 8 {
        sleep(Duration::from_millis(5)).await;
    }
    // Time for one too many to arrive.
    sleep(Duration::from_millis(200)).await;
    assert_eq!(gate.count(), 2);
    world.kit.inject(Route::Refresh, Fault::delay(Duration::from_millis(20)));
    gate.open();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().json()["user"], format!("user-{number}"));
    }
    let refreshes: Vec<_> = world.kit.log().into_iter().filter(|entry| entry.route == Route::Refresh).collect();
    assert_eq!(refreshes.len(), 8);
    for entry in &refreshes {
        let there = refreshes.iter().filter(|other| (other.at..other.at + other.took).contains(&entry.at)).count();
        assert!(there <= 2, "{there} at once");
    }
    assert_eq!(world.kit.violations(), []);
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
