//! What goes wrong behind the gateway, or before it, and what the browser hears.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use gateway::{AuthServer, Gateway, Settings};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{World, upstream_that_says};

#[tokio::test]
async fn an_upstream_that_is_down_is_a_502() {
    let kit = TestServer::start().await.unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let world = World::before(kit, &format!("http://{nobody}"), |_| {});
    let browser = world.browser("ada").await;
    browser.get("/api/me").await.is_problem(502, "upstream-failed");
    browser.post("/api/me", "data").await.is_problem(502, "upstream-failed");
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_a_502() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    world.kit.inject(Route::Api, Fault::drop_connection());
    browser.get("/api/me").await.is_problem(502, "upstream-failed");
}

#[tokio::test]
async fn an_upstream_that_hangs_is_a_504() {
    let world = World::start_with(|settings| settings.upstream_timeout = Duration::from_millis(200)).await;
    let browser = world.browser("ada").await;
    world.kit.inject(Route::Api, Fault::hang().times(1));
    let begun = Instant::now();
    browser.get("/api/me").await.is_problem(504, "upstream-too-slow");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(browser.get("/api/me").await.status, 200);
}

/// The time-out is for the upstream: a client may take longer over its body.
#[tokio::test]
async fn a_slow_upload_is_not_the_upstreams_fault() {
    let world = World::start_with(|settings| settings.upstream_timeout = Duration::from_millis(300)).await;
    let browser = world.browser("ada").await;
    let drops = stream::iter(0..8).then(|_| async {
        sleep(Duration::from_millis(100)).await;
        Ok::<_, std::io::Error>(Bytes::from_static(b"drop"))
    });
    let request = browser.request(Method::POST, "/api/upload").body(Body::from_stream(drops)).unwrap();
    assert_eq!(browser.ask(request).await.json()["body_length"], 32);
}

#[tokio::test]
async fn a_client_that_stalls_in_mid_upload_is_a_408() {
    let world = World::start_with(|settings| settings.client_timeout = Duration::from_millis(200)).await;
    let browser = world.browser("ada").await;
    let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"first")) });
    let stalled = Body::from_stream(first.chain(stream::pending()));
    let request = browser.request(Method::POST, "/api/upload").body(stalled).unwrap();
    browser.ask(request).await.is_problem(408, "request-too-slow");
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413() {
    let world = World::start_with(|settings| settings.body_limit = 10_000).await;
    let browser = world.browser("ada").await;
    assert_eq!(browser.post("/api/upload", vec![0; 10_000]).await.status, 200);
    let api = world.kit.counters().api;
    browser.post("/api/upload", vec![0; 10_001]).await.is_problem(413, "body-too-large");
    assert_eq!(world.kit.counters().api, api, "one that says so beforehand is not passed on");
    // One that doesn't is cut off.
    let pieces = stream::iter(0..11).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1000])));
    let request = browser.request(Method::POST, "/api/upload").body(Body::from_stream(pieces)).unwrap();
    browser.ask(request).await.is_problem(413, "body-too-large");
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[0; 1000])));
    let request = browser.request(Method::POST, "/api/upload").body(Body::from_stream(endless)).unwrap();
    browser.ask(request).await.is_problem(413, "body-too-large");
    assert_eq!(browser.get("/api/me").await.status, 200);
}

#[tokio::test]
async fn trouble_while_refreshing_is_a_503_and_the_session_is_kept() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    world.kit.expire_access_tokens();
    world.kit.inject(Route::Refresh, Fault::status(503).header("retry-after", "30"));
    let answer = browser.get("/api/me").await;
    answer.is_problem(503, "refresh-failed");
    assert_eq!(answer.headers["retry-after"], "30");
    assert!(!answer.clears_cookie());
    assert_eq!(browser.get("/session").await.json()["state"], "active");

    let other = world.browser("eve").await;
    world.kit.clear_faults();
    world.kit.inject(Route::Refresh, Fault::drop_connection().times(1));
    world.kit.expire_access_tokens_of("eve");
    let answer = other.get("/api/me").await;
    answer.is_problem(503, "refresh-failed");
    assert_eq!(answer.headers["retry-after"], "2");
    // Once the session has cooled down, all is well.
    let deadline = Instant::now() + Duration::from_secs(10);
    while other.get("/api/me").await.status != 200 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.kit.violations(), []);
}

#[tokio::test]
async fn a_refresh_that_hangs_is_a_503_and_the_session_is_kept() {
    let world = World::start_with(|settings| settings.refresh_timeout = Duration::from_millis(300)).await;
    let browser = world.browser("ada").await;
    world.kit.expire_access_tokens();
    world.kit.inject(Route::Refresh, Fault::hang());
    let begun = Instant::now();
    let answer = browser.get("/api/me").await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    answer.is_problem(503, "refresh-failed");
    assert_eq!(answer.headers["retry-after"], "2");
    assert!(!answer.clears_cookie());
    assert_eq!(browser.get("/session").await.json()["state"], "active");
}

/// The API refused it, so nothing has happened: the client may send it again, and had better.
#[tokio::test]
async fn a_request_too_large_to_repeat_is_to_be_sent_again() {
    let world = World::start_with(|settings| settings.body_limit = 1 << 20).await;
    world.kit.configure(|settings| settings.unread_body = tower_auth_refresh_testkit::UnreadBody::Read);
    let browser = world.browser("ada").await;
    world.kit.expire_access_tokens();
    let answer = browser.post("/api/upload", vec![7; 200_000]).await;
    answer.is_problem(503, "send-again");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(browser.post("/api/upload", vec![7; 200_000]).await.json()["body_length"], 200_000);
    assert_eq!(world.kit.counters().granted, 1);
}

#[tokio::test]
async fn an_api_that_refuses_every_token_passes_its_401_on() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    world.kit.inject(Route::Refresh, Fault::refused_token());
    world.kit.expire_access_tokens();
    let answer = browser.get("/api/me").await;
    assert_eq!(answer.status, 401);
    assert!(answer.headers.contains_key("www-authenticate"));
    assert!(!answer.clears_cookie());
}

/// A body that breaks off must not look whole.
#[tokio::test]
async fn an_answer_that_breaks_off_or_stalls_is_cut() {
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
    let world = World::with_upstream(api, |settings| settings.upstream_timeout = Duration::from_millis(300)).await;
    let browser = world.browser("ada").await;
    for path in ["/api/broken", "/api/stalled"] {
        let answer = browser.send(browser.request(Method::GET, path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.into_body().collect().await.is_err(), "{path}");
    }
}

/// Two lengths are two ideas of where an answer ends: a part must not look like the whole (RFC 9112 §6.3).
#[tokio::test]
async fn an_answer_of_two_lengths_has_that_of_its_chunks() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n";
    let upstream = upstream_that_says(answer).await;
    let world = World::before(TestServer::start().await.unwrap(), &upstream, |_| {});
    let browser = world.browser("ada").await;
    assert_eq!(browser.get("/api/x").await.body, "whole");
}

#[tokio::test]
async fn an_answer_shorter_than_it_says_is_cut() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n",
    ] {
        let upstream = upstream_that_says(answer).await;
        let world = World::before(TestServer::start().await.unwrap(), &upstream, |_| {});
        let browser = world.browser("ada").await;
        let answer = browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.into_body().collect().await.is_err());
    }
}

/// The time-out is for silence: a stream of events may last.
#[tokio::test]
async fn an_answer_may_take_longer_than_the_upstream_may_be_silent() {
    async fn events() -> Body {
        Body::from_stream(stream::iter(0..10).then(async |number| {
            sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>(format!("data: {number}\n\n"))
        }))
    }
    let api = Router::new().route("/api/events", any(events));
    let world = World::with_upstream(api, |settings| settings.upstream_timeout = Duration::from_millis(400)).await;
    let told = world.browser("ada").await.get("/api/events").await.body;
    assert_eq!(told.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"data: ")).count(), 10);
}

/// Not the upstream's fault, which has not even seen the end of it.
#[tokio::test]
async fn a_body_that_is_malformed_is_a_400() {
    let world = World::start().await;
    let cookie = world.browser("ada").await.cookie.unwrap();
    let head = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n", world.address);
    for (path, kind) in [("/api/upload", "text/plain"), ("/login", "application/json")] {
        let answer = world
            .raw(&format!(
                "POST {path} HTTP/1.1\r\n{head}content-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
            ))
            .await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("/problems/malformed-request"), "{answer}");
    }
}

/// The upstream would not know what to make of it: codings are between the client and the gateway (RFC 9112 §6.1).
#[tokio::test]
async fn a_request_of_another_transfer_coding_is_a_400() {
    let world = World::start().await;
    let cookie = world.browser("ada").await.cookie.unwrap();
    let head = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\nconnection: close\r\n", world.address);
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (codings, status) in
        [("chunked", "200"), ("Chunked", "200"), ("gzip, chunked", "400"), ("chunked, chunked", "400")]
    {
        let request = format!("POST /api/upload HTTP/1.1\r\n{head}transfer-encoding: {codings}\r\n\r\n{chunks}");
        let answer = world.raw(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{codings}: {answer}");
    }
}

/// RFC 9112 §3.2.
#[tokio::test]
async fn a_request_has_one_host() {
    let world = World::start().await;
    for (hosts, status) in [("", "400"), ("host: a\r\nhost: b\r\n", "400"), ("host: a\r\n", "200")] {
        let answer = world.raw(&format!("GET /healthz HTTP/1.1\r\n{hosts}connection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{hosts}: {answer}");
    }
    // It came later than HTTP/1.0.
    assert!(world.raw("GET /healthz HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200 "));
}

#[tokio::test]
async fn nobody_gets_another_protocol() {
    let world = World::start().await;
    let browser = world.browser("ada").await;
    let upgrade = browser.request(Method::GET, "/api/socket").header("connection", "upgrade");
    let answer = browser.ask(upgrade.header("upgrade", "websocket").body(Body::empty()).unwrap()).await;
    answer.is_problem(501, "upgrade-refused");
    let trace = browser.request(Method::TRACE, "/api/me").body(Body::empty()).unwrap();
    let trace = browser.ask(trace).await;
    trace.is_problem(405, "method-not-allowed");
    assert!(trace.headers["allow"].to_str().unwrap().contains("GET"));
    let h2c = browser.request(Method::GET, "/api/me").header("connection", "upgrade").header("upgrade", "h2c");
    assert_eq!(browser.ask(h2c.body(Body::empty()).unwrap()).await.status, 200);
}

/// Whoever is turned away there tries again only a second later. (Other systems may allow no such crowd.)
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_crowd_that_connects_at_once_has_room_to_wait() {
    let kit = TestServer::start().await.unwrap();
    let settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    // It does not accept yet.
    let listening = Gateway::new(settings).listen().unwrap();
    let address = listening.address().unwrap();
    let crowd = (0..500).map(|_| timeout(Duration::from_millis(900), TcpStream::connect(address)));
    for connected in futures_util::future::join_all(crowd).await {
        assert!(matches!(connected, Ok(Ok(_))), "{connected:?}");
    }
}

/// Whatever is sent, the gateway answers something or hangs up, and goes on.
#[tokio::test]
async fn nonsense_is_survived() {
    let world = World::start_with(|settings| settings.client_timeout = Duration::from_millis(300)).await;
    let browser = world.browser("ada").await;
    let cookie = browser.cookie.clone().unwrap();
    let host = format!("host: {}\r\ncookie: {cookie}\r\nx-requested-with: x\r\n", world.address);
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
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(case.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The gateway hangs up, at the latest after its time-outs.
        let closed = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "{case:?}");
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 500"), "{case:?}: {answer}");
    }
    assert_eq!(browser.get("/api/me").await.status, 200);
}
