//! The oracle: a use of a superseded refresh token is a violation, unless the kit withheld the successor.

use std::time::Duration;

use tower_auth_refresh_testkit::{Fault, Rotation, Route};

use crate::client;

#[tokio::test]
async fn a_superseded_token_is_a_violation_even_in_a_grace_window() {
    for rotation in [Rotation::Strict, Rotation::Grace(Duration::from_secs(60))] {
        let (server, client) = client::start().await;
        server.configure(|settings| settings.rotation = rotation);
        let first = client.login("ada").await;
        client.refresh(&first.refresh_token).await.unwrap().tokens();
        assert_eq!(server.violations(), []);
        client.refresh(&first.refresh_token).await.unwrap();

        let violations = server.violations();
        assert_eq!(violations.len(), 1, "{rotation:?}");
        assert_eq!((&*violations[0].user, violations[0].generation, violations[0].current), ("ada", 1, 2));
        assert_eq!((server.user("ada").violations, server.user("bob").violations), (1, 0));
    }
}

#[tokio::test]
async fn a_response_that_the_kit_withheld_allows_one_reuse() {
    let withheld: [fn() -> Fault; 7] = [
        || Fault::drop_connection().after_processing(),
        || Fault::status(502).after_processing(),
        Fault::malformed,
        || Fault::huge(1_000),
        Fault::stall,
        || Fault::drip(Duration::from_secs(60)),
        || Fault::alter(|answer| answer["access_token"] = "two\r\nlines".into()),
    ];
    for fault in withheld {
        let (server, client) = client::start().await;
        server.configure(|settings| settings.rotation = Rotation::Grace(Duration::from_secs(60)));
        let first = client.login("ada").await;
        server.inject(Route::Refresh, fault().times(1));
        // The body isn't read, because some of the bodies are endless.
        drop(client.open(client.refresh_request(&first.refresh_token)).await);
        assert_eq!((server.counters().granted, server.counters().faults), (1, 1), "{:?}", fault());

        client.refresh(&first.refresh_token).await.unwrap().tokens();
        assert_eq!((server.counters().allowed_reuses, server.counters().violations), (1, 0), "{:?}", fault());
        // The second reuse isn't allowed.
        client.refresh(&first.refresh_token).await.unwrap().tokens();
        assert_eq!((server.counters().allowed_reuses, server.counters().violations), (1, 1), "{:?}", fault());
    }
}

#[tokio::test]
async fn a_client_that_aborts_a_held_refresh_is_allowed_one_reuse() {
    let (server, client) = client::start().await;
    let first = client.login("ada").await;
    let gate = server.hold_refreshes();
    let mut entries = server.subscribe();
    let refresh = client.spawn_refresh(&first.refresh_token);
    gate.arrived(1).await;
    refresh.abort();
    // The request is logged when the server notices the abort.
    let entry = entries.recv().await.unwrap();
    assert_eq!((entry.route, entry.status), (Route::Refresh, None));
    drop(gate);
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 401);
    assert_eq!((server.counters().allowed_reuses, server.counters().violations), (1, 0));
}

#[tokio::test]
async fn a_refresh_that_was_not_processed_supersedes_no_token() {
    let (server, client) = client::start().await;
    let first = client.login("ada").await;
    server.inject(Route::Refresh, Fault::drop_connection().times(1));
    server.inject(Route::Refresh, Fault::status(503).times(1));
    client.refresh(&first.refresh_token).await.unwrap_err();
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 503);
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    let counters = server.counters();
    assert_eq!((counters.refreshes, counters.granted, counters.allowed_reuses, counters.violations), (3, 1, 0, 0));
}

#[tokio::test]
async fn a_delayed_response_that_arrives_allows_no_reuse() {
    let (server, client) = client::start().await;
    let first = client.login("ada").await;
    server.inject(Route::Refresh, Fault::delay(Duration::from_millis(1)).after_processing().times(1));
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    client.refresh(&first.refresh_token).await.unwrap();
    assert_eq!((server.counters().allowed_reuses, server.counters().violations), (0, 1));
}

#[tokio::test]
async fn a_test_can_allow_a_reuse_for_one_user() {
    let (server, client) = client::start().await;
    let (ada, bob) = (client.login("ada").await, client.login("bob").await);
    client.refresh(&ada.refresh_token).await.unwrap();
    client.refresh(&bob.refresh_token).await.unwrap();
    server.allow_reuse_once("ada");
    client.refresh(&ada.refresh_token).await.unwrap();
    client.refresh(&bob.refresh_token).await.unwrap();
    assert_eq!((server.user("ada").allowed_reuses, server.user("ada").violations), (1, 0));
    assert_eq!((server.user("bob").allowed_reuses, server.user("bob").violations), (0, 1));
}
