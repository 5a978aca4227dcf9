//! Streaming and backpressure in both directions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::test_gateway::TestGateway;

/// The data of one frame.
static PART: [u8; 64 * 1024] = [0; 64 * 1024];

const MEBIBYTE: usize = 1 << 20;

#[tokio::test]
async fn bodies_are_streamed_in_both_directions() {
    let gateway = TestGateway::start().await;
    let browser = gateway.browser("ada").await;
    let (parts, coming) = mpsc::channel::<Bytes>(1);
    let body = stream::unfold(coming, async |mut coming| Some((Ok::<_, std::io::Error>(coming.recv().await?), coming)));
    let request = browser.request(Method::POST, "/api/echo").body(Body::from_stream(body)).unwrap();
    let response = tokio::spawn({
        let browser = browser.clone();
        async move { browser.send(request).await }
    });
    parts.send("part 0".into()).await.unwrap();
    let mut echo = timeout(Duration::from_secs(5), response).await.unwrap().unwrap().into_body();
    for number in 1..10 {
        // Each part comes back before the next is sent.
        let back = timeout(Duration::from_secs(5), echo.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(back.into_data().unwrap(), format!("part {}", number - 1));
        parts.send(format!("part {number}").into()).await.unwrap();
    }
    drop(parts);
    assert_eq!(echo.collect().await.unwrap().to_bytes(), "part 9");
}

#[tokio::test]
async fn the_clients_backpressure_reaches_the_upstream() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let endless = async move || {
        let count = count.clone();
        Body::from_stream(stream::repeat_with(move || {
            count.fetch_add(PART.len(), Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&PART))
        }))
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(endless)), |_| {}).await;
    let browser = gateway.browser("ada").await;
    let mut body = browser.send(browser.request(Method::GET, "/api/x").body(Body::empty()).unwrap()).await.into_body();
    body.frame().await.unwrap().unwrap();
    // Only the buffers of the sockets are filled.
    let settled = settled(&sent).await;
    assert!(settled < 32 * MEBIBYTE, "{settled}");
    let mut read = 0;
    while read < 64 * MEBIBYTE {
        read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    assert!(sent.load(Ordering::Relaxed) < read + 32 * MEBIBYTE);
    drop(body);
    // The client's disconnect ends the request to the upstream.
    self::settled(&sent).await;
}

#[tokio::test]
async fn the_upstreams_backpressure_reaches_the_client() {
    let never_reads = async |body: Body| -> Body {
        std::future::pending::<()>().await;
        body
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(never_reads)), |settings| {
        settings.body_limit = u64::MAX;
    });
    let gateway = gateway.await;
    let browser = gateway.browser("ada").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let endless = Body::from_stream(stream::repeat_with(move || {
        count.fetch_add(PART.len(), Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&PART))
    }));
    let request = browser.request(Method::POST, "/api/x").body(endless).unwrap();
    let call = tokio::spawn(async move { browser.send(request).await });
    let settled = settled(&sent).await;
    assert!((1..32 * MEBIBYTE).contains(&settled), "{settled}");
    call.abort();
}

/// Waits until a counter stops growing.
async fn settled(counter: &AtomicUsize) -> usize {
    loop {
        let before = counter.load(Ordering::Relaxed);
        sleep(Duration::from_millis(300)).await;
        if before > 0 && counter.load(Ordering::Relaxed) == before {
            return before;
        }
    }
}

/// A client that does not read its response must not occupy the upstream without limit.
#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off() {
    let (gateway, open) = endless_responses(Duration::from_millis(300)).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!("GET /api/x HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\n\r\n", gateway.address);
    stream.write_all(request.as_bytes()).await.unwrap();
    reached(&open, 1).await;
    reached(&open, 0).await;
}

/// The connection stays alive, and its other streams continue.
#[tokio::test]
async fn a_stream_that_its_client_stops_reading_is_cut_off() {
    let (gateway, open) = endless_responses(Duration::from_millis(300)).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let get = |path: &str| {
        let request = Request::get(format!("http://{}{path}", gateway.address)).header("cookie", &cookie);
        client.request(request.body(Body::empty()).unwrap())
    };
    let (unread, read) = (get("/api/x").await.unwrap(), get("/api/x").await.unwrap());
    let reading = tokio::spawn(async move {
        let mut body = read.into_body();
        while body.frame().await.unwrap().is_ok() {}
    });
    reached(&open, 1).await;
    assert!(!reading.is_finished());
    reading.abort();
    // The truncated body ends in an error.
    assert!(unread.into_body().collect().await.is_err());
    assert_eq!(get("/healthz").await.unwrap().status(), 200);
}

/// Starts a gateway with this client time-out, and counts the open endless responses of its upstream.
pub(crate) async fn endless_responses(client_timeout: Duration) -> (TestGateway, Arc<AtomicUsize>) {
    struct Held(Arc<AtomicUsize>);
    impl Drop for Held {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let endless = async move || {
        count.fetch_add(1, Ordering::Relaxed);
        let held = Held(count.clone());
        Body::from_stream(stream::repeat_with(move || {
            let _ = &held;
            Ok::<_, std::io::Error>(Bytes::from_static(&PART))
        }))
    };
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(endless)), |settings| {
        settings.client_timeout = client_timeout;
    });
    (gateway.await, open)
}

pub(crate) async fn reached(counter: &AtomicUsize, count: usize) {
    let reached = async {
        while counter.load(Ordering::Relaxed) != count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), reached).await.unwrap();
}

#[tokio::test]
async fn http_2_requests_are_served() {
    let gateway = TestGateway::start().await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    gateway.kit.expire_access_tokens();
    let calls = (0..20).map(|number| {
        let request = Request::post(format!("http://{}/api/headers?{number}", gateway.address))
            .header("origin", format!("http://{}", gateway.address))
            // HTTP/2 may split cookies into several headers.
            .header("cookie", "theme=dark")
            .header("cookie", &cookie);
        client.request(request.body(Body::from("data")).unwrap())
    });
    for response in futures_util::future::join_all(calls).await {
        let response = response.unwrap();
        assert_eq!(response.status(), 200);
        let seen = response.into_body().collect().await.unwrap().to_bytes();
        let seen: serde_json::Value = serde_json::from_slice(&seen).unwrap();
        assert_eq!(seen["headers"]["x-forwarded-host"][0], gateway.address.to_string());
        assert!(seen["headers"].get("cookie").is_none());
        assert_eq!(seen["body_length"], 4);
    }
    assert_eq!(gateway.kit.counters().granted, 1);
}
