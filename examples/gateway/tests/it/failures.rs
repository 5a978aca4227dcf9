//! Failures of upstreams, authorization servers and clients.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use gateway::{AuthServer, Gateway, Settings};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::test_gateway::{TestGateway, upstream_with_raw_response};

#[tokio::test]
async fn an_upstream_that_is_down_is_a_502() {
    let kit = TestServer::start().await.unwrap();
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = TestGateway::in_front_of(kit, &format!("http://{unused}"), |_| {}).await;
    let browser = gateway.browser("ada").await;
    browser.get("/api/me").await.assert_problem(502, "upstream-failed");
    browser.post("/api/me", "data").await.assert_problem(502, "upstream-failed");
}

#[tokio::test]
async fn an_upstream_that_closes_the_connection_is_a_502() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Api, Fault::drop_connection());
    browser.get("/api/me").await.assert_problem(502, "upstream-failed");
}

#[tokio::test]
async fn an_upstream_that_hangs_is_a_504() {
    let gateway = TestGateway::start_with(|settings| settings.upstream_timeout = Duration::from_millis(200)).await;
    let browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Api, Fault::hang().times(1));
    let started = Instant::now();
    browser.get("/api/me").await.assert_problem(504, "upstream-too-slow");
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(browser.get("/api/me").await.status, 200);
}

#[tokio::test]
async fn a_slow_upload_may_last_longer_than_the_upstream_timeout() {
    let gateway = TestGateway::start_with(|settings| settings.upstream_timeout = Duration::from_millis(300)).await;
    let browser = gateway.browser("ada").await;
    let drops = stream::iter(0..8).then(|_| async {
        sleep(Duration::from_millis(100)).await;
        Ok::<_, std::io::Error>(Bytes::from_static(b"drop"))
    });
    let request = browser.request(Method::POST, "/api/upload").body(Body::from_stream(drops)).unwrap();
    assert_eq!(browser.fetch(request).await.json()["body_length"], 32);
}

#[tokio::test]
async fn a_client_that_stalls_during_an_upload_is_a_408() {
    let gateway = TestGateway::start_with(|settings| settings.client_timeout = Duration::from_millis(200)).await;
    let browser = gateway.browser("ada").await;
    let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"first")) });
    let stalled = Body::from_stream(first.chain(stream::pending()));
    let request = browser.request(Method::POST, "/api/upload").body(stalled).unwrap();
    browser.fetch(request).await.assert_problem(408, "request-too-slow");
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let gateway = TestGateway::start_with(|settings| settings.body_limit = 10_000).await;
    let browser = gateway.browser("ada").await;
    assert_eq!(browser.post("/api/upload", vec![0; 10_000]).await.status, 200);
    let api = gateway.kit.counters().api;
    browser.post("/api/upload", vec![0; 10_001]).await.assert_problem(413, "body-too-large");
    assert_eq!(
        gateway.kit.counters().api,
        api,
        "a body with a content-length over the limit is not sent to the upstream"
    );
    // A chunked body is cut off at the limit.
    let pieces = stream::iter(0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1000])));
    let request = browser.request(Method::POST, "/api/upload").body(Body::from_stream(pieces)).unwrap();
    browser.fetch(request).await.assert_problem(413, "body-too-large");
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1000])));
    let request = browser.request(Method::POST, "/api/upload").body(Body::from_stream(endless)).unwrap();
    browser.fetch(request).await.assert_problem(413, "body-too-large");
    assert_eq!(browser.get("/api/me").await.status, 200);
}

#[tokio::test]
async fn a_refresh_that_fails_is_a_503_and_the_session_is_kept() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    gateway.kit.expire_access_tokens();
    gateway.kit.inject(Route::Refresh, Fault::status(503).header("retry-after", "30"));
    let response = browser.get("/api/me").await;
    response.assert_problem(503, "refresh-failed");
    assert_eq!(response.headers["retry-after"], "30");
    assert!(!response.clears_cookie());
    let session = browser.get("/session").await.json();
    assert_eq!((session["state"].as_str(), session["generation"].as_u64()), (Some("failing"), Some(1)));

    let other = gateway.browser("eve").await;
    gateway.kit.clear_faults();
    gateway.kit.inject(Route::Refresh, Fault::drop_connection().times(1));
    gateway.kit.expire_access_tokens_of("eve");
    let response = other.get("/api/me").await;
    response.assert_problem(503, "refresh-failed");
    assert_eq!(response.headers["retry-after"], "2");
    // After the cool-down the refresh succeeds.
    let deadline = Instant::now() + Duration::from_secs(10);
    while other.get("/api/me").await.status != 200 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(gateway.kit.violations(), []);
}

#[tokio::test]
async fn a_refresh_that_hangs_is_a_503_and_the_session_is_kept() {
    let gateway = TestGateway::start_with(|settings| settings.refresh_timeout = Duration::from_millis(300)).await;
    let browser = gateway.browser("ada").await;
    gateway.kit.expire_access_tokens();
    gateway.kit.inject(Route::Refresh, Fault::hang());
    let started = Instant::now();
    let response = browser.get("/api/me").await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    response.assert_problem(503, "refresh-failed");
    assert_eq!(response.headers["retry-after"], "2");
    assert!(!response.clears_cookie());
    let session = browser.get("/session").await.json();
    assert_eq!((session["state"].as_str(), session["generation"].as_u64()), (Some("failing"), Some(1)));
}

/// The API has rejected the request without processing it, so the client can safely send it again.
#[tokio::test]
async fn a_request_too_large_to_replay_is_a_503() {
    let gateway = TestGateway::start_with(|settings| settings.body_limit = 1 << 20).await;
    gateway.kit.configure(|settings| settings.unread_body = tower_auth_refresh_testkit::UnreadBody::Read);
    let browser = gateway.browser("ada").await;
    gateway.kit.expire_access_tokens();
    let response = browser.post("/api/upload", vec![7; 200_000]).await;
    response.assert_problem(503, "send-again");
    assert!(response.headers.contains_key("retry-after"));
    assert_eq!(browser.post("/api/upload", vec![7; 200_000]).await.json()["body_length"], 200_000);
    assert_eq!(gateway.kit.counters().granted, 1);
}

/// Each of its 401s asks for a refresh that helps nothing. Once such refreshes are paused, the expiry that another
/// endpoint reports still has to lead to one.
#[tokio::test]
async fn an_endpoint_that_always_answers_401_does_not_take_others_down() {
    let expired = Arc::<Mutex<HashSet<String>>>::default();
    let last = Arc::<Mutex<String>>::default();
    let api = {
        let (expired, last) = (expired.clone(), last.clone());
        async move |uri: Uri, headers: HeaderMap| {
            let token = headers["authorization"].to_str().unwrap().to_owned();
            let accepted = !uri.path().starts_with("/api/legacy") && !expired.lock().unwrap().contains(&token);
            *last.lock().unwrap() = token;
            if accepted { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
        }
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(api)), |_| {}).await;
    let browser = gateway.browser("ada").await;
    for round in 0..10 {
        for _ in 0..10 {
            browser.get("/api/legacy").await;
            assert_eq!(browser.get("/api/notes").await.status, 200, "round {round}");
        }
        // The token in force expires.
        let token = last.lock().unwrap().clone();
        expired.lock().unwrap().insert(token);
        for path in ["/api/notes", "/api/me", "/api/notes"] {
            assert_eq!(browser.get(path).await.status, 200, "round {round}");
        }
    }
    assert!(gateway.kit.counters().granted <= 75, "{:?}", gateway.kit.counters());
    assert_eq!(gateway.kit.violations(), []);
}

#[tokio::test]
async fn a_401_to_a_refreshed_token_passes() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    gateway.kit.inject(Route::Refresh, Fault::refused_token());
    gateway.kit.expire_access_tokens();
    let response = browser.get("/api/me").await;
    assert_eq!(response.status, 401);
    assert!(response.headers.contains_key("www-authenticate"));
    assert!(!response.clears_cookie());
}

/// A truncated body must not look complete.
#[tokio::test]
async fn a_response_that_breaks_off_or_stalls_ends_in_an_error() {
    async fn broken() -> Body {
        let first = stream::once(async { Ok(Bytes::from_static(b"first")) });
        Body::from_stream(first.chain(stream::once(async {
            sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("broken"))
        })))
    }
    async fn stalled() -> Body {
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"first")) });
        Body::from_stream(first.chain(stream::pending()))
    }
    let api = Router::new().route("/api/broken", any(broken)).route("/api/stalled", any(stalled));
    let gateway =
        TestGateway::with_upstream(api, |settings| settings.upstream_timeout = Duration::from_millis(300)).await;
    let browser = gateway.browser("ada").await;
    for path in ["/api/broken", "/api/stalled"] {
        let response = browser.send(browser.request(Method::GET, path).body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.into_body().collect().await.is_err(), "{path}");
    }
}

/// With two lengths, a truncated body could look complete (RFC 9112 §6.3).
#[tokio::test]
async fn chunked_framing_overrides_a_content_length() {
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
    let upstream = upstream_with_raw_response(response).await;
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let browser = gateway.browser("ada").await;
    assert_eq!(browser.get("/api/x").await.body, "whole");
}

/// They describe the response to GET. hyper would refuse to send them on, and close the connection.
#[tokio::test]
async fn contradicting_lengths_in_a_response_to_head_are_removed() {
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n";
    let upstream = upstream_with_raw_response(response).await;
    let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
    let browser = gateway.browser("ada").await;
    let request = browser.request(Method::HEAD, "/api/x").body(Body::empty()).unwrap();
    let response = browser.fetch(request).await;
    assert_eq!(response.status, 200);
    assert!(response.headers.get_all("content-length").iter().count() <= 1, "{response:?}");
}

#[tokio::test]
async fn a_response_shorter_than_its_framing_ends_in_an_error() {
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n",
    ] {
        let upstream = upstream_with_raw_response(response).await;
        let gateway = TestGateway::in_front_of(TestServer::start().await.unwrap(), &upstream, |_| {}).await;
        let browser = gateway.browser("ada").await;
        let response = browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.into_body().collect().await.is_err());
    }
}

/// The time-out limits stalls, not the whole of an event stream.
#[tokio::test]
async fn a_response_may_last_longer_than_the_upstream_timeout() {
    async fn events() -> Body {
        Body::from_stream(stream::iter(0..10).then(async |number| {
            sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>(format!("data: {number}\n\n"))
        }))
    }
    let api = Router::new().route("/api/events", any(events));
    let gateway =
        TestGateway::with_upstream(api, |settings| settings.upstream_timeout = Duration::from_millis(400)).await;
    let body = gateway.browser("ada").await.get("/api/events").await.body;
    assert_eq!(body.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"data: ")).count(), 10);
}

/// The client caused the failure of the call to the upstream, so the status is not a 502.
#[tokio::test]
async fn a_malformed_body_is_a_400() {
    let gateway = TestGateway::start().await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let head = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n", gateway.address);
    for (path, kind) in [("/api/upload", "text/plain"), ("/login", "application/json")] {
        let response = gateway
            .send_raw(&format!(
                "POST {path} HTTP/1.1\r\n{head}content-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
            ))
            .await;
        assert!(
            response.starts_with("HTTP/1.1 400 ") && response.contains("/problems/malformed-request"),
            "{response}"
        );
    }
}

/// Transfer codings are hop-by-hop: the upstream could not decode the body (RFC 9112 §6.1).
#[tokio::test]
async fn a_transfer_coding_other_than_chunked_is_a_400() {
    let gateway = TestGateway::start().await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let head = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n", gateway.address);
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (codings, status) in
        [("chunked", "200"), ("Chunked", "200"), ("gzip, chunked", "400"), ("chunked, chunked", "400")]
    {
        let request = format!("POST /api/upload HTTP/1.1\r\n{head}transfer-encoding: {codings}\r\n\r\n{chunks}");
        let response = gateway.send_raw(&request).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{codings}: {response}");
    }
}

/// RFC 9112 §3.2.
#[tokio::test]
async fn a_request_without_exactly_one_host_is_a_400() {
    let gateway = TestGateway::start().await;
    for (hosts, status) in [("", "400"), ("host: a\r\nhost: b\r\n", "400"), ("host: a\r\n", "200")] {
        let response = gateway.send_raw(&format!("GET /healthz HTTP/1.1\r\n{hosts}connection: close\r\n\r\n")).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{hosts}: {response}");
    }
    // HTTP/1.0 does not require the header.
    assert!(gateway.send_raw("GET /healthz HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200 "));
}

#[tokio::test]
async fn upgrades_and_trace_are_rejected() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let upgrade = browser.request(Method::GET, "/api/socket").header("connection", "upgrade");
    let response = browser.fetch(upgrade.header("upgrade", "websocket").body(Body::empty()).unwrap()).await;
    response.assert_problem(501, "upgrade-refused");
    let trace = browser.request(Method::TRACE, "/api/me").body(Body::empty()).unwrap();
    let trace = browser.fetch(trace).await;
    trace.assert_problem(405, "method-not-allowed");
    assert!(trace.headers["allow"].to_str().unwrap().contains("GET"));
    let h2c = browser.request(Method::GET, "/api/me").header("connection", "upgrade").header("upgrade", "h2c");
    assert_eq!(browser.fetch(h2c.body(Body::empty()).unwrap()).await.status, 200);
}

/// A client whose SYN is dropped retries only after a second. Other systems may have shorter accept queues.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn five_hundred_clients_can_connect_at_once() {
    let kit = TestServer::start().await.unwrap();
    let settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    // The gateway does not accept yet.
    let listening = Gateway::new(settings).listen().await.unwrap();
    let address = listening.address().unwrap();
    let connections = (0..500).map(|_| timeout(Duration::from_millis(900), TcpStream::connect(address)));
    for connected in futures_util::future::join_all(connections).await {
        assert!(matches!(connected, Ok(Ok(_))), "{connected:?}");
    }
}

/// The gateway responds or closes the connection, and continues to serve others.
#[tokio::test]
async fn malformed_requests_do_not_stop_the_gateway() {
    let gateway = TestGateway::start_with(|settings| {
        settings.client_timeout = Duration::from_millis(300);
        settings.idle_connection_timeout = Duration::from_millis(300);
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let cookie = browser.cookie.clone().unwrap();
    let host = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\n", gateway.address);
    let cases = [
        String::new(),
        "P".to_owned(),
        "PRI * HTTP/2.0\r\n".to_owned(),
        "\0\0\0\0".to_owned(),
        "GET\r\n\r\n".to_owned(),
        format!("GET /api/me HTTP/1.1\r\n{host}"),
        format!("CONNECT /api/me:443 HTTP/1.1\r\n{host}\r\n"),
        format!("CONNECT example.com:443 HTTP/1.1\r\n{host}\r\n"),
        format!("OPTIONS * HTTP/1.1\r\n{host}\r\n"),
        format!("GET /api/{} HTTP/1.1\r\n{host}\r\n", "a".repeat(60_000)),
        format!("GET http://elsewhere.example/api/me HTTP/1.1\r\n{host}\r\n"),
        format!("POST /api/me HTTP/1.1\r\n{host}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST /api/me HTTP/1.1\r\n{host}content-length: -1\r\n\r\n"),
        format!("POST /api/me HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\nzz\r\n"),
        format!("POST /api/me HTTP/1.1\r\n{host}content-length: 100\r\n\r\nshort"),
        format!("GET /api/me HTTP/1.1\r\n{host}connection: \u{ff},,;=\r\n\r\n"),
        format!("GET /api/me HTTP/1.1\r\nhost: a b c\r\ncookie: {cookie}\r\n\r\n"),
        format!("POST /login HTTP/1.1\r\n{host}content-type: application/json\r\ncontent-length: 9\r\n\r\n{{"),
    ];
    for case in cases {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(case.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // The gateway closes the connection, at the latest after its time-outs.
        let closed = timeout(Duration::from_secs(5), stream.read_to_end(&mut response)).await;
        assert!(closed.is_ok(), "{case:?}");
        let response = String::from_utf8_lossy(&response);
        assert!(!response.starts_with("HTTP/1.1 500"), "{case:?}: {response}");
    }
    assert_eq!(browser.get("/api/me").await.status, 200);
}
