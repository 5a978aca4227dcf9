//! Sign-in, refresh and sign-out.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tower_auth_refresh_testkit::Rotation;

use crate::client;

#[tokio::test]
async fn without_a_password_table_every_password_but_wrong_is_accepted() {
    let (_server, client) = client::start().await;
    client.login("ada").await;
    let refused = client.post("/auth/login", json!({ "username": "ada", "password": "wrong" })).await.unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json(), json!({ "error": "invalid_credentials" }));
}

#[tokio::test]
async fn with_a_password_table_only_its_users_can_sign_in() {
    let (server, client) = client::start().await;
    server.configure(|settings| settings.passwords = HashMap::from([("ada".into(), "lovelace".into())]));
    let login = async |user: &str, password: &str| {
        client.post("/auth/login", json!({ "username": user, "password": password })).await.unwrap().status
    };
    assert_eq!(login("ada", "lovelace").await, 200);
    assert_eq!(login("ada", "byron").await, 401);
    assert_eq!(login("bob", "lovelace").await, 401);
}

#[tokio::test]
async fn a_body_without_credentials_is_an_invalid_request() {
    let (_server, client) = client::start().await;
    let reply = client.post("/auth/refresh", json!({ "token": 7 })).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.json()), (400, json!({ "error": "invalid_request" })));
    assert_eq!(client.get("/auth/refresh", "none").await.unwrap().status, 405);
    assert_eq!(client.get("/elsewhere", "none").await.unwrap().status, 404);
}

#[tokio::test]
async fn a_refresh_rotates_both_tokens_and_increments_the_generation() {
    let (server, client) = client::start().await;
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
async fn reuse_revokes_its_own_family_only() {
    let (_server, client) = client::start().await;
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
async fn exactly_one_of_eight_concurrent_refreshes_with_one_token_is_granted() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    let gate = server.hold_refreshes();
    let refreshes: Vec<_> = (0..8).map(|_| client.spawn_refresh(&tokens.refresh_token)).collect();
    gate.arrived(8).await;
    gate.open();
    let mut statuses = Vec::new();
    for refresh in refreshes {
        statuses.push(refresh.await.unwrap().unwrap().status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401, 401, 401, 401, 401, 401, 401]);
    assert_eq!(server.user("ada").max_concurrent_refreshes, 8);
    assert_eq!(server.counters().violations, 7);
}

#[tokio::test]
async fn within_the_grace_window_a_superseded_token_returns_the_same_successors() {
    let (server, client) = client::start().await;
    server.configure(|settings| settings.rotation = Rotation::Grace(Duration::from_secs(60)));
    let first = client.login("ada").await;
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    let again = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!((&again.access_token, &again.refresh_token), (&second.access_token, &second.refresh_token));

    // An access token that has expired is of no use to the client.
    server.expire_access_tokens();
    let again = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(again.refresh_token, second.refresh_token);
    assert_eq!(client.get("/api/me", &again.access_token).await.unwrap().status, 200);

    // The grace window applies only to the token that was superseded last.
    client.refresh(&second.refresh_token).await.unwrap().tokens();
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 401);
}

#[tokio::test]
async fn after_the_grace_window_a_superseded_token_is_refused() {
    let (server, client) = client::start().await;
    server.configure(|settings| settings.rotation = Rotation::Grace(Duration::ZERO));
    let first = client.login("ada").await;
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(client.refresh(&first.refresh_token).await.unwrap().status, 401);
}

#[tokio::test]
async fn a_reusable_refresh_token_stays_valid() {
    let (server, client) = client::start().await;
    server.configure(|settings| settings.rotation = Rotation::Reusable);
    let first = client.login("ada").await;
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(second.refresh_token, first.refresh_token);
    assert_ne!(second.access_token, first.access_token);
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn an_expired_refresh_token_is_refused() {
    let (server, client) = client::start().await;
    server.configure(|settings| settings.refresh_lifetime = Some(Duration::ZERO));
    let tokens = client.login("ada").await;
    assert_eq!(client.refresh(&tokens.refresh_token).await.unwrap().status, 401);
    assert_eq!(server.log().last().unwrap().note, Some("expired"));
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn after_a_logout_both_tokens_are_refused() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    let logout = client.post("/auth/logout", json!({ "refresh_token": tokens.refresh_token })).await.unwrap();
    assert_eq!(logout.status, 204);
    assert_eq!(client.refresh(&tokens.refresh_token).await.unwrap().status, 401);
    assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 401);
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn an_unknown_refresh_token_is_refused_without_a_violation() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    for unknown in ["nonsense", &tokens.access_token, &tokens.refresh_token.to_uppercase()] {
        let reply = client.refresh(unknown).await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.json()), (401, json!({ "error": "invalid_grant" })), "{unknown}");
    }
    assert_eq!(server.violations(), []);
}
