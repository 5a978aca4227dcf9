//! Clients that go away.

use axum::body::Body;
use http::Method;
use tokio::time::{Duration, sleep};

use crate::support::World;

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
