//! No user ever sees what is another's.

use axum::body::Body;
use http::Method;
use tokio::task::JoinSet;

use crate::support::World;

const USERS: usize = 12;
const CALLS: usize = 300;

/// Every answer says whose token came with its request; every request says whose it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn users_who_refresh_at_once_never_cross() {
    let world = World::start().await;
    let mut calls = JoinSet::new();
    for number in 0..USERS {
        let user = format!("user-{number}");
        let browser = world.browser(&user).await;
        for lane in 0..4 {
            let (browser, user, kit) = (browser.clone(), user.clone(), world.kit.kit().clone());
            calls.spawn(async move {
                let mut refused = 0;
                for call in 0..CALLS / 4 {
                    match fastrand::u8(..200) {
                        0 => kit.expire_access_tokens(),
                        1..10 => kit.expire_access_tokens_of(&user),
                        _ => {}
                    }
                    let canary = format!("{user}-{lane}-{call}");
                    let answer = if fastrand::bool() {
                        browser.get(&format!("/api/whose?canary={canary}")).await
                    } else {
                        let request = browser.request(Method::POST, &format!("/api/upload?canary={canary}"));
                        browser.ask(request.body(Body::from(canary.clone())).unwrap()).await
                    };
                    if answer.status == 401 {
                        // Expired again before the replay: once is enough, so the API's own answer passes.
                        assert!(answer.headers.contains_key("www-authenticate"), "{answer:?}");
                        refused += 1;
                        continue;
                    }
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let seen = answer.json();
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
    assert!(refused < USERS * CALLS / 20, "{refused}");
    let counters = world.kit.counters();
    assert_eq!(world.kit.violations(), []);
    assert_eq!(counters.max_concurrent_refreshes, 1);
    assert!(counters.granted > 50, "{counters:?}");
    assert_eq!(counters.api_by_status[&200], (USERS * CALLS - refused) as u64);
    assert_eq!(counters.granted, counters.generations_challenged);
}

/// A thousand times over, for both at the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_users_whose_tokens_expire_together_never_cross() {
    const ROUNDS: u64 = 1000;
    let world = World::start().await;
    let users = ["ada", "eve"];
    let browsers = [world.browser(users[0]).await, world.browser(users[1]).await];
    for round in 1..=ROUNDS {
        world.kit.expire_access_tokens();
        let calls = (0..4).map(|call| {
            let (user, browser) = (users[call % 2], &browsers[call % 2]);
            async move {
                let canary = format!("{user}-{round}-{call}");
                let answer = browser.get(&format!("/api/whose?canary={canary}")).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                let seen = answer.json();
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
    let counters = world.kit.counters();
    assert_eq!(world.kit.violations(), []);
    assert_eq!((counters.granted, counters.max_concurrent_refreshes), (2 * ROUNDS, 1));
}
