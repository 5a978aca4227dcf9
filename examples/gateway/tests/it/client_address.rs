//! The address of a client behind trusted proxies, as the upstream and the authorization server see it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::routing::post;
use axum::{Json, Router};
use gateway::{AuthServer, Gateway, Settings, TrustedProxies};
use http::{HeaderMap, Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::nginx::Nginx;
use crate::test_gateway::{Browser, TestGateway, serve, spawn};

fn trusting(networks: &[&str]) -> TrustedProxies {
    TrustedProxies::read(&networks.iter().map(|network| (*network).to_owned()).collect::<Vec<_>>()).unwrap()
}

/// Sends a request from an address of this host, and returns all bytes until the connection is closed.
pub(crate) async fn send_from(source: [u8; 4], to: SocketAddr, request: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

/// Returns what the upstream sees of requests with these lines of `X-Forwarded-For`.
async fn forwarded(browser: &Browser, lines: &[&str]) -> serde_json::Value {
    let mut request = browser.request(Method::GET, "/api/headers");
    for line in lines {
        request = request.header("x-forwarded-for", *line);
    }
    browser.fetch(request.body(Body::empty()).unwrap()).await.json()["headers"]["x-forwarded-for"].take()
}

#[tokio::test]
async fn the_upstream_sees_the_client_that_a_trusted_proxy_names() {
    let gateway = TestGateway::start_with(|settings| settings.trusted_proxies = trusting(&["127.0.0.0/8"])).await;
    let browser = gateway.browser("ada").await;
    for (lines, seen) in [
        (&["192.0.2.7"][..], "192.0.2.7, 127.0.0.1"),
        // The client itself has sent the first.
        (&["203.0.113.1, 192.0.2.7"], "192.0.2.7, 127.0.0.1"),
        (&["203.0.113.1", "192.0.2.7, 127.0.0.9"], "192.0.2.7, 127.0.0.9, 127.0.0.1"),
        (&["[2001:db8::7]:4711"], "2001:db8::7, 127.0.0.1"),
        (&["unknown"], "127.0.0.1"),
        (&[], "127.0.0.1"),
    ] {
        assert_eq!(forwarded(&browser, lines).await, json!([seen]), "{lines:?}");
    }
}

#[tokio::test]
async fn another_peer_names_no_client() {
    let gateway = TestGateway::start_with(|settings| settings.trusted_proxies = trusting(&["10.0.0.0/8", "::1"])).await;
    let browser = gateway.browser("ada").await;
    for lines in [&["192.0.2.7"][..], &["10.0.0.1"], &["192.0.2.7", "::1"]] {
        assert_eq!(forwarded(&browser, lines).await, json!(["127.0.0.1"]), "{lines:?}");
    }
}

#[tokio::test]
async fn the_authorization_server_sees_the_client_of_a_login() {
    let seen = Arc::<Mutex<Vec<HeaderMap>>>::default();
    let login = {
        let seen = seen.clone();
        async move |headers: HeaderMap| {
            seen.lock().unwrap().push(headers);
            Json(json!({ "access_token": "a", "refresh_token": "r", "token_type": "Bearer" }))
        }
    };
    let origin = serve(Router::new().route("/auth/login", post(login.clone())).route("/token", post(login))).await;
    let oauth = AuthServer::OAuth {
        token_endpoint: format!("{origin}/token"),
        revocation_endpoint: None,
        client_id: "gateway".to_owned(),
        client_secret: None,
    };
    for auth in [AuthServer::Json(origin.clone()), oauth] {
        for (trusted, expected) in [("127.0.0.1", "192.0.2.7, 127.0.0.1"), ("10.0.0.1", "127.0.0.1")] {
            let mut settings = Settings::new(&origin, auth.clone()).unwrap();
            settings.trusted_proxies = trusting(&[trusted]);
            let browser = Browser::at(spawn(Gateway::new(settings)).await);
            let request = browser.request(Method::POST, "/login").header("content-type", "application/json");
            let request = request.header("x-forwarded-for", "192.0.2.7");
            let response = browser.fetch(request.body(r#"{"username":"ada","password":"x"}"#.into()).unwrap()).await;
            assert_eq!(response.status, StatusCode::NO_CONTENT);
            let headers = seen.lock().unwrap().pop().unwrap();
            let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
            assert_eq!(values, [expected], "{auth:?}");
        }
    }
}

/// The gateway trusts nginx, at 127.0.0.1. The client is at 127.0.0.2.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_upstream_sees_the_client_of_nginx() {
    let gateway = TestGateway::start_with(|settings| settings.trusted_proxies = trusting(&["127.0.0.1"])).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let Some(nginx) = Nginx::in_front_of(gateway.address) else { return };
    let request = format!(
        "GET /api/headers HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nx-forwarded-for: 192.0.2.7\r\n\
         connection: close\r\n\r\n"
    );
    let response = send_from([127, 0, 0, 2], nginx.address, &request).await;
    assert!(response.contains(r#""x-forwarded-for":["127.0.0.2, 127.0.0.1"]"#), "{response}\n{}", nginx.log());
}

/// They are the connections of many clients.
#[tokio::test]
async fn the_connections_of_a_trusted_proxy_are_not_limited_by_its_address() {
    let gateway = TestGateway::with_upstream(Router::new(), |settings| {
        settings.trusted_proxies = trusting(&["127.0.0.1"]);
        settings.max_connections_per_address = Some(1);
    });
    let gateway = gateway.await;
    let head = format!("POST /login HTTP/1.1\r\nhost: {}\r\nx-requested-with: x\r\n", gateway.address);
    let head = format!("{head}content-type: application/json\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n");
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // The request is being answered.
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        busy.push(stream);
    }
}
