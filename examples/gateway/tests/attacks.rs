//! The memory that clients can take by not going on, of a gateway in a process of its own.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/certificates.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod certificates;
#[path = "support/http2.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod http2;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod program;
#[path = "support/test_gateway.rs"]
#[expect(dead_code, reason = "shared by several test suites")]
mod test_gateway;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tower_auth_refresh_testkit::TestServer;

use self::certificates::Certificates;
use self::http2::{END_HEADERS, END_STREAM, HEADERS, SETTINGS, WINDOW_UPDATE, frame, headers};
use self::program::Program;
use self::test_gateway::{Browser, serve};

const MEBIBYTE: u64 = 1 << 20;

static PART: [u8; 256 * 1024] = [0; 256 * 1024];

/// Starts a gateway in front of an API with endless responses, and signs a user in.
async fn signed_in() -> (Program, String, TestServer) {
    signed_in_with(&[]).await
}

async fn signed_in_with(settings: &[&str]) -> (Program, String, TestServer) {
    let kit = TestServer::start().await.unwrap();
    let endless =
        async || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&PART))));
    let upstream = serve(Router::new().fallback(any(endless))).await;
    let limits = ["--requests-in-flight=5000", "--max-connections=5000"];
    let mut command = program::command(&["--upstream", &upstream, "--auth", &kit.origin(), "--listen=127.0.0.1:0"]);
    let program = Program::start_command(command.args(limits).args(settings).env("RUST_LOG", "off"));
    let mut browser = Browser::at(program.address);
    assert_eq!(browser.login("ada", "correct horse").await.status, 204);
    (program, browser.cookie.unwrap(), kit)
}

/// Waits until the memory of a program has stopped growing, and checks how much an attack has added.
async fn assert_added(attack: &str, program: &Program, before: Option<u64>, limit: u64) {
    let Some(before) = before else { return println!("skipped: no /proc on this system") };
    let mut last = 0;
    loop {
        sleep(Duration::from_millis(700)).await;
        let now = program.resident_memory().unwrap();
        if now <= last + MEBIBYTE / 4 {
            break;
        }
        last = now;
    }
    let added = program.resident_memory().unwrap().saturating_sub(before);
    println!("{attack}: {} KiB", added / 1024);
    assert!(added < limit, "{attack}: {added} bytes");
}

/// Opens a connection of HTTP/2 with large windows and these requests, and reads nothing.
async fn stalled_streams(program: &Program, cookie: &str, count: u32) -> TcpStream {
    let mut stream = http2::connect(program.address).await;
    let window = (1_u32 << 30).to_be_bytes();
    let mut bytes = frame(SETTINGS, 0, 0, &[&[0, 4], &window[..]].concat());
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &window));
    let fields =
        [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/api/x"), ("cookie", cookie)];
    let block = headers(&fields);
    for number in 0..count {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block));
    }
    stream.write_all(&bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn stalled_downloads_take_bounded_memory() {
    let (program, cookie, _kit) = signed_in().await;
    let before = program.resident_memory();
    let mut stalled = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        let request = format!("GET /api/x HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    assert_added("200 stalled downloads", &program, before, 80 * MEBIBYTE).await;
}

#[tokio::test]
async fn stalled_downloads_over_http_2_take_bounded_memory() {
    let (program, cookie, _kit) = signed_in().await;
    let before = program.resident_memory();
    let _stalled = stalled_streams(&program, &cookie, 200).await;
    assert_added("200 stalled downloads over HTTP/2", &program, before, 80 * MEBIBYTE).await;
}

#[tokio::test]
async fn the_streams_of_one_session_take_bounded_memory() {
    let (program, cookie, _kit) = signed_in().await;
    let before = program.resident_memory();
    let mut stalled = Vec::new();
    for _ in 0..19 {
        stalled.push(stalled_streams(&program, &cookie, 200).await);
    }
    assert_added("3,800 streams of one session", &program, before, 96 * MEBIBYTE).await;
}

#[tokio::test]
async fn unfinished_heads_take_bounded_memory() {
    let (program, ..) = signed_in().await;
    let before = program.resident_memory();
    let mut unfinished = Vec::new();
    let head = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(60_000));
    for _ in 0..500 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        unfinished.push(stream);
    }
    // Two buffers of 64 KiB each, while one that is full is copied into a larger one, and 16 KiB for the rest.
    assert_added("500 unfinished heads", &program, before, 500 * (2 * 64 + 16) * 1024).await;
}

#[tokio::test]
async fn idle_connections_take_bounded_memory() {
    let (program, ..) = signed_in().await;
    let before = program.resident_memory();
    let mut idle = Vec::new();
    for number in 0..1000 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        }
        idle.push(stream);
    }
    assert_added("1,000 idle connections", &program, before, 32 * MEBIBYTE).await;
}

/// Uploads whose clients stop in the middle.
#[tokio::test]
async fn unfinished_uploads_take_bounded_memory() {
    let (program, cookie, _kit) = signed_in().await;
    let before = program.resident_memory();
    let mut unfinished = Vec::new();
    let head = format!("POST /api/x HTTP/1.1\r\nhost: a\r\ncookie: {cookie}\r\nx-requested-with: x\r\n");
    let begun = format!("{head}content-length: 1000000\r\n\r\n{}", "x".repeat(60_000));
    for _ in 0..200 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        unfinished.push(stream);
    }
    assert_added("200 unfinished uploads", &program, before, 112 * MEBIBYTE).await;
}

/// Reads a response whose length is known.
async fn read_response(stream: &mut TcpStream, has_body: bool) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = str::from_utf8(&head).unwrap();
    if has_body {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
    }
}

/// Each login is one of another user, from another address.
#[tokio::test]
async fn the_tables_of_the_limits_take_bounded_memory() {
    let settings = [
        "--trusted-proxy=127.0.0.1",
        "--requests-in-flight-per-address=10",
        "--logins-in-flight-per-address=10",
        "--sessions-per-user=3",
        "--max-sessions=100",
    ];
    let (program, cookie, _kit) = signed_in_with(&settings).await;
    let mut stream = TcpStream::connect(program.address).await.unwrap();
    let mut requests = async |addresses: std::ops::Range<u32>| {
        for address in addresses {
            let [_, a, b, c] = address.to_be_bytes();
            let forwarded = format!("x-forwarded-for: 2001:db8:{a:x}:{b:x}{c:02x}::1\r\nhost: a\r\n");
            let body = format!(r#"{{"username":"user-{address}","password":"wrong"}}"#);
            let length = body.len();
            let head = "x-requested-with: x\r\ncontent-type: application/json\r\ncontent-length:";
            let login = format!("POST /login HTTP/1.1\r\n{forwarded}{head} {length}\r\n\r\n{body}");
            let call = format!("HEAD /api/x HTTP/1.1\r\n{forwarded}cookie: {cookie}\r\n\r\n");
            for (request, has_body) in [(login, true), (call, false)] {
                stream.write_all(request.as_bytes()).await.unwrap();
                read_response(&mut stream, has_body).await;
            }
        }
    };
    requests(0..200).await;
    let before = program.resident_memory();
    requests(200..1200).await;
    assert_added("2,000 requests of 1,000 addresses and users", &program, before, 8 * MEBIBYTE).await;
}

#[tokio::test]
async fn unfinished_headers_of_the_proxy_protocol_take_bounded_memory() {
    let mut command = program::command(&["--upstream=http://127.0.0.1:1", "--auth=http://127.0.0.1:1"]);
    command.args(["--listen=127.0.0.1:0", "--max-connections=5000", "--proxy-protocol", "--trusted-proxy=127.0.0.1"]);
    let program = Program::start_command(command.env("RUST_LOG", "off"));
    let before = program.resident_memory();
    // A header of version 2 that lacks the last of its 65,535 bytes.
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &vec![0; 65_534]].concat();
    let mut unfinished = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        stream.write_all(&header).await.unwrap();
        unfinished.push(stream);
    }
    assert_added("500 unfinished headers of the PROXY protocol", &program, before, 16 * MEBIBYTE).await;
}

#[tokio::test]
async fn unfinished_handshakes_take_bounded_memory() {
    let Some(certificates) = Certificates::make("attacks") else { return };
    let mut command = program::command(&["--upstream=http://127.0.0.1:1", "--auth=http://127.0.0.1:1"]);
    command.args(["--listen=127.0.0.1:0", "--max-connections=5000", "--public-origin=https://app.example.com"]);
    command.arg("--tls-cert").arg(certificates.path("server.pem"));
    command.arg("--tls-key").arg(certificates.path("server.key"));
    let program = Program::start_command(command.env("RUST_LOG", "off"));
    let before = program.resident_memory();
    // A message of 60,000 bytes in records of 10,000, without its last record.
    let record = [&b"\x16\x03\x01\x27\x10"[..], &[0; 10_000]].concat();
    let mut hello = record.repeat(5);
    hello[5..9].copy_from_slice(b"\x01\x00\xea\x5c");
    let mut unfinished = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(program.address).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        unfinished.push(stream);
    }
    assert_added("500 unfinished handshakes", &program, before, 500 * (2 * 64 + 16) * 1024).await;
}
