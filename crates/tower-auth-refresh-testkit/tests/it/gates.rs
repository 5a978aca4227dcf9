//! Gates: responses that the test holds back.

use tower_auth_refresh_testkit::TestServer;

use crate::client::{self, Client};

#[tokio::test]
async fn a_counting_gate_holds_401s_until_the_last_has_arrived() {
    let server = TestServer::start().await.unwrap();
    let client = Client::http2(&server);
    let tokens = client.login("ada").await;
    server.expire_access_tokens();
    server.hold_unauthorized_until(100);
    let call = || {
        let (client, token) = (client.clone(), tokens.access_token.clone());
        tokio::spawn(async move { client.get("/api/me", &token).await.unwrap().status })
    };
    let mut calls: Vec<_> = (0..99).map(|_| call()).collect();
    let gate = server.hold_unauthorized();
    calls.push(call());
    // Both gates hold the last response; its arrival opens the first gate.
    gate.arrived(1).await;
    gate.open();
    for call in calls {
        assert_eq!(call.await.unwrap(), 401);
    }
    // The first gate held these hundred responses only.
    assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 401);
    let counters = server.counters();
    assert_eq!((counters.unauthorized(), counters.generations_challenged), (101, 1));
}

#[tokio::test]
async fn a_held_refresh_has_rotated_and_completes_when_the_gate_opens() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    let gate = server.hold_refreshes();
    let refresh = client.spawn_refresh(&tokens.refresh_token);
    gate.arrived(1).await;
    assert_eq!((server.counters().granted, gate.count()), (1, 1));
    assert!(!refresh.is_finished());
    gate.open();
    let second = refresh.await.unwrap().unwrap().tokens();
    // An open gate holds no response.
    client.refresh(&second.refresh_token).await.unwrap().tokens();
}

#[tokio::test]
async fn a_gate_for_one_user_does_not_hold_other_users() {
    let (server, client) = client::start().await;
    let (ada, bob) = (client.login("ada").await, client.login("bob").await);
    let gate = server.hold_refreshes_of("ada");
    let held = client.spawn_refresh(&ada.refresh_token);
    gate.arrived(1).await;
    client.refresh(&bob.refresh_token).await.unwrap().tokens();
    drop(gate);
    assert_eq!(held.await.unwrap().unwrap().status, 200);
}
