//! Signing in and out, and refreshing.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tower_auth_refresh_testkit::{Rotation, TestServer};

use crate::client::Client;

#[tokio::test]
async fn anybody_may_sign_in_but_with_the_wrong_password() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    client.login("ada").await;
    let refused = client.post("/auth/login", json!({ "username": "ada", "password": "wrong" })).await.unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json(), json!({ "error": "invalid_credentials" }));
}

#[tokio::test]
async fn with_a_password_table_nobody_else_gets_in() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    server.configure(|settings| settings.passwords = HashMap::from([("ada".into(), "lovelace".into())]));
    let login = async |user: &str, password: &str| {
        client.post("/auth/login", json!({ "username": user, "password": password })).await.unwrap().status
    };
    assert_eq!(login("ada", "lovelace").await, 200);
    assert_eq!(login("ada", "byron").await, 401);
    assert_eq!(login("bob", "lovelace").await, 401);
}

#[tokio::test]
async fn what_is_no_credentials_is_an_invalid_request() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let reply = client.post("/auth/refresh", json!({ "token": 7 })).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.json()), (400, json!({ "error": "invalid_request" })));
    assert_eq!(client.get("/auth/refresh", "none").await.unwrap().status, 405);
    assert_eq!(client.get("/elsewhere", "none").await.unwrap().status, 404);
}

#[tokio::test]
async fn a_refresh_rotates_both_tokens_and_the_next_generation_is_in_force() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    server.configure(|settings| settings.access_lifetime = Duration::from_millis(2500));
    let first = client.login("ada").await;
    assert_eq!((first.expires_in, first.token_type.as_str()), (2, "Bearer"));
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_ne!(second.access_token, first.access_token);
    assert_ne!(second.refresh_token, first.refresh_token);
    assert_eq!(client.get("/api/me", &second.access_token).await.unwrap().json()["generation"], 2);
    let third = client.refresh(&second.refresh_token).await.unwrap().tokens();
    assert_eq!(client.get("/api/me", &third.access_token).await.unwrap().json()["generation"], 3);
    assert_eq!((server.counters().refreshes, server.counters().granted), (2, 2));
}

#[tokio::test]
async fn reuse_revokes_the_whole_family_but_no_other() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let (first, elsewhere) = (client.login("ada").await, client.login("ada").await);
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();

    let reused = client.refresh(&first.refresh_token).await.unwrap();
    assert_eq!((reused.status.as_u16(), reused.json()), (401, json!({ "error": "invalid_grant" })));
    assert_eq!(client.refresh(&second.refresh_token).await.unwrap().status, 401);
    assert_eq!(client.get("/api/me", &second.access_token).await.unwrap().status, 401);

    assert_eq!(client.get("/api/me", &elsewhere.access_token).await.unwrap().status, 200);
    client.refresh(&elsewhere.refresh_token).await.unwrap().tokens();
}

#[tokio::test]
async fn of_eight_refreshes_with_one_token_exactly_one_is_granted() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let tokens = client.login("ada").await;
    let gate = server.hold_refreshes();
    let refreshes: Vec<_> = (0..8)
        .map(|_| {
            let (client, token) = (client.clone(), tokens.refresh_token.clone());
            tokio::spawn(async move { client.refresh(&token).await.unwrap().status.as_u16() })
        })
        .collect();
    gate.arrived(8).await;
    gate.open();
    let mut statuses = Vec::new();
    for refresh in refreshes {
        statuses.push(refresh.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401, 401, 401, 401, 401, 401, 401]);
    assert_eq!(server.user("ada").max_concurrent_refreshes, 8);
    assert_eq!(server.counters().violations, 7);
}

#[tokio::test]
async fn within_the_grace_window_the_superseded_token_gets_the_same_successors() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    server.configure(|settings| settings.rotation = Rotation::Grace(Duration::from_secs(60)));
    let first = client.login("ada").await;
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    let again = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!((&again.access_token, &again.refresh_token), (&second.access_token, &second.refresh_token));

    // Only the last one superseded has grace.
    client.refresh(&second.refresh_token).await.unwrap().tokens();
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 401);
}

#[tokio::test]
async fn after_the_grace_window_it_is_reuse() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    server.configure(|settings| settings.rotation = Rotation::Grace(Duration::ZERO));
    let first = client.login("ada").await;
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 401);
}

#[tokio::test]
async fn a_reusable_refresh_token_stays_good() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    server.configure(|settings| settings.rotation = Rotation::Reusable);
    let first = client.login("ada").await;
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(second.refresh_token, first.refresh_token);
    assert_ne!(second.access_token, first.access_token);
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn a_refresh_token_that_outlived_its_time_is_refused() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    server.configure(|settings| settings.refresh_lifetime = Some(Duration::ZERO));
    let tokens = client.login("ada").await;
    assert_eq!(client.refresh(&tokens.refresh_token).await.unwrap().status, 401);
    assert_eq!(server.log().last().unwrap().note, Some("expired"));
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn after_logout_neither_token_works() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let tokens = client.login("ada").await;
    let out = client.post("/auth/logout", json!({ "refresh_token": tokens.refresh_token })).await.unwrap();
    assert_eq!(out.status, 204);
    assert_eq!(client.refresh(&tokens.refresh_token).await.unwrap().status, 401);
    assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 401);
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn a_made_up_refresh_token_is_refused_and_violates_nothing() {
    let server = TestServer::start().await.unwrap();
    let client = Client::of(&server);
    let tokens = client.login("ada").await;
    for made_up in ["nonsense", &tokens.access_token, &tokens.refresh_token.to_uppercase()] {
        let reply = client.refresh(made_up).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.json()), (401, json!({ "error": "invalid_grant" })), "{made_up}");
    }
    assert_eq!(server.violations(), []);
}
