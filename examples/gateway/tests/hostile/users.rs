//! Users whose tokens expire all the time: no response, cookie or token of one reaches another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use http::Method;

use crate::test_gateway::TestGateway;

const USERS: usize = 20;

/// Twenty users with four callers each, all of whose tokens expire after every 500 requests. `HOSTILE_REQUESTS` is the number of requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_user_sees_anything_of_another() {
    let requests: usize = std::env::var("HOSTILE_REQUESTS").map_or(3_000, |requests| requests.parse().unwrap());
    let gateway = Arc::new(TestGateway::start().await);
    let sent = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    for user in 0..USERS {
        let name = format!("user-{user}");
        let browser = gateway.browser(&name).await;
        for caller in 0..4 {
            let (gateway, browser, name) = (gateway.clone(), browser.clone(), name.clone());
            let (sent, refused) = (sent.clone(), refused.clone());
            callers.push(tokio::spawn(async move {
                for number in 0.. {
                    match sent.fetch_add(1, Ordering::Relaxed) {
                        number if number >= requests => return,
                        number if number % 500 == 499 => gateway.kit.expire_access_tokens(),
                        _ => {}
                    }
                    let canary = format!("canary-{name}-{caller}-{number}");
                    let (method, body) =
                        if number % 3 == 0 { (Method::POST, canary.clone()) } else { (Method::GET, String::new()) };
                    let request =
                        browser.request(method, &format!("/api/headers?{canary}")).header("x-canary", &canary);
                    let response = browser.fetch(request.body(Body::from(body)).unwrap()).await;
                    if response.status != 200 {
                        // A token that has expired again before the replay.
                        assert!(matches!(response.status.as_u16(), 401 | 502 | 503), "{response:?}");
                        assert!(!String::from_utf8_lossy(&response.body).contains("canary"), "{response:?}");
                        refused.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let seen = response.json();
                    assert_eq!(seen["user"], *name, "{seen}");
                    assert_eq!(seen["headers"]["x-canary"], serde_json::json!([canary]), "{seen}");
                    assert_eq!(seen["query"], *canary, "{seen}");
                }
            }));
        }
    }
    for caller in callers {
        caller.await.unwrap();
    }
    let (refused, refreshes) = (refused.load(Ordering::Relaxed), gateway.kit.counters().granted);
    println!("users: {requests} requests, {refused} refused, {refreshes} refreshes");
    assert!(refused * 20 < requests, "{refused}");
    assert_eq!(gateway.kit.violations(), []);
}
