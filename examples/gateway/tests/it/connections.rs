//! Connections: how long they stay open without a request, how many there are, and what floods them.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use gateway::{AuthServer, Gateway, Settings};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tower_auth_refresh_testkit::TestServer;

use crate::http2::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, connect,
    frame, headers, read_frame,
};
use crate::test_gateway::{Browser, TestGateway};

/// More than any of these tests takes, on a loaded machine too.
const LONG: Duration = Duration::from_secs(20);

/// Waits until the gateway has closed a connection.
async fn closed(stream: &mut TcpStream) {
    let mut discarded = [0; 4096];
    timeout(LONG, async { while stream.read(&mut discarded).await.is_ok_and(|length| length > 0) {} }).await.unwrap();
}

/// Checks without waiting if the gateway has closed a connection. What it has sent is discarded.
fn is_closed(stream: &TcpStream) -> bool {
    let mut discarded = [0; 4096];
    loop {
        match stream.try_read(&mut discarded) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

async fn get(stream: &mut TcpStream, path: &str, more: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{more}\r\n").as_bytes()).await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(response).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    head
}

/// Starts a gateway in front of an API whose responses never end.
async fn with_endless_responses(change: impl FnOnce(&mut gateway::Settings)) -> TestGateway {
    let endless = async || {
        let first = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"first")) });
        Body::from_stream(first.chain(stream::pending()))
    };
    TestGateway::with_upstream(Router::new().fallback(any(endless)), change).await
}

/// Receives the head of an endless response and keeps its connection.
async fn open_stream(browser: &Browser) -> Response<Incoming> {
    let response = browser.send(browser.request(Method::GET, "/api/events").body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), 200);
    response
}

#[tokio::test]
async fn an_http_2_connection_without_requests_is_closed() {
    let gateway = TestGateway::start_with(|settings| settings.idle_connection_timeout = Duration::from_millis(500));
    let gateway = gateway.await;
    // The library answers every PING.
    for requests in [0, 1] {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        let connection = tokio::spawn(connection);
        for _ in 0..requests {
            let request = Request::get(format!("http://{}/healthz", gateway.address)).body(Body::empty()).unwrap();
            sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        }
        timeout(LONG, connection).await.unwrap().unwrap().unwrap();
        drop(sender);
    }
}

/// It says that it will close, and then doesn't wait for ever.
#[tokio::test]
async fn an_http_2_client_that_ignores_the_end_of_its_connection_is_cut_off() {
    let gateway = TestGateway::start_with(|settings| {
        settings.idle_connection_timeout = Duration::from_millis(300);
        settings.client_timeout = Duration::from_millis(300);
    });
    let mut stream = connect(gateway.await.address).await;
    let mut goodbye = false;
    let end = async {
        while let Ok(frame) = read_frame(&mut stream).await {
            goodbye |= frame.kind == GOAWAY;
        }
    };
    timeout(LONG, end).await.unwrap();
    assert!(goodbye);
}

#[tokio::test]
async fn a_connection_with_an_open_response_is_not_idle() {
    let idle = Duration::from_millis(300);
    let gateway = with_endless_responses(|settings| settings.idle_connection_timeout = idle).await;
    let browser = gateway.browser("ada").await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let url = format!("http://{}/api/events", gateway.address);
    let request = Request::get(url).header("cookie", browser.cookie.clone().unwrap()).body(Body::empty()).unwrap();
    let mut bodies = [open_stream(&browser).await.into_body(), client.request(request).await.unwrap().into_body()];
    for body in &mut bodies {
        body.frame().await.unwrap().unwrap();
        assert!(timeout(idle * 5, body.frame()).await.is_err(), "the response goes on");
    }
}

/// The time-out of clients limits the head of a request, not the time between two.
#[tokio::test]
async fn a_connection_is_kept_between_requests_for_longer_than_the_client_timeout() {
    let gateway = TestGateway::start_with(|settings| {
        settings.client_timeout = Duration::from_millis(300);
        settings.idle_connection_timeout = Duration::from_secs(3);
    });
    let mut stream = TcpStream::connect(gateway.await.address).await.unwrap();
    for _ in 0..2 {
        assert!(get(&mut stream, "/healthz", "").await.starts_with("HTTP/1.1 200 "));
        sleep(Duration::from_millis(900)).await;
    }
    assert!(!is_closed(&stream));
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut_off_after_the_client_timeout() {
    let gateway = TestGateway::start_with(|settings| settings.client_timeout = Duration::from_millis(300)).await;
    for requests in [0, 1] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        for _ in 0..requests {
            get(&mut stream, "/healthz", "").await;
        }
        let (mut reading, mut writing) = stream.into_split();
        // A byte from time to time doesn't prolong it.
        let sending = tokio::spawn(async move {
            while writing.write_all(b"GET / HTTP/1.1\r\nx: y").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
        });
        let mut discarded = Vec::new();
        let _ = timeout(LONG, reading.read_to_end(&mut discarded)).await.unwrap();
        sending.abort();
    }
}

/// A client may send a request before it can know of the shutdown.
#[tokio::test]
async fn a_kept_connection_is_served_once_more_after_the_shutdown_has_begun() {
    let kit = TestServer::start().await.unwrap();
    let settings = Settings::new(&kit.origin(), AuthServer::Json(kit.origin())).unwrap();
    let listening = Gateway::new(settings).listen().await.unwrap();
    let address = listening.address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(listening.serve(async {
        let _ = stopped.await;
    }));
    let mut kept = TcpStream::connect(address).await.unwrap();
    assert!(!get(&mut kept, "/healthz", "").await.contains("connection: close"));
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    get(&mut idle, "/healthz", "").await;
    drop(stop);
    // Ignored for the time of a handshake, then refused: the shutdown has begun.
    loop {
        match timeout(Duration::from_millis(20), TcpStream::connect(address)).await {
            Ok(Ok(_)) => sleep(Duration::from_millis(1)).await,
            Ok(Err(_refused)) => break,
            Err(_ignored) => {}
        }
    }
    let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(kept.try_write(request).unwrap(), request.len());
    assert_eq!(silent.try_write(request).unwrap(), request.len());
    for stream in [&mut kept, &mut silent] {
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("connection: close\r\n"), "{response}");
    }
    closed(&mut idle).await;
    timeout(LONG, serving).await.unwrap().unwrap();
}

/// Opens connections that send no whole request, of each kind.
async fn open_idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for number in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        match number % 4 {
            0 => {}
            1 => stream.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap(),
            // The connection may have to make room before it is answered.
            2 => stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap(),
            _ => stream = connect(address).await,
        }
        idle.push(stream);
    }
    idle
}

#[tokio::test]
async fn idle_connections_make_room_for_others() {
    let gateway = TestGateway::start_with(|settings| settings.max_connections = Some(8)).await;
    let idle = open_idle(gateway.address, 40).await;
    let browser = timeout(LONG, gateway.browser("ada")).await.unwrap();
    assert_eq!(timeout(LONG, browser.get("/api/me")).await.unwrap().status, 200);
    let deadline = Instant::now() + LONG;
    while idle.iter().filter(|stream| !is_closed(stream)).count() > 8 {
        assert!(Instant::now() < deadline, "more connections than allowed are open");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_connection_waits_while_all_others_have_requests() {
    let gateway = with_endless_responses(|settings| settings.max_connections = Some(3)).await;
    let browser = gateway.browser("ada").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        // The connection of the last one is busy, so each is a new one.
        open.push(open_stream(&browser).await);
    }
    let mut waiting = TcpStream::connect(gateway.address).await.unwrap();
    let answer = get(&mut waiting, "/healthz", "");
    tokio::pin!(answer);
    assert!(timeout(Duration::from_millis(500), &mut answer).await.is_err());
    open.pop();
    assert!(timeout(LONG, answer).await.unwrap().starts_with("HTTP/1.1 200 "));
}

/// Connects from an address of loopback.
async fn connect_from(address: [u8; 4], gateway: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(gateway).await.unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let gateway = with_endless_responses(|settings| settings.max_connections_per_address = Some(3)).await;
    let browser = gateway.browser("ada").await;
    let cookie = format!("cookie: {}\r\n", browser.cookie.clone().unwrap());
    drop(browser);
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = connect_from([127, 0, 0, 2], gateway.address).await;
        assert!(get(&mut stream, "/api/events", &cookie).await.starts_with("HTTP/1.1 200 "));
        open.push(stream);
    }
    // All of them have requests.
    closed(&mut connect_from([127, 0, 0, 2], gateway.address).await).await;
    assert!(open.iter().all(|stream| !is_closed(stream)));
    let mut other = connect_from([127, 0, 0, 3], gateway.address).await;
    assert!(timeout(LONG, get(&mut other, "/healthz", "")).await.unwrap().starts_with("HTTP/1.1 200 "));
    // An idle one of the address makes room.
    drop(open.pop());
    for _ in 0..10 {
        let mut stream = connect_from([127, 0, 0, 2], gateway.address).await;
        if timeout(LONG, async { stream.write_all(b"GET /healthz HTTP/1.1\r\n").await }).await.unwrap().is_err() {
            continue;
        }
        open.push(stream);
    }
    assert!(!is_closed(&open[0]) && !is_closed(&open[1]), "connections with requests stay");
}

/// Frames that cost the gateway work and carry no request.
#[tokio::test]
async fn a_flood_of_control_frames_is_hung_up_on() {
    let gateway = TestGateway::start().await;
    let window = 1_u32.to_be_bytes();
    let get = headers(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/healthz")]);
    let post = headers(&[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/healthz")]);
    let floods: [(&str, Vec<u8>, Vec<u8>); 9] = [
        ("PING", vec![], frame(PING, 0, 0, &[0; 8])),
        ("answers to PING", vec![], frame(PING, ACK, 0, &[0; 8])),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[])),
        ("long SETTINGS", vec![], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100].repeat(20))),
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, &window)),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])),
        ("unknown frames", vec![], frame(0xbe, 0, 0, b"?")),
        ("DATA without data", frame(HEADERS, END_HEADERS, 1, &post), frame(DATA, 0, 1, &[])),
        ("RST_STREAM", frame(HEADERS, END_HEADERS | END_STREAM, 1, &get), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
    ];
    for (name, first, flood) in floods {
        let (mut reading, mut writing) = connect(gateway.address).await.into_split();
        let block = flood.repeat(100);
        let sending = async move {
            writing.write_all(&first).await?;
            for _ in 0..2_000 {
                writing.write_all(&block).await?;
            }
            std::io::Result::Ok(())
        };
        let reading = async move { while read_frame(&mut reading).await.is_ok() {} };
        let flooded = async {
            tokio::select! { _ = sending => {}, () = reading => {} }
        };
        let started = Instant::now();
        timeout(LONG, flooded).await.unwrap_or_else(|_| panic!("{name}: no end"));
        assert!(started.elapsed() < LONG / 2, "{name}: {:?}", started.elapsed());
    }
}

/// Requests that are withdrawn at once (CVE-2023-44487).
#[tokio::test]
async fn a_flood_of_withdrawn_requests_is_hung_up_on() {
    let gateway = TestGateway::with_upstream(Router::new().fallback(any(std::future::pending::<()>)), |_| {}).await;
    let cookie = gateway.browser("ada").await.cookie.unwrap();
    let get = headers(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/api/x"),
        ("cookie", &cookie),
    ]);
    let (mut reading, mut writing) = connect(gateway.address).await.into_split();
    let sending = async move {
        for stream in (1..2_000_000).step_by(2) {
            let request = frame(HEADERS, END_HEADERS | END_STREAM, stream, &get);
            writing.write_all(&[request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()).await?;
        }
        std::io::Result::Ok(())
    };
    let reading = async move { while read_frame(&mut reading).await.is_ok() {} };
    let sent = async {
        tokio::select! { sent = sending => sent.is_ok(), () = reading => false }
    };
    assert!(!timeout(LONG, sent).await.expect("no end"), "a million withdrawn requests");
}

/// The PINGs and window updates of an ordinary client are no flood.
#[tokio::test]
async fn control_frames_beside_requests_are_no_flood() {
    let gateway = TestGateway::start().await;
    let mut stream = connect(gateway.address).await;
    let get = headers(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/healthz")]);
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(100);
    for number in 0..30 {
        stream.write_all(&pings).await.unwrap();
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &get)).await.unwrap();
        let answered = async {
            loop {
                let frame = read_frame(&mut stream).await.unwrap();
                if frame.kind == DATA && frame.flags & END_STREAM > 0 {
                    return assert_eq!((frame.stream, &frame.payload[..]), (number * 2 + 1, &b"ok\n"[..]));
                }
            }
        };
        timeout(LONG, answered).await.unwrap();
    }
}
