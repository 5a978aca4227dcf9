//! The API and its access tokens.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tower::ServiceExt;
use tower_auth_refresh_testkit::{BODY_CHECKSUM, BODY_LENGTH, Checksum, TestKit, TokenPair};

use crate::client;

#[tokio::test]
async fn a_response_names_the_tokens_user_and_generation() {
    let (_server, client) = client::start().await;
    let tokens = client.login("ada").await;
    let mut request = client.request("/api/notes/7?all", &tokens.access_token);
    *request.method_mut() = http::Method::PUT;
    *request.body_mut() = Full::from("four");
    let expected = json!({
        "user": "ada", "generation": 1, "method": "PUT", "path": "/api/notes/7", "query": "all", "body_length": 4,
    });
    assert_eq!(client.send(request).await.unwrap().json(), expected);
}

#[tokio::test]
async fn a_401_has_an_error_code_only_if_there_was_a_token() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;

    let without_token = client.send(Request::get(server.url("/api/me")).body(Full::default()).unwrap()).await.unwrap();
    assert_eq!((without_token.status.as_u16(), without_token.challenge()), (401, Some("Bearer")));
    for invalid in ["unknown", &tokens.refresh_token] {
        let reply = client.get("/api/me", invalid).await.unwrap();
        assert_eq!(
            (reply.status.as_u16(), reply.challenge()),
            (401, Some(r#"Bearer error="invalid_token""#)),
            "{invalid}"
        );
    }
    assert_eq!(server.counters().unauthorized(), 3);
}

#[tokio::test]
async fn tokens_expire_by_lifetime_by_command_and_by_user() {
    let (server, client) = client::start().await;
    let status = async |tokens: &TokenPair| client.get("/api/me", &tokens.access_token).await.unwrap().status.as_u16();
    let (ada, bob) = (client.login("ada").await, client.login("bob").await);
    server.expire_access_tokens_of("ada");
    assert_eq!((status(&ada).await, status(&bob).await), (401, 200));
    server.expire_access_tokens();
    assert_eq!((status(&ada).await, status(&bob).await), (401, 401));

    let ada = client.refresh(&ada.refresh_token).await.unwrap().tokens();
    assert_eq!(status(&ada).await, 200);
    server.configure(|settings| settings.access_lifetime = Duration::ZERO);
    let ada = client.refresh(&ada.refresh_token).await.unwrap().tokens();
    assert_eq!(status(&ada).await, 401);
    assert_eq!(server.log().last().unwrap().note, Some("expired"));
}

#[tokio::test]
async fn a_revoked_user_can_neither_call_the_api_nor_refresh() {
    let (server, client) = client::start().await;
    let (ada, bob) = (client.login("ada").await, client.login("bob").await);
    server.revoke("ada");
    assert_eq!(client.get("/api/me", &ada.access_token).await.unwrap().status, 401);
    assert_eq!(client.refresh(&ada.refresh_token).await.unwrap().json(), json!({ "error": "invalid_grant" }));
    assert_eq!(client.get("/api/me", &bob.access_token).await.unwrap().status, 200);
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn a_body_is_echoed_and_an_upload_is_measured() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    let body: Bytes = (0..=6).cycle().take(1_000_000).collect();
    let with_body = |path| client.request(path, &tokens.access_token).map(|_| Full::new(body.clone()));

    let mut echo = with_body("/api/echo");
    echo.headers_mut().insert("content-type", "text/x-sevens".parse().unwrap());
    let echoed = client.send(echo).await.unwrap();
    assert_eq!(echoed.headers["content-type"], "text/x-sevens");
    assert!(echoed.body == body);

    let mut upload = with_body("/api/upload");
    upload.headers_mut().insert(BODY_LENGTH, body.len().into());
    upload.headers_mut().insert(BODY_CHECKSUM, Checksum::of(&body).to_string().parse().unwrap());
    let measured = client.send(upload).await.unwrap().json();
    assert_eq!(measured["body_length"], 1_000_000);
    assert_eq!(measured["body_checksum"], Checksum::of(&body).to_string());
    assert_eq!(server.counters().body_mismatches, 0);
}

#[tokio::test]
async fn a_body_that_differs_from_its_headers_is_counted() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    for (path, name, value) in [
        ("/api/me", BODY_LENGTH, "5".to_owned()),
        ("/api/echo", BODY_LENGTH, "5".to_owned()),
        ("/api/upload", BODY_CHECKSUM, Checksum::of(b"five").to_string()),
    ] {
        let mut request = client.request(path, &tokens.access_token).map(|_| Full::from("four"));
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(client.send(request).await.unwrap().status, 200);
    }
    assert_eq!(server.counters().body_mismatches, 3);
}

#[tokio::test]
async fn the_bytes_route_sends_the_requested_number_of_bytes() {
    let (_server, client) = client::start().await;
    let tokens = client.login("ada").await;
    for length in [0, 1, 251 * 256, 1_000_000] {
        let reply = client.get(&format!("/api/bytes/{length}"), &tokens.access_token).await.unwrap();
        assert_eq!(reply.headers["content-length"], length.to_string().as_str());
        assert!(
            reply.body.len() == length && reply.body.iter().enumerate().all(|(i, byte)| i % 251 == usize::from(*byte))
        );
    }
    assert_eq!(client.get("/api/bytes/some", &tokens.access_token).await.unwrap().status, 400);
}

#[tokio::test]
async fn the_headers_route_omits_the_token() {
    let (_server, client) = client::start().await;
    let tokens = client.login("ada").await;
    let mut request = client.request("/api/headers", &tokens.access_token);
    request.headers_mut().append("x-twice", "a".parse().unwrap());
    request.headers_mut().append("x-twice", "b".parse().unwrap());
    let headers = client.send(request).await.unwrap().json()["headers"].take();
    assert_eq!(headers["x-twice"], json!(["a", "b"]));
    assert_eq!(headers.get("authorization"), None);
}

#[tokio::test(start_paused = true)]
async fn without_a_socket_the_servers_run_on_paused_time() {
    let kit = TestKit::new();
    let tokens = kit.sign_in("ada");
    let request = |path: &str, body: String| {
        let token = format!("Bearer {}", tokens.access_token);
        Request::post(path).header("authorization", token).body(Full::<Bytes>::from(body)).unwrap()
    };
    let answer = kit.clone().oneshot(request("/api/me", "four".into())).await.unwrap();
    assert_eq!(answer.status(), 200);

    tokio::time::advance(Duration::from_secs(60)).await;
    let answer = kit.clone().oneshot(request("/api/me", "four".into())).await.unwrap();
    assert_eq!(answer.status(), 401);

    let body = json!({ "refresh_token": tokens.refresh_token }).to_string();
    let answer = kit.clone().oneshot(request("/auth/refresh", body)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["expires_in"], 60);

    assert_eq!(kit.log()[1].at, Duration::from_secs(60));
    assert_eq!(kit.log()[1].connection, None);
}
