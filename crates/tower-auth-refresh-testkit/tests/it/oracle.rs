//! Who presents a superseded refresh token is caught, unless it was the kit's own doing.

use std::time::Duration;

use tower_auth_refresh_testkit::{Fault, Rotation, Route, TestServer};

use crate::client::Client;

#[tokio::test]
async fn a_superseded_token_is_a_violation_in_a_grace_window_too() {
    for rotation in [Rotation::Strict, Rotation::Grace(Duration::from_secs(60))] {
        let server = TestServer::start().await.unwrap();
        let client = Client::of(&server);
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
async fn an_answer_that_the_kit_withheld_excuses_one_more_try() {
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
        let server = TestServer::start().await.unwrap();
        let client = Client::of(&server);
        server.configure(|settings| settings.rotation = Rotation::Grace(Duration::from_secs(60)));
        let first = client.login("ada").await;
        server.inject(Route::Refresh, fault().times(1));
        // The head at most: some bodies have no end.
        drop(client.open(client.refresh_request(&first.refresh_token)).await);
        assert_eq!((server.counters().granted, server.counters().faults), (1, 1), "{:?}", fault());

        client.refresh(&first.refresh_token).await.unwrap().tokens();
        assert_eq!((server.counters().excused, server.counters().violations), (1, 0), "{:?}", fault());
        // The excuse is used up.
        client.refresh(&first.refresh_token).await.unwrap().tokens();
        assert_eq!((server.counters().excused, server.counters().violations), (1, 1), "{:?}", fault());
    }
}

#[tokio::test]
async fn a_client_that_gives_up_on_a_held_answer_is_excused() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let first = client.login("ada").await;
    let gate = server.hold_refreshes();
    let mut unanswered = server.subscribe();
    let refresh = tokio::spawn({
        let (client, token) = (client.clone(), first.refresh_token.clone());
        async move { client.refresh(&token).await }
    });
    gate.arrived(1).await;
    refresh.abort();
    // Logged once the server has noticed.
    let entry = unanswered.recv().await.unwrap();
    assert_eq!((entry.route, entry.status), (Route::Refresh, None));
    drop(gate);
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 401);
    assert_eq!((server.counters().excused, server.counters().violations), (1, 0));
}

#[tokio::test]
async fn what_was_never_processed_was_never_superseded() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let first = client.login("ada").await;
    server.inject(Route::Refresh, Fault::drop_connection().times(1));
    server.inject(Route::Refresh, Fault::status(503).times(1));
    client.refresh(&first.refresh_token).await.unwrap_err();
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 503);
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    let counters = server.counters();
    assert_eq!((counters.refreshes, counters.granted, counters.excused, counters.violations), (3, 1, 0, 0));
}

#[tokio::test]
async fn a_late_answer_that_arrived_excuses_nothing() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let first = client.login("ada").await;
    server.inject(Route::Refresh, Fault::delay(Duration::from_millis(1)).after_processing().times(1));
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    client.refresh(&first.refresh_token).await.unwrap();
    assert_eq!((server.counters().excused, server.counters().violations), (0, 1));
}

#[tokio::test]
async fn a_test_that_loses_the_answer_itself_can_excuse() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let (ada, bob) = (client.login("ada").await, client.login("bob").await);
    client.refresh(&ada.refresh_token).await.unwrap();
    client.refresh(&bob.refresh_token).await.unwrap();
    server.excuse("ada");
    client.refresh(&ada.refresh_token).await.unwrap();
    client.refresh(&bob.refresh_token).await.unwrap();
    assert_eq!((server.user("ada").excused, server.user("ada").violations), (1, 0));
    assert_eq!((server.user("bob").excused, server.user("bob").violations), (0, 1));
}
