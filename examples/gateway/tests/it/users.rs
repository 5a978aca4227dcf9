//! Isolation of users.

use axum::body::Body;
use http::Method;
use tokio::task::JoinSet;

use crate::test_gateway::TestGateway;

const USERS: usize = 12;
const CALLS: usize = 300;

/// Each request names its user in a canary, and each response names the user of the token that arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn responses_are_never_mixed_up_between_users_that_refresh_concurrently() {
    let gateway = TestGateway::start().await;
    let (mut calls, mut browsers) = (JoinSet::new(), Vec::new());
    for number in 0..USERS {
        let user = format!("user-{number}");
        let browser = gateway.browser(&user).await;
        browsers.push(browser.clone());
        for lane in 0..4 {
            let (browser, user, kit) = (browser.clone(), user.clone(), gateway.kit.kit().clone());
            calls.spawn(async move {
                let mut refused = 0;
                for call in 0..CALLS / 4 {
                    match fastrand::u8(..200) {
                        0 => kit.expire_access_tokens(),
                        1..10 => kit.expire_access_tokens_of(&user),
                        _ => {}
                    }
                    let canary = format!("{user}-{lane}-{call}");
                    let response = if fastrand::bool() {
                        browser.get(&format!("/api/whose?canary={canary}")).await
                    } else {
                        let request = browser.request(Method::POST, &format!("/api/upload?canary={canary}"));
                        browser.fetch(request.body(Body::from(canary.clone())).unwrap()).await
                    };
                    if response.status == 401 {
                        // The token has expired again before the replay, and the API's own 401 passes.
                        assert!(response.headers.contains_key("www-authenticate"), "{response:?}");
                        refused += 1;
                        continue;
                    }
                    assert_eq!(response.status, 200, "{response:?}");
                    let seen = response.json();
                    assert_eq!(seen["user"], user, "the token of {} came with {canary}", seen["user"]);
                    assert_eq!(seen["query"], format!("canary={canary}"));
                }
                refused
            });
        }
    }
    let mut refused = 0;
    while let Some(done) = calls.join_next().await {
        refused += done.unwrap();
    }
    // Nothing else than a replay was refused: its token had expired again.
    assert_eq!(gateway.metric(r#"gateway_replays_total{result="refused"}"#).await, refused as u64);
    // The last tokens that were refused are refreshed too.
    for browser in browsers {
        assert_eq!(browser.get("/api/whose?canary=last").await.status, 200);
    }
    let counters = gateway.kit.counters();
    assert_eq!(gateway.kit.violations(), []);
    assert_eq!(counters.max_concurrent_refreshes, 1);
    assert!(counters.granted > 50, "{counters:?}");
    assert_eq!(counters.api_by_status[&200], (USERS * CALLS - refused + USERS) as u64);
    assert_eq!(counters.granted, counters.generations_challenged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn responses_are_never_mixed_up_between_two_users_whose_tokens_expire_together() {
    const ROUNDS: u64 = 1000;
    let gateway = TestGateway::start().await;
    let users = ["ada", "eve"];
    let browsers = [gateway.browser(users[0]).await, gateway.browser(users[1]).await];
    for round in 1..=ROUNDS {
        gateway.kit.expire_access_tokens();
        let calls = (0..4).map(|call| {
            let (user, browser) = (users[call % 2], &browsers[call % 2]);
            async move {
                let canary = format!("{user}-{round}-{call}");
                let response = browser.get(&format!("/api/whose?canary={canary}")).await;
                assert_eq!(response.status, 200, "{response:?}");
                let seen = response.json();
                assert_eq!(
                    (seen["user"].as_str(), seen["generation"].as_u64()),
                    (Some(user), Some(round + 1)),
                    "{canary}"
                );
                assert_eq!(seen["query"], format!("canary={canary}"));
            }
        });
        futures_util::future::join_all(calls).await;
    }
    let counters = gateway.kit.counters();
    assert_eq!(gateway.kit.violations(), []);
    assert_eq!((counters.granted, counters.max_concurrent_refreshes), (2 * ROUNDS, 1));
}
