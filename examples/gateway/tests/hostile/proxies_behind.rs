//! A real nginx and a real HAProxy as the upstream, with their default settings: each answer arrives, however early it
//! is sent.

use std::net::SocketAddr;

use axum::body::Body;
use futures_util::future::join_all;
use http::Method;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower_auth_refresh_testkit::TestServer;

use crate::haproxy::HaProxy;
use crate::nginx::Nginx;
use crate::test_gateway::{Browser, TestGateway, upstream_with_raw_response};

/// More than any of them buffers.
const UPLOAD: usize = 5 << 20;

/// The paths of uploads that are refused by their heads, and the status of the refusal. Without a challenge, a 401 is
/// the API's own answer.
const REFUSED: [(&str, u16); 4] = [("/api/401", 401), ("/api/403", 403), ("/api/404", 404), ("/api/413", 413)];

async fn in_front_of(upstream: SocketAddr) -> (TestGateway, Browser) {
    let kit = TestServer::start().await.unwrap();
    let gateway = TestGateway::in_front_of(kit, &format!("http://{upstream}"), |_| {}).await;
    let browser = gateway.browser("ada").await;
    (gateway, browser)
}

/// Uploads ten times to each path, by both protocols, and checks that each refusal arrives.
async fn upload_in_vain(name: &str, upstream: SocketAddr) {
    let (gateway, browser) = in_front_of(upstream).await;
    let http_2 = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let mut arrived = 0;
    for (path, status) in REFUSED {
        for _ in 0..10 {
            let response = browser.post(path, vec![b'x'; UPLOAD]).await;
            let request = browser.request(Method::POST, path).body(vec![b'x'; UPLOAD].into()).unwrap();
            let multiplexed = http_2.request(request).await.unwrap();
            for (status_seen, answer) in [
                (response.status, response.body),
                (multiplexed.status(), multiplexed.into_body().collect().await.unwrap().to_bytes()),
            ] {
                let answer = String::from_utf8_lossy(&answer);
                // The gateway takes a 401 for an expired token. Such an upload can't be replayed, and after some of them
                // the gateway says that its tokens are refused.
                let is_known = answer.contains("/problems/send-again") || answer.contains("/upstream-refuses-tokens");
                assert!(status_seen == status || (status == 401 && is_known), "{path}: {status_seen} {answer}");
                arrived += 1;
            }
        }
    }
    println!("{name} behind: {arrived} early answers to uploads, all of which arrived");
    drop(gateway);
}

#[tokio::test]
async fn early_answers_of_nginx_arrive() {
    let nginx = Nginx::start(|address| {
        // By default, an upload over 1 MiB gets a 413.
        let refused = [401, 403, 404]
            .map(|status| format!("location = /api/{status} {{ client_max_body_size 64m; return {status}; }}"));
        format!("server {{ listen {address}; {} }}", refused.concat())
    });
    let Some(nginx) = nginx else { return };
    upload_in_vain("nginx", nginx.address).await;
}

#[tokio::test]
async fn early_answers_of_haproxy_arrive() {
    let haproxy = HaProxy::start(|address| {
        let refused = REFUSED.map(|(path, status)| format!("http-request return status {status} if {{ path {path} }}"));
        format!("frontend api\n bind {address}\n {}", refused.join("\n "))
    });
    let Some(haproxy) = haproxy else { return };
    upload_in_vain("HAProxy", haproxy.address).await;
}

/// nginx closes a connection after so many requests, and says so in the last answer.
#[tokio::test]
async fn no_call_is_lost_when_nginx_closes_connections_after_some_requests() {
    let nginx = Nginx::start(|address| {
        format!("server {{ listen {address}; keepalive_requests 3; location / {{ return 200 ok; }} }}")
    });
    let Some(nginx) = nginx else { return };
    let (_gateway, browser) = in_front_of(nginx.address).await;
    let lanes = (0..8).map(async |_| {
        for number in 0..50 {
            let response = match number % 3 {
                0 => browser.post("/api/x", "small").await,
                1 => browser.post("/api/x", vec![b'x'; 100_000]).await,
                _ => browser.get("/api/x").await,
            };
            assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"ok"[..]));
        }
    });
    join_all(lanes).await;
    println!("nginx behind: 400 calls over connections of 3 requests, all of which arrived");
}

/// Answers without a length, of which nginx and HAProxy make chunks, and answers that end too early.
#[tokio::test]
async fn answers_through_proxies_are_whole_or_cut_off() {
    let whole = upstream_with_raw_response("HTTP/1.0 200 OK\r\n\r\nwhole").await;
    let cut = upstream_with_raw_response("HTTP/1.0 200 OK\r\ncontent-length: 100\r\n\r\ncut").await;
    let chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ncut\r\n";
    let cut_chunks = upstream_with_raw_response(chunk).await;
    let servers = [("whole", whole), ("cut", cut), ("chunk", cut_chunks)];
    let nginx = Nginx::start(|address| {
        let places = servers
            .each_ref()
            .map(|(name, server)| format!("location /api/{name} {{ proxy_pass {server}; proxy_http_version 1.1; }}"));
        format!("server {{ listen {address}; {} }}", places.concat())
    });
    let haproxy = HaProxy::start(|address| {
        let uses = servers.each_ref().map(|(name, _)| format!("use_backend {name} if {{ path /api/{name} }}"));
        let backends = servers
            .each_ref()
            .map(|(name, server)| format!("backend {name}\n server only {}", server.trim_start_matches("http://")));
        format!("frontend api\n bind {address}\n {}\n{}", uses.join("\n "), backends.join("\n"))
    });
    let proxies = [nginx.as_ref().map(|proxy| proxy.address), haproxy.as_ref().map(|proxy| proxy.address)];
    for upstream in proxies.into_iter().flatten() {
        let (_gateway, browser) = in_front_of(upstream).await;
        for (name, _) in &servers {
            for _ in 0..5 {
                let request = browser.request(Method::GET, &format!("/api/{name}")).body(Body::empty()).unwrap();
                let response = browser.send(request).await;
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await;
                match *name {
                    "whole" => assert_eq!(body.unwrap().to_bytes(), "whole"),
                    _ => assert!(body.is_err(), "{name}: a cut answer looks whole"),
                }
            }
        }
    }
}
