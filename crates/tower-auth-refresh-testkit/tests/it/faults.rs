//! Injected faults.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::json;
use tower::ServiceExt;
use tower_auth_refresh_testkit::{ConnectionDropped, Fault, Route, TestKit, TestServer, UnreadBody};

use crate::client::{self, Client};

#[tokio::test]
async fn a_status_fault_has_headers_and_a_body_and_applies_the_set_number_of_times() {
    let (server, client) = client::start().await;
    let tokens = client.login("ada").await;
    server.inject(Route::Refresh, Fault::status(503).header("retry-after", "7").body("later").times(2));
    for _ in 0..2 {
        let reply = client.refresh(&tokens.refresh_token).await.unwrap();
        assert_eq!((reply.status.as_u16(), &*reply.body), (503, &b"later"[..]));
        assert_eq!(reply.headers["retry-after"], "7");
    }
    client.refresh(&tokens.refresh_token).await.unwrap().tokens();
    assert_eq!(server.log()[1].note, Some("fault"));
}

#[tokio::test]
async fn a_fault_applies_to_its_route_and_user_in_order_of_injection() {
    let (server, client) = client::start().await;
    let (ada, bob) = (client.login("ada").await, client.login("bob").await);
    server.inject(Route::Api, Fault::status(500).of("ada").times(1));
    server.inject(Route::Api, Fault::status(502).of("ada"));
    server.inject(Route::Login, Fault::status(504).of("ada"));
    server.inject(Route::Api, Fault::status(418).times(0));
    let api = async |token: &str| client.get("/api/me", token).await.unwrap().status.as_u16();
    assert_eq!(api(&bob.access_token).await, 200);
    assert_eq!(api(&ada.access_token).await, 500);
    assert_eq!(api(&ada.access_token).await, 502);
    assert_eq!(api(&ada.access_token).await, 502);
    let login = client.post("/auth/login", json!({ "username": "ada", "password": "" })).await.unwrap();
    assert_eq!(login.status, 504);
    server.clear_faults();
    assert_eq!(api(&ada.access_token).await, 200);
}

#[tokio::test]
async fn a_dropped_connection_is_an_error_before_and_after_processing() {
    let server = TestServer::start().await.unwrap();
    for client in [Client::of(&server), Client::http2(&server)] {
        server.reset();
        let tokens = client.login("ada").await;
        server.inject(Route::Refresh, Fault::drop_connection().times(1));
        client.refresh(&tokens.refresh_token).await.unwrap_err();
        assert_eq!(server.counters().granted, 0);
        server.inject(Route::Refresh, Fault::drop_connection().after_processing().times(1));
        client.refresh(&tokens.refresh_token).await.unwrap_err();
        let counters = server.counters();
        assert_eq!((counters.granted, counters.unanswered, counters.connections), (1, 2, 2));
    }
}

#[tokio::test]
async fn without_a_socket_a_dropped_connection_is_the_error_of_the_call() {
    let kit = TestKit::new();
    kit.inject(Route::Api, Fault::drop_connection());
    let request = Request::get("/api/me").body(Full::<Bytes>::default()).unwrap();
    let error: ConnectionDropped = kit.oneshot(request).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection was dropped before a response was sent");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_response_arrives_and_a_hanging_request_never_ends() {
    let kit = TestKit::new();
    let request = || Request::get("/api/me").body(Full::<Bytes>::default()).unwrap();
    kit.inject(Route::Api, Fault::delay(Duration::from_secs(5)).times(1));
    kit.inject(Route::Api, Fault::hang().times(1));
    kit.clone().oneshot(request()).await.unwrap();
    assert_eq!(kit.log()[0].took, Duration::from_secs(5));
    tokio::time::timeout(Duration::from_secs(3600), kit.clone().oneshot(request())).await.unwrap_err();
    assert_eq!((kit.log()[1].took, kit.log()[1].status), (Duration::from_secs(3600), None));
}

#[tokio::test(start_paused = true)]
async fn a_dripping_body_arrives_byte_by_byte_and_a_stalling_body_never_ends() {
    let kit = TestKit::new();
    let request = || Request::get("/api/me").body(Full::<Bytes>::default()).unwrap();
    kit.inject(Route::Api, Fault::drip(Duration::from_secs(1)).times(1));
    let started = tokio::time::Instant::now();
    let answer = kit.clone().oneshot(request()).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], br#"{"error":"no_token"}"#);
    assert_eq!(started.elapsed().as_secs(), body.len() as u64);

    kit.inject(Route::Api, Fault::stall().times(1));
    let mut body = kit.clone().oneshot(request()).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), br#"{"error":"no_token"}"#[..]);
    tokio::time::timeout(Duration::from_secs(3600), body.frame()).await.unwrap_err();
}

#[tokio::test]
async fn a_malformed_response_is_not_json_and_a_huge_response_has_the_set_length() {
    let (server, client) = client::start().await;
    server.inject(Route::Login, Fault::malformed().times(1));
    server.inject(Route::Login, Fault::huge(100_000).times(1));
    server.inject(Route::Login, Fault::endless().times(1));
    let credentials = json!({ "username": "ada", "password": "" });
    let malformed = client.post("/auth/login", credentials.clone()).await.unwrap();
    assert_eq!(malformed.status, 200);
    serde_json::from_slice::<serde_json::Value>(&malformed.body).unwrap_err();
    assert_eq!(client.post("/auth/login", credentials.clone()).await.unwrap().body.len(), 100_000);

    let endless = Request::post(server.url("/auth/login")).body(Full::from(credentials.to_string())).unwrap();
    let mut endless = client.open(endless).await.unwrap().into_body();
    let mut read = 0;
    while read < 10_000_000 {
        read += endless.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
}

#[tokio::test]
async fn a_refresh_can_return_the_same_access_token() {
    let (server, client) = client::start().await;
    let first = client.login("ada").await;
    server.inject(Route::Refresh, Fault::same_access_token());
    let second = client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(second.access_token, first.access_token);
    assert_ne!(second.refresh_token, first.refresh_token);
}

#[tokio::test]
async fn a_refresh_can_return_access_tokens_that_the_api_refuses() {
    let (server, client) = client::start().await;
    let mut tokens = client.login("ada").await;
    server.inject(Route::Refresh, Fault::refused_token().times(3));
    for generation in 2..=4 {
        tokens = client.refresh(&tokens.refresh_token).await.unwrap().tokens();
        assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 401);
        let entry = server.log().pop().unwrap();
        assert_eq!((entry.generation, entry.note), (Some(generation), Some("refused")));
    }
    tokens = client.refresh(&tokens.refresh_token).await.unwrap().tokens();
    assert_eq!(client.get("/api/me", &tokens.access_token).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_refresh_can_omit_the_refresh_token_and_the_old_one_stays_valid() {
    let (server, client) = client::start().await;
    let first = client.login("ada").await;
    server.inject(Route::Refresh, Fault::omit_refresh_token().times(1));
    let answer = client.refresh(&first.refresh_token).await.unwrap().json();
    assert_eq!(answer.get("refresh_token"), None);
    assert_eq!(client.get("/api/me", answer["access_token"].as_str().unwrap()).await.unwrap().status, 200);
    client.refresh(&first.refresh_token).await.unwrap().tokens();
    assert_eq!(server.violations(), []);
}

#[tokio::test]
async fn a_response_can_be_altered() {
    let (server, client) = client::start().await;
    server.inject(Route::Login, Fault::alter(|answer| answer["expires_in"] = "60".into()));
    let reply = client.post("/auth/login", json!({ "username": "ada", "password": "" })).await.unwrap();
    assert_eq!(reply.json()["expires_in"], "60");
}

#[tokio::test]
async fn an_early_401_drops_reads_or_holds_the_rest_of_an_upload() {
    let server = TestServer::start().await.unwrap();
    for unread_body in [UnreadBody::Dropped, UnreadBody::Read, UnreadBody::Held] {
        server.configure(|settings| settings.unread_body = unread_body);
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let frames = stream::unfold(receiver, |mut receiver| async move {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(bytes)), receiver))
        });
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        sender.send(Bytes::from_static(&[b'x'; 1024])).unwrap();
        let request = Request::post(server.url("/api/upload")).body(StreamBody::new(Box::pin(frames))).unwrap();
        let answer = client.request(request).await.unwrap();
        assert_eq!(answer.status(), 401, "{unread_body:?}");

        // The 401 arrived before the upload has ended. The rest is treated as the setting says.
        let limit = 64 * 1024;
        let sent = (0..limit).take_while(|_| sender.send(Bytes::from_static(&[b'x'; 1024])).is_ok()).count();
        let deadline = Instant::now() + Duration::from_secs(10);
        match unread_body {
            UnreadBody::Read => {
                drop(sender);
                assert_eq!(sent, limit);
                let answer = answer.into_body().collect().await.unwrap();
                assert_eq!(answer.to_bytes(), br#"{"error":"no_token"}"#[..]);
                assert_eq!(server.counters().bodies_cut_short, 0);
            }
            UnreadBody::Held => assert!(!sender.is_closed()),
            _ => {
                while !sender.is_closed() && Instant::now() < deadline {
                    tokio::task::yield_now().await;
                }
                assert!(sender.is_closed());
            }
        }
    }
}
