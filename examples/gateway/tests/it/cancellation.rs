//! Clients that go away.

use axum::body::Body;
use http::Method;
use tokio::time::{Duration, Instant, sleep};
use tower_auth_refresh_testkit::{Counters, Fault, Route};

use crate::support::World;

/// Long enough for the gateway to see a connection closed.
const HELD: Duration = Duration::from_millis(500);

/// The tab is closed while the refresh is under way: what it buys is kept.
#[tokio::test]
async fn a_client_that_leaves_in_mid_refresh_loses_no_token() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    for round in 1..=5 {
        world.kit.expire_access_tokens();
        let gate = world.kit.hold_refreshes();
        let leaving = browser.clone();
        let call = tokio::spawn(async move { leaving.get("/api/me").await });
        gate.arrived(1).await;
        // The server has rotated by now, and nobody knows the new token yet.
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        // Time for the gateway to see the connection closed.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(browser.get("/session").await.json()["state"], "refreshing");
        gate.open();
        assert_eq!(browser.get("/api/me").await.json()["generation"], round + 1);
        assert_eq!(world.kit.counters().granted, round);
    }
    assert_eq!(world.kit.violations(), []);
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_login_leaves_a_working_gateway() {
    let world = World::start().await;
    let browser = world.stranger();
    let calls: Vec<_> = (0..20)
        .map(|number: u64| {
            let mut browser = browser.clone();
            tokio::spawn(async move {
                let login = browser.login("ada", "correct horse");
                let _ = tokio::time::timeout(Duration::from_micros(number * 200), login).await;
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    let browser = world.browser("ada").await;
    assert_eq!(browser.get("/api/me").await.status, 200);
    let head = browser.request(Method::HEAD, "/api/me").body(Body::empty()).unwrap();
    let head = browser.ask(head).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

/// The credentials were right, but nobody is there any more to take the cookie: the session would be nobody's.
#[tokio::test]
async fn a_login_that_nobody_waits_for_is_undone() {
    let world = World::start().await;
    world.kit.inject(Route::Login, Fault::delay(HELD).after_processing());
    let mut browser = world.stranger();
    let login = tokio::spawn(async move { browser.login("ada", "correct horse").await });
    reached(&world, |counters| counters.logins == 1).await;
    login.abort();
    assert!(login.await.unwrap_err().is_cancelled());
    reached(&world, |counters| counters.logouts == 1).await;
    nobody_is_signed_in(&world).await;
}

/// Nor does one that is left later on: when the session before it is being signed out.
#[tokio::test]
async fn a_login_that_is_left_at_its_end_is_undone() {
    let world = World::start().await;
    let mut browser = world.browser("ada").await;
    world.kit.inject(Route::Logout, Fault::delay(HELD).times(1));
    let login = tokio::spawn(async move { browser.login("ada", "correct horse").await });
    reached(&world, |counters| counters.logouts == 1).await;
    login.abort();
    assert!(login.await.unwrap_err().is_cancelled());
    reached(&world, |counters| counters.logouts == 2).await;
    nobody_is_signed_in(&world).await;
}

async fn reached(world: &World, is_so: impl Fn(&Counters) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so(&world.kit.counters()) {
        assert!(Instant::now() < deadline, "{:?}", world.kit.counters());
        sleep(Duration::from_millis(5)).await;
    }
}

async fn nobody_is_signed_in(world: &World) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.metric("gateway_sessions").await != 0 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
}
