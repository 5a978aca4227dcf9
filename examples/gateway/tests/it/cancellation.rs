//! Clients that disconnect.

use axum::body::Body;
use http::Method;
use tokio::time::{Duration, Instant, sleep};
use tower_auth_refresh_testkit::{Fault, Route};

use crate::test_gateway::{TestGateway, disconnect, wait_for_counters};

/// Long enough for the gateway to notice a closed connection.
const HELD: Duration = Duration::from_millis(500);

/// The new tokens are kept although the browser tab is closed during the refresh.
#[tokio::test]
async fn a_client_that_disconnects_during_a_refresh_loses_no_token() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    for round in 1..=5 {
        gateway.kit.expire_access_tokens();
        let gate = gateway.kit.hold_refreshes();
        let call = browser.spawn_get("/api/me");
        gate.arrived(1).await;
        // The server has rotated the refresh token, and its response is still held.
        disconnect(call).await;
        // Time for the gateway to notice the closed connection.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(browser.get("/session").await.json()["state"], "refreshing");
        gate.open();
        assert_eq!(browser.get("/api/me").await.json()["generation"], round + 1);
        assert_eq!(gateway.kit.counters().granted, round);
    }
    assert_eq!(gateway.kit.violations(), []);
}

#[tokio::test]
async fn a_gateway_works_after_clients_disconnect_during_login() {
    let gateway = TestGateway::start().await;
    let browser = gateway.anonymous();
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
    let browser = gateway.browser("ada").await;
    assert_eq!(browser.get("/api/me").await.status, 200);
    let head = browser.request(Method::HEAD, "/api/me").body(Body::empty()).unwrap();
    let head = browser.fetch(head).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
}

/// Without a client to take the cookie, the session would stay unused.
#[tokio::test]
async fn a_login_is_undone_if_its_client_disconnects() {
    let gateway = TestGateway::start().await;
    gateway.kit.inject(Route::Login, Fault::delay(HELD).after_processing());
    let mut browser = gateway.anonymous();
    let login = tokio::spawn(async move { browser.login("ada", "correct horse").await });
    wait_for_counters(&gateway.kit, |counters| counters.logins == 1).await;
    disconnect(login).await;
    wait_for_counters(&gateway.kit, |counters| counters.logouts == 1).await;
    wait_for_no_session(&gateway).await;
}

#[tokio::test]
async fn a_login_is_undone_if_its_client_disconnects_during_the_previous_sessions_sign_out() {
    let gateway = TestGateway::start().await;
    let mut browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Logout, Fault::delay(HELD).times(1));
    let login = tokio::spawn(async move { browser.login("ada", "correct horse").await });
    wait_for_counters(&gateway.kit, |counters| counters.logouts == 1).await;
    disconnect(login).await;
    wait_for_counters(&gateway.kit, |counters| counters.logouts == 2).await;
    wait_for_no_session(&gateway).await;
}

#[tokio::test]
async fn a_login_that_is_undone_signs_no_other_session_of_its_user_out() {
    let gateway = TestGateway::start_with(|settings| settings.sessions_per_user = Some(1)).await;
    let desktop = gateway.browser("ada").await;
    gateway.kit.inject(Route::Login, Fault::delay(HELD).after_processing().times(1));
    let mut phone = gateway.anonymous();
    let login = tokio::spawn(async move { phone.login("ada", "correct horse").await });
    wait_for_counters(&gateway.kit, |counters| counters.logins == 2).await;
    disconnect(login).await;
    wait_for_counters(&gateway.kit, |counters| counters.logouts == 1).await;
    assert_eq!(desktop.get("/api/me").await.status, 200);
    // It has kept its place too.
    gateway.browser("ada").await;
    desktop.get("/api/me").await.assert_problem(401, "sign-in-first");
}

async fn wait_for_no_session(gateway: &TestGateway) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while gateway.metric("gateway_sessions").await != 0 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
}
